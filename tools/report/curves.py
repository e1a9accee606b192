"""Curves of a run: the figures of its steps and evaluations, over steps and over seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from evaluation.figures import NAMES, is_share

POINTS = 500  # a chart has no more pixels to show them
STEP_FIGURES = {
    "loss": ("loss", False),
    "batch_ap": ("AP within a batch", True),
    "learning_rate": ("learning rate", False),
    "images_per_second": ("images a second", False),
    "data_wait": ("time spent waiting for data", True),
    "batch_dimension": ("effective dimension within a batch", False),
}
"""{figure: its name, whether it is a share}, in the order in which they are shown."""
CHARTED = ("knn_top1", "linear_top1", "label_map", "view_map", "copy_map", "effective_dimension")
CHARTED += ("multi_label_knn_map", "multi_label_map")
"""Figures of evaluations that get a chart; the table has all of them."""
Series = dict[str, Any]


def curves(records: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Return the curves of one run.

    Args:
        records: of its metrics.jsonl, steps and evaluations.

    Returns:
        For each figure its key, name, whether it is a share, whether evaluations made it, and as
        many steps, seconds and values. A value that is not finite is None: a gap.
    """
    steps = [each for each in records if "loss" in each and math.isfinite(each.get("seconds", nan))]
    evaluations = [each for each in records if "evaluation" in each]
    found = [
        _series(key, name, share, _points(steps, key, steps), online=False)
        for key, (name, share) in STEP_FIGURES.items()
    ]
    found += [
        _series(key, NAMES[key], is_share(key), _points(evaluations, key, steps), online=True)
        for key in CHARTED
    ]
    return [series for series in found if series["step"]]


def thinned(points: Sequence[Sequence[float]], most: int = POINTS) -> list[tuple[float, ...]]:
    """Return at most so many points, each the mean of neighbouring ones.

    A point that is not finite is left out of a mean; where all are such, they make one gap.

    Args:
        points: rows of numbers, the last of which may be not finite.
        most: how many are kept.
    """
    bins = np.array_split(np.asarray(points, dtype=np.float64), min(most, max(1, len(points))))
    kept = []
    for rows in filter(len, bins):
        finite = rows[np.isfinite(rows[:, -1])]
        kept.append(tuple((finite if len(finite) else rows).mean(axis=0).tolist()))
    return kept


def _points(
    records: Iterable[Mapping[str, Any]], key: str, steps: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float, float]]:
    """Return (step, seconds, value); the seconds of an evaluation lie between those of steps."""
    clock = sorted((each["step"], each["seconds"]) for each in steps)
    known, seconds = zip(*[(0, 0.0), *clock], strict=True)
    return [
        (each["step"], float(np.interp(each["step"], known, seconds)), each[key])
        for each in records
        if key in each
    ]


def _series(
    key: str, name: str, share: bool, points: Sequence[Sequence[float]], *, online: bool
) -> Series:
    columns = list(zip(*thinned(points), strict=True)) if points else [(), (), ()]
    step, seconds, value = columns
    return {
        "key": key,
        "name": name,
        "share": share,
        "evaluation": online,
        "step": [round(each, 1) for each in step],
        "seconds": [round(each, 1) for each in seconds],
        "value": [float(f"{each:.5g}") if math.isfinite(each) else None for each in value],
    }
