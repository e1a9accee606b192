"""The Triton kernels of Smooth-AP against its definition, on the CPU by Triton's interpreter.

For all of this file they are interpreted: what needs a GPU is in `test_fused_smooth_ap_on_a_gpu`.
"""

import importlib.util
import math
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from embeddings import aligned, embeddings
from torch import Tensor

import model.kernel
from model.kernel.tile_choice import Tiles
from model.objective import SmoothAP


@pytest.fixture(scope="module")
def kernel() -> Iterator[ModuleType]:
    """`model.kernel.fused_smooth_ap` once more, interpreted; a process of its own takes seconds."""
    from triton import language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder
    from triton.runtime.jit import JITFunction

    multiply = InterpreterBuilder.create_dot

    def dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        # Triton 3.9 keeps bfloat16 as its bits, and multiplies those.
        a, b = (builder.cast_impl(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b))
        return multiply(builder, a, b, *rest)

    cast = InterpreterBuilder.cast_impl

    def rounded(builder: Any, source: Any, to: Any) -> Any:
        # Triton cuts bits off where a GPU rounds to the nearest.
        if to.scalar != tl.bfloat16 or source.dtype.scalar != tl.float32:
            return cast(builder, source, to)
        bits = torch.from_numpy(source.data).bfloat16().view(torch.int16).numpy().view("uint16")
        return interpreter.TensorHandle(bits, to.scalar)

    prepare: Any = interpreter._patch_lang_tensor

    def prepared(tensor: Any, *rest: Any) -> None:
        prepare(tensor, *rest)
        # Triton 3.6 makes an integer of an array with one element, which NumPy 2.4 refuses.
        tensor.__index__ = lambda self: int(self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpreterBuilder, "create_dot", dot)
        patch.setattr(InterpreterBuilder, "cast_impl", rounded)
        patch.setattr(interpreter, "_patch_lang_tensor", prepared)
        for owner in (tl.standard, tl):  # where Triton's own functions were made to be compiled
            for name, each in vars(owner).copy().items():
                if isinstance(each, JITFunction):
                    patch.setattr(owner, name, InterpretedFunction(each.fn))
        for name in ("pair_tiles", "fused_smooth_ap"):
            found = importlib.util.find_spec(f"model.kernel.{name}")
            assert found and found.loader
            interpreted = importlib.util.module_from_spec(found)
            patch.setitem(sys.modules, f"model.kernel.{name}", interpreted)
            patch.setattr(model.kernel, name, interpreted, raising=False)
            found.loader.exec_module(interpreted)
        assert "Interpreted" in type(interpreted.pair_tiles.pull).__name__
        yield interpreted


def unit(V: int, A: int, D: int, noise: float = 1.0) -> Tensor:
    return F.normalize(aligned(V, A, D, noise).float(), dim=-1)


def definition(
    z_VAD: Tensor, gallery_views: int, samples: slice, temperature: float
) -> tuple[Tensor, Tensor]:
    loss, gradient_VAD = SmoothAP(temperature=temperature).value_and_gradient(
        z_VAD.double(), gallery_views, samples, grad=True
    )
    assert gradient_VAD is not None
    return loss, gradient_VAD


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("V", "A", "D", "gallery_views", "samples", "temperature"),
    [
        (2, 9, 8, 2, slice(0, 9), 0.05),  # fewer dimensions than a product takes; one positive
        (4, 9, 20, 4, slice(0, 9), 0.03),  # two sigmoids' denominators would overflow
        (4, 9, 20, 4, slice(0, 9), 0.01),  # 2^y as a factor would overflow
        (4, 9, 40, 2, slice(0, 9), 0.1),  # small crops; two terms; dimensions in three rounds
        (3, 9, 20, 2, slice(2, 5), 0.05),  # one rank's samples
        (10, 2, 20, 10, slice(0, 2), 0.1),  # positives in two rounds
    ],
)
def test_value_and_gradient_are_the_definition_s(
    kernel: ModuleType,
    V: int,
    A: int,
    D: int,
    gallery_views: int,
    samples: slice,
    temperature: float,
):
    z_VAD = unit(V, A, D)
    expected, gradient_VAD = definition(z_VAD, gallery_views, samples, temperature)
    # One program meets all of the other side; then each meets a part of it.
    for programs in (1, 4) if V == 3 else (1,):
        loss, found_VAD = kernel.smooth_ap(
            z_VAD,
            gallery_views,
            samples,
            temperature=temperature,
            precision="float32",
            grad=True,
            tiles=Tiles(rows=16, others=16, depth=16, programs=programs),
        )
        assert loss.item() == pytest.approx(expected.item(), rel=2e-6 / temperature * 0.05)
        # What the embeddings' terms leave out the temperature magnifies, what the pulls' do not.
        assert distance(found_VAD, gradient_VAD) < max(3e-6, 2e-6 / temperature * 0.05)


@pytest.mark.parametrize(
    ("temperature", "sigmoid"),
    [
        (0.0466, "two by one root"),  # as low as it goes
        (0.0465, "one root each"),
        (0.0145, "one root each"),
        (0.0144, "one exponent each"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_scores_of_one_and_minus_one_neither_overflow_nor_vanish(
    kernel: ModuleType, temperature: float, sigmoid: str, precision: Any
):
    assert kernel._sigmoid(1 / (temperature * math.log(2))) == sigmoid
    # Half of the samples point one way, half the other, and so do half of each sample's views.
    side_VA = torch.ones(5, 6)
    side_VA[:, ::2] *= -1
    side_VA[1::2] *= -1
    z_VAD = side_VA[..., None] * F.normalize(torch.ones(8), dim=0)
    z_VAD = F.normalize(z_VAD + 1e-3 * embeddings(5, 6, 8).float(), dim=-1)
    of_both = z_VAD.bfloat16() if precision == "bf16" else z_VAD
    expected, gradient_VAD = definition(of_both, 5, slice(0, 6), temperature)
    loss, found_VAD = kernel.smooth_ap(
        z_VAD, 5, slice(0, 6), temperature=temperature, precision=precision, grad=True
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(found_VAD, gradient_VAD) < (1e-2 if precision == "bf16" else 1e-4)


def test_a_row_of_the_query_s_own_sample_counts_for_nothing_where_all_others_count_for_1e_18(
    kernel: ModuleType,
):
    z_VAD = torch.zeros(3, 2, 8)
    z_VAD[:, 0, 0], z_VAD[:, 1, 0] = 1.0, -1.0
    loss, _ = kernel.smooth_ap(
        z_VAD, 3, slice(0, 2), temperature=0.05, precision="float32", grad=False
    )
    # Three negatives, each above by σ(-2 / 0.05), over the place of one of two level positives.
    assert loss.item() == pytest.approx(3 * math.exp(-40) / 1.5, rel=1e-5, abs=0)


@pytest.mark.parametrize("gallery_views", [3, 2])
def test_bf16_is_the_definition_of_rounded_embeddings(kernel: ModuleType, gallery_views: int):
    z_VAD = unit(3, 9, 20)
    expected, gradient_VAD = definition(z_VAD.bfloat16(), gallery_views, slice(0, 9), 0.05)
    loss, found_VAD = kernel.smooth_ap(
        z_VAD, gallery_views, slice(0, 9), temperature=0.05, precision="bf16", grad=True
    )
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    assert 1e-5 < distance(found_VAD, gradient_VAD) < 3e-3  # pulls are rounded too: 2⁻⁹


def test_on_the_cpu_bf16_rounds_the_embeddings():
    z_VAD = aligned(3, 5, 8).float()
    rounded_VAD = F.normalize(z_VAD, dim=-1).bfloat16().float()
    loss = SmoothAP(precision="bf16")(z_VAD)
    expected, _ = SmoothAP().value_and_gradient(rounded_VAD, 3, slice(0, 5), grad=False)
    assert loss == expected != SmoothAP()(z_VAD)


def test_a_nearly_perfect_order_keeps_its_gradient(kernel: ModuleType):
    z_VAD = unit(4, 6, 20, noise=0.3)
    expected, gradient_VAD = definition(z_VAD, 4, slice(0, 6), 0.02)
    loss, found_VAD = kernel.smooth_ap(
        z_VAD, 4, slice(0, 6), temperature=0.02, precision="float32", grad=True
    )
    assert 0 < expected < 1e-5  # where 1 - AP in float32 would have two digits
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(found_VAD, gradient_VAD) < 1e-5


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_a_collapsed_encoder_and_opposite_views_are_finite(kernel: ModuleType, temperature: float):
    same_VAD = F.normalize(torch.ones(3, 6, 8), dim=-1)
    opposite_VAD = same_VAD * torch.tensor([1.0, -1, 1])[:, None, None]  # exponents of ±200
    for z_VAD in (same_VAD, opposite_VAD):
        expected, gradient_VAD = definition(z_VAD, 3, slice(0, 6), temperature)
        loss, found_VAD = kernel.smooth_ap(
            z_VAD, 3, slice(0, 6), temperature=temperature, precision="float32", grad=True
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert (found_VAD - gradient_VAD).abs().max() < 1e-5


def test_without_a_gradient_the_value_is_the_same(kernel: ModuleType):
    z_VAD = unit(3, 6, 20)
    options: dict[str, Any] = {"temperature": 0.05, "precision": "float32"}
    with_gradient, _ = kernel.smooth_ap(z_VAD, 2, slice(0, 6), grad=True, **options)
    alone, nothing = kernel.smooth_ap(z_VAD, 2, slice(0, 6), grad=False, **options)
    assert alone == with_gradient and nothing is None


def test_no_test_beside_an_interpreted_kernel_is_for_a_gpu() -> None:
    marks = [mark for each in globals().values() for mark in getattr(each, "pytestmark", ())]
    assert marks and "gpu" not in {mark.name for mark in marks}
