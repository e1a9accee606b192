import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from embeddings import OBJECTIVES, aligned, embeddings, value_and_gradient
from torch._subclasses import FakeTensorMode

from model import objective
from model.objective import BlackboxAP, GroCo, Objective, OnePass, SmoothAP, VICReg, queries

every_objective = pytest.mark.parametrize("Each", OBJECTIVES)


@every_objective
@pytest.mark.parametrize(("V", "A"), [(2, 2), (2, 9), (5, 3), (32, 2)])
def test_a_finite_float32_scalar_with_finite_gradient(Each: type[Objective], V: int, A: int):
    loss, gradient_VAD = value_and_gradient(Each(), embeddings(V, A, 8, dtype=torch.float32))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient_VAD.isfinite().all()
    assert gradient_VAD.norm() > 0


# Blackbox AP's value is a step function: its gradient follows a rule of its own (test_blackbox_ap).
@pytest.mark.parametrize("Each", [each for each in OBJECTIVES if each is not BlackboxAP])
def test_gradient_equals_finite_differences(Each: type[Objective]):
    # As published, GroCo's gradient is that of the queries alone (test_groco).
    of = GroCo(stop_gradient=False) if Each is GroCo else Each()
    z_VAD = aligned(3, 3, 5).requires_grad_()
    assert of(z_VAD).dtype == torch.float64
    assert torch.autograd.gradcheck(partial(of, gallery_views=2), z_VAD)


@every_objective
def test_order_of_samples_and_of_views_does_not_matter(Each: type[Objective]):
    z_VAD = aligned(4, 6, 8)
    loss, gradient_VAD = value_and_gradient(Each(), z_VAD)
    view_V, sample_A = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 2, 0, 1, 4, 3])
    mixed_loss, mixed_VAD = value_and_gradient(Each(), z_VAD[view_V][:, sample_A])
    torch.testing.assert_close(mixed_loss, loss)
    torch.testing.assert_close(mixed_VAD, gradient_VAD[view_V][:, sample_A])


@every_objective
@pytest.mark.parametrize("gallery_views", [2, 4])
def test_the_mean_over_parts_of_the_samples_is_the_loss(Each: type[Objective], gallery_views: int):
    z_VAD = aligned(4, 6, 8)
    whole, gradient_VAD = value_and_gradient(partial(Each(), gallery_views=gallery_views), z_VAD)
    parts = [
        value_and_gradient(partial(Each(), gallery_views=gallery_views, samples=part), z_VAD)
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts) / 3, whole)
    torch.testing.assert_close(sum(gradient for _, gradient in parts) / 3, gradient_VAD)


@every_objective
def test_order_matters_neither_inside_the_gallery_nor_outside(Each: type[Objective]):
    z_VAD = aligned(5, 6, 8)
    objective = partial(Each(), gallery_views=2)
    loss, gradient_VAD = value_and_gradient(objective, z_VAD)
    view_V, sample_A = torch.tensor([1, 0, 4, 2, 3]), torch.tensor([5, 2, 0, 1, 4, 3])
    mixed_loss, mixed_VAD = value_and_gradient(objective, z_VAD[view_V][:, sample_A])
    torch.testing.assert_close(mixed_loss, loss)
    torch.testing.assert_close(mixed_VAD, gradient_VAD[view_V][:, sample_A])


@every_objective
@pytest.mark.parametrize("gallery_views", [1, 6])
def test_an_impossible_gallery_is_refused(Each: type[Objective], gallery_views: int):
    with pytest.raises(ValueError, match=f"gallery_views={gallery_views}, expected 2 to 5"):
        Each()(aligned(5, 6, 8), gallery_views=gallery_views)


@every_objective
def test_aligned_views_cost_less_than_shuffled_ones(Each: type[Objective]):
    z_VAD = aligned(3, 16, 32, noise=0.1)
    shuffled_VAD = torch.stack([z_VAD[v].roll(v, 0) for v in range(3)])
    assert Each()(z_VAD) < Each()(shuffled_VAD)


# The others take statistics of embeddings as they are.
@pytest.mark.parametrize("Each", [each for each in OBJECTIVES if issubclass(each, OnePass)])
def test_length_of_embeddings_does_not_matter(Each: type[Objective]):
    z_VAD = aligned(3, 5, 8)
    length_VA1 = torch.rand(3, 5, 1, generator=torch.Generator().manual_seed(0)).double() + 0.1
    torch.testing.assert_close(Each()(z_VAD * length_VA1), Each()(z_VAD))


def in_autocast(of: Objective) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the objective as a training step calls it: the backward pass is outside."""

    def loss(z_VAD: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return of(z_VAD)

    return loss


@every_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scored_in_float32(Each: type[Objective], dtype: torch.dtype):
    z_VAD = aligned(3, 5, 8).to(dtype)
    expected, gradient_VAD = value_and_gradient(Each(), z_VAD.float())
    loss, found_VAD = value_and_gradient(in_autocast(Each()), z_VAD)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    assert torch.equal(found_VAD, gradient_VAD.to(dtype))


@every_objective
def test_autocast_does_not_reach_the_scores(Each: type[Objective]):
    z_VAD = aligned(3, 5, 8).float()
    expected, gradient_VAD = value_and_gradient(Each(), z_VAD)
    loss, found_VAD = value_and_gradient(in_autocast(Each()), z_VAD)
    assert loss.item() == expected.item()
    assert torch.equal(found_VAD, gradient_VAD)


@every_objective
def test_a_step_needs_no_value_on_the_host(Each: type[Objective]):
    # Fake tensors have no values: to wait for one, or to let it decide on a shape, is an error.
    with FakeTensorMode():
        z_VAD = torch.empty(5, 12, 8, requires_grad=True)
        Each()(z_VAD, gallery_views=2, samples=slice(4, 8)).backward()
    assert z_VAD.grad is not None and z_VAD.grad.shape == (5, 12, 8)


@every_objective
def test_without_gradient_the_value_is_the_same(Each: type[Objective]):
    z_VAD = aligned(3, 5, 8).requires_grad_()
    with torch.no_grad():
        loss = Each()(z_VAD)
    assert not loss.requires_grad
    assert loss.item() == Each()(z_VAD).item()


@every_objective
def test_embeddings_need_not_be_contiguous_and_are_left_alone(Each: type[Objective]):
    z_AVD = aligned(3, 5, 8).transpose(0, 1).contiguous()
    before = z_AVD.clone()
    found = value_and_gradient(Each(), z_AVD.transpose(0, 1))
    expected = value_and_gradient(Each(), z_AVD.transpose(0, 1).contiguous())
    torch.testing.assert_close(found, expected)
    assert torch.equal(z_AVD, before)


# A compilation is slow: one that takes its gradient as it goes, one that leaves it to autograd.
@pytest.mark.parametrize("Each", [SmoothAP, VICReg])
def test_a_compiled_model_gives_the_same_gradient(Each: type[Objective]):
    layer = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = torch.nn.Sequential(layer, Each())
    x_VAD = aligned(3, 4, 6)
    model(x_VAD).backward()
    expected = layer.weight.grad
    layer.weight.grad = None
    torch.compile(model, backend="aot_eager")(x_VAD).backward()
    torch.testing.assert_close(layer.weight.grad, expected)


@every_objective
@pytest.mark.parametrize(
    ("shape", "found"),
    [((1, 4, 8), "1 views of 4 samples"), ((4, 1, 8), "4 views of 1 samples"), ((4, 8), "[4, 8]")],
)
def test_too_few_views_or_samples_are_refused(
    Each: type[Objective], shape: tuple[int, ...], found: str
):
    with pytest.raises(ValueError, match=re.escape(found)):
        Each()(torch.ones(shape))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("SmoothAP", "temperature", 0),
        ("NTXent", "temperature", 0),
        ("DCL", "temperature", -0.1),
        ("QuantizedAP", "bins", 1),
        ("QuantizedAP", "lowest", 1.0),
        ("FastAP", "intervals", 0),
        ("BlackboxAP", "interpolation", 0),
        ("BlackboxAP", "margin", -0.02),
        ("SupAP", "temperature", 0),
        ("SupAP", "margin", -0.05),
        ("SupAP", "slope", -1),
        ("SupAP", "step", 0.5),
        ("SupAP", "calibration", -1),
        ("SupAP", "negative_cosine", 0.95),
        ("GroCo", "negatives", 0),
        ("GroCo", "steepness", 0),
        ("VICReg", "covariance", -1),
        ("BarlowTwins", "redundancy", -0.0051),
    ],
)
def test_an_impossible_setting_is_refused_by_name(name: str, setting: str, value: float):
    with pytest.raises(ValueError, match=rf"{setting}={value}.*expected"):
        getattr(objective, name)(**{setting: value})


@pytest.mark.parametrize("Each", [each for each in OBJECTIVES if issubclass(each, OnePass)])
@pytest.mark.parametrize("rows", [1, 7, 30, 1000])
def test_the_size_of_a_chunk_changes_nothing(
    Each: type[Objective], rows: int, monkeypatch: pytest.MonkeyPatch
):
    z_VAD = aligned(3, 10, 8)
    expected, expected_VAD = value_and_gradient(Each(), z_VAD)
    monkeypatch.setattr(queries, "CPU_CHUNK", rows * 30)
    monkeypatch.setattr(queries, "MIN_ROWS", 1)
    loss, gradient_VAD = value_and_gradient(Each(), z_VAD)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=0, atol=1e-13)


PEAK = """
import re, torch
from model import objective

torch.set_num_threads(1)

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def peak(Each, A):
    z_VAD = torch.randn(4, A, 128, requires_grad=True)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again
    Each()(z_VAD).backward()
    return status("VmHWM") - before

for name in {names}:
    Each = getattr(objective, name)
    peak(Each, 64)
    print(peak(Each, 1024))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads the high-water mark of /proc/self/status"
)
def test_an_objective_needs_less_memory_than_one_matrix_of_all_scores():
    names = ["SmoothAP", "QuantizedAP", "GroCo"]  # each holds most of its kind
    command = [sys.executable, "-c", PEAK.format(names=names)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak_KiB = dict(zip(names, map(int, output.split()), strict=True))
    assert max(peak_KiB.values()) * 1024 < 4096 * 4096 * 4, peak_KiB  # N×N in float32: 64 MiB


def test_a_second_derivative_is_refused_not_wrong():
    z_VAD = aligned(3, 4, 5).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(SmoothAP()(z_VAD), z_VAD, create_graph=True)
