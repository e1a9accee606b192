from itertools import combinations

import pytest
import torch
from by_definition import assert_equal_to_definition, every_shape
from embeddings import aligned, embeddings, value_and_gradient
from torch import Tensor

from model.objective import BarlowTwins


def by_lightly(z_VAD: Tensor, gallery_views: int) -> Tensor:
    """The mean over pairs of views of which one is in the gallery."""
    from lightly.loss import BarlowTwinsLoss

    loss = BarlowTwinsLoss(lambda_param=0.0051)
    pairs = [(v, w) for v, w in combinations(range(len(z_VAD)), 2) if v < gallery_views]
    return torch.stack([loss(z_VAD[v], z_VAD[w]) for v, w in pairs]).mean()


@every_shape
def test_loss_and_gradient_are_lightlys_mean_over_pairs(shape: tuple[int, int, int, int]):
    assert_equal_to_definition(BarlowTwins(), by_lightly, shape)


def entry_by_entry(z_VAD: Tensor, gallery_views: int) -> Tensor:
    """Equations 1 and 2 of the paper with indices, λ = 0.3."""
    V, A, D = z_VAD.shape

    def standardised(v: int, i: int) -> Tensor:
        centred_A = z_VAD[v, :, i] - z_VAD[v, :, i].mean()
        return centred_A / ((centred_A**2).mean() + 1e-5).sqrt()

    losses = []
    for v, w in combinations(range(V), 2):
        if v >= gallery_views:
            continue
        loss = torch.tensor(0.0)
        for i in range(D):
            for j in range(D):
                C = (standardised(v, i) * standardised(w, j)).sum() / A
                loss = loss + ((1 - C) ** 2 if i == j else 0.3 * C**2)
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", [(2, 3, 3, 2), (4, 3, 3, 2)])
def test_loss_and_gradient_equal_the_definition(shape: tuple[int, int, int, int]):
    assert_equal_to_definition(BarlowTwins(redundancy=0.3), entry_by_entry, shape)


def test_equal_views_of_unrelated_dimensions_cost_nothing():
    # A Hadamard matrix's columns: mean 0 but for the first, uncorrelated.
    H_22 = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    H_AD = torch.kron(torch.kron(H_22, H_22), H_22)[:, 1:]
    loss = BarlowTwins()(H_AD.expand(3, 8, 7))
    assert loss.item() == pytest.approx(0, abs=1e-8)


def test_scale_and_offset_of_a_dimension_do_not_matter():
    z_VAD = aligned(3, 12, 4) * 10  # far from the 1e-5 beneath the root
    moved_VAD = z_VAD * (1 + embeddings(4).abs()) + embeddings(4, seed=1)
    torch.testing.assert_close(BarlowTwins()(moved_VAD), BarlowTwins()(z_VAD), rtol=1e-5, atol=1e-5)


def test_every_part_of_the_samples_has_the_whole_loss():
    z_VAD = aligned(3, 6, 4)
    assert BarlowTwins()(z_VAD, samples=slice(2, 4)) == BarlowTwins()(z_VAD)


def test_a_collapsed_encoder_pays_for_every_dimension():
    loss, gradient_VAD = value_and_gradient(BarlowTwins(), torch.ones(3, 4, 5))
    assert loss.item() == pytest.approx(5, rel=1e-6)
    assert gradient_VAD.isfinite().all()
