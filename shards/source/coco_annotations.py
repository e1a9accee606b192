"""COCO's annotation files: read, checked, and joined into what is known about each image."""

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shards.one_line import few, one_line
from shards.source.labels import natural
from shards.storage import Folder, folder_at

KINDS = ("instances", "captions", "image_info")  # test and unlabeled have only image_info
_BESIDE = "_annotations.coco.json"  # as Roboflow writes it, among the images
_KEPT = ("id", "bbox", "category_id", "iscrowd", "area")
_SIZE = ("width", "height")
_LARGEST = 1e15  # number that a size or a coordinate may be
Facts = dict[str, Any]


@dataclass
class Annotations:
    """What the annotation files of a split say."""

    facts: dict[str, Facts] = field(default_factory=dict)
    """Metadata of each image by its file_name."""
    notes: list[str] = field(default_factory=list)
    by_id: dict[str, str] = field(default_factory=dict)
    """The file_name of each id."""
    categories: dict[str, str] = field(default_factory=dict)
    """The name of each category that objects may have, by its id as text, in the order of ids."""


def annotation_files(root: Folder, split: str, images: str) -> list[str]:
    """Return the names of a split's annotation files, relative to the root.

    Args:
        root: folder that holds annotations/.
        split: their names end with it.
        images: folder of the images, relative to the root, in which one may lie too.
    """
    there = folder_at(root.path("annotations")).sizes()
    named = [f"{kind}_{split}.json" for kind in KINDS]
    if found := [f"annotations/{name}" for name in named if name in there]:
        return found
    return [f"{images}/{_BESIDE}"] if _BESIDE in folder_at(root.path(images)).sizes() else []


def splits_annotated(root: Folder) -> list[str]:
    """Return the splits that files in annotations/ are named after."""
    names = folder_at(root.path("annotations")).sizes()
    found = (re.fullmatch(rf"({'|'.join(KINDS)})_(.+)\.json", name) for name in names)
    return sorted({match[2] for match in found if match}, key=natural)


def read_annotations(root: Folder, files: list[str]) -> Annotations:
    """Read the annotation files of a split and join them by the images' ids.

    Ids are equal if their text is: 9, 9.0, "9" and "000009".

    Raises:
        ValueError: what does not fit, where.
    """
    read = {root.path(file): _read(root.path(file), root.read(file)) for file in files}
    annotations, twice = Annotations(), 0
    for path, content in read.items():
        seen: set[str] = set()
        for image in _entries(path, content, "images", "id", "file_name"):
            key = _add_image(path, annotations, image)
            if "categories" in content and "annotations" in content:  # of objects
                annotations.facts[annotations.by_id[key]].setdefault("annotations", [])
            twice += key in seen
            seen.add(key)
    for path, content in read.items():
        _add_annotations(path, annotations, content)
    ordered = sorted(annotations.categories.items(), key=lambda each: natural(each[0]))
    annotations.categories = dict(ordered)
    if twice:
        annotations.notes.append(f"{twice:,} images are listed twice, and taken once")
    return annotations


def _read(path: str, data: bytes) -> dict[str, Any]:
    name = one_line(path)
    try:
        content = json.loads(data, object_hook=_without_outlines)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}): it may be cut. Copy it again.") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{name} holds a {type(content).__name__}; expected an object with images and "
            "annotations. Results of a detector are no annotations; give those of the images."
        )
    expected = {"images"} | (set() if "image_info_" in path else {"annotations"})
    if missing := sorted(expected - content.keys()):
        raise ValueError(
            f"{name} has no {', '.join(missing)}; it has {', '.join(sorted(content)) or 'nothing'}"
            ". Expected COCO's format: images, annotations and, of objects, categories."
        )
    return content


def _without_outlines(found: dict[str, Any]) -> dict[str, Any]:
    """Drop outlines while reading: of train2017 they take gigabytes, and nothing here uses them."""
    found.pop("segmentation", None)
    return found


def _entries(path: str, content: dict[str, Any], what: str, *needed: str) -> Iterator[Facts]:
    """Yield the entries of a list, each an object that has what is needed."""
    path, entries = one_line(path), content.get(what) or []
    if not isinstance(entries, list):
        raise ValueError(f"{path}: {what} is a {type(entries).__name__}; expected a list.")
    for number, entry in enumerate(entries):
        lacking = needed if not isinstance(entry, dict) else [n for n in needed if n not in entry]
        if lacking:
            raise ValueError(
                f"{path}: {what}[{number}] has no {', '.join(lacking)}; it is "
                f"{one_line(json.dumps(entry))[:80]}. Expected one in each of {what}."
            )
        yield entry


def plain_id(value: Any) -> str:
    """Return an id as text, equal for 9, 9.0, "9" and "000009"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 40 else text


def _add_image(path: str, annotations: Annotations, image: Facts) -> str:
    """Add an image, or what another file does not say about it, and return its id as text."""
    name, key = plain_path(str(image["file_name"])), plain_id(image["id"])
    named = annotations.by_id.setdefault(key, name)
    if named != name:
        raise ValueError(
            f"{one_line(path)}: id {one_line(key)} is that of {one_line(named)} and of "
            f"{one_line(name)}; expected an id of its own for each image. Number them anew."
        )
    fact = annotations.facts.setdefault(name, {"image_id": image["id"]})
    if plain_id(fact["image_id"]) != key:
        raise ValueError(
            f"{one_line(path)}: {one_line(name)} occurs twice, with the ids {fact['image_id']} "
            f"and {image['id']}; expected one. Remove the other."
        )
    fact |= {side: image[side] for side in _SIZE if _are_numbers(image.get(side), 1)}
    return key


def plain_path(name: str) -> str:
    """Return a file_name with "/" between folders, without "./" or "/" before it."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _are_numbers(value: Any, count: int) -> bool:
    values = value if count > 1 and isinstance(value, list) else [value]
    return len(values) == count and all(
        isinstance(each, int | float) and -_LARGEST < each < _LARGEST for each in values
    )


def _add_annotations(path: str, annotations: Annotations, content: dict[str, Any]) -> None:
    """Add boxes and captions to their images; note what belongs to none."""
    categories: dict[str, Any] = {}
    for category in _entries(path, content, "categories", "id", "name"):
        known = categories.setdefault(plain_id(category["id"]), category["name"])
        if known != category["name"]:
            raise ValueError(
                f"{one_line(path)}: category {category['id']} is called both {known!r} and "
                f"{category['name']!r}; expected an id of its own for each. Number them anew."
            )
    if "annotations" in content:  # else no image says what it shows
        annotations.categories |= {key: str(name) for key, name in categories.items()}
    apart, unnamed, total, odd = dict[str, int](), dict[str, int](), 0, 0
    for entry in _entries(path, content, "annotations", "image_id"):
        total += 1
        key = plain_id(entry["image_id"])
        if key not in annotations.by_id:
            apart[key] = apart.get(key, 0) + 1
            continue
        fact = annotations.facts[annotations.by_id[key]]
        if "caption" in entry:
            fact.setdefault("captions", []).append(entry["caption"])
            if not {"bbox", "category_id"} & entry.keys():
                continue
        kept = {name: entry[name] for name in _KEPT if name in entry}
        for what, count in (("bbox", 4), ("area", 1)):
            if what in kept and not _are_numbers(kept[what], count):
                del kept[what]
                odd += 1
        if "category_id" in entry:
            category = plain_id(entry["category_id"])
            if category in categories:
                kept["category"] = categories[category]
            else:
                unnamed[category] = unnamed.get(category, 0) + 1
        fact.setdefault("annotations", []).append(kept)
    if total and sum(apart.values()) == total:
        raise ValueError(
            f"{one_line(path)}: none of {total:,} annotations belongs to an image: their image_id "
            f"is {few(apart, 4)}; the ids of images are {few(annotations.by_id, 4)}. Number one of "
            "them anew."
        )
    name = one_line(posixpath.basename(path))
    if apart:
        count = sum(apart.values())
        annotations.notes.append(
            f"{count:,} annotations of {name} belong to no image: image_id {few(apart, 4)}"
        )
    if odd:
        annotations.notes.append(
            f"{odd:,} boxes and areas of {name} are no numbers (four, one), and are left out"
        )
    if unnamed:
        count = sum(unnamed.values())
        annotations.notes.append(
            f"{count:,} annotations of {name} have no category name: categories lacks id "
            f"{few(unnamed, 4)}"
        )
