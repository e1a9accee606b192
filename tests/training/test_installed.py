"""Where a package is not installed, each command says so in a line, with what installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if f"{name}." .startswith("PACKAGE."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""
RECIPES = ["recipes/sample_s2r2.yaml", "recipes/sample_simclr.yaml"]
PLACES = ["--shards", "x", "--run", "OUT"]
TRAIN = ["train.py", *PLACES, "--steps", "1"]
COMPARE = ["-m", "tools.compare", *RECIPES, "--seconds", "3", "--out", "OUT"]


def ended(package: str, words: list[str], tmp_path: Path, **more: str) -> tuple[int, str, str]:
    """Run a command where a package cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK.replace("PACKAGE", package))
    words = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    ran = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), **more},
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torch", TRAIN),
        ("torch", ["-m", "tools", "train", *PLACES]),
        ("torch", ["-m", "tools.preview", "x"]),
        ("torch", ["-m", "tools.bench", "feed", "--shards", "x"]),
        ("torch", ["-m", "tools.tune", "--shards", "x"]),
        ("torch", ["-m", "tools.demo"]),
        ("torch", ["-m", "tools.evaluate", "x"]),
        ("torch", ["-m", "tools.mine_pairs", "--shards", "x", "--encoder", "y", "--out", "OUT"]),
        ("torch", ["-m", "tools.replay", "x"]),
        ("torch", COMPARE),
        ("rich", ["-m", "tools.select", "x", "y"]),
        ("jsonargparse", ["-m", "tools.verify", "x"]),
        ("nvidia.dali", TRAIN),
        ("nvidia.dali", ["-m", "tools.preview", "x"]),
        ("nvidia.dali", ["-m", "tools.demo"]),
        ("nvidia.dali", COMPARE),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]),
)
def test_a_missing_package_is_one_line(package: str, words: list[str], tmp_path: Path) -> None:
    code, out, err = ended(package, words, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: the package {package} is not installed") and err.count("\n") == 1
    assert "uv pip install -e '.[cuda13]'" in err
    assert not (tmp_path / "out").exists()


def test_tracebacks_are_shown_on_demand_and_for_files_of_our_own(tmp_path: Path) -> None:
    _, _, err = ended("torch", TRAIN, tmp_path, VIEWRANK_TRACEBACK="1")
    assert "Traceback" in err and "No module named 'torch'" in err
    code, _, err = ended("training.schedule", TRAIN, tmp_path)
    assert code == 1 and "Traceback" in err
