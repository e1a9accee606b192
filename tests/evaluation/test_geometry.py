"""Geometry against closed forms, loops over pairs, and the formulas' own laws."""

import math
from itertools import combinations
from statistics import mean

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation import geometry


def embeddings(V: int, A: int, D: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(V, A, D, generator=torch.Generator().manual_seed(seed))


def test_alignment_and_uniformity_equal_loops_over_pairs():
    V, A, D = 4, 9, 5
    z_VAD = embeddings(V, A, D) + 1
    unit_VAD = F.normalize(z_VAD.double(), dim=-1)

    def squared_distance(first: torch.Tensor, second: torch.Tensor) -> float:
        return float((first - second).norm() ** 2)

    aligned = [
        squared_distance(unit_VAD[u, a], unit_VAD[v, a])
        for a in range(A)
        for u, v in combinations(range(V), 2)
    ]
    spread = [
        math.exp(-2 * squared_distance(unit_VAD[0, a], unit_VAD[0, b]))
        for a, b in combinations(range(A), 2)
    ]
    found = geometry.run(z_VAD)
    assert found["alignment"] == pytest.approx(mean(aligned), rel=1e-5)
    assert found["uniformity"] == pytest.approx(math.log(mean(spread)), rel=1e-5)


def test_alignment_of_nearly_equal_views_keeps_its_digits():
    z_AD = F.normalize(embeddings(1, 50, 16)[0], dim=-1)
    turned_AD = z_AD + 1e-3 * F.normalize(embeddings(1, 50, 16, seed=1)[0], dim=-1)
    expected = (F.normalize(turned_AD.double(), dim=-1) - z_AD.double()).square().sum(-1).mean()
    found = geometry.run(torch.stack([z_AD, turned_AD]))["alignment"]
    assert found == pytest.approx(float(expected), rel=1e-3) and found < 1e-6


def test_orthogonal_samples_with_equal_views():
    found = geometry.run(torch.eye(16).expand(2, 16, 16))
    assert found["alignment"] == 0
    assert found["uniformity"] == pytest.approx(-4)  # squared distance 2, t = 2
    assert found["effective_dimension"] == pytest.approx(15)  # n simplex corners span n - 1


def test_collapsed_embeddings():
    found = geometry.run(torch.tensor([3.0, 1.0, 0.2, 7.0]).expand(3, 20, 4))
    assert found["alignment"] == pytest.approx(0, abs=1e-12)
    assert found["uniformity"] == pytest.approx(0, abs=1e-5)
    assert found["effective_dimension"] == 1


def test_effective_dimension_of_an_isotropic_cloud_is_its_size():
    axes_AD = torch.cat([torch.eye(10), -torch.eye(10)])  # covariance exactly I / 10
    found = geometry.run(axes_AD.expand(2, 20, 10))
    assert found["effective_dimension"] == pytest.approx(10)


def test_effective_dimension_of_a_line_is_one():
    ends_AD = torch.tensor([[0.6, 0.8, 0.0], [-0.6, -0.8, 0.0]])
    assert geometry.run(ends_AD.expand(2, 2, 3))["effective_dimension"] == pytest.approx(1)


def test_effective_dimension_equals_the_entropy_of_singular_values():
    z_VAD = embeddings(3, 40, 12) * torch.logspace(0, -2, 12)
    unit_ND = F.normalize(z_VAD.double(), dim=-1).flatten(0, 1)
    singular_D = torch.linalg.svdvals(unit_ND - unit_ND.mean(0))
    share = [float(s) for s in singular_D.square() / singular_D.square().sum()]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert geometry.run(z_VAD)["effective_dimension"] == pytest.approx(expected, rel=1e-5)
    assert 1 < expected < 12


def test_block_size_does_not_change_the_result():
    z_VAD = embeddings(2, 33, 8)
    expected = geometry.run(z_VAD)
    for rows in (1, 7, 33, 1000):
        assert geometry.run(z_VAD, rows=rows) == pytest.approx(expected, rel=1e-6)


def test_scale_and_dtype_do_not_matter_and_no_gradient_is_kept():
    z_VAD = embeddings(3, 20, 6).requires_grad_()
    expected = geometry.run(z_VAD)
    assert geometry.run(100 * z_VAD) == pytest.approx(expected, rel=1e-5)
    assert geometry.run(z_VAD.double()) == pytest.approx(expected, rel=1e-5)


def test_what_has_no_pairs_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 1, 4\], expected \[V, A, D\]"):
        geometry.run(torch.zeros(2, 1, 4))


@pytest.mark.parametrize("shape", [(2, 30, 5), (3, 4, 40), (1, 16, 16)])
def test_spread_is_that_of_the_covariance_s_eigenvalues(shape: tuple[int, int, int]) -> None:
    z_VAD = embeddings(*shape) * torch.linspace(0.1, 2, shape[2])
    z_ND = F.normalize(z_VAD, dim=-1).flatten(0, 1).double().numpy()
    eigenvalues = np.linalg.eigvalsh(np.cov(z_ND.T, bias=True))
    variance, dimension = geometry.spread(z_VAD)
    assert variance.item() == pytest.approx(eigenvalues.sum(), rel=1e-4)
    ratio = eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()
    assert dimension.item() == pytest.approx(ratio, rel=1e-4)


def test_one_point_is_spread_nowhere() -> None:
    variance, dimension = geometry.spread(torch.ones(2, 8, 5))
    assert variance < 1e-6 and dimension.isfinite()
