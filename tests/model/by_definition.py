"""Definitions of objectives in loops over queries, differentiated by autograd: the slow way.

No line is shared with the objectives: a query's positives and negatives are collected one by one.
"""

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from embeddings import embeddings, value_and_gradient
from torch import Tensor

from model.objective import Objective

QueryLoss = Callable[[Tensor, Tensor], Tensor]
Definition = Callable[[Tensor, int], Tensor]

# V, A, D, and how many views are in the gallery.
SHAPES = [(2, 2, 3, 2), (2, 5, 4, 2), (4, 3, 5, 4), (4, 3, 5, 2), (5, 4, 6, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def scores(z_VAD: Tensor, gallery_views: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the cosines of each query with its positives and with its negatives."""
    V, A, _ = z_VAD.shape
    z_VAD = F.normalize(z_VAD, dim=-1)
    for v, a in product(range(V), range(A)):
        positives, negatives = [], []
        for w, b in product(range(gallery_views), range(A)):
            if (w, b) != (v, a):
                (positives if a == b else negatives).append(z_VAD[v, a] @ z_VAD[w, b])
        yield torch.stack(positives), torch.stack(negatives)


def mean_over_queries(query_loss: QueryLoss) -> Definition:
    """Return the loss of z [V, A, D] and a number of gallery views, from that of a query."""
    return lambda z_VAD, gallery_views: torch.stack(
        [query_loss(*each) for each in scores(z_VAD, gallery_views)]
    ).mean()


def average_precision(positive_K: Tensor, negative_M: Tensor) -> float:
    """Exact AP: precision times gain of recall, from one threshold to the next lower one."""
    ap, recall_before = 0.0, 0.0
    for threshold in sorted({float(s) for s in torch.cat([positive_K, negative_M])}, reverse=True):
        found = sum(float(s) >= threshold for s in positive_K)
        wrong = sum(float(s) >= threshold for s in negative_M)
        recall = found / len(positive_K)
        ap += found / (found + wrong) * (recall - recall_before)
        recall_before = recall
    return ap


def assert_equal_to_definition(
    objective: Objective, definition: Definition, shape: tuple[int, int, int, int]
) -> None:
    """Compare value and gradient."""
    *VAD, gallery_views = shape
    z_VAD = embeddings(*VAD).requires_grad_()
    expected = definition(z_VAD, gallery_views)
    (expected_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, gradient_VAD = value_and_gradient(
        lambda z_VAD: objective(z_VAD, gallery_views=gallery_views), z_VAD
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=1e-9, atol=1e-12)
