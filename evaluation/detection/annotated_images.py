"""Images with boxes: of a shard set, of a COCO folder, of a VOC folder. Each is read when asked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from shards import image as images
from shards.image import Pixels
from shards.layout import ShardSet
from shards.one_line import one_line
from shards.shard_index import lines_of
from shards.source.coco import COCO
from shards.survey import rows_of
from shards.tar import component, components, read_part

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
        """Yield what is known of each image, in their order, without reading any.

        Raises:
            ValueError: what cannot be read, and what to do.
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
                return _decoded(data, line.split(" ", 4)[3])
            height, width, channels = np.frombuffer(read_part(tar, *places["shape.i64"]), "<i8")
        return np.frombuffer(data, np.uint8).reshape(height, width, channels)


class COCOImages(AnnotatedImages):
    """The images of a folder in COCO's layout, see `shards.source.coco`.

    Args:
        root: folder that holds annotations/ and the images.
        splits: one or more, such as train2017.
    """

    def __init__(self, root: Path, splits: Sequence[str]) -> None:
        self.location = f"{root}, {' and '.join(splits)}"
        self._splits = [COCO(root=root, split=split) for split in splits]
        self._sizes: list[tuple[int, int]] = []

    def facts(self) -> Iterator[Facts]:
        """See `AnnotatedImages.facts`."""
        self._sizes.clear()
        for split in self._splits:
            for index in range(len(split)):
                found = split.facts(index)
                if "width" not in found or "height" not in found:
                    height, width = _decoded(split[index].image, found["file"]).shape[:2]
                    found |= {"width": width, "height": height}
                self._sizes.append((found["width"], found["height"]))
                yield found

    def pixels(self, index: int) -> Pixels:
        """See `AnnotatedImages.pixels`."""
        frame = self._sizes[index]
        for split in self._splits:
            if index < len(split):
                return _decoded(split[index].image, split.facts(index)["file"], frame=frame)
            index -= len(split)
        raise IndexError(index)


class VOCImages(AnnotatedImages):
    """The images of a folder in PASCAL VOC's layout.

    Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015,
    http://host.robots.ox.ac.uk/pascal/VOC. Corners there are pixels counted from 1, the last one
    included; here a box is an area, so xmin 1 and xmax 10 are x 0 and width 10.

    Args:
        root: folder that holds JPEGImages/, Annotations/ and ImageSets/Main/SPLIT.txt; or one
            such folder for each of several splits.
        splits: one or more, such as trainval, or VOC2007/trainval in the folder VOC2007.
    """

    def __init__(self, root: Path, splits: Sequence[str]) -> None:
        self.location = f"{root}, {' and '.join(splits)}"
        self._names: list[tuple[Path, str]] = []
        for split in splits:
            inside, _, name = split.rpartition("/")
            folder = root / inside
            listed = folder / "ImageSets" / "Main" / f"{name}.txt"
            if not listed.is_file():
                there = sorted(path.stem for path in listed.parent.glob("*.txt"))
                raise ValueError(
                    f"{listed} is not there, the names of the images of split {split}, one a line; "
                    f"splits here are {', '.join(there[:8]) or 'none'}."
                )
            words = (line.split() for line in listed.read_text().splitlines())
            self._names += [(folder, found[0]) for found in words if found]

    def facts(self) -> Iterator[Facts]:
        """See `AnnotatedImages.facts`."""
        for folder, name in self._names:
            yield {"file": f"{name}.jpg", **_voc_facts(folder / "Annotations" / f"{name}.xml")}

    def pixels(self, index: int) -> Pixels:
        """See `AnnotatedImages.pixels`."""
        folder, name = self._names[index]
        path = folder / "JPEGImages" / f"{name}.jpg"
        return _decoded(path.read_bytes(), str(path))


def in_folder(root: Path, splits: Sequence[str]) -> AnnotatedImages:
    """Return the images of some splits of a folder in the layout of COCO or of VOC.

    Raises:
        ValueError: it has neither.
        FileNotFoundError: a split is not there.
    """
    if not splits:
        raise ValueError(f"of {root} no split is named; name one or more, such as [train2017].")
    folder = root / splits[0].rpartition("/")[0]
    if (folder / "JPEGImages").is_dir():
        return VOCImages(root, splits)
    if root.is_dir() and (
        (root / "annotations").is_dir() or list(root.glob("*/_annotations.coco.json"))
    ):
        return COCOImages(root, splits)
    raise ValueError(
        f"{root} has neither JPEGImages/, Annotations/ and ImageSets/, as VOC, nor annotations/, "
        "as COCO. Name the folder that holds them."
    )


def _voc_facts(path: Path) -> Facts:
    """Return what an XML file of VOC says."""
    try:
        tree = ElementTree.parse(path).getroot()
        size = tree.find("size")
        width, height = (float(_text(size, side)) for side in ("width", "height"))
        annotations = []
        for each in tree.findall("object"):
            box = each.find("bndbox")
            x, y, right, bottom = (float(_text(box, n)) for n in ("xmin", "ymin", "xmax", "ymax"))
            annotations.append(
                {
                    "bbox": [x - 1, y - 1, right - x + 1, bottom - y + 1],
                    "category": _text(each, "name"),
                    "difficult": int(each.findtext("difficult") or 0),
                }
            )
    except (ElementTree.ParseError, ValueError) as error:
        reason = one_line(str(error))
        raise ValueError(f"{path} is no annotation as VOC has it: {reason}.") from None
    return {"width": width, "height": height, "annotations": annotations}


def _text(of: ElementTree.Element | None, name: str) -> str:
    found = None if of is None else of.findtext(name)
    if found is None:
        raise ValueError(f"it lacks {name}")
    return found.strip()


def _decoded(data: bytes | Pixels, name: str, *, frame: tuple[float, float] = (0, 0)) -> Pixels:
    """Return an image's pixels, upright.

    Args:
        data: the file.
        name: of the file, for people.
        frame: width and height as annotations have them. Where they are those of the image before
            it is turned upright, it is not turned.
    """
    if not isinstance(data, bytes):
        return data
    header = images.read_header(data)
    pixels = None if header is None else images.decode(header)
    try:
        if pixels is None:
            pixels, _ = images.upright_pixels(images.open_with_pillow(data))
        if frame[0] != frame[1] and pixels.shape[:2] == frame:  # height and width, exchanged
            pixels = np.asarray(images.open_with_pillow(data).convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{one_line(name)} cannot be decoded ({one_line(str(error))}). Bring it back whole, or "
            "take it out of the set; the same command then goes on."
        ) from None
    return pixels
