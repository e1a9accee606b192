"""Images of one's own in DISC21's layout: queries, references, training images, ground truth.

    python -m benchmarks.disc21_layout --held_out data/coco-val --training FOLDER --out data/disc

    OUT/queries/Q00000.jpg …   edited copies of some references, and distractors, in mixed order
    OUT/references/R000000.jpg …   OUT/training/T000000.jpg …   (or .png, as what they are made of)
    OUT/ground_truth.csv   query_id,reference_id; empty for a distractor

Edits and their division of the images are those of `python -m tools.shard copies`. The benchmark's
own files are the same, made by others from other images.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from shards.layout import open_shards
from shards.source import Copies
from shards.source.folder import EXTENSIONS, is_image
from training.command import run_command

QUALITY = 95


def main() -> None:
    """Write the layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held_out", required=True, help="Shard set that is copied from.")
    parser.add_argument("--training", type=Path, required=True, help="Folder of other images.")
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    parser.add_argument("--queries", type=int, default=250, help="Copies.")
    parser.add_argument("--distractors", type=int, default=250, help="Queries that are none.")
    parser.add_argument("--backgrounds", type=int, default=50, help="To paste copies onto.")
    arguments = parser.parse_args()
    open_shards(arguments.held_out)  # its refusal is the better one
    training = _images(arguments.training)
    numbers = {name: getattr(arguments, name) for name in ("queries", "distractors", "backgrounds")}
    queries, references = (
        Copies(root=arguments.held_out, split=split, **numbers)
        for split in ("queries", "references")
    )
    for name in ("queries", "references", "training"):
        (arguments.out / name).mkdir(parents=True)

    names: dict[int, str] = {}
    for index in range(len(references)):
        sample = references[index]
        names[sample.id] = f"R{index:06d}"
        _save(sample.image, arguments.out / "references" / names[sample.id])
    order = np.random.RandomState(0).permutation(len(queries))
    truth = ["query_id,reference_id"]
    for index, place in enumerate(order.tolist()):
        sample = queries[place]
        _save(sample.image, arguments.out / "queries" / f"Q{index:05d}")
        truth.append(f"Q{index:05d},{names.get(sample.label, '')}")
    (arguments.out / "ground_truth.csv").write_text("\n".join(truth) + "\n")
    for index, path in enumerate(training):
        name = f"T{index:06d}{path.suffix.lower()}"
        shutil.copyfile(path, arguments.out / "training" / name)
    print(f"{len(queries)} queries, {len(references)} references, {len(training)} training images")


def _images(folder: Path) -> list[Path]:
    """Return the files in a folder, and below it, that have the name of an image.

    Raises:
        ValueError: there is none.
    """
    files = (path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    if found := sorted(path for path in files if not path.name.startswith(".")):
        return found
    raise ValueError(
        f"{folder} holds no images ({', '.join(EXTENSIONS[:6])}, …), neither itself nor in folders "
        "below. Give a folder of images that are in neither set as --training."
    )


def _save(image: bytes | np.ndarray, path: Path) -> None:
    """Write an image as JPEG; the bytes of one stay as they are."""
    data = image
    if isinstance(image, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
        data = buffer.getvalue()
    assert isinstance(data, bytes)
    path.with_suffix(".jpg" if data[:2] == b"\xff\xd8" else ".png").write_bytes(data)


if __name__ == "__main__":
    run_command(main)
