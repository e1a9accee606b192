"""The files of the 2021 Image Similarity Challenge: its ground truth, and a submission.

    dev_ground_truth.csv    query_id,reference_id     the reference is empty for a distractor
    descriptors.hdf5        track 2: query, reference [N, up to 256] float32; query_ids,
                            reference_ids, sorted
    predictions.csv         track 1: query_id,reference_id,score     up to 500,000 pairs

Read and written as `facebookresearch/isc2021` (c6f5528) does, isc/io.py and
scripts/convert_track2_format.py; `check_descriptors` and `check_predictions` hold them to the rules
of its scripts/compute_metrics.py.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.best_pairs import BestPairs
from evaluation.copy_detection import LIMIT
from shards import durable

LARGEST = 256  # numbers in a descriptor
_HEADER = ["query_id", "reference_id"]
_LINES = 50_000  # of predictions in a piece of text


def read_ground_truth(path: Path) -> dict[str, str]:
    """Return the reference that each query is a copy of; "" for a distractor.

    Raises:
        ValueError: it is no such file, or names a query twice, or no copy at all.
    """
    found: dict[str, str] = {}
    try:
        text = durable.read(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text; expected a CSV of query_id,reference_id.") from None
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        row = [cell.strip() for cell in row]
        if row == _HEADER or not any(row):
            continue
        if len(row) != 2 or not row[0]:
            raise ValueError(
                f"{path}, line {number}: found {','.join(row)!r}, expected query_id,reference_id; "
                "the reference is empty for a query that is no copy."
            )
        query, reference = row
        if query in found:
            raise ValueError(
                f"{path}, line {number}: {query} stands there twice, but a query of this benchmark "
                "is a copy of one reference. Remove one of the lines."
            )
        found[query] = reference
    if not any(found.values()):
        raise ValueError(f"{path} names no query that is a copy of a reference; nothing to find.")
    return found


def write_descriptors(
    path: Path,
    query_QD: Tensor,
    reference_GD: Tensor,
    queries: Sequence[str],
    references: Sequence[str],
) -> None:
    """Write track 2's submission; needs h5py.

    Args:
        path: the file.
        query_QD: descriptors of the queries, float32, in the order of their names.
        reference_GD: of the references.
        queries: names, sorted.
        references: names, sorted.
    """
    import h5py  # optional

    with durable.replaced(path) as partial:
        with h5py.File(partial, "w") as file:
            for name, values_ND in (("query", query_QD), ("reference", reference_GD)):
                file.create_dataset(name, data=values_ND.cpu().numpy())
            for name, names in (("query_ids", queries), ("reference_ids", references)):
                file.create_dataset(name, data=[each.encode("ascii") for each in names])
        _sync(partial)
    durable.sync(path.parent)


def check_descriptors(path: Path, queries: Sequence[str], references: Sequence[str]) -> None:
    """Hold track 2's submission to the challenge's rules; needs h5py.

    Args:
        path: the file.
        queries: names that there must be, sorted.
        references: names that there must be, sorted.

    Raises:
        ValueError: which rule it breaks.
    """
    import h5py  # optional

    with h5py.File(path, "r") as file:
        missing = {"query", "reference", "query_ids", "reference_ids"} - {*file}
        if missing:
            raise ValueError(f"{path} has no {', '.join(sorted(missing))}.")
        shapes = []
        for side, names in (("query", queries), ("reference", references)):
            values: Any = file[side]
            found: Any = file[f"{side}_ids"]
            if values.ndim != 2 or values.dtype != "float32":
                raise ValueError(
                    f"{path}: {side} is {values.dtype} with {values.ndim} axes, expected float32 "
                    "with 2."
                )
            if values.shape[1] > LARGEST:
                raise ValueError(
                    f"{path}: {side} has descriptors of {values.shape[1]} numbers, expected "
                    f"{LARGEST} at most."
                )
            ids = [each.decode("ascii") for each in found[:]]
            if len(ids) != len(values):
                raise ValueError(f"{path}: {len(values)} descriptors {side} have {len(ids)} ids.")
            if ids != list(names):
                raise ValueError(
                    f"{path}: {side}_ids are not the {len(names)} names of the {side} set, sorted."
                )
            shapes.append(values.shape[1])
        if len({*shapes}) > 1:
            raise ValueError(f"{path}: descriptors of sizes {shapes}, expected one size.")


def write_predictions(
    path: Path, pairs: BestPairs, queries: Sequence[str], references: Sequence[str]
) -> None:
    """Write track 1's submission.

    Scores have the 9 digits that tell any two float32 apart: with the 6 of the authors' code, pairs
    of different scores become equals, which count as errors.

    Args:
        path: the file.
        pairs: the predictions.
        queries: names by row.
        references: names by row.
    """
    rows = zip(
        pairs.query_P.tolist(), pairs.reference_P.tolist(), pairs.score_P.tolist(), strict=True
    )
    lines = (f"{queries[q]},{references[g]},{score:.9g}\n" for q, g, score in rows)
    pieces = [b"query_id,reference_id,score\n"]
    while piece := "".join(islice(lines, _LINES)):
        pieces.append(piece.encode())
    durable.replace(path, pieces)


def check_predictions(
    path: Path, queries: Sequence[str], references: Sequence[str], *, limit: int = LIMIT
) -> None:
    """Hold track 1's submission to the challenge's rules.

    Args:
        path: the file.
        queries: names of the queries.
        references: names of the references.
        limit: how many predictions are accepted.

    Raises:
        ValueError: which rule it breaks.
    """
    known = {*queries}, {*references}
    seen: set[tuple[str, str]] = set()
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 and row == [*_HEADER, "score"]:
                continue
            try:
                query, reference, score = row[0], row[1], float(row[2])
            except (IndexError, ValueError):
                raise ValueError(
                    f"{path}, line {number}: expected query_id,reference_id,score."
                ) from None
            if query not in known[0] or reference not in known[1] or score != score:
                raise ValueError(f"{path}, line {number}: a name of no image, or no score.")
            if (query, reference) in seen:
                raise ValueError(f"{path}, line {number}: {query},{reference} stands there twice.")
            seen.add((query, reference))
    if len(seen) > limit:
        raise ValueError(f"{path} has {len(seen):,} predictions, expected {limit:,} at most.")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
