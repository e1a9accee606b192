"""Manifests beside tars: what is a sample in a set of ours, and what its labels are called."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from shards.layout import MANIFEST, Manifest, Shard, ShardSet
from shards.shard_index import lines_of
from shards.storage import Folder


@dataclass(frozen=True)
class Beside:
    """What the manifest beside tars says; nothing where there is none."""

    classes: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    own: ShardSet | None = None
    """If the tars were written as shards of ours."""
    shards: dict[str, Shard] = field(default_factory=dict)
    """Its shards, by the names of their tars."""

    def lines(self, name: str) -> list[str] | None:
        """Return the lines of a tar's index; None if it has none, or is not the tar of the set.

        Raises:
            ValueError: The index is damaged; the message says what to do.
        """
        if self.own is None or name not in self.shards:
            return None
        shard = self.shards[name]
        with self.own.folder.open(name) as file:
            if file.seek(0, 2) != shard.tar.bytes:
                return None
        try:
            return lines_of(self.own, shard)
        except (FileNotFoundError, PermissionError):  # only the tars were copied
            return None


def beside_tars(folder: Folder) -> Beside:
    """Read the manifest beside tars, of our own set or another's."""
    try:
        data = folder.read(MANIFEST)
        values = json.loads(data)
    # A public store that may not be listed forbids what it does not have.
    except (FileNotFoundError, PermissionError, ValueError, RecursionError):
        return Beside()
    # In an indexed set they are of the labels in its index, not of those in the tars.
    if not isinstance(values, dict) or values.get("indexed"):
        return Beside()
    classes, categories = (_texts(values.get(name)) for name in ("classes", "categories"))
    try:
        own = ShardSet(folder, Manifest.from_json(data.decode()))
    except ValueError:  # not ours
        return Beside(classes, categories)
    shards = {f"{shard.name}.tar": shard for shard in own.manifest.shards}
    return Beside(classes, categories, own, shards)


def _texts(names: Any) -> list[str]:
    """Return a list of texts; [] for anything else."""
    are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if are_texts else []


def in_common(lists: list[list[str]]) -> list[str]:
    """Return the names that all folders have; [] where two differ."""
    return lists[0] if all(each == lists[0] for each in lists) else []


def joined_classes(named: dict[Folder, list[str]]) -> dict[str, int] | None:
    """Return the place of each class, if folders have different ones; None where names are equal.

    The classes of the first folder come first, then what others have besides.

    Raises:
        ValueError: A folder has two classes of one name.
    """
    lists = [*named.values()]
    if in_common(lists) or all(map(are_numbers, lists)):
        return None
    for folder, names in named.items():
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise _cannot_join(folder, f"two classes called {twice}", named)
    return {name: place for place, name in enumerate(dict.fromkeys(chain(*named.values())))}


def by_name(
    label: str | float | None,
    folder: Folder,
    named: dict[Folder, list[str]],
    joined: dict[str, int],
) -> int | None:
    """Return the place of a label in the joined classes; a name that is new gets the next one.

    Raises:
        ValueError: It is a number that the manifest of its folder does not name.
    """
    text = "" if label is None else str(label)
    if text in ("", "-1"):
        return None
    if not text.removeprefix("-").isdecimal():
        return joined.setdefault(text, len(joined))
    if int(text) not in range(len(named[folder])):
        raise _cannot_join(folder, f"a label {text}, without a name", named)
    return joined[named[folder][int(text)]]


def _cannot_join(folder: Folder, what: str, named: dict[Folder, list[str]]) -> ValueError:
    shown = list(named.items())[:8]
    lists = "; ".join(f"{each}: {_some(names) or 'none named'}" for each, names in shown)
    return ValueError(
        f"the tars of {folder} have {what}, and their classes cannot be joined by name with those "
        f"of the others ({lists}). Put the {MANIFEST} that names its classes beside the tars of "
        "each set, choose a component with names as --label, or write the sets one by one."
    )


def are_numbers(classes: list[str]) -> bool:
    """Return whether classes are called by their own numbers."""
    return classes == [str(number) for number in range(len(classes))]


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
