"""Score normalisation: against a loop over queries, and folded into either kind of search."""

import pytest
import torch
import torch.nn.functional as F

from evaluation.score_normalisation import TAKEN, normalised


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 6, generator=generator), dim=1)


@pytest.mark.parametrize(("weight", "first", "last"), [(2.0, 10, 10), (1.0, 1, 3), (0.5, 1, 40)])
@pytest.mark.parametrize("rows", [None, 4])
def test_both_searches_order_by_the_score_of_the_definition(
    weight: float, first: int, last: int, rows: int | None
) -> None:
    query_QD, reference_GD, training_ND = unit(15, 0), unit(25, 1), unit(40, 2)
    query, reference = normalised(
        query_QD, reference_GD, training_ND, weight=weight, first=first, last=last, rows=rows
    )
    assert query.shape == (15, 6 + TAKEN) and reference.shape == (25, 6 + TAKEN)
    for q in range(15):
        cosines = sorted((float(t @ query_QD[q]) for t in training_ND), reverse=True)
        common = sum(cosines[first - 1 : last]) / (last - first + 1)
        for g in range(25):
            score = float(query_QD[q] @ reference_GD[g]) - weight * common
            assert float(query[q] @ reference[g]) == pytest.approx(score, abs=1e-6)
            distance = float((query[q] - reference[g]).square().sum())
            assert distance == pytest.approx(3 + weight**2 - 2 * score, abs=1e-5)


def test_a_query_that_is_a_training_image_stays_finite() -> None:
    query_QD = unit(15, 0)
    query, _ = normalised(query_QD, query_QD, query_QD, weight=1.0, first=1, last=1)
    assert query.isfinite().all()
    torch.testing.assert_close(query[:, -2], torch.full((15,), -1.0))
