"""Forms of ranking, and what their gradients have in common: against loops, by mathematics."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ranking_forms import OuterLogAP
from benchmarks.ranking_gradients import OBJECTIVES, agreement, gradients
from model.encoder import SmallResNet
from model.method import JointEmbedding
from model.objective import NTXent


def outer_by_definition(z_VAD: Tensor, temperature: float) -> float:
    """-log AP of every query, by loops."""
    V, A, _ = z_VAD.shape
    z = F.normalize(z_VAD, dim=-1)
    losses = []
    for v in range(V):
        for a in range(A):
            own = [float(z[v, a] @ z[w, a]) for w in range(V) if w != v]
            others = [float(z[v, a] @ z[w, b]) for w in range(V) for b in range(A) if b != a]
            ap = 0.0
            for score in own:
                place = 1 + sum(each > score for each in own)
                above = sum(math.exp((each - score) / temperature) for each in others)
                ap += place / (place + above) / len(own)
            losses.append(-math.log(ap))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_logarithm_of_ap_is_its_definition_s(temperature: float) -> None:
    torch.manual_seed(0)
    z_VAD = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    objective = OuterLogAP(temperature=temperature)
    loss = objective(z_VAD)
    assert loss.item() == pytest.approx(outer_by_definition(z_VAD, temperature), rel=1e-9)
    assert torch.autograd.gradcheck(objective, (z_VAD,))


def method() -> JointEmbedding:
    torch.manual_seed(1)
    encoder = SmallResNet(width=4)
    return JointEmbedding(encoder=encoder, objective=NTXent(), hidden_size=16, embedding_size=8)


def test_with_one_positive_all_logarithms_have_one_gradient() -> None:
    """Two views: a query's only positive is the first of all, and a mean of one is itself."""
    torch.manual_seed(0)
    views = (torch.randn(2, 6, 3, 16, 16),)
    found = gradients(method(), views, 0.1)
    for gallery in found.values():
        for name in ("LogAP", "OuterLogAP"):
            difference = (gallery[name] - gallery["NTXent"]).norm()
            assert difference < 1e-4 * gallery[name].norm()
    same = agreement([found, found])
    for gallery in same.values():
        assert gallery["NTXent"] == pytest.approx(1) and gallery["LogAP"] == pytest.approx(1)
        assert gallery["SmoothAP"] < 0.999


def test_gradients_are_those_that_training_would_take() -> None:
    torch.manual_seed(0)
    views = (torch.randn(2, 6, 3, 16, 16), torch.randn(3, 6, 3, 8, 8))
    for gallery in ("all", "large"):
        for name, make in OBJECTIVES.items():
            alone = method()
            alone.gallery, alone.objective = gallery, make(temperature=0.2)
            alone(views).loss.backward()
            expected = torch.cat(
                [p.grad.flatten() for p in alone.parameters() if p.grad is not None]
            )
            found = gradients(method(), views, 0.2)[gallery][name]
            assert (found - expected).norm() < 1e-4 * found.norm(), (gallery, name)
