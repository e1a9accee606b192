"""A file of features, joined from parts: Parquet or npz, by its ending. No part is held in memory.

Both have the columns key, id, label (-1 where there is none) and feature [F], and facts about
encoder and data: Parquet as metadata of its schema, each as JSON; npz as JSON in `metadata`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards import durable

ENDINGS = (".parquet", ".npz")
COLUMNS = ("key", "id", "label", "feature")
_BLOCK = 8192  # samples that are joined at once


class Joined:
    """Parts as one table.

    Args:
        paths: the parts' files, in order.
        by_id: order the samples by their ids instead.
    """

    def __init__(self, paths: list[Path], *, by_id: bool) -> None:
        self._paths, self._types, lengths, ids = paths, [], [0], []
        for table in self._tables():
            self._types.append(table.dtype)
            lengths.append(len(table))
            ids.append(np.array(table["id"]) if by_id else None)
        self._starts = np.cumsum(lengths)
        self._order: NDArray[np.integer] | None = None
        if by_id:
            self._order = np.argsort(np.concatenate(ids))

    def _tables(self) -> Iterator[Any]:
        """Yield the parts, one open at a time: there may be more than files that may be open."""
        return map(_opened, self._paths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def dtype(self, column: str) -> np.dtype[Any]:
        """Return the type of a column, [F] included; keys have room for the longest."""
        types = [each[column] for each in self._types]
        return max(types, key=lambda each: each.itemsize)

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        """Yield a column in its order, some thousand samples at a time."""
        if self._order is None:
            yield from (np.array(table[column]) for table in self._tables() if len(table))
            return
        of = self.dtype(column)
        for start in range(0, len(self), _BLOCK):
            rows = self._order[start : start + _BLOCK]
            block = np.empty((len(rows), *of.shape), of.base)
            number_of_table = np.searchsorted(self._starts, rows, side="right") - 1
            for number in np.unique(number_of_table):
                here = number_of_table == number
                inside = rows[here] - self._starts[number]
                block[here] = _opened(self._paths[number])[column][inside]
            yield block


def _opened(path: Path) -> Any:
    return np.load(path, mmap_mode="r")


def write(path: Path, joined: Joined, facts: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file; its ending says which kind.
        joined: the samples.
        facts: what else is to be said of them, as JSON has it.
    """
    with durable.created(path) as file:
        if path.suffix == ".npz":
            _write_npz(file, joined, facts)
        else:
            _write_parquet(file, joined, facts)


def _write_npz(file: IO[bytes], joined: Joined, facts: Mapping[str, Any]) -> None:
    """Write numpy's format of several arrays; np.savez would take them from memory."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for column in COLUMNS:
            of = joined.dtype(column)
            base = np.dtype(f"U{of.itemsize}") if column == "key" else of.base
            header = {
                "descr": np.lib.format.dtype_to_descr(base),
                "fortran_order": False,
                "shape": (len(joined), *of.shape),
            }
            name = zipfile.ZipInfo(f"{column}.npy")  # which has no time: same features, same bytes
            with archive.open(name, "w", force_zip64=True) as array:
                np.lib.format.write_array_header_2_0(array, header)
                for block in joined.blocks(column):
                    block = np.char.decode(block, "utf-8") if column == "key" else block
                    array.write(np.ascontiguousarray(block, dtype=base).tobytes())
        with archive.open(zipfile.ZipInfo("metadata.npy"), "w") as array:
            np.lib.format.write_array(array, np.array(json.dumps(dict(facts))))


def _write_parquet(file: IO[bytes], joined: Joined, facts: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    feature = joined.dtype("feature")
    (F,) = feature.shape
    value = pyarrow.from_numpy_dtype(feature.base)
    schema = pyarrow.schema(
        [
            ("key", pyarrow.string()),
            ("id", pyarrow.int64()),
            ("label", pyarrow.int64()),
            ("feature", pyarrow.list_(value, F)),
        ],
        metadata={name: json.dumps(fact) for name, fact in facts.items()},
    )
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        blocks = (joined.blocks(column) for column in COLUMNS)
        for key_N, id_N, label_N, h_NF in zip(*blocks, strict=True):
            flat = pyarrow.array(h_NF.reshape(-1))
            columns = [
                pyarrow.array([key.decode() for key in key_N.tolist()]),
                pyarrow.array(id_N),
                pyarrow.array(label_N),
                pyarrow.FixedSizeListArray.from_arrays(flat, F),
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
