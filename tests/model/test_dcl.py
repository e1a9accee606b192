import math

import pytest
import torch
from by_definition import assert_equal_to_definition, every_shape, mean_over_queries
from embeddings import aligned, embeddings, value_and_gradient
from torch import Tensor

from model.objective import DCL, NTXent


def dcl(temperature: float):
    def query_loss(positive_K: Tensor, negative_M: Tensor) -> Tensor:
        denominator = sum((score / temperature).exp() for score in negative_M)
        losses = [-((score / temperature).exp() / denominator).log() for score in positive_K]
        return torch.stack(losses).mean()

    return mean_over_queries(query_loss)


@every_shape
@pytest.mark.parametrize("temperature", [0.02, 0.3])
def test_loss_and_gradient_equal_the_definition(
    shape: tuple[int, int, int, int], temperature: float
):
    assert_equal_to_definition(DCL(temperature=temperature), dcl(temperature), shape)


def test_loss_and_gradient_of_two_views_equal_lightly():
    from lightly.loss import DCLLoss

    z_VAD = aligned(2, 7, 8).requires_grad_()
    expected = DCLLoss(temperature=0.2)(z_VAD[0], z_VAD[1])
    (expected_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, gradient_VAD = value_and_gradient(DCL(temperature=0.2), z_VAD)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=1e-9, atol=1e-12)


def test_nt_xent_is_the_softplus_of_it():
    # With one positive, -log(p / (p + n)) = softplus(-log(p / n)), query by query.
    z_VAD = embeddings(2, 2, 4)
    z_VAD[:, 1] = -z_VAD[:, 0]  # by symmetry all queries have the same scores
    decoupled = DCL(temperature=0.3)(z_VAD).item()
    assert NTXent(temperature=0.3)(z_VAD).item() == pytest.approx(
        math.log1p(math.exp(decoupled)), abs=1e-12
    )


def test_a_collapsed_encoder_sees_all_negatives_at_the_positives_place():
    V, A = 3, 4
    loss, gradient_VAD = value_and_gradient(DCL(), torch.ones(V, A, 5, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(V * (A - 1)), abs=1e-12)
    assert gradient_VAD.isfinite().all()
