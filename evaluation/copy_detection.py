"""Copy detection: which queries are edited copies of a reference, and of which one.

Douze, Tolias, Pizzi et al., "The 2021 Image Similarity Dataset and Challenge", 2021,
https://arxiv.org/abs/2106.09672; the figures are those of `facebookresearch/isc2021`, metrics.py.

A prediction is a pair of query and reference with its cosine. All predictions of all queries stand
in one list, best first, so that scores must be comparable between queries:

    precision_n = ntp_n / n     recall_n = ntp_n / originals     ntp_n: true pairs in the first n
    µAP = Σ_n (recall_n - recall_{n-1}) · precision_n

**Ties count against the encoder**: of equal scores the false pairs stand first, before the cut at
`limit` predictions too. Most queries of the challenge have no original in the references: whatever
they are paired with is false.

No list is kept. Only true pairs add to the sum, and the place of the k-th of them is k plus the
number of false pairs that score at least as high: so it is enough to count those. Memory is a block
of scores, also where all scores are equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features
from evaluation.score import blocks

LIMIT = 500_000  # predictions that the challenge accepts


@torch.no_grad()
def run(
    query: Features, reference: Features, *, limit: int = LIMIT, rows: int | None = None
) -> dict[str, float]:
    """Search every query in all references by cosine; time is that of 2 · Q · R scores.

    Args:
        query: edited copies; the label is the id of the reference that one was made from, -1 where
            there is none (a distractor).
        reference: the collection that is searched; its labels do not matter.
        limit: predictions that count: the highest scores of all pairs, one threshold for all.
        rows: queries per block; changes memory and speed only.

    Returns:
        copy_map: µAP, 0 to 1.
        copy_recall_at_p90: largest recall_n at a precision_n of 0.9 or more; 0 if it is never
            reached.
        copy_r1, copy_r10: share of the queries with an original that rank it first, or among the
            first ten of their own predictions.

    Raises:
        ValueError: no query has an original, a label is the id of no reference or of several, the
            two feature sizes differ, features are not finite, or the limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}, but at least 1 prediction must count; 500,000 is usual.")
    _check(query, reference)
    original_Q = _originals(query, reference)
    query_QD = F.normalize(query.h_NF.float(), dim=1)
    reference_GD = F.normalize(reference.h_NF.float(), dim=1)
    return judge(query_QD, reference_GD, original_Q, limit=limit, rows=rows)


@torch.no_grad()
def judge(
    query_QD: Tensor,
    reference_GD: Tensor,
    original_Q: Tensor,
    *,
    limit: int = LIMIT,
    rows: int | None = None,
) -> dict[str, float]:
    """Return the figures of descriptors that are compared by their inner product; see `run`.

    Args:
        query_QD: descriptors of queries, float32.
        reference_GD: descriptors of references, float32.
        original_Q: row of each query's original among the references, -1 for a distractor.
        limit: predictions that count.
        rows: queries per block.
    """
    # Taken out of the blocks, not computed again: the last bit would differ, and with it ties.
    copies_Q = original_Q >= 0
    parts = [
        S_QG.gather(1, original_Q[start : start + len(S_QG), None].clamp(min=0))[:, 0]
        for start, S_QG in blocks(query_QD, reference_GD, rows=rows)
    ]
    s_Q = torch.where(copies_Q, torch.cat(parts), torch.inf)
    s_T, order_T = s_Q[copies_Q].sort(stable=True)  # T: true pairs, worst first
    T = len(s_T)

    above_Q = torch.zeros_like(original_Q)  # false pairs of this query that score as high
    false_T = torch.zeros_like(s_T, dtype=torch.int64)  # false pairs of all queries that do
    for start, S_QG in blocks(query_QD, reference_GD, rows=rows):
        here = slice(start, start + len(S_QG))
        row_P = torch.nonzero(copies_Q[here])[:, 0]
        S_QG[row_P, original_Q[here][row_P]] = -torch.inf
        above_Q[here] = (s_Q[here, None] <= S_QG).sum(dim=1)
        # Below the cut nothing counts any more, so it need not be counted.
        kept_T = s_T[false_T < limit]
        if len(kept_T):
            false_scores = S_QG[kept_T[0] <= S_QG]
            beaten = torch.searchsorted(s_T, false_scores, right=True)
            histogram = torch.bincount(beaten, minlength=T + 1)[1:]
            false_T += histogram.flip(0).cumsum(0).flip(0)

    k_T = torch.arange(T, 0, -1, device=s_T.device)  # the best true pair is the first
    place_T = false_T + k_T
    found_T = place_T <= limit
    precision_T = torch.where(found_T, k_T.double() / place_T, 0)
    # A query's own pairs that score as high are predictions if its true pair is one.
    above_T = above_Q[copies_Q][order_T]
    recall_T = torch.where(precision_T >= 0.9, k_T.double() / T, 0)
    return {
        "copy_map": float(precision_T.sum() / T),
        "copy_recall_at_p90": float(recall_T.max()),
        "copy_r1": float((found_T & (above_T < 1)).double().mean()),
        "copy_r10": float((found_T & (above_T < 10)).double().mean()),
    }


def _check(query: Features, reference: Features) -> None:
    if query.h_NF.shape[1] != reference.h_NF.shape[1]:
        raise ValueError(
            f"Query features have size {query.h_NF.shape[1]}, reference features "
            f"{reference.h_NF.shape[1]}: compute both with networks of one method."
        )
    query.refuse_broken("queries")
    reference.refuse_broken("references")


def _originals(query: Features, reference: Features) -> Tensor:
    """Return for each query the row of its original among the references; -1 for a distractor."""
    id_R, row_R = reference.id_N.sort()
    twice = int((id_R[1:] == id_R[:-1]).sum())
    if twice:
        raise ValueError(
            f"{twice} ids occur more than once among the {len(reference)} references, so a query "
            "does not say which is its original. Give one shard set of python -m tools.shard."
        )
    place_Q = torch.searchsorted(id_R, query.label_N).clamp(max=len(id_R) - 1)
    copies_Q = query.label_N >= 0
    strange_Q = copies_Q & (id_R[place_Q] != query.label_N)
    if bool(strange_Q.any()):
        raise ValueError(
            f"{int(strange_Q.sum())} queries are copies of references that are not there (id "
            f"{int(query.label_N[strange_Q][0])} first). Labels of queries are ids of references: "
            "make both with python -m tools.shard copies, with the same --root, counts and seed."
        )
    if not bool(copies_Q.any()):
        raise ValueError(
            f"None of the {len(query)} queries has an original among the references (all labels "
            "are -1), so there is nothing to find."
        )
    return torch.where(copies_Q, row_R[place_Q], -1)
