"""The Triton kernels of Smooth-AP against its definition, on the CPU by Triton's interpreter."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from embeddings import aligned, value_and_gradient
from torch import Tensor

import model.kernel
from model.objective import MeanOverQueries, SmoothAP


@pytest.mark.parametrize("name", ["compare", "pull"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(name: str):
    """What the interpreter lets pass, such as a variable that changes its type in a loop."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from model.kernel import pair_tiles

    kernel: Any = getattr(pair_tiles, name)
    chosen = {"K": 2, "D": 40, "FACTORED": True, "PRECISION": "tf32x3"}
    chosen |= {"ROWS": 64, "OTHERS": 16, "DEPTH": 16}
    if name == "compare":
        chosen |= {"GRAD": True, "BLOCK_K": 2}
    else:
        chosen |= {"LEFT_ASKS": True, "RIGHT_ASKS": True, "FIRST": False}
    types = {"sample": "*i32", "scale": "fp32", "z": "*fp32", "key": "*fp32", "weight": "*fp32"}
    types |= {"sums": "*fp32", "dz": "*fp32"}
    signature = {
        each: "constexpr" if each in chosen else types.get(each.split("_")[0], "i32")
        for each in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=chosen)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32))
    assert "wgmma" in compiled.asm["ptx"] and compiled.asm["cubin"]


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

    prepare: Any = interpreter._patch_lang_tensor

    def prepared(tensor: Any, *rest: Any) -> None:
        prepare(tensor, *rest)
        # Triton 3.6 makes an integer of an array with one element, which NumPy 2.4 refuses.
        tensor.__index__ = lambda self: int(self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpreterBuilder, "create_dot", dot)
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
        (2, 9, 8, 2, slice(0, 9), 0.05),  # fewer dimensions than a product takes
        (4, 9, 20, 4, slice(0, 9), 0.01),  # 2^y as a factor would overflow
        (4, 9, 40, 2, slice(0, 9), 0.1),  # small crops; dimensions in three rounds
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
        tiles = kernel.Tiles(rows=16, others=16, depth=16, programs=programs)
        loss, found_VAD = kernel.smooth_ap(
            z_VAD,
            gallery_views,
            samples,
            temperature=temperature,
            precision="float32",
            grad=True,
            tiles=(tiles, tiles),
        )
        assert loss.item() == pytest.approx(expected.item(), rel=2e-6 / temperature * 0.05)
        assert distance(found_VAD, gradient_VAD) < 2e-6 / temperature * 0.05


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


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_on_a_gpu_it_is_the_definition_repeats_itself_and_stores_no_scores(precision: Any):
    V, A, D = 4, 1024, 128
    z_VAD = aligned(V, A, D, noise=1.5).float().cuda()
    objective = SmoothAP(precision=precision)
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
        SmoothAP(), rounded_VAD.double(), V, slice(0, A), grad=True
    )
    found, found_VAD = objective.value_and_gradient(unit_VAD, V, slice(0, A), grad=True)
    assert found_VAD is not None and expected_VAD is not None
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(found_VAD, expected_VAD) < (3e-3 if precision == "bf16" else 1e-5)
