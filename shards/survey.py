"""The samples of a shard set by its tables and indexes, shard by shard. No tar is read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.as_written import checked, read_as_written
from shards.layout import MANIFEST, Shard, ShardSet
from shards.shard_index import lines_of
from shards.shard_table import SampleRow, read_rows
from shards.tar import components


@dataclass(frozen=True)
class Survey:
    """The samples of a shard set as columns, in the order of the tars; 40 bytes a sample."""

    labels: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    image_bytes: NDArray[np.int64]
    """Of the image alone, without tar headers and other components."""
    contents: NDArray[np.void]
    """Hashes of the images as the source had them."""
    extensions: dict[str, int]
    """How many images have each extension."""

    def class_counts(self, classes: int) -> NDArray[np.int64]:
        """Return the number of samples by label, -1 left out."""
        return np.bincount(self.labels[self.labels >= 0], minlength=classes)


def survey(shard_set: ShardSet) -> Survey:
    """Read all tables and indexes of a shard set.

    Raises:
        ValueError: a file differs from the one that was written.
    """
    samples = len(shard_set)
    widths, heights = (np.empty(samples, dtype=np.int32) for _ in range(2))
    labels, image_bytes = (np.empty(samples, dtype=np.int64) for _ in range(2))
    contents = np.empty(samples, dtype="V16")
    extensions: Counter[str] = Counter()
    at = 0
    for shard in shard_set.manifest.shards:
        for row, line in zip(rows_of(shard_set, shard), lines_of(shard_set, shard), strict=True):
            labels[at], widths[at], heights[at] = row.label, row.width, row.height
            sizes = {found: size for found, _, size, _ in components(line)}
            if row.image not in sizes:
                raise ValueError(
                    f"{shard_set.root}: table and index of shard {shard.name} contradict each "
                    f"other, at sample {row.key!r}. {shard_set.remedy('')}"
                )
            image_bytes[at] = sizes[row.image]
            contents[at] = np.void(bytes.fromhex(row.content))
            extensions[row.image] += 1
            at += 1
    return Survey(labels, widths, heights, image_bytes, contents, dict(extensions))


def contents_of(shard_set: ShardSet) -> Iterator[str]:
    """Yield the hash of each image as the source had it; one table at a time is read.

    Raises:
        ValueError: a table differs from the one that was written.
    """
    for shard in shard_set.manifest.shards:
        for row in rows_of(shard_set, shard):
            yield row.content


def rows_of(shard_set: ShardSet, shard: Shard) -> list[SampleRow]:
    """Return the rows of one shard's table.

    Raises:
        ValueError: the table differs from the one that was written, or does not fit its set.
    """
    path, classes = shard_set.folder.path(f"{shard.name}.jsonl"), shard_set.manifest.classes
    text = read_as_written(shard_set, f"{shard.name}.jsonl", shard.table)
    rows = checked(shard_set, path, lambda: read_rows(text, shard))
    largest = max((row.label for row in rows), default=-1)
    if classes and largest >= len(classes):
        raise ValueError(
            f"{path} has the label {largest}, but {MANIFEST} names {len(classes):,} classes, from "
            f"0 on. {shard_set.remedy(path)}"
        )
    return rows


def rows_at(shard_set: ShardSet, positions: NDArray[np.integer]) -> dict[int, SampleRow]:
    """Return the rows at some positions of a survey, reading only the tables that have them."""
    found: dict[int, SampleRow] = {}
    for shard, start, inside in by_shard(shard_set, positions):
        rows = rows_of(shard_set, shard)
        found.update({position: rows[position - start] for position in inside})
    return found


def by_shard(
    shard_set: ShardSet, positions: NDArray[np.integer]
) -> Iterator[tuple[Shard, int, list[int]]]:
    """Yield each shard that has some of the positions, its first position, and those it has."""
    positions, start = np.sort(positions), 0
    for shard in shard_set.manifest.shards:
        first, last = np.searchsorted(positions, [start, start + shard.samples])
        if first < last:
            yield shard, start, positions[first:last].tolist()
        start += shard.samples
