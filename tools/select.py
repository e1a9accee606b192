"""Choose samples of a shard set as a subset over the same tars, without copying them.

    python -m tools.select data/mine labelled --fraction 0.01 --rest unlabelled

A subset is a manifest and small tables in DIR/subsets/NAME; it is opened as a shard set is.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from shards.layout import ShardSet, open_shards
from shards.subset.selection import select
from shards.survey import rows_of
from training.command_line import run_function
from training.terminal import Section, show


def main(
    dir: str,
    name: str,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    classes: list[str] | None = None,
    fold: int | None = None,
    ids: Path | None = None,
    where: list[str] | None = None,
    rest: str | None = None,
    seed: int = 0,
    stratified: bool = True,
) -> None:
    """Choose samples of a shard set as a subset over the same tars, DIR/subsets/NAME.

    A sample must meet all criteria.

    Args:
        dir: shard set, a folder or a URL.
        name: name of the subset.
        fraction: this share, such as 0.1, of the samples that fit the other flags.
        per_class: largest number of samples of each class.
        classes: names of classes, or labels.
        fold: samples of this fold (STL-10: 0 to 9).
        ids: text file with one stable id or one key a line. A number without leading zeros is an
            id; id=42 and key=42 say which is meant.
        where: FIELD=VALUE, once or several times: samples with these values in KEY.json, such as
            split=train.
        rest: name of a second subset, of what --fraction (or, without it, --per_class) leaves.
            A stratified fraction leaves a sample or more of each class that has two; a single one
            is in the larger subset. --per_class may leave none of a class.
        seed: seed of --fraction and --per_class.
        stratified: take the fraction of each class, and at least one sample of each.
    """
    shard_set = open_shards(dir)
    chosen = select(
        shard_set,
        name,
        fraction=fraction,
        per_class=per_class,
        classes=classes,
        fold=fold,
        ids=ids,
        where=where,
        rest=rest,
        seed=seed,
        stratified=stratified,
        command=shlex.join(["python", "-m", "tools.select", *sys.argv[1:]]),
    )
    subsets = chosen if isinstance(chosen, tuple) else (chosen,)
    counts = [_class_counts(subset) for subset in subsets]
    drawn = int(np.count_nonzero(sum(counts)))  # classes of the subset and the rest together
    show(
        [
            _summary(shard_set, subset, own, drawn)
            for subset, own in zip(subsets, counts, strict=True)
        ],
        Console(),
    )


def _class_counts(subset: ShardSet) -> NDArray[np.int64]:
    """Return the number of samples of each class."""
    counts = np.zeros(len(subset.manifest.classes), dtype=np.int64)
    if not len(counts):  # labels may be there nevertheless: of a set of copies, their originals
        return counts
    for shard in subset.manifest.shards:
        labels = np.array([row.label for row in rows_of(subset, shard)])
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
    return counts


def _summary(whole: ShardSet, subset: ShardSet, counts: NDArray[np.int64], drawn: int) -> Section:
    manifest = subset.manifest
    present = counts[counts > 0]
    classes = "none"
    if len(present):
        least, most = int(present.min()), int(present.max())
        each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        classes = f"{len(present):,} of {len(counts):,}, {each} samples each"
    if drawn > len(present):
        classes += f"; lacks {drawn - len(present):,} that the other subset has"
    if manifest.categories:
        classes = f"{len(manifest.categories):,} categories: a multi-label set"
    return Section(
        f"subset {subset.root.rpartition('/')[2]}",
        [
            ("samples", f"{len(subset):,} of {len(whole):,} ({len(subset) / len(whole):.2%})"),
            ("classes", classes),
            ("shards", f"parts of {len(manifest.shards):,} of {len(whole.manifest.shards):,} tars"),
            ("duplicates", f"{manifest.account.duplicates:,}"),
            ("next", f"--shards {shlex.quote(subset.root)}"),
        ],
    )


if __name__ == "__main__":
    run_function(main)
