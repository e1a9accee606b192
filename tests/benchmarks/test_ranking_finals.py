"""The final tables of docs/ranking.md."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks import ranking_finals
from benchmarks.ranking_finals import FIGURES, WHOLE, ImageSet
from tests.program import ROOT


def comparison(seed: int, **knn: float) -> dict[str, Any]:
    """Return a comparison of one seed: {method: k-NN}; all other figures are 0.5."""

    def figures(value: float) -> dict[str, float]:
        return dict.fromkeys(FIGURES, 0.5) | {"knn_top1": value}

    def curve(value: float) -> list[dict[str, float]]:
        return [{"step": 10 * n, "view_map": 0.5, "knn_top1": value * n / 4} for n in range(1, 5)]

    names = {method: f"stl10_cpu_{method}" for method in knn}
    return {
        "variants": [{"name": n, "resolved": {"batch_size": 50}} for n in names.values()],
        "random": [{"figures": figures(0.1), "evaluated": {}}],
        "runs": [
            {
                "variant": names[method],
                "seed": seed,
                "steps": 40,
                "final": figures(value),
                "evaluated": {},
                "curve": curve(value),
            }
            for method, value in knn.items()
        ],
    }


def whole_of(monkeypatch: pytest.MonkeyPatch, folder: Path, *records: dict[str, Any]) -> str:
    """Return the tables of comparisons, one a seed."""
    for seed, record in enumerate(records):
        path = folder / f"ranking-final-made-cpu-seed{seed}.json"
        path.write_text(json.dumps(record))
    monkeypatch.setattr(ranking_finals, "RESULTS", folder)
    monkeypatch.setattr(ranking_finals, "WHOLE", (ImageSet("made", "Made", 1000),))
    return ranking_finals.whole()


def test_rows_are_means_of_the_seeds_that_there_are_and_differences_are_of_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = comparison(0, s2r2=0.60, simclr=0.50), comparison(1, s2r2=0.62, simclr=0.52, swav=0.4)
    text = whole_of(monkeypatch, tmp_path, *records)
    # Each seed's difference is 0.1, so that its interval has no width: nothing else is as sure.
    assert "| S2R2-style, `LogAP` | 2 | 40 | **61.0** | 50.0 |" in text
    assert "| SimCLR over the same views | 2 | 40 | 51.0 | 50.0 |" in text
    assert "| SwAV, two and six crops | 1 | 40 | 40.0 |" in text
    assert "| random encoder | 2 | 0 | 10.0 |" in text
    assert "| SimCLR over the same views | 2 | -10.0 ± 0.0 | +0.0 ± 0.0 |" in text
    assert "| SwAV, two and six crops | 1 | -22.0 | +0.0 |" in text  # of seed 1 alone
    over_time = "| Made: S2R2-style, `LogAP` | 15.2, 50.0 | 30.5, 50.0 | 45.7, 50.0 | 61.0, 50.0 |"
    assert f"{over_time} 2 |" in text  # 40 steps of 50 images, of 1,000


def test_no_row_is_bold_where_one_of_a_single_seed_is_higher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for swav, shown in ((0.6, "**61.0**"), (0.7, "61.0")):
        second = comparison(1, s2r2=0.62, simclr=0.52, swav=swav)
        text = whole_of(monkeypatch, tmp_path, comparison(0, s2r2=0.60, simclr=0.50), second)
        assert f"| S2R2-style, `LogAP` | 2 | 40 | {shown} |" in text
        assert f"| SwAV, two and six crops | 1 | 40 | {100 * swav:.1f} |" in text


SAID = {
    "stl10": {"k-NN": "knn_top1", "linear probe": "linear_top1 on stl10", "view mAP": "view_map"},
    "coco": {
        "multi-label k-NN mAP": "multi_label_knn_map on coco",
        "probe mAP": "multi_label_map on coco",
        "On STL-10, k-NN": "knn_top1",
    },
}
SEEDS = {1: "one seed", 2: "means of two seeds", 3: "means of three seeds"}


@pytest.mark.parametrize("images", WHOLE, ids=lambda images: images.name)
def test_heads_of_recipes_are_what_their_runs_gave(images: ImageSet) -> None:
    checked = 0
    for method, runs in images.runs().items():
        recipe = ROOT / "recipes" / f"{images.name}_cpu_{method}.yaml"
        head = " ".join(recipe.read_text().partition("\n\n")[0].replace("\n#", "").split())
        for words, figure in SAID[images.name].items():
            found = mean((run["final"] | run["evaluated"])[figure] for run in runs)
            assert f"{words} {100 * found:.1f} % (" in head, recipe.name
        steps = mean(run["steps"] for run in runs)
        assert f"{steps:,.0f} steps in bfloat16, {SEEDS[len(runs)]}." in head, recipe.name
        checked += 1
    assert checked >= 4
