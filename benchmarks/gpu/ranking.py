"""Exact Smooth-AP, value and gradient: the fused kernel, PyTorch's form, pytorch-metric-learning.

What the objective does in a training step, of unit embeddings of 128 dimensions. "Extra" is the
peak of allocated memory above what was there before, embeddings included. TFLOP/s count 6 N² D: the
scores, and the gradient by both sides of them. The forms are the kernel with float32 (three
products in bf16) and bf16, and `MeanOverQueries`, the definition, in chunks. Then each of the two
kernels alone, in tiles of other sizes. The goal: 32,768 embeddings in 20 ms and 1 GiB on an H200.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from benchmarks.objective_peers import PEERS
from model.objective import MeanOverQueries, SmoothAP

SIZES = (32_768, 8_192, 131_072, 2_048, 16_384, 65_536, 4_096)
VIEWS = (4, 8)
PEER = "PML SmoothAPLoss"
PEER_SIZES = (256, 512, 1_024)
"""It takes N³ of memory, and makes a mask of that size on the host in every step."""
D = 128
SECONDS = 2.0  # of repeats for each figure, but 3 repeats or more
TILES_SECONDS = 70.0  # each is compiled
LONG = 5.0  # seconds; such a step is taken once more after the first and no more
PRECISIONS: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")
Step = Callable[[], Any]


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    found = []
    for N, V in product(place.of(SIZES, (64,)), place.of(VIEWS, (4,))):
        # The first finds a GPU where nothing is compiled yet.
        seconds = place.of(20.0 + 15.0 * (not found) + 40.0 * (N / SIZES[2]) ** 2, 1.0)
        work = partial(forms, place, V, N)
        first = SIZES[0] == N and VIEWS[0] == V
        found.append(BoxedMeasurement(f"{N} embeddings, {V} views", work, seconds, first=first))
    if importlib.util.find_spec("pytorch_metric_learning") is not None:
        for N in place.of(PEER_SIZES, (32,)):
            work = partial(peer, place, 4, N)
            seconds = place.of(10.0 + 30.0 * (N / PEER_SIZES[-1]) ** 3, 1.0)
            found.append(BoxedMeasurement(f"{PEER}, {N} embeddings", work, seconds))
    for precision, name in product(PRECISIONS, ("compare", "pull")) if not place.rehearsal else ():
        work = partial(tiles, 4, SIZES[0], precision, name)
        found.append(BoxedMeasurement(f"tiles of {name}, {precision}", work, TILES_SECONDS + 5))
    return found


def forms(place: Sizes, V: int, N: int) -> Row:
    """Return the figures of each form that runs here, and its distance from the definition.

    Args:
        place: where; without a GPU there is the definition alone.
        V: views of a sample.
        N: embeddings, V a sample.
    """
    z_VAD = unit_embeddings(V, N, place.device)
    everyone = slice(0, N // V)

    def definition() -> tuple[Tensor, Tensor | None]:
        return MeanOverQueries.value_and_gradient(SmoothAP(), z_VAD, V, everyone, grad=True)

    steps: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
        f"kernel {precision}": (
            lambda precision=precision: SmoothAP(precision=precision).value_and_gradient(
                z_VAD, V, everyone, grad=True
            )
        )
        for precision in place.of(PRECISIONS, ())
    }
    steps["PyTorch float32"] = definition
    expected, gradient_VAD = definition()
    assert gradient_VAD is not None
    rows = {}
    for name, step in steps.items():
        loss, found_VAD = step()
        assert found_VAD is not None
        difference = (found_VAD - gradient_VAD).norm() / gradient_VAD.norm()
        del found_VAD
        rows[name] = _figures(step, N) | {
            "loss": loss.item(),
            "loss_difference": (loss - expected).item(),
            "gradient_difference": difference.item(),
        }
    return {"N": N, "V": V, "forms": rows}


def peer(place: Sizes, V: int, N: int) -> Row:
    """Return the figures of pytorch-metric-learning's Smooth-AP, of the same embeddings.

    Args:
        place: where.
        V: views of a sample.
        N: embeddings, V a sample.
    """
    z_VAD = unit_embeddings(V, N, place.device).requires_grad_()
    loss = PEERS[PEER]()

    def step() -> None:
        z_VAD.grad = None
        loss(z_VAD).backward()

    return {"N": N, "V": V, **_figures(step, N)}


def tiles(V: int, N: int, precision: Literal["float32", "bf16"], name: str) -> Row:
    """Return milliseconds of a kernel in tiles of several sizes, or why one does not run.

    Args:
        V: views of a sample.
        N: embeddings, V a sample.
        precision: of the products.
        name: of the kernel, compare or pull.
    """
    from model.kernel.fused_smooth_ap import Side, compare, pull, terms_of
    from model.kernel.tile_choice import Tiles, capability_of, terms_for, tiles_for

    objective = SmoothAP()
    z_VAD = unit_embeddings(V, N, "cuda")
    terms = terms_for(precision, objective.temperature, D)
    z_TND = terms_of(z_VAD, terms).flatten(1, 2)
    sample_N = torch.arange(N // V, dtype=torch.int32, device="cuda").repeat(V)
    key_KN = torch.rand(V - 1, N, device="cuda").mul_(20).exp2_()
    scale = 1 / (objective.temperature * math.log(2))
    side = Side(z_TND, sample_N, key_KN, key_KN)
    candidates = [tiles_for(name, capability_of(z_VAD.device), terms, D, V - 1, sides=2)]
    for size, others, stages in product((64, 128), (32, 64, 128), (2, 3)):
        candidates.append(Tiles(size, others, 128, size // 16, stages))
    rows = []
    begin = time.monotonic()
    for size in dict.fromkeys(candidates):
        if time.monotonic() - begin > TILES_SECONDS:  # what is known is kept
            rows.append({**size._asdict(), "skipped": "no time"})
            continue

        def step(size: Tiles = size) -> None:
            if name == "compare":
                compare(side, side, scale, grad=True, tiles=size)
            else:
                pull(side, side, scale, tiles=size)

        row: Row = {**size._asdict(), "chosen": size == candidates[0]}
        try:
            row["ms_median"] = median(timed(step, cuda=True, seconds=0.25))
        except Exception as error:  # such as shared memory that a tile does not fit
            row["skipped"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        rows.append(row)
    rows.sort(key=lambda row: row.get("ms_median", torch.inf))
    return {"tiles": rows}


def unit_embeddings(V: int, N: int, device: str) -> Tensor:
    """Return views of N / V samples that are neither told apart perfectly nor not at all.

    Returns:
        z [V, N / V, D].
    """
    draw = torch.Generator(device).manual_seed(0)
    sample_1AD = torch.randn(1, N // V, D, device=device, generator=draw)
    noise_VAD = torch.randn(V, N // V, D, device=device, generator=draw)
    return F.normalize(sample_1AD + 1.5 * noise_VAD, dim=-1)


def timed(step: Step, *, cuda: bool, seconds: float = SECONDS) -> list[float]:
    """Return milliseconds of each repeat, on a GPU by its own clock, once the step is warm."""
    found: list[float] = []
    step()
    while len(found) < 3 or sum(found) < 1000 * (seconds if cuda else 0.0):
        if cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            stop.record()
            stop.synchronize()
            found.append(start.elapsed_time(stop))
        else:
            begin = time.perf_counter()
            step()
            found.append(1000 * (time.perf_counter() - begin))
        if found[0] > 1000 * LONG:
            break
    return found


def extra_bytes(step: Step) -> int:
    """Return the peak of the GPU's allocated memory in a step above what there was before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _figures(step: Step, N: int) -> Row:
    cuda = torch.cuda.is_available()
    times = timed(step, cuda=cuda)
    return {
        "ms_median": median(times),
        "ms_least": min(times),
        "ms_most": max(times),
        "repeats": len(times),
        "extra_bytes": extra_bytes(step) if cuda else None,
        "tflops": 6 * N**2 * D / median(times) / 1e9,
    }
