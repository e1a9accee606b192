"""Rank correlations against SciPy's, and which runs they are of."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tools.compare import prediction


def record(*runs: tuple[str, dict[str, float]]) -> dict[str, Any]:
    """Return a record with runs of recipes "a…" and "b…", and one that has not ended."""
    names = dict.fromkeys(name for name, _ in runs)
    return {
        "variants": [{"name": name, "recipe": name[0]} for name in names],
        "runs": [{"variant": name, "final": final} for name, final in runs] + [{"variant": "a0"}],
    }


def scipys(function: Any, pairs: list[tuple[float, float]]) -> float:
    return function(*np.array(pairs).T).statistic


@pytest.mark.parametrize("levels", [3, 1000])
def test_correlations_are_scipys_with_and_without_ties(levels: int) -> None:
    random = np.random.default_rng(levels)
    for count in (4, 9, 30):
        first = random.integers(0, levels, count)
        second = first + random.integers(0, levels, count)
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        assert prediction.spearman(pairs) == pytest.approx(scipys(stats.spearmanr, pairs))
        assert prediction.kendall(pairs) == pytest.approx(scipys(stats.kendalltau, pairs))


def test_each_figure_is_correlated_over_the_runs_that_have_it() -> None:
    random = np.random.default_rng(0)
    runs = []
    for number in range(9):
        name = "ab"[number // 5] + str(number // 2)
        rank_me, knn = 10 * random.random(), random.random()
        runs.append((name, {"rank_me": rank_me, "knn_top1": knn, "uniformity": -1.0}))
        if number < 6:
            runs[-1][1]["lidar"] = -knn
    found = prediction.predictions(record(*runs))
    assert found.keys() == {"rank_me", "lidar"}, "what is the same in all runs predicts nothing"
    got = found["rank_me"]["knn_top1"]
    values = [(final["rank_me"], final["knn_top1"]) for _, final in runs]
    assert got.runs == 9
    assert got.spearman == pytest.approx(scipys(stats.spearmanr, values))
    assert got.kendall == pytest.approx(scipys(stats.kendalltau, values))
    within = [scipys(stats.spearmanr, part) for part in (values[:5], values[5:])]
    assert got.within == pytest.approx(np.mean(within))
    reversed_ = found["lidar"]["knn_top1"]
    assert (reversed_.runs, reversed_.spearman, reversed_.kendall) == (6, -1, -1)
    assert reversed_.within == -1, "of the first recipe: the other has one run with it"


def test_three_runs_say_nothing() -> None:
    runs = [("a0", {"rank_me": float(n), "knn_top1": float(n)}) for n in range(3)]
    assert prediction.prediction_columns(record(*runs)) is None
    runs.append(("a0", {"rank_me": 3.0, "knn_top1": 3.0}))
    names, columns = prediction.prediction_columns(record(*runs)) or ([], [])
    assert names == ["RankMe"]
    assert [(column.heading, column.cells) for column in columns] == [
        ("k-NN: ρ", ["+1.00"]),
        ("τ", ["+1.00"]),
        ("runs", ["4"]),
    ]
