"""Commands of the documentation, made smaller and typed in a folder as from a checkout there."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from shards.source.generated.generated import generate_stl10
from tests.evaluation.detection.rectangles import coco_folder, voc_folder
from tests.program import BIN, CPU, ROOT

# Flags after a command's own, which overrule those of its recipe.
SHORT = (
    "--warmup_epochs 0 --optimizer adamw --learning_rate 0.001 --batch_size 4 "
    "--shuffle_buffer 16 --device cpu --check_shards false"
)
SMALL = (
    f"{SHORT} --views.size 32 --views.count 2 --more_views [] --method.encoder SmallResNet "
    "--method.encoder.width 4 --method.hidden_size 16 --method.embedding_size 8"
)
STEPS = "--epochs null --steps 2"
SMALLER = {
    r"train\.py": f"{STEPS} {SMALL}",
    r"accelerate .*train\.py": "--run runs/several",  # another number of processes does not go on
    r"tools\.tune": f"--seconds 1 {SMALL}",
    r"tools\.bench": f"--seconds 1 {SMALL}",
    r"tools\.compare(?!.* -- )": f"-- {SMALL}",
    r"tools\.compare.* -- ": SMALL,
}
"""{what a command holds: what is added to it}."""
FEW = "--fine_tuning.epochs 1 --fine_tuning.least_steps 2 --fine_tuning.draws 1"
INSTEAD = {
    "--max_seconds 240": "--max_seconds 3",
    "--seconds 3600 --seeds 0 1 2": "--seconds 2 --seeds 0",
    "--seconds 150 --seeds 0 1 2": "--seconds 2 --seeds 0",
    "--seconds 600 --seeds 0 1 2": "--seconds 2 --seeds 0",
    "--download true": "",  # no network: it is there
    "timm:resnet50": "resnet50.pth",
    "--micro_batch_size 32": "--micro_batch_size 2",
    "--num_processes 8": "--num_processes 2 --main_process_port 0",
    "--fine_tuning.labels 0.01 0.1": f"--fine_tuning.labels 0.5 {FEW}",
    "voc_c4.yaml --train": "voc_cpu.yaml --detection.iterations 2 --train",
}
"""{part of a command: what stands there instead}."""


def commands(page: str) -> Iterator[str]:
    """Yield what a page tells to type."""
    text = (ROOT / page).read_text()
    for block in re.findall(r"```bash\n(.*?)```", text.replace("\\\n", " "), re.DOTALL):
        for line in block.splitlines():
            command = " ".join(line.partition(" # ")[0].split())
            if command and not command.startswith(("uv ", "pip ")):  # it is installed
                yield command


def small(command: str, instead: Mapping[str, str]) -> str:
    """Return a command, made smaller; `instead` is of one page, and may have all of a command."""
    if command in instead:
        return instead[command]
    for long, short in {**instead, **INSTEAD}.items():
        command = command.replace(long, short)
    more = [flags for pattern, flags in SMALLER.items() if re.search(pattern, command)]
    return " ".join([command, *more])


def typed(command: str, folder: Path, instead: Mapping[str, str]) -> str:
    """Run a command in a folder, as from a checkout there; return what it says if it fails."""
    done = subprocess.run(
        ["bash", "-c", small(command, instead)],
        cwd=folder,
        env={
            **os.environ,
            **CPU,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(folder / "hf"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    return f"{command}\n{done.stderr[-2000:]}" if done.returncode else ""


def checkout(place: Path) -> Path:
    """Make a folder as a checkout is, with images where the pages have theirs."""
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


def link(place: Path, names: Mapping[str, str]) -> None:
    """Give what was made the names that other pages have for it: {name: where it is}."""
    for name, there in names.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(place / there)
