"""The commands of README, tutorials and guides are typed in their order; only smaller."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image

from shards.source.generated.generated import generate_stl10
from tests.evaluation.detection.rectangles import coco_folder, voc_folder
from tests.program import BIN, CPU, ROOT

pytestmark = pytest.mark.slow

# Flags after a command's own, which overrule those of its recipe.
SMALL = """--warmup_epochs 0 --optimizer adamw --learning_rate 0.001
    --views.size 32 --views.count 2 --more_views [] --batch_size 4 --method.encoder SmallResNet
    --method.encoder.width 4 --method.hidden_size 16 --method.embedding_size 8
    --shuffle_buffer 16 --device cpu --check_shards false"""
SMALLER = {
    "train.py": f"--epochs null --steps 2 {SMALL}",
    "accelerate": "--run runs/several",  # another number of processes does not go on
    "tools.tune": f"--seconds 1 {SMALL}",
    "tools.bench": f"--seconds 1 {SMALL}",
    "tools.compare": f"-- {SMALL}",
}
INSTEAD = {
    "--max_seconds 240": "--max_seconds 3",
    "--seconds 3600 --seeds 0 1 2": "--seconds 2 --seeds 0",
    "--seconds 150 --seeds 0 1 2": "--seconds 2 --seeds 0",
    "--download true": "",  # no network: it is there
    "--num_processes 8": "--num_processes 2 --main_process_port 0",
    "--fine_tuning.labels 0.01 0.1": "--fine_tuning.labels 0.5 --fine_tuning.epochs 1",
    "recipes/detection/voc_c4.yaml": "recipes/detection/voc_cpu.yaml --detection.iterations 2",
}


def commands(page: str) -> Iterator[str]:
    """Yield what a page tells to type."""
    text = (ROOT / page).read_text()
    for block in re.findall(r"```bash\n(.*?)```", text.replace("\\\n", " "), re.DOTALL):
        for line in block.splitlines():
            command = line.partition(" # ")[0].strip()
            if command and not command.startswith("uv "):  # it is installed
                yield command


def small(command: str) -> list[str]:
    """Return the words of a command, made smaller."""
    for long, short in INSTEAD.items():
        command = command.replace(long, short)
    words = shlex.split(command)
    for name, more in SMALLER.items():
        if name in words:
            words += shlex.split(more)
    return words


def typed(command: str, folder: Path) -> str:
    """Run a command in a folder, as from a checkout there; return what it says if it fails."""
    words = small(command)
    environment = {**os.environ, **CPU, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")}
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    programs = {
        "python": [sys.executable],
        "viewrank": [sys.executable, "-m", "viewrank"],
        "accelerate": [str(BIN / "accelerate")],
    }
    if words[0] in programs:
        words[0:1] = programs[words[0]]
    else:  # of the shell's
        words = ["sh", "-c", command]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return f"{command}\n{done.stderr[-2000:]}" if done.returncode else ""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as a checkout is, with images where the pages have theirs."""
    place = tmp_path / "place"
    place.mkdir()
    for name in ("recipes", "examples", "train.py"):
        (place / name).symlink_to(ROOT / name)
    photos(place / "my/photos", 40)
    generate_stl10(place / "data/raw/stl10", train=40, test=20, unlabeled=20)
    coco_folder(place / "data/raw/coco", range(24))
    coco_folder(place / "data/raw/coco", range(24, 40), "val2017")
    voc = place / "data/raw/VOCdevkit/VOC2007"
    voc_folder(voc, range(24))
    voc_folder(voc, range(24, 36), "test")
    return place


def photos(folder: Path, count: int) -> None:
    """Draw images of two classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("light", "dark")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        top = (255, 120)[number % 2]
        pixels = random.integers(top - 110, top, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def other_names(place: Path) -> None:
    """Give what the tutorials made the names that the guides have for it."""
    for name, there in {
        "runs/mine": "own_cpu",
        "data/stl10/train": "../stl10-train",
        "data/stl10/test": "../stl10-test",
        "data/cifar10": "stl10",
        "data/cifar10-train20k": "stl10-train",
        "data/cifar10-test4k": "stl10-test",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(there)
    torch.save(torchvision.models.resnet18().state_dict(), place / "resnet18.pth")


# In an order in which each finds what those before it made.
TUTORIALS = ["own_images", "own_code", "stl10_on_a_gpu", "coco_and_detection"]
PAGES = [f"docs/tutorials/{name}.md" for name in TUTORIALS]
GUIDES = [f"docs/guides/{name}.md" for name in ("busy", "comparing", "using_a_run")]


def test_every_command_of_the_readme_works(place: Path) -> None:
    said = [typed(command, place) for command in commands("README.md")]
    assert len(said) > 3 and not any(said), "\n".join(filter(None, said))


def test_every_command_of_tutorials_and_guides_works(place: Path) -> None:
    said = [typed(command, place) for page in PAGES for command in commands(page)]
    other_names(place)
    said += [typed(command, place) for page in GUIDES for command in commands(page)]
    assert len(said) > 28 and not any(said), "\n".join(filter(None, said))


def test_every_tutorial_is_typed() -> None:
    assert sorted(TUTORIALS) == sorted(path.stem for path in (ROOT / "docs/tutorials").glob("*.md"))
