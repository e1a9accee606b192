"""MS-COCO in its official layout (Lin et al. 2014, https://cocodataset.org)."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from shards.source.source import Names, Sample, Source, key_from
from shards.storage import folder_at

_KEPT = ("id", "bbox", "category_id", "iscrowd", "area")
_EMPTY: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}


class COCO(Source):
    """MS-COCO in its official layout: files untouched, annotations beside them.

    Layout: ROOT/SPLIT/*.jpg and, where they exist, in ROOT/annotations instances_SPLIT.json and
    captions_SPLIT.json, or image_info_SPLIT.json for splits without boxes; 2014 or 2017. Samples
    are in order of file name and have no label; boxes [x, y, width, height], categories, crowd
    flags and captions go into the metadata.
    """

    name = "coco"

    def __init__(self, *, root: str | Path, split: str = "train2017") -> None:
        """List the files and read the annotations.

        Args:
            root: Folder that holds train2017/, val2017/, …, and annotations/; local, or s3://….
            split: Folder of images under root, such as train2017, val2014 or unlabeled2017.
        """
        self.split = split
        self.classes: list[str] = []
        self._root = folder_at(os.fspath(root))
        self.origin = str(self._root)
        if not self._root.exists():
            raise FileNotFoundError(
                f"{root} is not a folder. Give the one that holds {split}/ as --root."
            )
        folder = folder_at(self._root.path(split))
        if not split or not folder.exists():
            splits = sorted(set(next(self._root.walk())[1]) - {"annotations"})
            raise FileNotFoundError(
                f"{root} has no folder for split {split!r}; it holds "
                f"{', '.join(splits[:8]) or 'no folders of images'}. Choose one as --split, or "
                "give the folder above them as --root."
            )
        files = [
            name
            for name in sorted(next(folder.walk())[2])
            if name.lower().endswith((".jpg", ".jpeg"))
        ]
        if not files:
            raise ValueError(f"{folder} holds no .jpg files. Unpack {split}.zip into {root}.")

        there = folder_at(self._root.path("annotations")).sizes()
        facts = self._facts(there)
        missing = sorted(facts.keys() - set(files))
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing):,} of the {len(facts):,} images in its "
                f"annotations, the first being {missing[0]}. Unpack {split}.zip again."
            )
        self.notes = []
        if f"instances_{split}.json" not in there:
            absent = self._root.path(f"annotations/instances_{split}.json")
            self.notes.append(f"no boxes: {absent} is absent")
        if facts and len(facts) < len(files):
            self.notes.append(f"{len(files) - len(facts):,} images are not in the annotations")
        # A dictionary of annotations for each image would take kilobytes; its text takes less.
        self._files, self._annotations = Names(), Names()
        for file in files:
            self._files.append(file)
            fact = facts.pop(file, {})
            self._annotations.append(json.dumps(fact, separators=(",", ":")))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        name = self._files[index]
        stem, extension = os.path.splitext(name)
        file = f"{self.split}/{name}"
        return Sample(
            key=key_from(stem if extension == ".jpg" else name),
            image=self._root.read(file),
            label=-1,
            id=index,
            metadata={"file": file, **json.loads(self._annotations[index])},
            extension=extension[1:],
        )

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        both = self._files.digest() + self._annotations.digest()
        return hashlib.blake2b(both, digest_size=16).digest()

    def _facts(self, there: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Return the metadata of each annotated image by file name."""
        read = {
            kind: self._read(kind) if f"{kind}_{self.split}.json" in there else _EMPTY
            for kind in ("instances", "captions", "image_info")
        }
        try:
            return _join(read["instances"], read["captions"], read["image_info"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the annotations of {self.split} in {self._root.path('annotations')} do not fit "
                f"together: {type(error).__name__} {error}. Unpack the annotations again."
            ) from None

    def _read(self, kind: str) -> dict[str, Any]:
        """Read an annotation file; test and unlabeled have only image_info."""
        name = f"annotations/{kind}_{self.split}.json"
        path = self._root.path(name)
        try:
            read = json.loads(self._root.read(name), object_hook=_without_outlines)
            found = set(read)
        except (ValueError, TypeError):
            raise ValueError(f"{path} is not JSON. Unpack the annotations again.") from None
        expected = {"images"} | ({"annotations"} if kind != "image_info" else set())
        expected |= {"categories"} if kind == "instances" else set()
        if expected - found:
            raise ValueError(
                f"{path} has no {', '.join(sorted(expected - found))}. "
                "Unpack the annotations again."
            )
        return read


def _without_outlines(found: dict[str, Any]) -> dict[str, Any]:
    """Drop outlines while reading: of train2017 they take gigabytes, and nothing here uses them."""
    found.pop("segmentation", None)
    return found


def _join(
    instances: dict[str, Any], captions: dict[str, Any], image_info: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for image in (*instances["images"], *captions["images"], *image_info["images"]):
        facts.setdefault(
            image["file_name"],
            {"image_id": image["id"], "width": image["width"], "height": image["height"]},
        )
    by_id = {fact["image_id"]: fact for fact in facts.values()}
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    for image in instances["images"]:
        by_id[image["id"]]["annotations"] = []
    for annotation in instances["annotations"]:
        kept = {name: annotation[name] for name in _KEPT if name in annotation}
        kept["category"] = categories[annotation["category_id"]]
        by_id[annotation["image_id"]]["annotations"].append(kept)
    for caption in captions["annotations"]:
        by_id[caption["image_id"]].setdefault("captions", []).append(caption["caption"])
    return facts
