"""PASCAL VOC in its official layout (Everingham et al. 2015, http://host.robots.ox.ac.uk/pascal/VOC)."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from shards.layout import ABSENT, PRESENT, UNKNOWN
from shards.one_line import one_line
from shards.source.fitted_boxes import HEAD, Facts, fitted
from shards.source.folder import EXTENSIONS, is_image
from shards.source.source import Names, Sample, Source, key_from
from shards.source.usual_names import is_leftover
from shards.source.voc_annotations import LARGEST, OFFICIAL, read_xml
from shards.storage import Folder, folder_at, is_remote

_IMAGES, _XML, _LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
_THREADS = 16  # in a store, where each file is a request
_AT_ONCE = 1000  # files whose content is in memory
_LOOKED_AT = 32  # images whose size is compared with their XML for a note
_OF_A_CLASS = {"-1", "0", "1"}  # beside a name, in a list such as cat_train.txt
Item = TypeVar("Item")
Result = TypeVar("Result")


class VOC(Source):
    """PASCAL VOC in its official layout, and sets of its format: boxes as metadata, multi-label.

    Layout: ROOT/JPEGImages/*.jpg, ROOT/Annotations/*.xml and, where there are splits,
    ROOT/ImageSets/Main/SPLIT.txt; ROOT may also be a folder that holds one such folder, such as
    VOCdevkit. Samples are in order of file name and have no label. Boxes go into the metadata as
    those of COCO do, in pixels of the image as it is: scaled where the XML tells another size.

    The categories are the 20 official ones or, where another name is found, all names of
    Annotations in alphabetical order. As in the development kit, an image with only difficult
    objects of a category is neither positive nor negative there.
    """

    name = "voc"

    def __init__(self, *, root: str | Path, split: str = "") -> None:
        """List the files and read the annotations.

        Args:
            root: Folder that holds JPEGImages/ and Annotations/, such as VOCdevkit/VOC2007; or one
                that holds a single such folder; local, or s3://….
            split: List in ImageSets/Main, such as trainval or test; or all, for all images, which
                is also taken where there are no lists.
        """
        self.classes: list[str] = []
        self._root = _set_in(folder_at(os.fspath(root)))
        self.origin = str(self._root)
        self._notes: list[str] = []
        xml = folder_at(self._root.path(_XML)).sizes()
        files = self._taken(split, {name[:-4] for name in xml if name.endswith(".xml")})
        self.split = split or "all"
        facts = self._read_annotations([os.path.splitext(file)[0] for file in files], xml)
        # A dictionary of annotations for each image would take kilobytes; its text takes less.
        self._files, self._annotations = Names(), Names()
        names: set[str] = set()
        for number, found in enumerate(facts):
            names |= {each["category"] for each in (found or {}).get("annotations", ())}
            if number < len(files):  # those of other splits tell their names alone
                self._files.append(files[number])
                self._annotations.append(json.dumps(found, separators=(",", ":")))
        unknown = sum(f"{os.path.splitext(file)[0]}.xml" not in xml for file in files)
        self.categories = [] if unknown == len(files) else _categories(names)
        self._columns = {name: column for column, name in enumerate(self.categories)}
        if unknown:
            self._notes.append(
                f"{unknown:,} of {len(files):,} images have no XML in {_XML}/: nothing is known of "
                "them"
            )
        self.notes = [*self._notes, *self._other_sizes()]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file = f"{_IMAGES}/{self._files[index]}"
        image, facts = self._root.read(file), self.facts(index)
        if facts is not None:
            facts = fitted(facts, image)
            facts["annotations"] = [
                each | {"category_id": self._columns[each["category"]] + 1}
                for each in facts["annotations"]
            ]
        stem, extension = os.path.splitext(self._files[index])
        return Sample(
            key=key_from(stem),
            image=image,
            label=-1,
            id=index,
            metadata={"file": file, **(facts or {})},
            extension=extension[1:],
            categories=self._told(facts),
        )

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        both = self._files.digest() + self._annotations.digest()
        return hashlib.blake2b(both, digest_size=16).digest()

    def facts(self, index: int) -> Facts | None:
        """Return what the XML of an image says, in pixels as it has them; None if there is none."""
        return json.loads(self._annotations[index])

    def _told(self, facts: Facts | None) -> bytes:
        """Return which categories are in an image."""
        if facts is None:
            return bytes([UNKNOWN]) * len(self.categories)
        told = bytearray([ABSENT]) * len(self.categories)
        for each in facts["annotations"]:
            column = self._columns[each["category"]]
            if told[column] != PRESENT:
                told[column] = UNKNOWN if each["difficult"] else PRESENT
        return bytes(told)

    # ── images ──────────────────────────────────────────────────────────────────────────────────

    def _taken(self, split: str, annotated: set[str]) -> list[str]:
        """Return the image files of a split, sorted; count and note what is absent."""
        there = self._images()
        names = folder_at(self._root.path(_LISTS)).sizes()
        lists = {name.removesuffix(".txt") for name in names if name.endswith(".txt")}
        if split in lists:
            listed, where = self._listed(f"{_LISTS}/{split}.txt", there), f"of {split}.txt"
        elif split == "all" or not (split or lists):
            listed, where = there.keys() | annotated, f"with an XML in {_XML}/"
        else:
            raise self._no_such_split(split, lists)
        absent = sorted(listed - there.keys())
        if len(absent) == len(listed):
            raise ValueError(
                f"none of {len(listed):,} images {where} is in {self._root.path(_IMAGES)}, such as "
                f"{one_line(absent[0]) if absent else 'any'}. Copy them there, or choose another "
                "--split."
            )
        if absent:
            self.absent = len(absent)
            self._notes.append(
                f"{len(absent):,} of {len(listed):,} images {where} are absent from {_IMAGES}/, "
                f"such as {one_line(absent[0])}"
            )
        return sorted(there[stem] for stem in listed & there.keys())

    def _images(self) -> dict[str, str]:
        """Return all image files by their stem, which names their XML."""
        place = folder_at(self._root.path(_IMAGES))
        _, folders, files = next(place.walk())
        there: dict[str, str] = {}
        for file in sorted(filter(is_image, files)):
            stem = os.path.splitext(file)[0]
            if stem in there:
                raise ValueError(
                    f"{place} holds {one_line(there[stem])} and {one_line(file)}, whose XML would "
                    "be the same; expected a name of its own for each. Rename or remove one."
                )
            there[stem] = file
        if not there:
            raise ValueError(
                f"{place} holds no images ({', '.join(EXTENSIONS[:6])}, …). Put those of the set "
                "there, not into folders below."
            )
        if below := [name for name in folders if not is_leftover(name)]:
            self._notes.append(
                f"{len(below):,} folders in {_IMAGES}/ are passed over, such as "
                f"{one_line(min(below))}: VOC's layout has none"
            )
        return there

    def _listed(self, path: str, there: dict[str, str]) -> set[str]:
        """Return the stems that a split's file lists, a line each."""
        stems, twice = set[str](), 0
        files = {file: stem for stem, file in there.items()}
        for line in self._root.read(path).decode("utf-8-sig", "surrogateescape").splitlines():
            name = line.strip()
            stem = files.get(name, name)  # with its ending, too
            words = name.split()
            if stem not in there and len(words) == 2 and words[1] in _OF_A_CLASS:
                raise ValueError(
                    f"{self._root.path(path)} lists images for one class: {one_line(name)!r}; "
                    "expected their names alone. Choose a --split of all classes."
                )
            twice += stem in stems
            if name:
                stems.add(stem)
        if twice:
            self._notes.append(f"{twice:,} images are listed twice, and taken once")
        return stems

    def _no_such_split(self, split: str, lists: set[str]) -> Exception:
        # Lists of one class, such as cat_train beside train, are not those to choose.
        splits = sorted(name for name in lists if name.rpartition("_")[2] not in lists - {name})
        if not splits:
            return FileNotFoundError(
                f"{self._root} has no {_LISTS}/*.txt, so no split {one_line(split)!r}. Leave "
                "--split out to take all images."
            )
        what = f"has no split {one_line(split)!r}" if split else "is in splits"
        return FileNotFoundError(
            f"{self._root} {what}; its lists are {one_line(', '.join(splits[:8]))}. Choose one as "
            "--split, or all for all images."
        )

    # ── annotations ─────────────────────────────────────────────────────────────────────────────

    def _read_annotations(self, stems: list[str], sizes: dict[str, int]) -> Iterator[Facts | None]:
        """Yield what is known of each image, then of those that have an XML and are not asked for.

        So all splits of a set have the same categories.

        Args:
            stems: of the images.
            sizes: bytes of each file in Annotations.
        """
        place, asked = folder_at(self._root.path(_XML)), {f"{stem}.xml" for stem in stems}
        names = [f"{stem}.xml" for stem in stems]
        names += sorted(name for name in sizes if name.endswith(".xml") and name not in asked)

        def read(name: str) -> Facts | ValueError | None:
            if name not in sizes:
                return None
            try:
                return read_xml(place.read(name, 0, LARGEST + 1))
            except ValueError as error:
                return error

        damaged: list[str] = []
        for name, found in zip(names, self._each(read, names), strict=True):
            if isinstance(found, ValueError):
                damaged.append(f"{one_line(name)}: {found}")
            else:
                yield found
        if damaged:
            raise ValueError(
                f"{place}: {len(damaged):,} of {len(sizes):,} files are no annotations; "
                f"{damaged[0]}. Copy such a file again, or remove it: its image is then kept "
                "without annotations."
            )

    def _other_sizes(self) -> Iterator[str]:
        """Say that boxes are scaled, if they are for any of some images that are looked at."""
        some = range(0, len(self), -(-len(self) // _LOOKED_AT))
        some = [index for index in some if self.facts(index)]
        heads = self._each(self.head, some)
        other: list[str] = []
        for index, head in zip(some, heads, strict=True):
            said = self.facts(index) or {}
            real = fitted(said, head)
            if said["annotations"] != real["annotations"]:
                other.append(
                    f"{one_line(self._files[index])}: {said['width']} x {said['height']} there, "
                    f"{real['width']} x {real['height']} as it is"
                )
        if other:
            yield (
                "boxes are scaled where the XML tells another size than the image has, as in "
                f"{len(other)} of {len(some)} that were looked at ({other[0]})"
            )

    def head(self, index: int) -> bytes:
        """Return the first bytes of an image's file, with a JPEG's size; none if unreadable."""
        try:
            return self._root.read(f"{_IMAGES}/{self._files[index]}", 0, HEAD)
        except OSError:  # the writer will find out, and count it
            return b""

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield the result for each item, in their order; several at once where they are far."""
        pool = ThreadPoolExecutor(_THREADS if is_remote(self.origin) else 1)
        try:
            for start in range(0, len(items), _AT_ONCE):
                yield from pool.map(work, items[start : start + _AT_ONCE])
        finally:  # at Ctrl-C nobody waits for the rest
            pool.shutdown(cancel_futures=True)


def _set_in(root: Folder) -> Folder:
    """Return the folder of VOC's layout: the root itself, or the only one that it holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    if not root.exists():
        raise FileNotFoundError(
            f"{root} is not a folder. Give the one that holds {_IMAGES}/ as --root."
        )
    found, tops = [], []
    for inside, folders, _ in root.walk():
        if _IMAGES in folders:
            found.append(inside)
        folders[:] = sorted(name for name in folders if not is_leftover(name))
        tops = tops if inside else list(folders)
        if _IMAGES in folders or (inside and inside != "VOCdevkit"):
            folders.clear()
    if len(found) > 1:
        raise ValueError(
            f"{root} holds several sets: {one_line(', '.join(found[:6]))}. Give one of them as "
            f"--root, such as {root.path(found[0])}."
        )
    if not found:
        raise FileNotFoundError(
            f"{root} has no {_IMAGES}/, neither itself nor in a folder below; it holds "
            f"{one_line(', '.join(tops[:6])) or 'no folders'}. Give the folder of a year, such as "
            "VOCdevkit/VOC2007, as --root."
        )
    return folder_at(root.path(found[0])) if found[0] else root


def _categories(names: set[str]) -> list[str]:
    return [*OFFICIAL] if names <= {*OFFICIAL} else sorted(names)
