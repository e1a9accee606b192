import pytest
import torch
from by_definition import (
    assert_equal_to_definition,
    average_precision,
    every_shape,
    mean_over_queries,
)
from embeddings import aligned, golden_VAD, value_and_gradient
from torch import Tensor

from model.objective import QuantizedAP


@pytest.mark.parametrize(
    ("bins", "lowest", "loss", "gradient_norm"),
    [(25, 0.0, 0.220272, 0.4357), (20, -1.0, 0.243672, 0.5206)],
)
def test_golden_values_of_the_authors_code(
    bins: int, lowest: float, loss: float, gradient_norm: float
):
    found, gradient_VAD = value_and_gradient(QuantizedAP(bins=bins, lowest=lowest), golden_VAD())
    assert found.item() == pytest.approx(loss, abs=1e-5)
    assert gradient_VAD.norm().item() == pytest.approx(gradient_norm, rel=1e-3)


def quantized_ap(bins: int, lowest: float, highest: float):
    """Every score against every bin's triangle; the outermost bins' go on at 1."""
    width = (highest - lowest) / (bins - 1)
    centre_B = highest - width * torch.arange(bins, dtype=torch.float64)

    def histogram(score_G: Tensor) -> Tensor:
        weight_GB = torch.relu(1 - (score_G[:, None] - centre_B).abs() / width)
        first_G, last_G = score_G > highest, score_G < lowest
        weight_GB = weight_GB.masked_fill((first_G | last_G)[:, None], 0)
        return weight_GB.sum(0) + torch.stack(
            [first_G.sum(), *[torch.tensor(0)] * (bins - 2), last_G.sum()]
        )

    def query_loss(positive_K: Tensor, negative_M: Tensor) -> Tensor:
        right_B, wrong_B = histogram(positive_K), histogram(negative_M)
        ap, right, counted = torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1e-16)
        for b in range(bins):
            right = right + right_B[b]
            counted = counted + right_B[b] + wrong_B[b]
            ap = ap + right / counted * right_B[b] / len(positive_K)
        return 1 - ap

    return mean_over_queries(query_loss)


@every_shape
@pytest.mark.parametrize(
    ("bins", "lowest", "highest"),
    [(20, -1.0, 1.0), (25, 0.0, 1.0), (5, -0.2, 0.4), (2, -1.0, 1.0), (100, -1.0, 1.0)],
)
def test_loss_and_gradient_equal_the_definition(
    shape: tuple[int, int, int, int], bins: int, lowest: float, highest: float
):
    assert_equal_to_definition(
        QuantizedAP(bins=bins, lowest=lowest, highest=highest),
        quantized_ap(bins, lowest, highest),
        shape,
    )


def test_scores_at_the_bins_centres_have_exact_ap():
    Q, G, K = 8, 30, 4
    generator = torch.Generator().manual_seed(0)
    S_QG = torch.randint(-10, 11, (Q, G), generator=generator).double() / 10
    positive_QK = torch.stack([torch.randperm(G, generator=generator)[:K] for _ in range(Q)])
    loss_Q = (
        QuantizedAP(bins=21)
        .per_query(S_QG.clone(), S_QG.gather(1, positive_QK), positive_QK, grad=False)
        .loss_Q
    )
    right_QG = torch.zeros(Q, G, dtype=torch.bool).scatter_(1, positive_QK, True)
    for q in range(Q):
        exact = average_precision(S_QG[q, right_QG[q]], S_QG[q, ~right_QG[q]])
        assert 1 - loss_Q[q].item() == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("bins", [2, 7, 20])
def test_a_collapsed_encoder_guesses(bins: int):
    # All scores are 1: one bin, and its precision is the share of positives in the gallery.
    V, A = 3, 4
    loss, gradient_VAD = value_and_gradient(QuantizedAP(bins=bins), torch.ones(V, A, 5))
    assert loss.item() == pytest.approx(1 - (V - 1) / (V * A - 1), abs=1e-6)
    assert gradient_VAD.isfinite().all()


def test_perfect_order_costs_nothing():
    z_VAD = torch.eye(5, dtype=torch.float64).expand(3, 5, 5)
    assert QuantizedAP()(z_VAD).item() == pytest.approx(0, abs=1e-12)


def test_in_float32_it_is_as_exact_as_its_scores():
    z_VAD = aligned(4, 200, 32)
    expected, expected_VAD = value_and_gradient(QuantizedAP(), z_VAD)
    loss, gradient_VAD = value_and_gradient(QuantizedAP(), z_VAD.float())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert (gradient_VAD - expected_VAD).norm() < 1e-3 * expected_VAD.norm()
