"""What is measured on: shard sets made on the spot, of images carried along or drawn."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image

from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from benchmarks.sharding import write_stl10_binaries
from shards.engine import LocalWorkers
from shards.layout import MANIFEST
from shards.source.coco import COCO
from shards.source.folder import ImageFolder
from shards.source.stl10 import STL10
from shards.writing.prepare import Preparation
from shards.writing.write import write

PHOTO = (640, 480)


def stl10(place: Sizes, encoding: str) -> Path:
    """Return generated images of 96 px in STL-10's layout, as png, jpeg:95 or raw."""
    return place.data / f"stl10-{encoding.replace(':', '-')}"


def photos(place: Sizes) -> Path:
    """Return JPEGs of 640×480, no two alike, cut from COCO's."""
    return place.data / "photos"


def cifar10(place: Sizes, split: str) -> Path:
    """Return a split of CIFAR-10, as pixels: images so small are decoded once and for all."""
    return place.data / f"cifar10-{split}"


def stl10_labelled(place: Sizes, split: str) -> Path:
    """Return STL-10's labelled images, as pixels: train, of 5,000, or test, of 8,000."""
    return place.data / f"stl10-labelled-{split}"


def coco2014(place: Sizes) -> Path:
    """Return 5,000 images of MS-COCO's train2014, squashed to 256×256."""
    return place.data / "coco2014-train"


def make_stl10(place: Sizes, encoding: str) -> BoxedMeasurement:
    """Return what writes `stl10`."""

    def run() -> Row:
        folder = place.data / "stl10_binary"
        if not folder.exists():
            partial_folder = place.data / "stl10_binary.partial"
            partial_folder.mkdir(parents=True, exist_ok=True)
            write_stl10_binaries(partial_folder, place.of(100_000, 96))
            partial_folder.rename(folder)
        source = STL10(root=folder, split="unlabeled")
        return _shard(stl10(place, encoding), source, encoding)

    return BoxedMeasurement(
        f"shards: STL-10, {encoding}",
        run,
        _seconds(place, stl10(place, encoding), 25.0),
        kept=False,
    )


def make_photos(place: Sizes) -> BoxedMeasurement:
    """Return what writes `photos`."""

    def run() -> Row:
        if (photos(place) / MANIFEST).exists():
            return {}
        folder = place.data / "photos-images"
        originals = _files(place.coco, place.data / "coco")
        count, workers = place.of(20_000, 24), len(os.sched_getaffinity(0))
        folder.mkdir(parents=True, exist_ok=True)
        cut = partial(_cut, originals, folder)
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(cut, range(count), chunksize=max(1, count // workers // 8)))
        row = _shard(photos(place), ImageFolder(root=folder), "original")
        shutil.rmtree(folder)
        return row

    return BoxedMeasurement("shards: photos", run, _seconds(place, photos(place), 35.0), kept=False)


def make_cifar10(place: Sizes) -> BoxedMeasurement:
    """Return what writes both splits of `cifar10`."""

    def run() -> Row:
        row: Row = {}
        for split in ("train", "test"):
            files = _files(place.cifar10, place.data / "cifar10-images", folder=split)
            source, few = ImageFolder(root=files[0].parents[1]), place.of(None, 512)
            row |= {split: _shard(cifar10(place, split), source, "raw", limit=few)}
        return row

    seconds = _seconds(place, cifar10(place, "test"), 15.0)
    return BoxedMeasurement("shards: CIFAR-10", run, seconds, kept=False)


def make_stl10_labelled(place: Sizes) -> BoxedMeasurement:
    """Return what writes both splits of `stl10_labelled`."""

    def run() -> Row:
        root = _unzipped(place.stl10, place.data / "stl10-images", "stl10")
        few = place.of(None, 64)
        return {
            split: _shard(
                stl10_labelled(place, split), ImageFolder(root=root / split), "raw", limit=few
            )
            for split in ("train", "test")
        }

    seconds = _seconds(place, stl10_labelled(place, "test"), 15.0)
    return BoxedMeasurement("shards: STL-10, labelled", run, seconds, kept=False)


def make_coco2014(place: Sizes) -> BoxedMeasurement:
    """Return what writes `coco2014`."""

    def run() -> Row:
        root = _unzipped(place.coco2014, place.data / "coco2014-images", "coco")
        source = COCO(root=root, split="train2014")
        return _shard(coco2014(place), source, "original", limit=place.of(None, 64))

    seconds = _seconds(place, coco2014(place), 15.0)
    return BoxedMeasurement("shards: COCO, squashed", run, seconds, kept=False)


def _seconds(place: Sizes, out: Path, real: float) -> float:
    return 2.0 if (out / MANIFEST).exists() else place.of(real, 2.0)


def _shard(
    out: Path, source: STL10 | ImageFolder | COCO, encoding: str, *, limit: int | None = None
) -> Row:
    if not (out / MANIFEST).exists():
        shutil.rmtree(out, ignore_errors=True)
        engine, how = LocalWorkers(len(os.sched_getaffinity(0))), Preparation(encoding=encoding)
        write(source, str(out), engine=engine, preparation=how, limit=limit)
    tars = list(out.glob("*.tar"))
    return {"shards": len(tars), "mb": round(sum(tar.stat().st_size for tar in tars) / 1e6, 1)}


def _files(where: Path | None, unpacked: Path, folder: str = "") -> list[Path]:
    """Return the images of a folder or tar, in order; a tar is unpacked first.

    Raises:
        ValueError: there are none.
    """
    if where is None:
        raise ValueError("no images to measure on were given; give --coco and --cifar10.")
    root = where
    if where.is_file():
        root = unpacked
        if not root.exists():
            partial_root = unpacked.with_suffix(".partial")
            shutil.rmtree(partial_root, ignore_errors=True)
            with tarfile.open(where) as tar:
                tar.extractall(partial_root, filter="data")
            partial_root.rename(root)
    found = sorted(path for path in _walk(root / folder) if path.suffix in (".jpg", ".png"))
    if not found:
        raise ValueError(f"{root / folder} holds no .jpg or .png files; give the images' folder.")
    return found


def _unzipped(given: Sequence[Path], unpacked: Path, folder: str) -> Path:
    """Return a folder that was given, or that of zips, all of which have it at their top."""
    if all(each.is_dir() for each in given):
        return given[0]
    if not unpacked.exists():
        partial_root = unpacked.with_suffix(".partial")
        shutil.rmtree(partial_root, ignore_errors=True)
        for each in given:
            with ZipFile(each) as file:
                file.extractall(partial_root)
        partial_root.rename(unpacked)
    return unpacked / folder


def _walk(root: Path) -> Iterator[Path]:
    for at, _, names in os.walk(root):
        yield from (Path(at) / name for name in names)


def _cut(originals: list[Path], folder: Path, number: int) -> None:
    """Write a window of one of the images as a JPEG of its own."""
    random = np.random.default_rng(number)
    with Image.open(originals[number % len(originals)]) as file:
        image = file.convert("RGB")
    if image.height > image.width:
        image = image.transpose(Image.Transpose.ROTATE_90)
    scale = random.uniform(0.75, 1.0)
    width = scale * min(image.width, image.height * PHOTO[0] / PHOTO[1])
    height = width * PHOTO[1] / PHOTO[0]
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    window = image.resize(PHOTO, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    window.save(folder / f"{number:06d}.jpg", quality=90)
