from statistics import mean

import pytest
import torch
from by_definition import average_precision, every_shape, scores
from embeddings import aligned, embeddings, golden_VAD, value_and_gradient
from torch import Tensor

from model.objective import BlackboxAP


def test_golden_values_of_the_authors_code():
    # They divide by the number of queries, 12, and by the gallery's size, 11, before the push.
    found, gradient_VAD = value_and_gradient(
        BlackboxAP(interpolation=0.5 * 11 / 12, margin=0), golden_VAD()
    )
    assert found.item() == pytest.approx(0.202450, abs=1e-5)
    assert gradient_VAD.norm().item() == pytest.approx(0.4570, rel=1e-3)


@every_shape
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_value_is_exact_ap(shape: tuple[int, int, int, int], margin: float):
    *VAD, gallery_views = shape
    z_VAD = embeddings(*VAD)
    expected = mean(
        1 - average_precision(positive_K - margin / 2, negative_M + margin / 2)
        for positive_K, negative_M in scores(z_VAD, gallery_views)
    )
    loss = BlackboxAP(margin=margin)(z_VAD, gallery_views=gallery_views)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def published_rule(
    z_VAD: Tensor, gallery_views: int, interpolation: float, margin: float
) -> Tensor:
    """The authors' formulas for each query, positions by sorting; its gradient is the rule's."""

    def positions(scores_G: Tensor) -> Tensor:
        descending = sorted(range(len(scores_G)), key=lambda g: -scores_G[g].item())
        places = [1 + descending.index(g) for g in range(len(scores_G))]
        return torch.tensor(places, dtype=torch.float64) / len(scores_G)

    queries = list(scores(z_VAD, gallery_views))
    surrogates = []
    for positive_K, negative_M in queries:
        K, scores_G = len(positive_K), torch.cat([positive_K, negative_M])
        G, N = len(scores_G), len(queries)
        shifted_G = scores_G.detach().clone()
        shifted_G[:K] -= margin / 2
        shifted_G[K:] += margin / 2
        position_G = positions(shifted_G)
        among_K = positions(shifted_G[:K]) * K / G
        loss_by_position_G = torch.zeros(G, dtype=torch.float64)
        loss_by_position_G[:K] = among_K / position_G[:K] ** 2 / K / N
        theirs = interpolation * N / G
        gradient_G = (positions(shifted_G + theirs * loss_by_position_G) - position_G) / theirs
        surrogates.append((gradient_G * scores_G).sum())
    return torch.stack(surrogates).sum()


@every_shape
@pytest.mark.parametrize("interpolation", [0.1, 4.0])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_gradient_is_the_published_differences(
    shape: tuple[int, int, int, int], interpolation: float, margin: float
):
    *VAD, gallery_views = shape
    z_VAD = embeddings(*VAD).requires_grad_()
    surrogate = published_rule(z_VAD, gallery_views, interpolation, margin)
    (expected_VAD,) = torch.autograd.grad(surrogate, z_VAD)
    objective = BlackboxAP(interpolation=interpolation, margin=margin)
    _, gradient_VAD = value_and_gradient(
        lambda z_VAD: objective(z_VAD, gallery_views=gallery_views), z_VAD
    )
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=1e-9, atol=1e-12)


def test_without_margin_perfect_order_has_no_gradient_and_with_it_one():
    z_VAD = aligned(3, 4, 16, noise=0.1)
    loss, gradient_VAD = value_and_gradient(BlackboxAP(margin=0), z_VAD)
    assert loss == 0 and (gradient_VAD == 0).all()
    loss, gradient_VAD = value_and_gradient(BlackboxAP(margin=1.5), z_VAD)
    assert loss > 0 and gradient_VAD.norm() > 0


def test_a_collapsed_encoder_is_not_taken_for_a_perfect_one():
    V, A = 3, 4
    loss, gradient_VAD = value_and_gradient(BlackboxAP(), torch.ones(V, A, 5))
    assert loss.item() == pytest.approx(1 - (V - 1) / (V * A - 1), abs=1e-6)
    assert gradient_VAD.isfinite().all()


def test_the_loss_of_a_batch_is_no_random_number():
    z_VAD = aligned(3, 4, 8, noise=1.0)
    objective = BlackboxAP(margin=0.5)
    losses = {objective(z_VAD).item() for _ in range(5)}
    assert len(losses) == 1
