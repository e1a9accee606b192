"""Images of coloured rectangles on noise, in the layouts of COCO and of VOC."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.detection.detection_set import TrueBoxes

COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230)}
Drawn = tuple[NDArray[np.uint8], list[tuple[str, tuple[int, int, int, int]]]]
"""Pixels, and rectangles: colour, and x, y, width, height."""


def drawn(index: int) -> Drawn:
    """Return image `index`: wide or tall, with 0 to 3 rectangles apart from each other."""
    random = np.random.default_rng(index)
    width, height = [(96, 64), (64, 80)][index % 2]
    pixels = random.integers(90, 140, (height, width, 3), dtype=np.uint8)
    found = []
    for part in range(index % 4):
        left = part * width // 3
        w, h = int(random.integers(12, width // 3)), int(random.integers(12, height))
        x, y = left + int(random.integers(0, width // 3 - w + 1)), int(random.integers(height - h))
        color = ["red", "blue"][int(random.integers(2))]
        pixels[y : y + h, x : x + w] = COLOURS[color]
        found.append((color, (x, y, w, h)))
    return pixels, found


def coco_folder(root: Path, images: range, split: str = "train2017", **more: Any) -> Path:
    """Write images in COCO's layout; each of `more` goes into every annotation."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 7, "name": "red"}, {"id": 9, "name": "blue"}]
    for index in images:
        pixels, rectangles = drawn(index)
        name = f"{index:06d}.png"
        Image.fromarray(pixels).save(root / split / name)
        height, width, _ = pixels.shape
        content["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        for color, box in rectangles:
            about = {"image_id": index, "category_id": 7 if color == "red" else 9, "bbox": box}
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, **about, **more})
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def voc_folder(root: Path, images: range, split: str = "trainval") -> Path:
    """Write images in VOC's layout; the first rectangle of each is difficult."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    names = [f"{index:06d}" for index in images]
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    for index, name in zip(images, names, strict=True):
        pixels, rectangles = drawn(index)
        with (root / "JPEGImages" / f"{name}.jpg").open("wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")  # decoded by content, not by name
        height, width, _ = pixels.shape
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        objects = "".join(
            f"<object><name>{color}</name><difficult>{int(number == 0)}</difficult>"
            f"<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><bndbox>"
            f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            "</bndbox></object>"
            for number, (color, (x, y, w, h)) in enumerate(rectangles)
        )
        text = f"<annotation>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def boxes_of(*rows: tuple[int, int, list[float], bool, bool]) -> TrueBoxes:
    """Return boxes of rows: image, label, [x, y, w, h], crowd, difficult."""
    image, label, box, crowd, difficult = zip(*rows, strict=True)
    box_M4 = np.array(box, np.float64)
    return TrueBoxes(
        np.array(image),
        np.array(label),
        box_M4,
        box_M4[:, 2:].prod(1),
        np.array(crowd, bool),
        np.array(difficult, bool),
    )
