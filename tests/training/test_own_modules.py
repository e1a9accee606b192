"""A user's own classes stand in recipes as ours do, once their module is named; no others are."""

import sys
from pathlib import Path

import pytest
import torch

from model.method import JointEmbedding
from model.objective import NTXent
from training.named_encoder import open_named, show_help
from training.own_modules import MODULES
from training.settings import Settings, parse

OBJECTIVE = """
from model.objective import NTXent

class {name}(NTXent):
    '''Half of NT-Xent.'''

    def __init__(self, *, temperature: float = 0.1, share: float = 0.5) -> None:
        super().__init__(temperature=temperature)
        self.share = share

    def loss(self, z_VAD, gallery_views, samples):
        return self.share * super().loss(z_VAD, gallery_views, samples)
"""
ENCODER = """
from torch import nn
from model.encoder import Encoder

class Colours(Encoder):
    '''Mean colours, scaled.

    Args:
        scale: what they are multiplied by.
    '''

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.feature_size = scale, 3
        self.network = nn.Identity()

    def forward(self, images_NCHW):
        return self.scale * self.network(images_NCHW).mean((2, 3))
"""
RUN = ["--shards", ".", "--run", ".", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def the_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def parsed(path: str) -> Settings:
    return parse([*RUN, "--method.objective", path, "--method.objective.share", "0.25"])


def test_a_file_s_class_trains_as_ours_do_and_its_run_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_half.py").write_text(OBJECTIVE.format(name="HalfNTXent"))
    with pytest.raises(ValueError, match=rf"must be one of .*NTXent.*{MODULES} names its module"):
        parsed("own_half.HalfNTXent")
    monkeypatch.setenv(MODULES, f" {tmp_path / 'own_half.py'}, training.own_modules")

    method = parsed("own_half.HalfNTXent").config.method
    assert isinstance(method, JointEmbedding)
    z_VAD = torch.randn(4, 6, 8)
    torch.testing.assert_close(method.objective(z_VAD), 0.25 * NTXent()(z_VAD))

    recipe = tmp_path / "config.yaml"
    recipe.write_text(parsed("own_half.HalfNTXent").yaml())
    again = parse(["--config", str(recipe)]).config.method
    assert isinstance(again, JointEmbedding)
    assert "share=0.25" in str(again.objective)
    assert parsed("HalfNTXent").resolved == parsed("own_half.HalfNTXent").resolved


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own_missing.py", None, "names .*own_missing.py, but there is no such file"),
        ("own_wrong.py", "class", "own_wrong.py, which cannot be imported: SyntaxError"),
        ("own_needs.py", "import not_there", "cannot be imported: ModuleNotFoundError: No module"),
        ("model.py", OBJECTIVE.format(name="Other"), "import model finds another module"),
        ("timm.py", OBJECTIVE.format(name="Other"), "import timm finds another module"),
        ("nothing.here", None, "names .*nothing.here, which cannot be imported"),
    ],
)
def test_what_cannot_be_imported_ends_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    monkeypatch.setenv(MODULES, name)
    with pytest.raises(ValueError, match=message):
        parse(RUN)


def test_an_encoder_of_one_s_own_is_named_as_ours_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_colours.py").write_text(ENCODER)
    monkeypatch.setenv(MODULES, str(tmp_path / "own_colours.py"))
    for name in ("own_colours.Colours", "Colours"):
        words = ["--encoder", name, "--encoder.scale", "2"]
        encoder = open_named(None, words, size=16, device="cpu").encoder
        images_NCHW = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(encoder(images_NCHW), 2 * images_NCHW.mean((2, 3)))
        with pytest.raises(SystemExit):
            show_help(["--encoder.help", name], "embed")
        assert "--encoder.scale" in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"does not exist.*nearest is Colours.*{MODULES} names"):
        open_named(None, ["--encoder", "own_colour.Colour"], size=16, device="cpu")
