"""RankMe and LiDAR against their formulas, written naively in float64, and their laws."""

import math

import numpy as np
import pytest
import torch

from evaluation import lidar, rank_me

SHAPES = [(4, 40, 12), (3, 7, 30), (2, 30, 30)]  # fewer and more rows than dimensions


def embeddings(V: int, A: int, D: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z_AD = torch.randn(A, D, generator=generator) * torch.logspace(0, -2, D) + 0.3
    return z_AD + 0.2 * torch.randn(V, A, D, generator=generator)


def exponent_of_entropy(values: np.ndarray, epsilon: float) -> float:
    share = [value / sum(values) + epsilon for value in values.tolist()]
    return math.exp(-sum(p * math.log(p) for p in share))


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_me_is_of_the_singular_values(shape: tuple[int, int, int]) -> None:
    z_VAD = embeddings(*shape)
    singular = np.linalg.svd(z_VAD.flatten(0, 1).double().numpy(), compute_uv=False)
    found = rank_me.run(z_VAD)["rank_me"]
    assert found == pytest.approx(exponent_of_entropy(singular, 1e-7), rel=1e-6)
    assert 1 < found < min(shape[0] * shape[1], shape[2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("delta", [1e-4, 0.5])
def test_lidar_is_of_loops_over_images_and_views(shape: tuple[int, int, int], delta: float) -> None:
    V, A, D = shape
    z_VAD = embeddings(*shape)
    z = z_VAD.double().numpy()
    middle = z.reshape(-1, D).mean(axis=0)
    between, within = np.zeros((D, D)), delta * np.eye(D)
    for a in range(A):
        mean = sum(z[v, a] for v in range(V)) / V
        between += np.outer(mean - middle, mean - middle) / A
        for v in range(V):
            within += np.outer(z[v, a] - mean, z[v, a] - mean) / (V * A)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root).clip(min=0)
    found = lidar.run(z_VAD, delta=delta)["lidar"]
    assert found == pytest.approx(exponent_of_entropy(eigenvalues + 1e-300, 1e-7), rel=1e-6)
    assert 1 < found < min(A - 1, D) + 0.01


def test_equal_directions_count_as_many_as_there_are() -> None:
    axes_AD = 5 * torch.cat([torch.eye(10), -torch.eye(10)])
    assert rank_me.run(axes_AD.expand(2, 20, 10))["rank_me"] == pytest.approx(10, rel=1e-4)
    # Views apart by as much in every direction: the images' ten directions count alike.
    noise_AD = torch.cat([torch.eye(10), torch.eye(10)])
    z_VAD = torch.stack([axes_AD + noise_AD, axes_AD - noise_AD])
    assert lidar.run(z_VAD)["lidar"] == pytest.approx(10, rel=1e-4)


def test_lidar_does_not_count_directions_in_which_only_views_differ() -> None:
    """RankMe does; that is what LiDAR was made for."""
    generator = torch.Generator().manual_seed(0)
    signal_AD = torch.cat([torch.randn(500, 3, generator=generator), torch.zeros(500, 13)], dim=1)
    noise_VAD = torch.randn(50, 500, 16, generator=generator)
    z_VAD = signal_AD + noise_VAD * torch.tensor([0.1] * 3 + [1.0] * 13)
    assert rank_me.run(z_VAD)["rank_me"] > 14
    assert lidar.run(z_VAD)["lidar"] == pytest.approx(3, abs=0.1)


def test_neither_scale_nor_dtype_matters_to_rank_me() -> None:
    z_VAD = embeddings(3, 20, 6)
    expected = rank_me.run(z_VAD)["rank_me"]
    assert rank_me.run(1000 * z_VAD)["rank_me"] == pytest.approx(expected, rel=1e-9)
    assert rank_me.run(z_VAD.bfloat16())["rank_me"] == pytest.approx(expected, rel=1e-2)
    assert lidar.run(z_VAD.bfloat16())["lidar"] == pytest.approx(
        lidar.run(z_VAD)["lidar"], rel=2e-2
    )


def test_collapsed_embeddings_have_one_direction() -> None:
    point_VAD = torch.tensor([3.0, 1.0, 0.25, 7.0]).expand(3, 20, 4)
    assert rank_me.run(point_VAD)["rank_me"] == pytest.approx(1, abs=1e-4)
    assert lidar.run(point_VAD)["lidar"] == 1
    assert rank_me.run(torch.zeros(2, 5, 4))["rank_me"] == 1


def test_what_has_no_views_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 5, 4\], expected \[V, A, D\]"):
        lidar.run(torch.zeros(1, 5, 4))
