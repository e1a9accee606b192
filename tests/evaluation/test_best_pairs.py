"""The best pairs: against a sorted list of all, with ties, in blocks of any size."""

import pytest
import torch
import torch.nn.functional as F

from evaluation.best_pairs import best_pairs
from evaluation.copy_detection import judge
from evaluation.score import blocks


@pytest.mark.parametrize("limit", [1, 7, 100, 600, 601, 5000])
@pytest.mark.parametrize("rows", [None, 1, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_pairs_are_the_first_of_the_sorted_list(limit: int, rows: int | None, ties: bool) -> None:
    generator = torch.Generator().manual_seed(limit)
    query_QD, reference_GD = (torch.randn(n, 4, generator=generator) for n in (30, 20))
    if ties:
        query_QD, reference_GD = query_QD.round().clamp(-1, 1), reference_GD.round().clamp(-1, 1)
    S_QG = torch.cat([S for _, S in blocks(query_QD, reference_GD, rows=rows)])
    pairs = [(-S_QG[q, g].item(), q, g) for q in range(30) for g in range(20)]
    expected = sorted(pairs)[:limit]
    assert (len({score for score, _, _ in pairs}) < 100) == ties
    found = best_pairs(query_QD, reference_GD, limit=limit, rows=rows)
    columns = ((-found.score_P).tolist(), found.query_P.tolist(), found.reference_P.tolist())
    assert list(zip(*columns, strict=True)) == expected


def test_figures_that_are_counted_are_those_of_the_list() -> None:
    """Where no scores are equal; of equal ones the counting takes the worst order."""
    generator = torch.Generator().manual_seed(0)
    reference_GD = F.normalize(torch.randn(60, 8, generator=generator), dim=1)
    original_Q = torch.tensor([q if q % 3 else -1 for q in range(45)])
    noise_QD = torch.randn(45, 8, generator=generator)
    query_QD = F.normalize(reference_GD[original_Q.clamp(min=0)] + 0.3 * noise_QD, dim=1)
    for limit in (40, 300, 2700):
        found = best_pairs(query_QD, reference_GD, limit=limit, rows=4)
        true_P = original_Q[found.query_P] == found.reference_P
        precision_P = true_P.cumsum(0).double() / torch.arange(1, len(true_P) + 1)
        figures = judge(query_QD, reference_GD, original_Q, limit=limit)
        assert figures["copy_map"] == pytest.approx(precision_P[true_P].sum().item() / 30)
        recall_P = true_P.cumsum(0) / 30
        best = recall_P[precision_P >= 0.9].max().item()
        assert figures["copy_recall_at_p90"] == pytest.approx(best)
