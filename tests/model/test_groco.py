import math

import pytest
import torch
import torch.nn.functional as F
from by_definition import every_shape
from embeddings import embeddings, golden_VAD, value_and_gradient
from torch import Tensor

from model.objective import GroCo


@pytest.mark.parametrize(
    ("views", "loss", "gradient_norm"), [(2, 0.249863, 0.0658), (4, 0.274758, 0.0249)]
)
def test_golden_values_of_the_authors_code(views: int, loss: float, gradient_norm: float):
    # Two negatives are all there are, so that 10 are asked for in vain.
    found, gradient_VAD = value_and_gradient(GroCo(), golden_VAD()[:views])
    assert found.item() == pytest.approx(loss, abs=1e-5)
    # Their table has four digits behind the point.
    assert gradient_VAD.norm().item() == pytest.approx(gradient_norm, abs=6e-5)


def test_golden_probabilities_of_the_sorting_network():
    x_QX = torch.tensor([[-0.2, 0, 0.1, 0.3, 0.25]])
    last_QX = torch.tensor([[0.0, 0, 0, 1, 1]])
    behind_QX = GroCo().in_the_last_places(x_QX, last_QX)
    expected = [0.167957, 0.189599, 0.470790, 0.511705, 0.659950]
    assert behind_QX[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert F.binary_cross_entropy(behind_QX, last_QX).item() == pytest.approx(0.423213, abs=1e-6)


@pytest.mark.parametrize(
    ("M", "values"), [(1, [0.1470, 0.2020, 0.1794, 0.2643]), (3, [0.1398, 0.2509, 0.1920, 0.3956])]
)
def test_behaviour_at_the_released_settings(M: int, values: list[float]):
    """methods.md, 2.2: ten negatives; perfect, equal, orthogonal negatives, inverted."""
    for (negative, positive), expected in zip(
        [(-1, 1), (0, 0), (0, 1), (1, -1)], values, strict=True
    ):
        score_QX = torch.tensor([[negative] * 10 + [positive] * M], dtype=torch.float64)
        assert GroCo().per_query(score_QX, M).item() == pytest.approx(expected, abs=6e-5)


def test_positives_pull_much_more_than_negatives():
    """methods.md, 2.2: typical similarities."""
    score_QX = torch.tensor([[*torch.linspace(0.05, 0.35, 10), 0.7]], dtype=torch.float64)
    score_QX.requires_grad_()
    (gradient_QX,) = torch.autograd.grad(GroCo().per_query(score_QX, 1).sum(), score_QX)
    assert gradient_QX[0, -1].item() == pytest.approx(-0.0214, abs=1e-4)
    assert gradient_QX[0, -2].item() == pytest.approx(0.0016, abs=1e-4)
    assert gradient_QX[0, 0].item() == pytest.approx(6e-5, abs=1e-5)


@pytest.mark.parametrize(("X", "M"), [(2, 1), (5, 2), (11, 1), (13, 3), (12, 2)])
@pytest.mark.parametrize("steepness", [1.0, 8.0])
def test_places_sent_back_are_columns_of_diffsorts_permutation(X: int, M: int, steepness: float):
    from diffsort import DiffSortNet

    network = DiffSortNet("odd_even", X, steepness=steepness, distribution="cauchy")
    x_QX = embeddings(6, X).requires_grad_()
    _, permutation_QXX = network(x_QX)
    expected_QX = permutation_QXX[:, :, -M:].sum(-1)
    last_QX = (torch.arange(X) >= X - M).double().expand(6, X)
    found_QX = GroCo(steepness=steepness).in_the_last_places(x_QX, last_QX)
    torch.testing.assert_close(found_QX, expected_QX, rtol=1e-12, atol=1e-12)
    weight_QX = embeddings(6, X, seed=1)
    (expected_gradient,) = torch.autograd.grad((expected_QX * weight_QX).sum(), x_QX)
    (found_gradient,) = torch.autograd.grad((found_QX * weight_QX).sum(), x_QX)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def groco(z_VAD: Tensor, gallery_views: int, K: int, *, stop_gradient: bool) -> Tensor:
    """Anchor by anchor, wire by wire, with the whole permutation matrix."""
    V, A, _ = z_VAD.shape
    z_VAD = F.normalize(z_VAD, dim=-1)
    other_VAD = z_VAD.detach() if stop_gradient else z_VAD
    losses = []
    for v in range(V):
        for a in range(A):
            x = [z_VAD[v, a] @ other_VAD[v, b] for b in range(A) if b != a]
            x = sorted(x, key=float)[-K:]
            negatives = len(x)
            positives = [z_VAD[v, a] @ other_VAD[w, a] for w in range(gallery_views) if w != v]
            x += sorted(positives, key=float)
            n = len(x)
            P = [[torch.tensor(float(i == r)) for r in range(n)] for i in range(n)]
            for layer in range(n):
                for i in range(layer % 2, n - 1, 2):
                    low, high = x[i], x[i + 1]
                    keep = 0.5 + torch.atan(high - low) / math.pi
                    x[i], x[i + 1] = keep * low + (1 - keep) * high, (1 - keep) * low + keep * high
                    for row in P:
                        p, q = row[i], row[i + 1]
                        row[i], row[i + 1] = keep * p + (1 - keep) * q, (1 - keep) * p + keep * q
            entries = []
            for i, row in enumerate(P):
                behind, before = sum(row[negatives:]), sum(row[:negatives])
                entries.append(-torch.log(torch.as_tensor(before if i < negatives else behind)))
            losses.append(torch.stack(entries).mean())
    return torch.stack(losses).mean()


@every_shape
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_loss_and_gradient_equal_the_definition(
    shape: tuple[int, int, int, int], stop_gradient: bool
):
    *VAD, gallery_views = shape
    z_VAD = embeddings(*VAD).requires_grad_()
    expected = groco(z_VAD, gallery_views, 2, stop_gradient=stop_gradient)
    (expected_VAD,) = torch.autograd.grad(expected, z_VAD)
    objective = GroCo(negatives=2, stop_gradient=stop_gradient)
    loss, gradient_VAD = value_and_gradient(
        lambda z_VAD: objective(z_VAD, gallery_views=gallery_views), z_VAD
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=1e-9, atol=1e-12)


def test_steep_swaps_stay_finite():
    loss, gradient_VAD = value_and_gradient(
        GroCo(steepness=1e6), embeddings(3, 5, 4, dtype=torch.float32)
    )
    assert loss.isfinite() and gradient_VAD.isfinite().all()
