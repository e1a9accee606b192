"""How many terms of bf16 the kernels multiply, held to the error that they are chosen for.

What tensor cores would make of the terms is reckoned in float64, where each product is exact.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from embeddings import aligned
from torch import Tensor

from model.kernel.fused_smooth_ap import terms_of
from model.kernel.tile_choice import terms_for, tiles_for


def loss_of_scores(S_QG: Tensor, V: int, temperature: float) -> Tensor:
    """Smooth-AP by its definition, of the scores of all with all: one tensor [Q, K, G]."""
    Q = len(S_QG)
    sample_Q = torch.arange(Q // V).repeat(V)
    itself_QG = torch.eye(Q, dtype=torch.bool)
    positive_QG = (sample_Q[:, None] == sample_Q) & ~itself_QG
    S_QK = S_QG[positive_QG].unflatten(0, (Q, V - 1))
    above_QKG = torch.sigmoid((S_QG[:, None] - S_QK[..., None]) / temperature)
    # Each sum holds the positive against itself too, and sigmoid(0) is the other half.
    position_QK = 0.5 + above_QKG.masked_fill(itself_QG[:, None], 0).sum(-1)
    among_positives_QK = 0.5 + (above_QKG * positive_QG[:, None]).sum(-1)
    return 1 - (among_positives_QK / position_QK).mean()


def products(left_ND: Tensor, right_MD: Tensor, terms: int) -> Tensor:
    """Multiply as `pair_tiles.add_scores` does, but without rounding what is added up."""
    left, right = (terms_of(each.float(), terms).double() for each in (left_ND, right_MD))
    return sum(
        (left[i] @ right[j].T for i in range(terms) for j in range(terms - i)),
        start=torch.zeros(len(left_ND), len(right_MD), dtype=torch.float64),
    )


def gradient(z_VAD: Tensor, temperature: float, terms: int | None) -> Tensor:
    """Return dL/dz [N, D] as the kernels compute it of so many terms; None: exactly."""
    V, A, _ = z_VAD.shape
    z_ND = z_VAD.double().flatten(0, 1)
    sample_N = torch.arange(A).repeat(V)
    own_NN = sample_N[:, None] == sample_N
    S_NN = z_ND @ z_ND.T
    if terms is not None:  # scores within a sample are float32's
        S_NN = torch.where(own_NN, S_NN, products(z_ND, z_ND, terms))
    S_NN.requires_grad_()
    (dS_NN,) = torch.autograd.grad(loss_of_scores(S_NN, V, temperature), S_NN)
    pulls_NN = dS_NN + dS_NN.T
    if terms is None:
        return pulls_NN @ z_ND
    within_NN, between_NN = pulls_NN * own_NN, pulls_NN * ~own_NN
    return within_NN @ z_ND + products(between_NN, z_ND.T, min(terms, 2))


def error(temperature: float, D: int, terms: int, noise: float) -> float:
    z_VAD = F.normalize(aligned(3, 96, D, noise).float(), dim=-1)
    exact_ND = gradient(z_VAD, temperature, None)
    return float((gradient(z_VAD, temperature, terms) - exact_ND).norm() / exact_ND.norm())


@pytest.mark.parametrize(
    "noise", [0.5, 1.5]
)  # an order that is nearly perfect, and one that is not
@pytest.mark.parametrize("D", [64, 128, 512])
@pytest.mark.parametrize("temperature", [0.02, 0.04, 0.05, 0.1])
def test_float32_s_terms_give_the_gradient_to_1e_5(temperature: float, D: int, noise: float):
    terms = terms_for("float32", temperature, D)
    found = error(temperature, D, terms, noise)
    assert found < (1e-5 if terms == 2 else 4e-6)


def test_below_the_temperature_for_two_terms_they_would_not_do():
    assert terms_for("float32", 0.04, 128) == 2
    assert terms_for("float32", 0.039, 128) == 3
    assert error(0.01, 128, terms=2, noise=0.8) > 2e-5 > 5 * error(0.01, 128, 3, noise=0.8)
    assert error(0.05, 128, terms=1, noise=1.5) > 3e-4  # bf16: not float32 at any temperature
    assert terms_for("bf16", 0.01, 128) == 1


def test_terms_add_up_to_the_embeddings_of_24_bits():
    z_VAD = F.normalize(aligned(2, 50, 40).float(), dim=-1)
    one, two, three = (terms_of(z_VAD, terms) for terms in (1, 2, 3))
    assert torch.equal(one[0], z_VAD.bfloat16()) and torch.equal(two, three[:2])
    assert torch.equal(three.double().sum(0).float(), z_VAD)
    left_over_VAD = (two.double().sum(0) - z_VAD.double()).abs()
    assert (left_over_VAD <= z_VAD.abs() * 2.0**-17).all()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 3), (12, 0), (13, 0)])
def test_there_are_tiles_for_every_gpu_and_size(capability: tuple[int, int]):
    for kernel, terms, D, positives in (
        (kernel, terms, D, positives)
        for kernel in ("compare", "pull")
        for terms in (1, 2, 3)
        for D in (2, 40, 64, 128, 192, 256, 8192)
        for positives in range(1, 9)
    ):
        for sides in (1, 2):
            tiles = tiles_for(kernel, capability, terms, D, positives, sides)
            assert math.log2(tiles.depth_of(D)).is_integer() and tiles.depth_of(D) >= 16
