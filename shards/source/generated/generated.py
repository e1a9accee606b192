"""The generated data set: labelled pictures made on the spot, so that a demo needs no download.

They are stored in the official layouts of STL-10 and COCO, so that what reads them is the same
code that reads the real ones. What is drawn, and how hard it is to tell apart: `draw.py`.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.source.coco import COCO
from shards.source.generated.draw import portrait, scene
from shards.source.generated.kinds import CLASSES
from shards.source.source import Sample, Source
from shards.source.stl10 import STL10
from shards.storage import is_remote

_VERSION = 1  # of the pictures: one more whenever the same seed draws other ones
_RECORD = "generated.json"
# The order is part of the seed of every picture: append only.
_SPLITS = ["train", "test", "unlabeled", "train2017", "val2017"]


class Generated(Source):
    """Pictures made on the spot: ten kinds of specimen, each with its outline and its surface.

    On first use the set is written under root: as STL-10 binaries in ROOT/stl10_binary (5,000
    images of 96 x 96, 20 seconds), or for split train2017 or val2017 as COCO in ROOT/coco (400
    scenes with boxes, 30 seconds). The same seed gives the same bytes on the same machine.
    """

    name = "sample"

    def __init__(
        self,
        *,
        root: str | Path,
        split: Literal[
            "train", "test", "unlabeled", "train+unlabeled", "train2017", "val2017"
        ] = "unlabeled",
        portion: float = 1.0,
        generation_seed: int = 0,
    ) -> None:
        """Generate the set, unless it is there.

        Args:
            root: Folder to keep the generated set in; made if missing.
            split: One large specimen an image: unlabeled (3,000 images), train (1,000), test
                (1,000) or train+unlabeled. Scenes of several: train2017 (300) or val2017 (100).
            portion: Times those numbers of images, for a smaller or a larger set.
            generation_seed: 0 or more; another seed draws other images of the same kinds.
        """
        if portion <= 0 or generation_seed < 0:
            raise ValueError(
                f"portion={portion} and generation_seed={generation_seed}; expected a portion "
                "above 0, such as 0.1, and a seed of 0 or more."
            )
        if is_remote(root):
            raise ValueError(
                f"{root} is not on this machine, where the set is generated. Give a local folder "
                "as --root; what is made of it may be written elsewhere."
            )
        root = Path(root)
        self.split = split
        if split == "train2017" or split == "val2017":
            folder = root / "coco"
            counts = {"train": _scale(300, portion), "val": _scale(100, portion)}
            if not _is_generated(folder, generation_seed, counts):
                generate_coco(folder, seed=generation_seed, **counts)
            self._stored: Source = COCO(root=folder, split=split)
        else:
            folder = root / "stl10_binary"
            counts = {
                "train": _scale(1000, portion),
                "test": _scale(1000, portion),
                "unlabeled": _scale(3000, portion),
            }
            if not _is_generated(folder, generation_seed, counts):
                generate_stl10(root, seed=generation_seed, **counts)
            self._stored = STL10(root=root, split=split)
        self.classes, self.categories = self._stored.classes, self._stored.categories
        self._settings = f"{_VERSION} {generation_seed}".encode()
        made = f"generated from seed {generation_seed}, kept in {folder}"
        self.notes = [*self._stored.notes, made]

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Sample:
        return self._stored[index]

    def label(self, index: int) -> int:
        """Return the label of a sample, without its image."""
        return self._stored.label(index)

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        return self._stored.fingerprint() + self._settings


def generate_stl10(
    root: Path, *, seed: int = 0, train: int = 1000, test: int = 1000, unlabeled: int = 3000
) -> None:
    """Write ROOT/stl10_binary: one specimen an image, 96 x 96, in STL-10's official layout.

    Labels are balanced in every ten images. An image depends on the seed, its split and its place
    only: a larger set begins with the images of a smaller one.

    Args:
        root: Folder to write into; made if missing.
        seed: 0 or more.
        train: Labelled images; 10 or more.
        test: Labelled images; 10 or more.
        unlabeled: Images without a label.

    Raises:
        FileExistsError: ROOT/stl10_binary is there and not empty.
    """
    if min(train, test) < len(CLASSES) or unlabeled < 1:
        raise ValueError(
            f"train={train}, test={test}, unlabeled={unlabeled}; expected 10 or more of the first "
            "two, for ten classes, and 1 or more of the last."
        )
    counts = {"train": train, "test": test, "unlabeled": unlabeled}
    with _written_aside(root / "stl10_binary") as folder:
        for split, count in counts.items():
            labels = [_label(seed, split, index) for index in range(count)]
            with (folder / f"{split}_X.bin").open("wb") as stored:
                for index, label in enumerate(labels):
                    image_CHW = portrait(label, _generator(seed, split, index))
                    stored.write(image_CHW.transpose(0, 2, 1).tobytes())  # column by column
            if split != "unlabeled":
                (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels))
        (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
        (folder / "fold_indices.txt").write_text(_folds(seed, train))
        _record(folder, seed, counts)


def generate_coco(root: Path, *, seed: int = 0, train: int = 300, val: int = 100) -> None:
    """Write ROOT: scenes of one to six specimens as JPEG, with boxes, in COCO's official layout.

    Images are 320 to 480 pixels wide and 240 to 360 high. A box holds what is within the image of
    a specimen, and its area is the specimen's; what stands before it is not taken off.

    Args:
        root: Folder to write; must be missing or empty.
        seed: 0 or more.
        train: Images in train2017.
        val: Images in val2017.

    Raises:
        FileExistsError: Root is there and not empty.
    """
    if min(train, val) < 1:
        raise ValueError(f"train={train}, val={val}; expected 1 or more of each.")
    with _written_aside(root) as folder:
        (folder / "annotations").mkdir()
        _write_scenes(folder, "train2017", seed, count=train, first_id=1)
        _write_scenes(folder, "val2017", seed, count=val, first_id=1 + train)
        _record(folder, seed, {"train": train, "val": val})


def _write_scenes(folder: Path, split: str, seed: int, *, count: int, first_id: int) -> None:
    """Write the images of a split and its annotations; ids are unique over both splits."""
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = _generator(seed, split, index)
        width, height = int(rng.integers(320, 481)), int(rng.integers(240, 361))
        labels = rng.integers(0, len(CLASSES), rng.integers(1, 7)).tolist()
        image_CHW, boxes = scene(labels, rng, height=height, width=width)
        image_id = first_id + index
        name = f"{image_id:012d}.jpg"
        pixels: NDArray[np.uint8] = np.ascontiguousarray(image_CHW.transpose(1, 2, 0))
        Image.fromarray(pixels).save(folder / split / name, quality=90)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for number, box in enumerate(boxes):
            annotations.append(
                {
                    "id": 10 * image_id + number,
                    "image_id": image_id,
                    "category_id": box.label + 1,
                    "bbox": [box.left, box.top, box.right - box.left, box.bottom - box.top],
                    "area": box.area,
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    categories = [
        {"id": label + 1, "name": name, "supercategory": "specimen"}
        for label, name in enumerate(CLASSES)
    ]
    instances = {
        "info": {"description": f"generated by viewrank from seed {seed}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances))


# ── Seeds ───────────────────────────────────────────────────────────────────────────────────────


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _SPLITS.index(split), index])


def _label(seed: int, split: str, index: int) -> int:
    """Every ten images in a row hold each class once, in an order of their own."""
    block, position = divmod(index, len(CLASSES))
    order = np.random.default_rng([seed, _SPLITS.index(split), block, 1])  # 1: not an image's
    return int(order.permutation(len(CLASSES))[position])


def _folds(seed: int, train: int) -> str:
    """Ten lines of a fifth of the training images each, balanced, as in the official set."""
    labels = np.array([_label(seed, "train", index) for index in range(train)])
    rng = np.random.default_rng([seed, _SPLITS.index("train"), 0, 2])
    each = max(1, train // (5 * len(CLASSES)))
    lines = []
    for _ in range(10):
        chosen = [
            rng.choice(np.flatnonzero(labels == label), each, replace=False)
            for label in range(len(CLASSES))
        ]
        lines.append(" ".join(map(str, rng.permutation(np.concatenate(chosen)).tolist())))
    return "\n".join(lines) + "\n"


def _scale(count: int, portion: float) -> int:
    """A portion of a number of images, in whole tens."""
    return max(1, round(count * portion / len(CLASSES))) * len(CLASSES)


# ── Complete or absent ──────────────────────────────────────────────────────────────────────────


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside the target; it takes the target's name when all went well."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} is there already, and nothing is overwritten. Give another root, or remove "
            "it first."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp's folders are private
        try:
            aside.rename(target)  # refused unless the target is missing or empty
        except OSError as error:
            if not (target / _RECORD).is_file():
                raise
            # Another process was faster, with the same bytes if its record says so.
            ours, theirs = (json.loads((f / _RECORD).read_text()) for f in (aside, target))
            if ours != theirs:
                raise FileExistsError(
                    f"another process has just generated {target} with other settings: {theirs}. "
                    "Give each its own root."
                ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _record(folder: Path, seed: int, counts: dict[str, int]) -> None:
    record = {"version": _VERSION, "seed": seed, **counts}
    (folder / _RECORD).write_text(json.dumps(record) + "\n")


def _is_generated(folder: Path, seed: int, counts: dict[str, int]) -> bool:
    """Is the set that is asked for complete in the folder? Refuses a folder with another one."""
    if not folder.exists():
        return False
    wanted = {"version": _VERSION, "seed": seed, **counts}
    try:
        found = json.loads((folder / _RECORD).read_text())
    except FileNotFoundError:
        raise FileExistsError(
            f"{folder} is there but has no {_RECORD}: it was not generated. Give another --root; "
            "to read real data, use source stl10 or coco."
        ) from None
    if found != wanted:
        raise FileExistsError(
            f"{folder} holds a set generated as {found}; asked for is {wanted}. Give another "
            "--root, or remove the folder."
        )
    return True
