"""Copy detection: against a hand-worked list, the definition over all pairs, and scikit-learn."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from evaluation.copy_detection import run
from evaluation.features import Features
from evaluation.score import blocks


def features(h_NF: Tensor, label_N: list[int] | None = None, first_id: int = 0) -> Features:
    N = len(h_NF)
    label = torch.full((N,), -1) if label_N is None else torch.tensor(label_N)
    return Features(h_NF=h_NF, label_N=label, id_N=first_id + torch.arange(N))


def scores(query: Features, reference: Features) -> Tensor:
    """The same product of the same rows: cosines to the last bit."""
    h_QF, h_GF = (F.normalize(f.h_NF.float(), dim=1) for f in (query, reference))
    return torch.cat([S_QG for _, S_QG in blocks(h_QF, h_GF)])


def as_defined(S_QG: Tensor, label_Q: list[int], id_G: list[int], limit: int) -> dict[str, float]:
    """The definition, step by step over a sorted list of all pairs."""
    Q, G = S_QG.shape
    pairs = [(S_QG[q, g].item(), id_G[g] == label_Q[q], q) for q in range(Q) for g in range(G)]
    pairs.sort(key=lambda pair: (-pair[0], pair[1]))  # false before true
    pairs = pairs[:limit]
    originals = sum(label >= 0 for label in label_Q)
    hits, ap, recall, recall_before = 0, 0.0, 0.0, 0.0
    own: dict[int, list[tuple[float, bool]]] = {q: [] for q in range(Q)}
    for n, (score, true, q) in enumerate(pairs, start=1):
        hits += true
        ap += (hits / originals - recall_before) * (hits / n)
        recall_before = hits / originals
        if hits / n >= 0.9:
            recall = max(recall, hits / originals)
        own[q].append((score, true))
    ranks = [
        sum(s >= score for s, _ in of) for of in own.values() for score, true in of if true
    ]  # fmt: skip
    return {
        "copy_map": ap,
        "copy_recall_at_p90": recall,
        "copy_r1": sum(rank <= 1 for rank in ranks) / originals,
        "copy_r10": sum(rank <= 10 for rank in ranks) / originals,
    }


def test_a_list_worked_by_hand() -> None:
    """Three references on the axes; the queries' cosines with them are written into them.

    query 0 copies reference 10:  0.8 true, 0.6
    query 1 copies reference 11:  0.28, 0.96 true
    query 2 is a distractor:      0.9 (not true), …

    Best first: 0.96 true, 0.9 false, 0.8 true, then only false ones.
    µAP = 1/2 · 1/1 + 1/2 · 2/3 = 5/6; the precision is 0.9 or more at the first place only.
    """
    axes = torch.eye(3)
    query_h = torch.tensor([[0.8, 0.6, 0.0], [0.28, 0.96, 0.0], [0.1, 0.9, (1 - 0.82) ** 0.5]])
    query, reference = features(query_h, [10, 11, -1]), features(axes, first_id=10)
    assert run(query, reference) == pytest.approx(
        {"copy_map": 5 / 6, "copy_recall_at_p90": 1 / 2, "copy_r1": 1.0, "copy_r10": 1.0}
    )
    # With two predictions the second true pair is not among them.
    assert run(query, reference, limit=2) == pytest.approx(
        {"copy_map": 1 / 2, "copy_recall_at_p90": 1 / 2, "copy_r1": 1 / 2, "copy_r10": 1 / 2}
    )


def collection(Q: int, G: int, noise: float) -> tuple[Features, Features]:
    generator = torch.Generator().manual_seed(Q)
    reference = features(torch.randn(G, 6, generator=generator), first_id=100)
    label = [100 + (7 * q) % G if q % 3 else -1 for q in range(Q)]
    h_QF = torch.randn(Q, 6, generator=generator)
    for q, original in enumerate(label):
        if original >= 0:
            h_QF[q] = reference.h_NF[original - 100] + noise * h_QF[q]
    return features(h_QF, label), reference


@pytest.mark.parametrize("limit", [1, 37, 300, 500_000])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rows", [None, 5])
def test_all_figures_are_those_of_the_definition(limit: int, ties: bool, rows: int | None) -> None:
    query, reference = collection(Q=40, G=30, noise=0.7)
    if ties:  # few different directions: many equal scores, of true pairs too
        query, reference = (
            Features(h_NF=f.h_NF.round().clamp(-1, 1), label_N=f.label_N, id_N=f.id_N)
            for f in (query, reference)
        )
    S_QG = scores(query, reference)
    assert (S_QG.unique().numel() < S_QG.numel()) == ties
    expected = as_defined(S_QG, query.label_N.tolist(), reference.id_N.tolist(), limit)
    assert run(query, reference, limit=limit, rows=rows) == pytest.approx(expected, abs=1e-12)


def test_map_is_scikit_learns_where_no_scores_are_equal() -> None:
    query, reference = collection(Q=60, G=50, noise=0.5)
    true_QG = query.label_N[:, None] == reference.id_N
    expected = average_precision_score(true_QG.flatten(), scores(query, reference).flatten())
    assert run(query, reference)["copy_map"] == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected < 0.9


def test_a_collapsed_encoder_gains_nothing() -> None:
    query, reference = collection(Q=40, G=30, noise=0.0)
    assert run(query, reference)["copy_map"] > 0.9
    ones = [Features(torch.ones_like(f.h_NF), f.label_N, f.id_N) for f in (query, reference)]
    figures = run(ones[0], ones[1])
    assert figures["copy_map"] < 0.02 and figures["copy_r10"] == 0


def test_one_list_for_all_queries_asks_for_comparable_scores() -> None:
    """Each query alone ranks its original first; a distractor that scores above all costs µAP."""
    axes = torch.eye(4)
    near = F.normalize(axes[:2] + 0.5, dim=1)
    query = features(torch.cat([near, axes[2:3]]), [0, 1, -1])
    figures = run(query, features(axes))
    assert figures["copy_r1"] == 1 and figures["copy_map"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_what_cannot_be_searched_is_refused() -> None:
    query, reference = collection(Q=6, G=5, noise=0.5)
    with pytest.raises(ValueError, match=r"None of the 6 queries"):
        run(features(query.h_NF), reference)
    with pytest.raises(ValueError, match=r"not there \(id 7 first\)"):
        run(features(query.h_NF, [7, *[-1] * 5]), reference)
    doubled = Features(reference.h_NF, reference.label_N, torch.full((5,), 100))
    with pytest.raises(ValueError, match="4 ids occur more than once"):
        run(query, doubled)
    with pytest.raises(ValueError, match="size 6, reference features 3"):
        run(query, features(reference.h_NF[:, :3], first_id=100))
    with pytest.raises(ValueError, match="1 of 6 queries have features that are not finite"):
        run(features(query.h_NF.index_fill(0, torch.tensor([2]), torch.nan)), reference)
    with pytest.raises(ValueError, match="limit=0"):
        run(query, reference, limit=0)
