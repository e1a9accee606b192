"""MS-COCO in its official layout (Lin et al. 2014, https://cocodataset.org)."""

import json
import os
from pathlib import Path
from typing import Any

from shards.image import extension_of
from shards.source.source import Sample, Source, key_from

# Segmentation outlines stay behind: half a gigabyte for train2017, and nothing here uses them.
_KEPT = ("id", "bbox", "category_id", "iscrowd", "area")


class COCO(Source):
    """MS-COCO in its official layout: JPEG bytes untouched, annotations beside them.

    Layout: ROOT/SPLIT/*.jpg and, where they exist, ROOT/annotations/instances_SPLIT.json and
    captions_SPLIT.json. Samples are in order of file name and have no label; boxes [x, y, width,
    height], categories, crowd flags and captions go into the metadata.
    """

    name = "coco"

    def __init__(self, *, root: Path, split: str = "train2017") -> None:
        """List the files and read the annotations.

        Args:
            root: Folder that holds train2017/, val2017/, …, and annotations/.
            split: Folder of images under root, such as train2017, val2017 or unlabeled2017.
        """
        self.root, self.split = root, split
        self.classes: list[str] = []
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} is not a folder. Give the one that holds {split}/ as --root."
            )
        folder = root / split
        if not split or not folder.is_dir():
            splits = sorted(
                p.name for p in root.iterdir() if p.is_dir() and p.name != "annotations"
            )
            raise FileNotFoundError(
                f"{root} has no folder for split {split!r}; it holds "
                f"{', '.join(splits[:8]) or 'no folders of images'}. Choose one as --split, or "
                "give the folder above them as --root."
            )
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries if not entry.name.startswith("."))
            self.files = sorted(name for name in names if name.lower().endswith((".jpg", ".jpeg")))
        if not self.files:
            raise ValueError(f"{folder} holds no .jpg files. Unpack {split}.zip into {root}.")

        instances = self._read("instances")
        captions = self._read("captions")
        try:
            self._facts = _join(instances, captions)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the annotations of {split} in {root / 'annotations'} do not fit together: "
                f"{type(error).__name__} {error}. Unpack the annotations again."
            ) from None
        missing = sorted(self._facts.keys() - set(self.files))
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing):,} of the {len(self._facts):,} images in its "
                f"annotations, the first being {missing[0]}. Unpack {split}.zip again."
            )
        notes = []
        if not instances["images"]:
            notes.append(f"no boxes: {root / 'annotations' / f'instances_{split}.json'} is absent")
        elif len(self._facts) < len(self.files):
            notes.append(
                f"{len(self.files) - len(self._facts):,} images are not in the annotations"
            )
        self.notes = notes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        name = self.files[index]
        image = (self.root / self.split / name).read_bytes()
        return Sample(
            key=key_from(os.path.splitext(name)[0]),
            image=image,
            extension=extension_of(image) or "jpg",
            label=-1,
            id=index,
            metadata={"file": f"{self.split}/{name}", **self._facts.get(name, {})},
        )

    def _read(self, kind: str) -> dict[str, Any]:
        """Read an annotation file; an empty one if it is absent, as for test and unlabeled."""
        path = self.root / "annotations" / f"{kind}_{self.split}.json"
        if not path.exists():
            return {"images": [], "annotations": [], "categories": []}
        try:
            read = json.loads(path.read_bytes())
            found = set(read)
        except (ValueError, TypeError):
            raise ValueError(f"{path} is not JSON. Unpack the annotations again.") from None
        expected = {"images", "annotations"} | ({"categories"} if kind == "instances" else set())
        if expected - found:
            raise ValueError(
                f"{path} has no {', '.join(sorted(expected - found))}. "
                "Unpack the annotations again."
            )
        return read


def _join(instances: dict[str, Any], captions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of each annotated image by file name."""
    facts: dict[str, dict[str, Any]] = {}
    for image in (*instances["images"], *captions["images"]):
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
