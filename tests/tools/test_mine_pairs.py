"""From a trained encoder to a pair set and a run on it, by the commands that users type."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.features import embed
from pipeline.images import Images
from shards.health.verification import verify
from shards.layout import ShardSet, open_shards
from shards.shard_index import lines_of
from shards.source.source import Sample
from shards.survey import rows_of
from shards.tar import component
from shards.writing.write import write
from tests.conftest import Pictures
from tests.program import arguments, losses, train
from tools import mine_pairs, preview
from training import exported
from training.command_line import call
from training.run import checkpoint, run_folder, state_file
from training.settings import parse
from training.trained import open_encoder

SAMPLES = 32


class Families(Pictures):
    """Four pictures, eight times each with a little noise; the label is the picture."""

    def __getitem__(self, index: int) -> Sample:
        noise = np.random.default_rng(1000 + index).integers(-8, 9, (32, 32, 3))
        pixels = (self.pixels(index % 4).astype(int) + noise).clip(0, 255).astype(np.uint8)
        return Sample(key=f"{index:06d}", image=pixels, label=index % 4, id=index, metadata={})


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write(Families(SAMPLES), tmp_path_factory.mktemp("families") / "set")


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that is saved before its first step."""
    run = tmp_path_factory.mktemp("miner") / "run"
    settings = parse(arguments(shard_set, run, "--steps", "1")[1:])
    method = settings.config.method
    run_folder.prepare(run, settings, taken=False)
    parts = {checkpoint.METHOD: method.state_dict(), checkpoint.OPTIMIZER: {}}
    for name, part in {**parts, checkpoint.rank_file(0): {}}.items():
        checkpoint.write_part(run, 0, name, state_file.pieces(part))
    checkpoint.commit(run, 0, {"seconds": 0.0, "world_size": 1, "machine": "cpu, no"})
    exported.write(run / exported.NAME, method.encoder, exported.facts(settings, shard_set, step=0))
    return run


def mine(shard_set: ShardSet, encoder: Path, out: Path, *more: str) -> None:
    words = ["mine_pairs", "--shards", shard_set.root, "--encoder", str(encoder)]
    words += ["--out", str(out), "--workers", "1", "--device", "cpu", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        call(mine_pairs.main)


def told(pair_set: ShardSet) -> dict[int, tuple[int, float]]:
    """Each sample's partner and score, as its JSON says."""
    found = {}
    for shard in pair_set.manifest.shards:
        with pair_set.tar_folder.open(f"{shard.name}.tar") as tar:
            rows, lines = rows_of(pair_set, shard), lines_of(pair_set, shard)
            for row, line in zip(rows, lines, strict=True):
                partner = json.loads(component(tar, line, "json") or b"")["partner"]
                found[row.id] = partner["id"], partner["score"]
    return found


def test_pairs_are_mined_drawn_and_trained_on(
    shard_set: ShardSet,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "pairs"
    mine(shard_set, run, out, "--keep", "0.75", "--pick", "best", "--upper", "1")
    said = capsys.readouterr().out
    pair_set = open_shards(out)
    assert verify(out, deep=True).problems == []

    # The nearest others by hand, in float64.
    trained = open_encoder(run, device="cpu")
    assert trained.size == 24, "the recipe's"
    features = embed(trained.encoder, Images(shard_set, size=24), autocast=trained.autocast)
    x_NF = torch.nn.functional.normalize(features.h_NF.double(), dim=1)
    S_NN = (x_NF @ x_NF.T).fill_diagonal_(-2)
    best_N, at_N = S_NN.max(dim=1)
    paired = best_N.argsort(descending=True)[:24].tolist()  # three quarters
    expected = {i: i for i in features.id_N.tolist()}
    for i in paired:
        expected[int(features.id_N[i])] = int(features.id_N[at_N[i]])
    assert {sample: partner for sample, (partner, _) in told(pair_set).items()} == expected
    right = sum(expected[i] % 4 == i % 4 for i in expected if expected[i] != i) / 24
    assert f"24 of {SAMPLES} images (75.0%)" in said
    assert f"{right:.1%} of the pairs have equal labels; random 22.6%" in said
    assert Image.open(f"{out}.png").size > (1000, 300)

    code, text, err = train(pair_set, tmp_path / "run", "--steps", "3", "--warmup_epochs", "0")
    assert code == 0, text + err
    assert "in turn of each image and of its partner" in text
    assert len(losses(tmp_path / "run")) == 3

    sheet = tmp_path / "views.png"
    monkeypatch.setattr(sys, "argv", ["preview", str(out), "--out", str(sheet), "--rows", "2"])
    call(preview.main)
    assert "in turn of each image and its partner" in capsys.readouterr().out and sheet.exists()


def test_thresholds_hold_and_an_exported_encoder_will_do(
    shard_set: ShardSet, run: Path, tmp_path: Path
) -> None:
    export = shutil.copy(run / "encoder.safetensors", tmp_path)
    thresholds = ["--lower", "0.9", "--upper", "0.9999", "--candidates", "3"]
    mine(shard_set, Path(export), tmp_path / "a", *thresholds)
    mine(shard_set, run, tmp_path / "b", *thresholds)
    a, b = (told(open_shards(tmp_path / name)) for name in "ab")
    assert a == b, "the same encoder, the same pairs"
    assert all(partner == i or 0.9 <= score <= 0.9999 for i, (partner, score) in a.items())
    assert any(partner != i for i, (partner, _) in a.items())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--keep", "0.5", "--lower", "0.9"], ["keep=0.5 and lower=0.9", "give one"]),
        (["--keep", "2"], ["keep=2", "up to 1"]),
        (["--candidates", "0"], ["count=0", "1 or more"]),
        (["--encoder", "nowhere"], ["nowhere does not exist"]),
        (["--sheet", "sheet.picture"], ["sheet=sheet.picture", "ends with .png"]),
    ],
)
def test_wrong_input_leaves_nothing(
    shard_set: ShardSet, run: Path, tmp_path: Path, more: list[str], words: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        mine(shard_set, run, tmp_path / "pairs", *more)
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.iterdir())


def test_a_sheet_of_before_stays_until_the_new_one_is_whole(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"before")

    def full(self: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left.*sheet\.png"):
        patch.setattr(Image.Image, "save", full)
        mine_pairs._draw(shard_set, np.arange(SAMPLES)[::-1], np.ones(SAMPLES), 0, sheet)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_an_existing_folder_is_refused_first(
    shard_set: ShardSet, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        mine(shard_set, run, tmp_path)
