"""Images with boxes: of a shard set, of a COCO folder, of a VOC folder. Each is read when asked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards import image as images
from shards.image import Pixels
from shards.layout import ShardSet
from shards.one_line import one_line
from shards.shard_index import lines_of
from shards.source.coco import COCO
from shards.source.fitted_boxes import fitted
from shards.source.source import Sample
from shards.source.voc import VOC
from shards.survey import rows_of
from shards.tar import component, components, read_part

_THREADS, _AT_ONCE = 16, 256  # files that are asked for their size, at a time and ahead
Facts = dict[str, Any]
"""Of an image: width and height of the frame that boxes are in, and `annotations`, a list of
{bbox [x, y, w, h], category, category_id, iscrowd, area, difficult}; only the first two are needed.
"""


class AnnotatedImages(ABC):
    """Images by position, with what is known of each."""

    location: str
    """As it is written for people."""

    @abstractmethod
    def facts(self) -> Iterator[Facts]:
        """Yield what is known of each image, in their order.

        Raises:
            ValueError: what cannot be read, and what to do.
            OSError: an image cannot be read.
        """

    @abstractmethod
    def pixels(self, index: int) -> Pixels:
        """Return an image [H, W, 3]; it may be of another size than its frame.

        Raises:
            ValueError: it cannot be decoded.
            OSError: it cannot be read.
        """


class ShardedImages(AnnotatedImages):
    """The images of a shard set, with the annotations that `tools.shard` kept in their json.

    Args:
        shard_set: of any source that has annotations, such as coco.
    """

    def __init__(self, shard_set: ShardSet) -> None:
        self._shard_set = shard_set
        self.location = shard_set.root
        self._lines: list[tuple[str, str, str]] = []  # shard, extension of the image, index line

    def facts(self) -> Iterator[Facts]:
        """See `AnnotatedImages.facts`; the index of each image is kept."""
        self._lines.clear()
        for shard in self._shard_set.manifest.shards:
            lines = lines_of(self._shard_set, shard)
            with self._shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
                for row, line in zip(rows_of(self._shard_set, shard), lines, strict=True):
                    self._lines.append((shard.name, row.image, line))
                    try:
                        found = json.loads(component(tar, line, "json") or b"{}")
                    except ValueError:
                        raise ValueError(
                            f"{self.location}: the json of sample {row.key} cannot be read. "
                            f"{self._shard_set.remedy('')}"
                        ) from None
                    yield {"width": row.width, "height": row.height, **found}

    def pixels(self, index: int) -> Pixels:
        """See `AnnotatedImages.pixels`."""
        shard, extension, line = self._lines[index]
        places = {found: (offset, size) for found, offset, size, _ in components(line)}
        with self._shard_set.tar_folder.open(f"{shard}.tar") as tar:
            data = read_part(tar, *places[extension])
            if extension != "rgb":
                return _decoded((data, line.split(" ", 4)[3]))
            height, width, channels = np.frombuffer(read_part(tar, *places["shape.i64"]), "<i8")
        return np.frombuffer(data, np.uint8).reshape(height, width, channels)


class SourceImages(AnnotatedImages):
    """The images of folders in the layouts of COCO or VOC, see `shards.source`.

    Args:
        location: as it is written for people.
        sources: one or more, whose images are one after the other.
    """

    def __init__(self, location: str, sources: Sequence[COCO | VOC]) -> None:
        self.location, self._sources = location, sources

    def facts(self) -> Iterator[Facts]:
        """See `AnnotatedImages.facts`; each file is asked for its size, as in shards."""
        for source in self._sources:
            for index, file in enumerate(_with_sizes(source)):
                found = {"annotations": [], **(source.facts(index) or {})}
                found |= fitted(found, file)
                if not (found.get("width") and found.get("height")):
                    height, width, _ = _decoded(source[index]).shape
                    found |= {"width": width, "height": height}
                yield found

    def pixels(self, index: int) -> Pixels:
        """See `AnnotatedImages.pixels`."""
        for source in self._sources:
            if index < len(source):
                return _decoded(source[index])
            index -= len(source)
        raise IndexError(index)


def in_folder(root: Path, splits: Sequence[str]) -> AnnotatedImages:
    """Return the images of some splits of a folder in the layout of COCO or of VOC.

    Raises:
        ValueError: it has neither.
        FileNotFoundError: a split is not there.
    """
    if not splits:
        raise ValueError(
            f"of {root} no split is named; name one or more to train and to test on, such as "
            "--detection.train_splits train2017 --detection.test_splits val2017."
        )
    parts = [(root / folder, name) for folder, _, name in (s.rpartition("/") for s in splits)]
    location = f"{root}, {' and '.join(splits)}"
    if (root / "annotations").is_dir() or [*root.glob("*/_annotations.coco.json")]:
        return SourceImages(location, [COCO(root=root, split=split) for split in splits])
    if all([*part.glob("JPEGImages"), *part.glob("*/JPEGImages")] for part, _ in parts):
        return SourceImages(location, [VOC(root=part, split=name) for part, name in parts])
    raise ValueError(
        f"{root} has neither annotations/, as COCO, nor JPEGImages/, as VOC. Name the folder that "
        "holds them."
    )


def _with_sizes(source: COCO | VOC) -> Iterator[bytes]:
    """Yield of each image's file as much as `_with_size`; several at once, where they are far."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for start in range(0, len(source), _AT_ONCE):
            span = range(start, min(start + _AT_ONCE, len(source)))
            yield from pool.map(partial(_with_size, source), span)
    finally:  # at Ctrl-C nobody waits for the rest
        pool.shutdown(cancel_futures=True)


def _with_size(source: COCO | VOC, index: int) -> bytes:
    """Return as much of an image's file as holds its size and EXIF."""
    head = source.head(index)
    if head.startswith(b"\xff\xd8"):  # a JPEG: others may have EXIF at their end
        with suppress(ValueError):
            images.open_with_pillow(head)
            return head
    whole = source[index].image
    assert isinstance(whole, bytes)
    return whole


def _decoded(sample: Sample | tuple[bytes, str]) -> Pixels:
    """Return the pixels of a source's sample, or of a file with its name, upright."""
    data, name = (
        (sample.image, str(sample.metadata.get("file", sample.key)))
        if isinstance(sample, Sample)
        else sample
    )
    if not isinstance(data, bytes):
        return data
    header = images.read_header(data)
    pixels = None if header is None else images.decode(header)
    try:
        if pixels is None:
            pixels, _ = images.upright_pixels(images.open_with_pillow(data))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{one_line(name)} cannot be decoded ({one_line(str(error))}). Bring it back whole, or "
            "take it out of the set; the same command then goes on."
        ) from None
    return pixels
