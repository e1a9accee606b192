"""MS-COCO in its official layout (Lin et al. 2014, https://cocodataset.org)."""

import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.layout import ABSENT, PRESENT, UNKNOWN
from shards.one_line import few, one_line
from shards.source.coco_annotations import (
    Annotations,
    annotation_files,
    plain_id,
    read_annotations,
    splits_annotated,
)
from shards.source.fitted_boxes import HEAD, fitted
from shards.source.folder import EXTENSIONS, is_image, to_walk
from shards.source.labels import natural
from shards.source.source import Names, Sample, Source, key_from
from shards.source.usual_names import is_leftover
from shards.storage import Folder, folder_at


class COCO(Source):
    """MS-COCO in its official layout, and sets of its format: boxes and captions as metadata.

    Layout: ROOT/SPLIT/**/*.jpg or ROOT/images/SPLIT/**/*.jpg, and, where they exist, in
    ROOT/annotations instances_SPLIT.json and captions_SPLIT.json, or image_info_SPLIT.json; or
    ROOT/images/*.jpg for all splits, of which those are taken that a split's annotations list; or
    ROOT/SPLIT/_annotations.coco.json. Samples are in order of file name and have no label; boxes
    [x, y, width, height], categories, crowd flags and captions go into the metadata.

    Annotations of objects make the set a multi-label one, with the categories in the order of their
    ids; ids of one name are one category. An image has a category if any annotation says so, of a
    crowd too, as pycocotools counts (getImgIds). Of an image that is not in the annotations nothing
    is known. Boxes are in the pixels of the image as it stands upright, whose width and height are
    beside them, of an annotated image without boxes too.
    """

    name = "coco"

    def __init__(self, *, root: str | Path, split: str = "train2017") -> None:
        """List the files and read the annotations.

        Args:
            root: Folder that holds train2017/, val2017/, … or images/, and annotations/; local, or
                s3://….
            split: Folder of images under root, such as train2017, val2014 or unlabeled2017; what
                the names of its annotation files end with.
        """
        self.split = split.strip("/")
        self.classes: list[str] = []
        self._root = folder_at(os.fspath(root))
        self.origin = str(self._root)
        if not self._root.exists():
            raise FileNotFoundError(
                f"{root} is not a folder. Give the one that holds {split}/ as --root."
            )
        self._images, shared = self._folder_of_images()
        place = folder_at(self._root.path(self._images))
        files = _images_in(place)
        if not files:
            raise ValueError(
                f"{place} holds no images ({few(EXTENSIONS)}). Put those of "
                f"{self.split} there, or choose another --split."
            )
        listed = annotation_files(self._root, self.split, self._images)
        annotations = read_annotations(self._root, listed)
        facts = self._matched(annotations, files, listed)
        self.categories = [*dict.fromkeys(annotations.categories.values())]
        columns = {name: column for column, name in enumerate(self.categories)}
        self._columns = {key: columns[name] for key, name in annotations.categories.items()}
        if len(columns) < len(self._columns):
            named = Counter(annotations.categories.values())
            several = few([name for name, ids in named.items() if ids > 1], what="categories")
            annotations.notes.append(f"several ids have one name, and are one category: {several}")
        if shared:
            files = [file for file in files if file in facts]
        self.notes = [*annotations.notes, *self._what_lacks(files, facts, listed)]
        # A dictionary of annotations for each image would take kilobytes; its text takes less.
        self._files, self._annotations = Names(), Names()
        stems, names = Counter(os.path.splitext(file)[0] for file in files), set(files)
        self._long = bytearray()  # 1 where the key is made of the whole name of the file
        for file in files:
            self._files.append(file)
            stem = os.path.splitext(file)[0]
            self._long.append(stems[stem] > 1 or stem in names)
            fact = facts.pop(file, {})
            self._annotations.append(json.dumps(fact, separators=(",", ":")))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        name = self._files[index]
        stem, extension = os.path.splitext(name)
        facts = self.facts(index)
        image = self._root.read(facts["file"])
        if "annotations" in facts:
            facts |= fitted(facts, image)
        return Sample(
            key=key_from(name if self._long[index] else stem),
            image=image,
            label=-1,
            id=index,
            metadata=facts,
            extension=extension[1:],
            categories=self._shown(facts.get("annotations")),
        )

    def head(self, index: int) -> bytes:
        """Return the first bytes of an image's file, which hold a JPEG's size."""
        return self._root.read(f"{self._images}/{self._files[index]}", 0, HEAD)

    def facts(self, index: int) -> dict[str, Any]:
        """Return the metadata of a sample, without reading its image."""
        file = f"{self._images}/{self._files[index]}"
        return {"file": file, **json.loads(self._annotations[index])}

    def _shown(self, annotations: list[dict[str, Any]] | None) -> bytes:
        """Return for each category whether the annotations of an image name it."""
        if annotations is None:
            return bytes([UNKNOWN]) * len(self.categories)
        ids = {plain_id(each["category_id"]) for each in annotations if "category_id" in each}
        named = {self._columns.get(key) for key in ids}
        return bytes(PRESENT if n in named else ABSENT for n in range(len(self.categories)))

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        both = self._files.digest() + self._annotations.digest()
        return hashlib.blake2b(both, digest_size=16).digest()

    def _folder_of_images(self) -> tuple[str, bool]:
        """Return the folder of images below the root, and whether other splits share it."""
        tops = sorted((n for n in next(self._root.walk())[1] if not is_leftover(n)), key=natural)
        for name in (self.split, f"images/{self.split}"):
            if self.split and folder_at(self._root.path(name)).exists():
                return name, False
        annotated = splits_annotated(self._root)
        if "images" in tops and self.split in annotated:
            return "images", True
        splits = [name for name in tops if name != "annotations"]
        remedy = "Choose one as --split, or give the folder above them as --root."
        if annotated:
            remedy = f"Annotations are there for --split {few(annotated, what='splits')}. {remedy}"
        raise FileNotFoundError(
            f"{self._root} has no folder for split {self.split!r}, neither itself nor in images/; "
            f"it holds {few(splits, what='folders')}. {remedy}"
        )

    def _matched(
        self, annotations: Annotations, files: list[str], listed: list[str]
    ) -> dict[str, dict[str, Any]]:
        """Return the metadata of files that are there, by file; count and note what is absent."""
        tops = set(next(self._root.walk())[1])
        find = _Finder(files, self._images, tops)
        facts: dict[str, dict[str, Any]] = {}
        taken: dict[str, str] = {}
        absent: list[str] = []
        elsewhere = 0
        for name, fact in annotations.facts.items():
            file = find(name)
            if file is None:
                elsewhere += find.is_elsewhere(name)
                if not find.is_elsewhere(name):
                    absent.append(name)
                continue
            if file in taken:
                raise ValueError(
                    f"{self._root.path(listed[0])}: {one_line(taken[file])} and {one_line(name)} "
                    f"would both be {self._images}/{one_line(file)}; expected a file for each. "
                    "Write the folders of the files into file_name."
                )
            taken[file], facts[file] = name, fact
        if annotations.facts and not facts:
            raise ValueError(
                f"none of {len(annotations.facts):,} images of {self._root.path(listed[0])} is in "
                f"{self._root.path(self._images)}: it lists "
                f"{few(annotations.facts, what='files')}, and there are "
                f"{few(files, what='files')}. Choose the split that belongs to it, or correct "
                "file_name."
            )
        if absent:
            self.absent = len(absent)
            annotations.notes.append(
                f"{len(absent):,} of {len(annotations.facts):,} annotated images are absent from "
                f"{self._images}/, such as {one_line(absent[0])}"
            )
        if elsewhere:
            annotations.notes.append(
                f"{elsewhere:,} annotated images lie in other folders, and stay there"
            )
        return facts

    def _what_lacks(
        self, files: list[str], facts: dict[str, dict[str, Any]], listed: list[str]
    ) -> Iterator[str]:
        if not any("annotations" in fact for fact in facts.values()):
            name = self._root.path(f"annotations/instances_{self.split}.json")
            there = splits_annotated(self._root)
            others = f" (there are some for {few(there)})" if there and not listed else ""
            yield f"no boxes: {name} is absent{others}"
        if facts and len(facts) < len(files):
            yield f"{len(files) - len(facts):,} images are not in the annotations"


class _Finder:
    """Finds the file that a file_name means."""

    def __init__(self, files: list[str], folder: str, tops: set[str]) -> None:
        self._files, self._folder, self._tops = set(files), folder, tops
        bases = Counter(posixpath.basename(file) for file in files)
        deep = (file for file in files if "/" in file)
        self._deep = {posixpath.basename(f): f for f in deep if bases[posixpath.basename(f)] == 1}

    def __call__(self, name: str) -> str | None:
        """Return a file that is there: by its name, its end, or its only namesake below."""
        if self.is_elsewhere(name):
            return None
        parts = name.removeprefix(f"{self._folder}/").split("/")
        for start in range(len(parts)):
            if (end := "/".join(parts[start:])) in self._files:
                return end
        return self._deep.get(parts[-1]) if len(parts) == 1 else None

    def is_elsewhere(self, name: str) -> bool:
        """Whether it names another folder of the root, such as that of another split."""
        top, slash, _ = name.partition("/")
        inside = name.startswith(f"{self._folder}/") or name in self._files
        return bool(slash) and not inside and top in self._tops - {self._folder.partition("/")[0]}


def _images_in(folder: Folder) -> list[str]:
    """Return all files with the name of an image, sorted."""
    found: list[str] = []
    for inside, folders, files in folder.walk():
        folders[:] = to_walk(folders, files)
        found += [f"{inside}/{name}" if inside else name for name in files if is_image(name)]
    return sorted(found)
