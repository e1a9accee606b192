"""The Triton kernels of Smooth-AP, compiled for a GPU, against its definition."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from embeddings import aligned, value_and_gradient

from model.objective import MeanOverQueries, SmoothAP


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "temperature"), [("float32", 0.05), ("float32", 0.01), ("bf16", 0.05)]
)
def test_on_a_gpu_it_is_the_definition_repeats_itself_and_stores_no_scores(
    precision: Any, temperature: float
):
    V, A, D = 4, 1024, 128
    z_VAD = aligned(V, A, D, noise=1.5).float().cuda()
    objective = SmoothAP(precision=precision, temperature=temperature)
    value_and_gradient(objective, z_VAD)  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss, gradient_VAD = value_and_gradient(objective, z_VAD)
    assert torch.cuda.max_memory_allocated() - before < 4 * (V * A) ** 2
    again, again_VAD = value_and_gradient(objective, z_VAD)
    assert loss == again and (gradient_VAD == again_VAD).all()

    unit_VAD = F.normalize(z_VAD, dim=-1)
    rounded_VAD = unit_VAD.bfloat16() if precision == "bf16" else unit_VAD
    expected, expected_VAD = MeanOverQueries.value_and_gradient(
        SmoothAP(temperature=temperature), rounded_VAD.double(), V, slice(0, A), grad=True
    )
    found, found_VAD = objective.value_and_gradient(unit_VAD, V, slice(0, A), grad=True)
    assert found_VAD is not None and expected_VAD is not None
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    distance = (found_VAD - expected_VAD).norm() / expected_VAD.norm()
    assert distance < (3e-3 if precision == "bf16" else 1e-5)
