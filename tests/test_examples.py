"""The programs in examples/ do what their heads say, as a user starts them."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ENCODER = "run/encoder.safetensors"  # a run with own classes needs them to be opened
TRAINED = """--config own_cpu --shards digits --run run --steps 12 --warmup_epochs 0 --batch_size 16
    --device cpu --views.count 2 --views.size 32 --more_views [] --evaluation_train none
    --evaluation_test none --evaluate_every none --method.gallery all
    --views.policy own_augmentation.PosterizedViews --views.policy.probability 0.5
    --method.objective own_objective.HardestTriplet --method.objective.margin 0.3
    --method.hidden_size 32"""


def ran(folder: Path, *words: str, own: tuple[str, ...] = ()) -> str:
    """Return what a program prints that is started in a folder."""
    modules = ",".join(str(EXAMPLES / name) for name in own)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VIEWRANK_MODULES": modules},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard set of the own data set, and a run with own objective and views."""
    folder = tmp_path_factory.mktemp("examples")
    words = ["shard", "digits", "--scale", "4", "--limit", "256", "--out", "digits"]
    ran(folder, "-m", "viewrank", *words, own=("own_dataset.py",))
    own = ("own_objective.py", "own_augmentation.py")
    ran(folder, "-m", "viewrank", "train", *TRAINED.split(), own=own)
    return folder


def test_an_own_data_set_is_trained_on_with_an_own_objective_and_own_views(trained: Path) -> None:
    config = (trained / "run" / "config.yaml").read_text()
    assert "class_path: own_objective.HardestTriplet" in config
    assert "class_path: own_augmentation.PosterizedViews" in config
    assert (trained / "run" / "encoder.safetensors").exists()


@pytest.fixture
def printed_by(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """A function that runs an example on that run, in this process, which has torch already."""

    def run(name: str, *words: str) -> str:
        monkeypatch.chdir(trained)
        monkeypatch.setattr("sys.argv", [name, ENCODER, "digits", *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_an_own_evaluation_reads_encoder_and_shards(printed_by: Callable[..., str]) -> None:
    printed = printed_by("own_evaluation.py", "--images", "40")
    own, other = (float(each) for each in re.findall(r" (-?\d\.\d{3})", printed))
    assert "40 images" in printed and own > other


def test_plain_pytorch_reads_encoder_and_shards(printed_by: Callable[..., str]) -> None:
    printed = printed_by("outside.py", "--epochs", "20")
    (right,) = re.findall(r"([\d.]+)% of the training images", printed)
    assert "256 images" in printed and float(right) > 50  # ten classes


def test_the_own_objective_is_its_formula() -> None:
    spec = spec_from_file_location("own_objective", EXAMPLES / "own_objective.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    z_VAD = torch.randn(3, 5, 4, dtype=torch.float64)
    unit_VAD = F.normalize(z_VAD, dim=-1)
    losses = []
    for v in range(3):
        for a in range(5):
            query = unit_VAD[v, a]
            same = [float(query @ unit_VAD[u, a]) for u in range(2) if u != v]
            rest = [float(query @ unit_VAD[u, b]) for u in range(2) for b in range(5) if b != a]
            losses.append(max(0.0, 0.3 + max(rest) - min(same)))
    found = module.HardestTriplet(margin=0.3)(z_VAD, gallery_views=2)
    assert float(found) == pytest.approx(sum(losses) / len(losses))


@pytest.mark.slow
def test_the_notebook_ends_with_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for text in code:
        exec(text.replace('SECONDS = Path("first_steps"), 60', 'SECONDS = Path("x"), 10'), names)
    assert names["SECONDS"] == 10 and names["found"].size == (8 * 64, 6 * 64)
    assert names["nearest"][:, 0].tolist() == list(range(6))  # each finds itself first
