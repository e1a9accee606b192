"""Conditions on the samples of a subset: on their class, id or key, or metadata."""

import json
import os
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.layout import Shard, ShardSet
from shards.one_line import one_line
from shards.shard_index import lines_of
from shards.shard_table import SampleRow, key_hash, plain
from shards.tar import component

_SHOWN = 8  # names in a message
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")  # without leading zeros, which only keys have
_KINDS = ("id", "key")
Mask = NDArray[np.bool_]


class Criterion(ABC):
    """A condition, asked about shard after shard in their order."""

    @abstractmethod
    def __call__(self, shard: Shard, rows: list[SampleRow], fit: Mask, /) -> Mask:
        """Return which rows fit, among those that fit so far."""

    def finish(self) -> None:  # noqa: B027
        """Refuse a condition that no sample fits.

        Raises:
            ValueError: no sample fits it.
        """


class Classes(Criterion):
    """Samples of some classes, by name or label; a number is tried as a name first."""

    def __init__(self, shard_set: ShardSet, classes: list[str]) -> None:
        names, root = shard_set.manifest.classes, shard_set.root
        if not names:
            raise ValueError(f"classes={' '.join(classes)}, but {root} has no classes.")
        self._labels = []
        for name in classes:
            # As it is, as the manifest holds what is not UTF-8, or as reports show it.
            same = {name, plain(name)}
            labels = [label for label, known in enumerate(names) if known in same]
            if not labels:
                labels = [label for label, known in enumerate(names) if one_line(known) == name]
            if len(labels) > 1:
                raise ValueError(
                    f"class {name!r} is the name of labels {labels[0]} and {labels[1]} of {root}; "
                    "give the label."
                )
            if not labels and name.isdecimal() and int(name) < len(names):
                labels = [int(name)]
            if not labels:
                some = one_line(", ".join(names[:_SHOWN])) + ", …" * (len(names) > _SHOWN)
                raise ValueError(
                    f"{root} has no class {name!r}; expected one of {some}, or a label from 0 to "
                    f"{len(names) - 1}."
                )
            self._labels += labels

    def __call__(self, _shard: Shard, rows: list[SampleRow], fit: Mask, /) -> Mask:
        """Look at labels."""
        return fit & np.isin([row.label for row in rows], self._labels)


class Listed(Criterion):
    """Samples whose id or key is a line of a file. Memory: 8 bytes a line."""

    def __init__(self, shard_set: ShardSet, file: Path) -> None:
        self._root, self._file = shard_set.root, file
        values = {kind: array("Q") for kind in ("id", "key", "doubtful")}
        for kind, text in self._entries():
            values[kind or "id"].append(int(text) if kind != "key" else key_hash(text))
            if not kind:  # an id, unless it is the key of another sample
                values["doubtful"].append(key_hash(text))
        self._values = {kind: np.unique(np.array(of_kind)) for kind, of_kind in values.items()}
        if not len(self._values["id"]) + len(self._values["key"]):
            raise ValueError(f"{file} lists no samples; expected one id or key a line.")
        self._found = {kind: np.zeros(len(self._values[kind]), dtype=bool) for kind in _KINDS}

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Yield kind (id, key, or "" for a number alone) and text of each line."""
        try:
            with self._file.open(encoding="utf-8-sig") as lines:
                for line in filter(None, map(str.strip, lines)):
                    kind, separator, text = line.partition("=")
                    if not separator or kind not in _KINDS:
                        kind, text = ("" if _NUMBER.fullmatch(line) else "key"), line
                    if kind == "id" and not _NUMBER.fullmatch(text):
                        raise ValueError(f"{self._file} has {line!r}; expected a number after id=")
                    yield kind, text
        except UnicodeDecodeError:
            raise ValueError(f"{self._file} is not text; expected one id or key a line.") from None

    def __call__(self, _shard: Shard, rows: list[SampleRow], fit: Mask, /) -> Mask:
        """Look at ids and keys."""
        columns = {
            "id": np.array([row.id for row in rows], dtype=np.uint64),
            "key": np.array([key_hash(row.key) for row in rows], dtype=np.uint64),
        }
        for i in np.flatnonzero(np.isin(columns["key"], self._values["doubtful"])).tolist():
            if rows[i].key != str(rows[i].id):
                raise ValueError(
                    f"{rows[i].key} in {self._file} could be an id, or the key of sample "
                    f"{rows[i].id}; write id={rows[i].key} or key={rows[i].key}, and so for all "
                    "numbers."
                )
        listed = np.zeros(len(rows), dtype=bool)
        for kind, column in columns.items():
            here = np.isin(column, self._values[kind])
            self._found[kind][np.searchsorted(self._values[kind], column[here])] = True
            listed |= here
        return fit & listed

    def finish(self) -> None:
        """Refuse a line that no sample fits."""
        missing = sum(int((~found).sum()) for found in self._found.values())
        if not missing:
            return
        for kind, text in self._entries():
            kind = kind or "id"
            value = np.uint64(int(text) if kind == "id" else key_hash(text))
            if not self._found[kind][np.searchsorted(self._values[kind], value)]:
                others = f" (nor of {missing - 1:,} more)" if missing > 1 else ""
                raise ValueError(
                    f"{self._root} has no sample of {kind} {text}{others}, which {self._file} "
                    "lists. Remove the line, or select from the set that it was made for."
                )


class Fields(Criterion):
    """Samples whose metadata have given values. Reads the tars."""

    def __init__(self, shard_set: ShardSet, where: list[str], fold: int | None) -> None:
        self._shard_set = shard_set
        self._wanted: list[tuple[str, str]] = []
        for text in where:
            field, separator, value = text.partition("=")
            if not separator or not field:
                raise ValueError(f"where={text!r}; expected FIELD=VALUE, such as split=train.")
            self._wanted.append((field, value))
        if fold is not None:
            self._wanted.append(("folds", str(fold)))
        self._missing = {field for field, _ in self._wanted}
        self._seen: set[str] = set()

    def __call__(self, shard: Shard, rows: list[SampleRow], fit: Mask, /) -> Mask:
        """Look at the metadata in the tar."""
        if not fit.any():
            return fit
        fit, lines = fit.copy(), lines_of(self._shard_set, shard)
        with self._shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
            for i in np.flatnonzero(fit).tolist():
                text = component(tar, lines[i], "json")
                metadata = self._metadata(text or b"{}", shard, rows[i])
                if self._missing:
                    self._missing -= metadata.keys()
                    self._seen |= metadata.keys()
                fit[i] = all(
                    field in metadata and _matches(metadata[field], value)
                    for field, value in self._wanted
                )
        return fit

    def _metadata(self, text: bytes, shard: Shard, row: SampleRow) -> dict[str, Any]:
        try:
            metadata = json.loads(text)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            tar = self._shard_set.tar_folder.path(f"{shard.name}.tar")
            raise ValueError(
                f"{os.path.normpath(tar)}: {row.key}.json is not JSON ({error}). See python -m "
                f"tools.verify {self._shard_set.root}"
            ) from None
        return metadata if isinstance(metadata, dict) else {}

    def finish(self) -> None:
        """Refuse a field that no sample has."""
        for field in sorted(self._missing):
            there = ", ".join(sorted(self._seen)) or "none"
            remedy = " Only STL-10's train split has folds." if field == "folds" else ""
            raise ValueError(
                f"no sample of {self._shard_set.root} that the other criteria choose has the field "
                f"{field!r}; expected one of those there are: {there}.{remedy}"
            )


def _matches(value: Any, wanted: str) -> bool:
    if isinstance(value, list):
        return any(_matches(one, wanted) for one in value)
    return (value if isinstance(value, str) else json.dumps(value)) == wanted
