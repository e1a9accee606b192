"""Retrieval by shared categories: the more of them two images have in common, the better.

Each image of a multi-label set ranks all others by cosine. An image that shares g categories with
it is worth g, at position p divided by log2(1 + p). The sum, in relation to that of the best
ranking, is the nDCG over all positions: Jarvelin, Kekalainen, "Cumulated Gain-Based Evaluation of
IR Techniques", TOIS 2002, https://doi.org/10.1145/582415.582418, as `sklearn.metrics.ndcg_score`
has it. Images that score alike share the mean of their places' worth.

Where something does not count, such as a "difficult" object, and no other category is shared, it is
not known whether the two images share one: such a pair is left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features
from evaluation.retrieval import average_precision, sort_rows
from evaluation.score import blocks, exact_float32
from shards.layout import PRESENT

QUERIES = 10_000
"""How many images rank the others, at most."""


@torch.no_grad()
def run(test: Features, *, queries: int = QUERIES, rows: int | None = None) -> dict[str, float]:
    """Rank the other images for each image that shows a category.

    An image that shows none stays in the gallery; one that shares nothing with any other is no
    query. Memory is bounded by blocks; time is that of sorting N scores for each query.

    Args:
        test: samples to rank; those without annotations are left out.
        queries: how many rank the others, at most; always the same ones, whatever their order.
        rows: queries per block; changes memory and speed only.

    Returns:
        category_ndcg: mean nDCG of the queries.
        category_map: their mean AP, right answers being all that share a category or more.

    Raises:
        ValueError: no two samples share a category, or features are not finite.
    """
    test, category_NK = test.annotated()
    h_NF = F.normalize(test.h_NF.float(), dim=1)
    present_NK = (category_NK == PRESENT).float()
    possible_NK = (category_NK >= PRESENT).float()
    row_Q = _choose((present_NK.sum(dim=0) * present_NK).amax(dim=1) > 1, test.id_N, queries)
    if not len(row_Q):
        raise ValueError(
            f"No two of the {len(test)} annotated samples share a category, so there is nothing to "
            "retrieve. Choose a larger split."
        )
    ndcg, ap = [], []
    for start, S_QG in blocks(h_NF[row_Q], h_NF, rows=rows):
        own_Q = row_Q[start : start + len(S_QG)]
        with exact_float32(h_NF.device):
            gain_QG = present_NK[own_Q] @ present_NK.T
            possible_QG = possible_NK[own_Q] @ possible_NK.T
        gain_QG.scatter_(1, own_Q[:, None], 0)
        # Out of the gallery: pairs of which it is not known, and the query itself.
        S_QG.masked_fill_((gain_QG == 0) & (possible_QG > 0), -torch.inf)
        ndcg.append(normalised_gain(S_QG, gain_QG))
        ap.append(average_precision(S_QG, gain_QG > 0))
    return {
        "category_ndcg": float(torch.cat(ndcg).mean()),
        "category_map": float(torch.cat(ap).double().mean()),
    }


def normalised_gain(S_QG: Tensor, gain_QG: Tensor) -> Tensor:
    """Return the nDCG [Q] of every query's ranking, float64; nan where there is nothing to gain.

    Args:
        S_QG: scores [Q, G], float32. -inf takes a row out of a query's gallery (itself, say).
        gain_QG: what each gallery row is worth, 0 or more; 0 where S is -inf.
    """
    G = S_QG.shape[1]
    place_G = torch.arange(1, G + 1, device=S_QG.device, dtype=torch.float64)
    discount_G = 1 / (1 + place_G).log2()
    first_G = F.pad(discount_G.cumsum(0), (1, 0))  # [G + 1]: of the first 0, 1, 2, … places
    sorted_QG = sort_rows(S_QG)
    below_QG = torch.searchsorted(sorted_QG, S_QG)
    up_to_QG = torch.searchsorted(sorted_QG, S_QG, right=True)
    # The rows that score alike have the places from G - up_to + 1 to G - below.
    share_QG = (first_G[G - below_QG] - first_G[G - up_to_QG]) / (up_to_QG - below_QG)
    best_QG = sort_rows(gain_QG).flip(1)
    return (gain_QG * share_QG).sum(dim=1) / (best_QG * discount_G).sum(dim=1)


def _choose(query_N: Tensor, id_N: Tensor, queries: int) -> Tensor:
    """Return the rows [Q] that may be queries, or some of them by chance, whatever the order."""
    row_Q = query_N.nonzero()[:, 0]
    if len(row_Q) <= queries:
        return row_Q
    row_Q = row_Q[id_N[row_Q].argsort(stable=True)]
    chance_Q = torch.randperm(len(row_Q), generator=torch.Generator().manual_seed(0))[:queries]
    return row_Q[chance_Q.to(row_Q.device)]
