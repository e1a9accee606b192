"""Neighbours against a search that is written down from the definition, in float64."""

import math

import pytest
import torch
from torch import Tensor

from evaluation.neighbours import (
    Neighbours,
    choose_partners,
    lower_for,
    nearest_others,
    pair_purity,
    random_purity,
)


def exhaustive(h_NF: Tensor, count: int, lower: float, upper: float) -> list[list[int]]:
    """For each image the others within the thresholds, by cosine, then by position."""
    vectors = h_NF.double().tolist()
    lengths = [math.sqrt(sum(x * x for x in v)) or 1.0 for v in vectors]
    found = []
    for i, one in enumerate(vectors):
        scored = []
        for j, other in enumerate(vectors):
            cosine = sum(a * b for a, b in zip(one, other, strict=True)) / lengths[i] / lengths[j]
            if i != j and lower <= cosine and (upper >= 1 or cosine <= upper):
                scored.append((-cosine, j))
        found.append([j for _, j in sorted(scored)[:count]])
    return found


def positions(neighbours: Neighbours) -> list[list[int]]:
    return [[j for j in row if j >= 0] for row in neighbours.position_NK.tolist()]


@pytest.mark.parametrize("rows", [None, 1, 7])
@pytest.mark.parametrize(("count", "lower", "upper"), [(1, -1, 1), (5, 0.2, 0.6), (80, -1, 0.3)])
def test_neighbours_are_those_of_an_exhaustive_search(
    rows: int | None, count: int, lower: float, upper: float
) -> None:
    h_NF = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = nearest_others(h_NF, count=count, upper=upper, rows=rows).at_least(lower)
    assert positions(found) == exhaustive(h_NF, count, lower, upper)
    assert found.position_NK.shape == (50, min(count, 49)), "K is at most the number of others"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 100])
def test_equal_cosines_go_by_position(count: int) -> None:
    """Signs of four numbers: every cosine is exactly -1, -1/2, 0, 1/2 or 1, most of them often."""
    signs = torch.randint(0, 2, (40, 4), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    for upper in (1.0, 0.9):  # with copies, and without
        found = nearest_others(signs, count=count, upper=upper, rows=8)
        assert positions(found) == exhaustive(signs, count, -1, upper)


def test_copies_of_one_image_are_each_others_first_neighbours() -> None:
    same = torch.ones(6, 3)
    assert positions(nearest_others(same, count=2)) == [
        [1, 2],
        [0, 2],
        [0, 1],
        [0, 1],
        [0, 1],
        [0, 1],
    ]
    assert positions(nearest_others(same, count=2, upper=0.999)) == [[]] * 6


def test_a_share_becomes_the_threshold_that_keeps_it() -> None:
    h_NF = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    neighbours = nearest_others(h_NF, count=3, upper=0.9)
    for keep in (0.01, 0.5, 0.9):
        kept = neighbours.at_least(lower_for(neighbours, keep))
        assert int((kept.position_NK[:, 0] >= 0).sum()) == round(200 * keep)


def test_partners_are_drawn_evenly_from_the_candidates_or_are_the_best() -> None:
    N, K = 6000, 3
    position_NK = (torch.arange(N)[:, None] + 1 + torch.arange(K)) % N
    position_NK[1::2, 2] = -1  # every second image has two candidates
    position_NK[0] = -1  # the first has none
    score_NK = torch.tensor([0.9, 0.8, 0.7]).where(position_NK >= 0, torch.tensor(-torch.inf))
    neighbours = Neighbours(position_NK, score_NK)
    partner_N, score_N = choose_partners(neighbours, seed=3)
    again_N, _ = choose_partners(neighbours, seed=3)
    other_N, _ = choose_partners(neighbours, seed=4)
    assert torch.equal(partner_N, again_N) and not torch.equal(partner_N, other_N)
    assert (int(partner_N[0]), float(score_N[0])) == (0, 1.0), "without candidates: itself"
    step_N = (partner_N - torch.arange(N)) % N
    for first, share in ((2, 1 / 3), (1, 1 / 2)):
        steps = step_N[first::2]
        for step in range(1, round(1 / share) + 1):
            found = float((steps == step).float().mean())
            # Five standard deviations of a share of so many draws.
            assert found == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 3000))
        assert int(steps.max()) == round(1 / share)
    score = torch.tensor([0.0, 0.9, 0.8, 0.7])[step_N[1:]]
    assert torch.equal(score_N[1:], score), "the score is the chosen one's"
    best_N, _ = choose_partners(neighbours, best=True)
    assert torch.equal(best_N[1:], (torch.arange(1, N) + 1) % N)


def test_purity_counts_labelled_pairs_of_two_images() -> None:
    label_N = torch.tensor([0, 0, 1, 1, -1, 2])
    partner_N = torch.tensor([1, 2, 3, 4, 0, 5])  # right, wrong, right, unlabelled twice, itself
    assert pair_purity(partner_N, label_N) == 2 / 3
    assert pair_purity(torch.arange(6), label_N) is None
    pairs = [(a, b) for a in range(6) for b in range(6) if a != b and label_N[[a, b]].min() >= 0]
    expected = sum(bool(label_N[a] == label_N[b]) for a, b in pairs) / len(pairs)
    assert random_purity(label_N) == pytest.approx(expected)
    assert random_purity(torch.full((4,), -1)) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nearest_others(torch.ones(1, 2), count=1), ["1 images", "2 or more"]),
        (lambda: nearest_others(torch.ones(3, 2), count=0), ["count=0", "1 or more"]),
        (lambda: nearest_others(torch.ones(3, 2), count=1, upper=2), ["upper=2", "cosine"]),
        (lambda: nearest_others(torch.full((3, 2), torch.nan), count=1), ["3 of 3", "finite"]),
        (lambda: lower_for(nearest_others(torch.eye(3), count=1), 0), ["keep=0", "up to 1"]),
        (
            lambda: lower_for(nearest_others(torch.ones(3, 2), count=1, upper=0.9), 0.5),
            ["copies of each other", "--upper"],
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)
