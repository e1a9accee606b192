"""Retrieval: exact average precision and recall of rankings, over labels and over views.

A query ranks its gallery by cosine. Its average precision (AP) is that of
`sklearn.metrics.average_precision_score`:

    AP = mean over positives of  hits / position,  where
    position = gallery rows that score at least as high as this positive (itself included)
    hits     = positives among them

A query is never in its own gallery. **Ties count as "at least as high"**, so nothing is gained by
scoring everything equally: a collapsed encoder gets AP = positives / gallery, which is chance.
Likewise R@k asks for a positive in the first k places with tied negatives placed before it.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features
from evaluation.score import blocks

QUERIES = 10_000
"""How many samples rank the others of their set, at most."""


def average_precision(S_QG: Tensor, positive_QG: Tensor) -> Tensor:
    """Return the exact AP [Q] of every query's ranking; nan where a query has no positive.

    Args:
        S_QG: scores [Q, G], float32. -inf takes a row out of a query's gallery (itself, say).
        positive_QG: true where the gallery row is a right answer; False where S is -inf.
    """
    position_QK, hits_QK = positions(S_QG, positive_QG)
    return (hits_QK / position_QK).sum(dim=1) / positive_QG.sum(dim=1)


def positions(S_QG: Tensor, positive_QG: Tensor) -> tuple[Tensor, Tensor]:
    """Return position and hits [Q, K] of every query's positives, those that score lowest first.

    Of a query with fewer than K positives the first columns are filled up; hits are 0 there.
    Arguments as `average_precision`.
    """
    G = S_QG.shape[1]
    K = int(positive_QG.sum(dim=1).max())
    s_QK = sort_rows(S_QG.masked_fill(~positive_QG, -torch.inf))[:, G - K :].contiguous()
    # The rows that score at least as high as s are those from the first place of s on.
    position_QK = G - torch.searchsorted(sort_rows(S_QG), s_QK)
    hits_QK = K - torch.searchsorted(s_QK, s_QK)
    return position_QK, hits_QK.masked_fill(s_QK == -torch.inf, 0)


def sort_rows(S_QG: Tensor) -> Tensor:
    """Return the rows of S in increasing order."""
    if not S_QG.is_cpu:
        return S_QG.sort(dim=1).values
    S_QG = S_QG.detach().clone()
    S_QG.numpy().sort(axis=1)  # in place; 10 times faster than torch, which sorts indices too
    return S_QG


def negatives_above(S_QG: Tensor, positive_QG: Tensor) -> Tensor:
    """Return how many negatives [Q] score at least as high as the query's best positive.

    R@k is the share of queries for which this is below k. Arguments as `average_precision`.
    """
    best_Q = S_QG.masked_fill(~positive_QG, -torch.inf).amax(dim=1, keepdim=True)
    return ((best_Q <= S_QG) & ~positive_QG).sum(dim=1)


def view_average_precision(z_VAD: Tensor, *, rows: int | None = None) -> Tensor:
    """Return the exact AP [Q] of S2R2's own task, with every view as a query; Q = V * A.

    A query's positives are the other views of its sample, its gallery all other views. Fast enough
    for log steps: no sort, no host sync, no gradient (8 views of 1024 samples: 0.6 s on one core).

    Args:
        z_VAD: embeddings [V, A, D] of any floating dtype; they need not be normalised.
        rows: queries per block; changes memory and speed only.

    Returns:
        AP of view v of sample a at place v * A + a.

    Raises:
        ValueError: there are fewer than 2 views or 2 samples.
    """
    position_QK, hits_QK = _view_positions(z_VAD, rows)
    return (hits_QK / position_QK).mean(dim=1)


@cache
def chance(*, views: int, samples: int) -> float:
    """Return the expected AP of a random ranking of all other views, with every view as a query.

    Bestgen, "Exact expected average precision of the random baseline for system evaluation", 2015,
    https://doi.org/10.1515/pralin-2015-0007.

    Args:
        views: of a sample, 2 or more.
        samples: in the batch, 2 or more.
    """
    positives, gallery = views - 1, views * samples - 1
    share = (positives - 1) / (gallery - 1)
    harmonic = sum(1 / rank for rank in range(1, gallery + 1))
    return share + harmonic / gallery * (1 - share)


@torch.no_grad()
def _view_positions(z_VAD: Tensor, rows: int | None) -> tuple[Tensor, Tensor]:
    """Return position and hits [Q, K] of every query's K = V - 1 positives, both float32.

    Only the positives' own places are needed, so each costs one comparison with the gallery,
    O(Q * G * K) in all, and nothing is sorted.
    """
    if z_VAD.ndim != 3 or z_VAD.shape[0] < 2 or z_VAD.shape[1] < 2:
        raise ValueError(
            f"Embeddings are {list(z_VAD.shape)}, expected [V, A, D] with 2 or more views V and "
            "samples A: each view is a query, and the sample's other views are its positives."
        )
    V, A, _ = z_VAD.shape
    Q, K = V * A, V - 1
    z_QD = F.normalize(z_VAD.float(), dim=-1).flatten(0, 1)
    # Row q = v * A + a; A rows further, cyclically, is the next view of the same sample.
    query_Q = torch.arange(Q, device=z_QD.device)
    positive_QK = (query_Q[:, None] + A * (query_Q[:K] + 1)) % Q
    positions, hits = [], []
    for start, S_QG in blocks(z_QD, z_QD, rows=rows):
        S_QG.diagonal(start).fill_(-torch.inf)  # the query itself
        # Taken out of S, not computed again: the last bit would differ, and with it ties.
        s_QK = S_QG.gather(1, positive_QK[start : start + len(S_QG)])
        # 1.0 or 0.0: float32 adds up twice as fast as bool, and counts exactly up to 2^24 rows.
        above_QG = torch.empty_like(S_QG)
        positions.append(
            torch.stack(
                [torch.ge(S_QG, s_QK[:, k, None], out=above_QG).sum(dim=1) for k in range(K)], dim=1
            )
        )
        hits.append((s_QK[:, None, :] >= s_QK[:, :, None]).sum(dim=-1, dtype=torch.float32))
    return torch.cat(positions), torch.cat(hits)


def run_views(z_VAD: Tensor, *, rows: int | None = None) -> dict[str, float]:
    """Rank the views of held-out samples: mean AP, and R@1 and R@5 of the best positive.

    Args:
        z_VAD: embeddings [V, A, D]; mean AP depends on V and A, so compare only at equal ones.
        rows: queries per block; changes memory and speed only.

    Raises:
        ValueError: there are fewer than 2 views or 2 samples.
    """
    position_QK, hits_QK = _view_positions(z_VAD, rows)
    negatives_Q = (position_QK - hits_QK).amin(dim=1)
    return {
        "view_map": float((hits_QK / position_QK).double().mean()),
        "view_r1": float((negatives_Q < 1).double().mean()),
        "view_r5": float((negatives_Q < 5).double().mean()),
    }


@torch.no_grad()
def run_labels(
    test: Features, *, queries: int = QUERIES, rows: int | None = None
) -> dict[str, float]:
    """Rank the other labelled samples for each labelled sample; positives share its label.

    A sample that is the only one of its label stays in the gallery, but is no query. Memory is
    bounded by blocks; time is that of sorting N scores for each query (N = 4,000: 0.6 s on one
    core), so no more than a random choice of `queries` ask.

    Args:
        test: samples to rank; those without a label are left out.
        queries: how many rank the others, at most; always the same ones, whatever their order.
        rows: queries per block; changes memory and speed only.

    Raises:
        ValueError: no two samples share a label, or features are not finite.
    """
    test = test.labelled()
    _, class_N, count_K = test.label_N.unique(return_inverse=True, return_counts=True)
    query_N = count_K[class_N] > 1  # False: no other sample has its label
    if not bool(query_N.any()):
        raise ValueError(
            f"No two of the {len(test)} labelled samples share a label, so there is nothing to "
            "retrieve. Choose a labelled split with several samples a class."
        )
    h_NF = F.normalize(test.h_NF.float(), dim=1)
    row_Q = choose_queries(query_N, test.id_N, queries)
    ap, negatives = [], []
    for start, S_QG in blocks(h_NF[row_Q], h_NF, rows=rows):
        own_Q1 = row_Q[start : start + len(S_QG), None]
        S_QG.scatter_(1, own_Q1, -torch.inf)  # the query itself
        positive_QG = class_N[own_Q1] == class_N
        positive_QG.scatter_(1, own_Q1, False)
        ap.append(average_precision(S_QG, positive_QG))
        negatives.append(negatives_above(S_QG, positive_QG))
    negatives_Q = torch.cat(negatives)
    return {
        "label_map": float(torch.cat(ap).double().mean()),
        "label_r1": float((negatives_Q < 1).double().mean()),
        "label_r5": float((negatives_Q < 5).double().mean()),
    }


def choose_queries(query_N: Tensor, id_N: Tensor, queries: int) -> Tensor:
    """Return the rows [Q] that may be queries, or some of them by chance, whatever the order."""
    row_Q = query_N.nonzero()[:, 0]
    if len(row_Q) <= queries:
        return row_Q
    chance_Q = torch.randperm(len(row_Q), generator=torch.Generator().manual_seed(0))
    row_Q = row_Q[id_N[row_Q].argsort(stable=True)]
    return row_Q[chance_Q[:queries].to(row_Q.device)]
