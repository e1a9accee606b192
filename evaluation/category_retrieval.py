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
from evaluation.retrieval import QUERIES, choose_queries, sort_rows
from evaluation.score import blocks, exact_float32
from shards.layout import PRESENT


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
    shares_N = (present_NK.sum(dim=0) * present_NK).amax(dim=1) > 1
    row_Q = choose_queries(shares_N, test.id_N, queries)
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
        ndcg_Q, ap_Q = graded(S_QG, gain_QG)
        ndcg.append(ndcg_Q)
        ap.append(ap_Q)
    return {
        "category_ndcg": float(torch.cat(ndcg).mean()),
        "category_map": float(torch.cat(ap).mean()),
    }


def graded(S_QG: Tensor, gain_QG: Tensor) -> tuple[Tensor, Tensor]:
    """Return nDCG and AP [Q] of every query's ranking, float64; nan where there is nothing to gain.

    Args:
        S_QG: scores [Q, G], float32. -inf takes a row out of a query's gallery (itself, say).
        gain_QG: what each gallery row is worth, a whole number below 65,536; 0 where S is -inf.
    """
    G = S_QG.shape[1]
    score_QG, gain_QG = _sort_both(S_QG, gain_QG)
    # Rows that score alike are a group; they have the places G - last to G - first, from 1 on.
    row_G = torch.arange(G, device=S_QG.device)
    differs_QG = score_QG[:, 1:] != score_QG[:, :-1]
    starts_QG, ends_QG = (
        F.pad(differs_QG, (1, 0), value=True),
        F.pad(differs_QG, (0, 1), value=True),
    )
    first_QG = torch.where(starts_QG, row_G, 0).cummax(dim=1).values
    last_QG = torch.where(ends_QG, row_G, G).flip(1).cummin(dim=1).values.flip(1)

    discount_G = 1 / (2 + row_G).double().log2()  # of the places 1, 2, …
    sum_G = F.pad(discount_G.cumsum(0), (1, 0))  # [G + 1]: of the first 0, 1, 2, … places
    share_QG = (sum_G[G - first_QG] - sum_G[G - 1 - last_QG]) / (last_QG - first_QG + 1)
    best_QG = sort_rows(gain_QG).flip(1).double()
    ndcg_Q = (gain_QG * share_QG).sum(dim=1) / (best_QG @ discount_G)

    positive_QG = gain_QG > 0
    below_QG = F.pad(positive_QG.cumsum(dim=1), (1, 0))  # [G + 1]: positives in the first rows
    hits_QG = below_QG[:, -1:] - below_QG.gather(1, first_QG)
    precision_QG = (hits_QG / (G - first_QG).double()).masked_fill(~positive_QG, 0)
    return ndcg_Q, precision_QG.sum(dim=1) / below_QG[:, -1]


def _sort_both(S_QG: Tensor, gain_QG: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers in the order of the scores, increasing, and the gains that belong to them.

    Both are sorted as one number, which on the CPU is 9 times faster than to sort with indices.
    """
    bits_QG = (S_QG + 0.0).view(torch.int32)  # -0 becomes 0
    number_QG = bits_QG ^ (bits_QG >> 31 & 0x7FFFFFFF)  # below 0 the bits count downwards
    both_QG = sort_rows((number_QG.long() << 16) + gain_QG.long())
    return both_QG >> 16, both_QG & 0xFFFF
