"""The best pairs of all queries and references, as a list of predictions has them.

    scores of a block ─▶ those above the worst pair that is held ─▶ held, and cut now and then

Memory is a block of scores and, beside it, some numbers for twice as many pairs as are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.score import blocks


@dataclass(frozen=True)
class BestPairs:
    """Pairs of a query and a reference, the best first.

    Args:
        query_P: rows of the queries.
        reference_P: rows of the references.
        score_P: their inner products, float32.
    """

    query_P: Tensor
    reference_P: Tensor
    score_P: Tensor


@torch.no_grad()
def best_pairs(
    query_QD: Tensor, reference_GD: Tensor, *, limit: int, rows: int | None = None
) -> BestPairs:
    """Find the pairs of highest score by an exact search; equals in the order of rows.

    Args:
        query_QD: descriptors of queries, float32.
        reference_GD: descriptors of references, float32.
        limit: how many pairs, at most.
        rows: queries per block; changes memory and speed only.
    """
    G = len(reference_GD)
    score_P = query_QD.new_empty(0)
    pair_P = torch.empty(0, dtype=torch.int64, device=query_QD.device)  # query · G + reference
    worst: Tensor | None = None  # of the pairs that are held, once they are enough
    for start, S_QG in blocks(query_QD, reference_GD, rows=rows):
        score_N = S_QG.flatten()
        if worst is None and len(score_N) > limit:
            place_N = _best(score_N, limit)  # without a list of them all
        elif worst is None:
            place_N = torch.arange(len(score_N), device=score_N.device)
        else:  # of equal pairs those that came first stay
            place_N = torch.nonzero(score_N > worst)[:, 0]
        score_P = torch.cat([score_P, score_N[place_N]])
        pair_P = torch.cat([pair_P, place_N + start * G])
        if len(score_P) > 2 * limit:
            kept_P = _best(score_P, limit)
            score_P, pair_P = score_P[kept_P], pair_P[kept_P]
        if len(score_P) == limit:
            worst = score_P.min()
    if len(score_P) > limit:
        kept_P = _best(score_P, limit)
        score_P, pair_P = score_P[kept_P], pair_P[kept_P]
    order_P = score_P.argsort(descending=True, stable=True)
    score_P, pair_P = score_P[order_P], pair_P[order_P]
    return BestPairs(pair_P // G, pair_P % G, score_P)


def _best(score_N: Tensor, limit: int) -> Tensor:
    """Return the places of the highest scores in increasing order; of equals, the first."""
    worst = score_N.topk(limit, sorted=False).values.min()
    above_N, equal_N = torch.nonzero(score_N > worst)[:, 0], torch.nonzero(score_N == worst)[:, 0]
    return torch.cat([above_N, equal_N[: limit - len(above_N)]]).sort().values
