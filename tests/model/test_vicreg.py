from itertools import combinations

import pytest
import torch
from by_definition import assert_equal_to_definition, every_shape
from embeddings import aligned, value_and_gradient
from torch import Tensor

from model.objective import VICReg


def by_lightly(z_VAD: Tensor, gallery_views: int) -> Tensor:
    """The mean over pairs of views of which one is in the gallery."""
    from lightly.loss import VICRegLoss

    pairs = [(v, w) for v, w in combinations(range(len(z_VAD)), 2) if v < gallery_views]
    return torch.stack([VICRegLoss()(z_VAD[v], z_VAD[w]) for v, w in pairs]).mean()


@every_shape
def test_loss_and_gradient_are_lightlys_mean_over_pairs(shape: tuple[int, int, int, int]):
    assert_equal_to_definition(VICReg(), by_lightly, shape)


def entry_by_entry(z_VAD: Tensor, gallery_views: int) -> Tensor:
    """Weights 2, 3, 5; the paper's equations 1 to 6 with indices."""
    V, A, D = z_VAD.shape

    def mean(v: int, i: int) -> Tensor:
        return sum((z_VAD[v, a, i] for a in range(A)), torch.tensor(0.0)) / A

    def covariance(v: int, i: int, j: int) -> Tensor:
        products = [(z_VAD[v, a, i] - mean(v, i)) * (z_VAD[v, a, j] - mean(v, j)) for a in range(A)]
        return torch.stack(products).sum() / (A - 1)

    def spread(v: int) -> Tensor:
        lacking = [torch.relu(1 - (covariance(v, i, i) + 1e-4).sqrt()) for i in range(D)]
        return torch.stack(lacking).mean()

    def likeness(v: int) -> Tensor:
        squares = [covariance(v, i, j) ** 2 for i in range(D) for j in range(D) if i != j]
        return torch.stack(squares).sum() / D

    losses = []
    for v, w in combinations(range(V), 2):
        if v < gallery_views:
            apart = (z_VAD[v] - z_VAD[w]).square().mean()
            losses.append(
                2 * apart + 3 * (spread(v) + spread(w)) / 2 + 5 * (likeness(v) + likeness(w))
            )
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", [(2, 3, 3, 2), (4, 3, 3, 2)])
def test_loss_and_gradient_equal_the_definition(shape: tuple[int, int, int, int]):
    objective = VICReg(invariance=2, variance=3, covariance=5)
    assert_equal_to_definition(objective, entry_by_entry, shape)


def test_every_part_of_the_samples_has_the_whole_loss():
    z_VAD = aligned(3, 6, 4)
    assert VICReg()(z_VAD, samples=slice(2, 4)) == VICReg()(z_VAD)


def test_a_collapsed_encoder_pays_for_its_variance():
    loss, gradient_VAD = value_and_gradient(VICReg(), torch.ones(3, 4, 5))
    assert loss.item() == pytest.approx(25 * (1 - 0.01), rel=1e-6)  # √0.0001
    assert gradient_VAD.isfinite().all()


def test_embeddings_are_not_normalised():
    z_VAD = aligned(3, 6, 4)
    assert not torch.isclose(VICReg()(2 * z_VAD), VICReg()(z_VAD))
