"""Average precision of categories against scikit-learn and loops over VOC's definitions."""

import math
from fractions import Fraction

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from evaluation.category_precision import category_precision, mean_precision


def random_ranking(
    N: int = 60, K: int = 7, *, seed: int = 0, levels: int | None = None
) -> tuple[Tensor, Tensor]:
    """Scores [N, K], of a few levels if ties are wanted, and categories: some do not count."""
    generator = torch.Generator().manual_seed(seed)
    category_NK = (torch.rand(N, K, generator=generator) < 0.25).to(torch.uint8)
    score_NK = category_NK + torch.randn(N, K, generator=generator)
    if levels is not None:
        score_NK = (score_NK * levels / 4).round()
    category_NK[torch.rand(N, K, generator=generator) < 0.1] = 2
    return score_NK, category_NK


def curve(score_N: Tensor, category_N: Tensor) -> list[tuple[Fraction, Fraction]]:
    """Recall and precision after each image that counts, the best first, wrong before right."""
    images = [(s, c) for s, c in zip(score_N.tolist(), category_N.tolist(), strict=True) if c < 2]
    images.sort(key=lambda image: (-image[0], image[1]))
    total = sum(right for _, right in images)
    found, hits = [], 0
    for place, (_, right) in enumerate(images, start=1):
        hits += right
        found.append((Fraction(hits, total), Fraction(hits, place)))
    return found


def area(points: list[tuple[Fraction, Fraction]]) -> float:
    """The area below the highest precision at each recall or a larger one."""
    summed, before = Fraction(0), Fraction(0)
    for recall in sorted({recall for recall, _ in points if recall}):
        summed += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return float(summed)


def eleven_points(points: list[tuple[Fraction, Fraction]]) -> float:
    """The mean of the highest precisions at recalls of a tenth, two tenths, and so on, or more."""
    return float(
        sum(max(p for r, p in points if r >= Fraction(tenths, 10)) for tenths in range(11)) / 11
    )


@pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, None), (2, 4), (3, 1)])
def test_the_definitions_equal_scikit_learn_and_loops(seed: int, levels: int | None):
    score_NK, category_NK = random_ranking(seed=seed, levels=levels)
    found = category_precision(score_NK, category_NK)
    for k in range(7):
        counted_N = category_NK[:, k] < 2
        step = average_precision_score(category_NK[counted_N, k], score_NK[counted_N, k])
        points = curve(score_NK[:, k], category_NK[:, k])
        assert found.step_K[k].item() == pytest.approx(step, abs=1e-6)
        assert found.voc_K[k].item() == pytest.approx(area(points), abs=1e-6)
        assert found.voc07_K[k].item() == pytest.approx(eleven_points(points), abs=1e-6)
        assert found.step_K[k] <= found.voc_K[k] + 1e-6


def test_precision_of_a_known_order():
    score_N1 = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    category_N1 = torch.tensor([[1], [0], [0], [1]], dtype=torch.uint8)
    found = category_precision(score_N1, category_N1)  # precision 1 up to recall 0.5, then 0.5
    assert found.step_K.tolist() == found.voc_K.tolist() == [0.75]
    assert found.voc07_K.item() == pytest.approx((6 * 1 + 5 * 0.5) / 11)
    category_N1[1] = 2  # out of the ranking: the last positive is the third
    assert category_precision(score_N1, category_N1).step_K.item() == pytest.approx((1 + 2 / 3) / 2)


def test_recalls_are_compared_exactly():
    """Three of ten positives are recall 0.3, which rounded numbers would put above 3 / 10."""
    category_N1 = torch.tensor([[1] * 3 + [0] * 90 + [1] * 7]).T.to(torch.uint8)
    score_N1 = torch.arange(100.0, 0, -1)[:, None]
    voc07 = category_precision(score_N1, category_N1).voc07_K.item()
    assert voc07 == pytest.approx((4 * 1 + 7 * 0.1) / 11)


def test_scoring_all_alike_is_worth_the_share_of_the_positives():
    category_NK = random_ranking()[1]
    found = category_precision(torch.zeros(60, 7), category_NK)
    counts_K = (category_NK < 2).sum(dim=0)
    share_K = (category_NK == 1).sum(dim=0) / counts_K
    for ap_K in (found.step_K, found.voc_K, found.voc07_K):
        torch.testing.assert_close(ap_K, share_K)


def test_categories_that_no_image_shows_are_left_out():
    score_NK, category_NK = random_ranking()
    category_NK[:, 2] = 0
    category_NK[:, 4] = 2
    found = category_precision(score_NK, category_NK)
    for ap_K in (found.step_K, found.voc_K, found.voc07_K):
        assert ap_K.isnan().tolist() == [k in (2, 4) for k in range(7)]
        kept = [ap for ap in ap_K.tolist() if not math.isnan(ap)]
        assert mean_precision(ap_K) == pytest.approx(sum(kept) / 5)
    assert list(found.by_name("abcdefg")) == list("abdfg")
    with pytest.raises(ValueError, match="None of the 60 images shows any of the 7 categories"):
        category_precision(score_NK, torch.zeros_like(category_NK))
