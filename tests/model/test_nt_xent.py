import math

import pytest
import torch
import torch.nn.functional as F
from embeddings import aligned, embeddings, golden_VAD, value_and_gradient
from torch import Tensor

from model.objective import NTXent


def test_golden_value_of_two_views():
    loss, gradient_VAD = value_and_gradient(NTXent(temperature=0.5), golden_VAD()[:2])
    assert loss.item() == pytest.approx(0.794889, abs=1e-5)
    assert gradient_VAD.norm().item() == pytest.approx(0.6469, rel=1e-3)


def nt_xent_by_definition(z_VAD: Tensor, temperature: float) -> Tensor:
    V, A, _ = z_VAD.shape
    z_ND = F.normalize(z_VAD, dim=-1).flatten(0, 1)
    S = z_ND @ z_ND.T / temperature
    losses = []
    for q in range(V * A):
        negatives = [g for g in range(V * A) if g % A != q % A]
        for k in range(q % A, V * A, A):
            if k != q:
                logits = S[q, [k, *negatives]]
                losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 5, 4), (4, 3, 5), (7, 2, 3)])
@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_loss_and_gradient_equal_the_definition(shape: tuple[int, int, int], temperature: float):
    z_VAD = embeddings(*shape).requires_grad_()
    expected = nt_xent_by_definition(z_VAD, temperature)
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(NTXent(temperature=temperature), z_VAD)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(found_VAD, gradient_VAD, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("V", [2, 4])
def test_loss_and_gradient_equal_pytorch_metric_learning(V: int):
    from pytorch_metric_learning.losses import NTXentLoss

    A = 6
    z_VAD = aligned(V, A, 8).requires_grad_()
    # Every positive pair against the negatives of its first member: our form, for any V.
    expected = NTXentLoss(temperature=0.2)(z_VAD.flatten(0, 1), torch.arange(A).repeat(V))
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(NTXent(temperature=0.2), z_VAD)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(found_VAD, gradient_VAD, rtol=1e-6, atol=1e-9)


def test_a_collapsed_encoder_guesses_among_the_negatives():
    V, A = 3, 4
    loss, gradient_VAD = value_and_gradient(NTXent(), torch.ones(V, A, 5, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(1 + V * (A - 1)), abs=1e-12)
    assert gradient_VAD.isfinite().all()


def test_at_a_low_temperature_nothing_overflows():
    z_VAD = aligned(3, 4, 8, noise=1.0).float()
    loss, gradient_VAD = value_and_gradient(NTXent(temperature=1e-3), z_VAD)
    expected = nt_xent_by_definition(z_VAD.double(), 1e-3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert gradient_VAD.isfinite().all()
