"""How well figures that need no labels predict those that do, over the runs of a comparison.

Spearman's rho: Pearson's correlation of the places in the order, equals at the mean of theirs.
Kendall's tau-b: (pairs in equal order - pairs in opposite order) / sqrt(pairs that differ in one ·
pairs that differ in the other). Both are 1 where one order follows from the other, and -1 where it
is reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import StatisticsError, correlation, mean
from typing import Any

from tools.compare.rendering import TableColumn

TITLE = "which figures without labels predict those with labels: rank correlations of the runs"
FEWEST = 4
"""Runs of which a correlation says anything."""
UNLABELLED = {
    "view_map": "view mAP",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "effective_dimension": "effective dimension",
    "rank_me": "RankMe",
    "lidar": "LiDAR",
    "rank_me_h": "RankMe of features",
    "lidar_h": "LiDAR of features",
    "loss": "loss",
}
"""{figure: its name}."""
LABELLED = {"knn_top1": "k-NN", "linear_top1": "linear"}
"""{what is predicted: its name}."""


@dataclass(frozen=True)
class Prediction:
    """How well a figure predicts another one."""

    runs: int
    """That have both."""
    spearman: float
    kendall: float
    within: float | None
    """Spearman's in each recipe by itself, the mean of those with enough runs; None if none has."""


def predictions(record: Mapping[str, Any]) -> dict[str, dict[str, Prediction]]:
    """Return {unlabelled figure: {labelled figure: how well it predicts that}}.

    Left out is what fewer than `FEWEST` runs have, or what is the same in all of them.
    """
    recipes = {variant["name"]: variant["recipe"] for variant in record["variants"]}
    done = [run for run in record["runs"] if "final" in run]
    found: dict[str, dict[str, Prediction]] = {}
    for figure in UNLABELLED:
        for labelled in LABELLED:
            pairs: dict[str, list[tuple[float, float]]] = {}
            for run in done:
                values = {**run["final"], **({"loss": run["loss"]} if "loss" in run else {})}
                if figure in values and labelled in values:
                    pair = (values[figure], values[labelled])
                    pairs.setdefault(recipes[run["variant"]], []).append(pair)
            together = _correlations([pair for each in pairs.values() for pair in each])
            if together is None:
                continue
            apart = [both[0] for each in pairs.values() if (both := _correlations(each))]
            within = mean(apart) if apart and len(pairs) > 1 else None
            runs = sum(map(len, pairs.values()))
            found.setdefault(figure, {})[labelled] = Prediction(runs, *together, within)
    return found


def prediction_columns(record: Mapping[str, Any]) -> tuple[list[str], list[TableColumn]] | None:
    """Return the names of unlabelled figures, and columns of how they predict the labelled ones.

    None if there are too few runs.
    """
    found = predictions(record)
    shown: list[TableColumn] = []
    for labelled, name in LABELLED.items():
        known = [each.get(labelled) for each in found.values()]
        if any(known):
            texts = {
                f"{name}: ρ": [f"{p.spearman:+.2f}" if p else "" for p in known],
                "τ": [f"{p.kendall:+.2f}" if p else "" for p in known],
                "ρ in a recipe": [
                    f"{p.within:+.2f}" if p and p.within is not None else "" for p in known
                ],
                "runs": [str(p.runs) if p else "" for p in known],
            }
            shown += [TableColumn(h, cells) for h, cells in texts.items() if any(cells)]
    return ([UNLABELLED[figure] for figure in found], shown) if shown else None


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Spearman's rho.

    Raises:
        StatisticsError: all of the first, or all of the second, are equal.
    """
    first, second = zip(*pairs, strict=True)
    return correlation(_places(first), _places(second))


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Kendall's tau-b; neither all of the first nor all of the second may be equal."""
    signs = [(_sign(a - c), _sign(b - d)) for (a, b), (c, d) in combinations(pairs, 2)]
    differ = [sum(map(abs, of)) for of in zip(*signs, strict=True)]
    return sum(one * other for one, other in signs) / (differ[0] * differ[1]) ** 0.5


def _correlations(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    if len(pairs) < FEWEST:
        return None
    try:
        return spearman(pairs), kendall(pairs)
    except StatisticsError:
        return None


def _places(values: Sequence[float]) -> list[float]:
    """Return the place of each value in the order; equals get the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
