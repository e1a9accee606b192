"""The GPU gives the figures of the CPU, and the live average precision never waits for it."""

import pytest
import torch

from evaluation import geometry, knn, linear, retrieval
from evaluation.features import Features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


def features(N: int, device: str, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.randint(0, 5, (N,), generator=generator)
    h_NF = torch.randn(N, 32, generator=generator)
    h_NF[:, :5] += torch.nn.functional.one_hot(class_N, 5)
    return Features(h_NF.to(device), class_N.to(device), torch.arange(N, device=device))


def test_figures_of_features_are_the_cpus():
    figures = []
    for device in ("cpu", "cuda"):
        train, test = features(2000, device, 0), features(1000, device, 1)
        figures.append(knn.run(train, test) | retrieval.run_labels(test) | linear.run(train, test))
    assert figures[1].pop("linear_l2") == figures[0].pop("linear_l2")
    assert figures[1] == pytest.approx(figures[0], abs=2e-3)  # two test samples may flip


def test_figures_of_embeddings_are_the_cpus():
    z_VAD = torch.randn(4, 300, 32, generator=torch.Generator().manual_seed(2)) + 0.3
    expected = retrieval.run_views(z_VAD) | geometry.run(z_VAD)
    found = retrieval.run_views(z_VAD.cuda()) | geometry.run(z_VAD.cuda())
    assert found == pytest.approx(expected, rel=1e-3)


def test_every_run_gives_the_same_figures():
    train, test = features(2000, "cuda", 3), features(1000, "cuda", 4)
    first, second = (knn.run(train, test) | linear.run(train, test) for _ in range(2))
    assert first == second


def test_view_average_precision_makes_no_host_sync():
    z_VAD = torch.randn(8, 256, 64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        retrieval.view_average_precision(z_VAD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
