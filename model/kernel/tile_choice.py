"""How Smooth-AP's kernels multiply and how they are cut up, by precision, GPU and sizes.

What the tiles of `tiles_for` compile to, `python -m benchmarks.kernels` finds without a GPU, for
docs/kernels.md; a test holds them to it. Which of those that fit is fastest, `python -m
benchmarks.gpu ranking` measures.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import triton

Precision = Literal["float32", "bf16"]
Capability = tuple[int, int]

# With two terms the gradient's relative error is below 4.5e-6 / (temperature · √D) wherever that is
# below 1e-5, by emulation in float64: 16 to 512 dimensions, temperatures of 0.1 to 0.01, orders
# from nearly perfect to nearly random. Roundings of D products average out, the sigmoid magnifies
# the rest. So from here on two are taken: at 128 dimensions from temperature 0.04.
_ENOUGH_FOR_TWO_TERMS = 0.45


class Tiles(NamedTuple):
    """How a kernel is cut up."""

    rows: int = 64
    """Rows that a program owns."""
    others: int = 64
    """Rows on the other side that it meets at a time."""
    depth: int = 128
    """Dimensions of a matrix product at a time, and of the gradient that a program owns."""
    warps: int = 4
    stages: int = 2
    programs: int = 264
    """If rows make fewer, the other side is cut in parts: two a multiprocessor of an H100."""

    def depth_of(self, D: int) -> int:
        """Return the depth for D dimensions; 16 are the fewest that tensor cores take."""
        return min(self.depth, max(16, triton.next_power_of_2(D)))


class TileRule(NamedTuple):
    """Tiles of a kernel, and up to where they fit; see `tiles_for` for the terms used."""

    kernel: str
    terms: int
    D: float
    positives: int
    tiles: Tiles
    sides: int = 1
    """Of `pull`: 2 if it fits only where rows on both sides ask, from one tile of scores."""


_ANY_D, _ANY = math.inf, 8
# The first that holds is taken. Rows that lie in registers for want of shared memory (8.x, 12.x),
# and the gradient's, are few; more rows read the other side less often.
_AMPERE = (
    TileRule("compare", 3, 128, _ANY, Tiles(others=32)),
    TileRule("compare", 3, _ANY_D, _ANY, Tiles(others=32, depth=64)),
    TileRule("pull", 2, 128, _ANY, Tiles(128, 32, warps=8)),
    TileRule("pull", 2, _ANY_D, _ANY, Tiles(others=32, depth=64)),
    TileRule("pull", 3, _ANY_D, _ANY, Tiles(others=16, depth=64)),
)
_HOPPER = (
    TileRule("compare", 1, 128, 3, Tiles(128, 64, warps=8)),
    TileRule("compare", 1, 128, _ANY, Tiles(128, 32, warps=8)),
    TileRule("compare", 2, 128, 6, Tiles(128, 32, warps=8)),
    TileRule("compare", 3, 128, _ANY, Tiles(others=32)),
    TileRule("compare", 2, _ANY_D, 6, Tiles(depth=64)),
    TileRule("compare", 3, _ANY_D, _ANY, Tiles(others=32, depth=64)),
    TileRule("pull", 1, 128, _ANY, Tiles()),
    TileRule("pull", 2, 128, 7, Tiles(), sides=2),
    TileRule("pull", 2, 128, _ANY, Tiles(others=32)),
    TileRule("pull", 3, 128, 4, Tiles(others=32)),
    TileRule("pull", 3, 128, _ANY, Tiles(128, 32, warps=8)),
    # All dimensions in one program: others would make all scores once more.
    TileRule("pull", 2, 256, _ANY, Tiles(128, 32, depth=256, warps=8)),
    TileRule("pull", 2, _ANY_D, 7, Tiles(others=32)),
    TileRule("pull", 3, _ANY_D, _ANY, Tiles(others=32, depth=64)),
)
# Triton 3.6 compiles larger tiles of two and three terms for 10.x to a trap, without a word.
_BLACKWELL = (
    TileRule("compare", 1, 128, _ANY, Tiles()),
    TileRule("compare", 2, 128, _ANY, Tiles(others=32)),
    TileRule("compare", 3, _ANY_D, _ANY, Tiles(others=32, depth=64)),
    TileRule("pull", 1, 128, _ANY, Tiles()),
    TileRule("pull", 2, 128, _ANY, Tiles(others=32)),
    TileRule("pull", 3, _ANY_D, _ANY, Tiles(others=32, depth=64)),
)
_RULES = {8: _AMPERE, 9: _HOPPER, 10: _BLACKWELL, 11: _BLACKWELL, 12: _AMPERE}


def capability_of(device: torch.device) -> Capability:
    """Return a GPU's compute capability; of one that is not there, an H100's."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_capability(device)
    return 9, 0


def terms_for(precision: Precision, temperature: float, D: int) -> int:
    """Return of how many terms of bf16, of 8 bits each, an embedding is the sum.

    One is precision bf16. Two make three products, like Triton's bf16x3, and three make six, like
    bf16x6, all that float32 holds; but split once in advance, not by every program for every tile.
    """
    if precision == "bf16":
        return 1
    return 2 if temperature * math.sqrt(D) >= _ENOUGH_FOR_TWO_TERMS else 3


def tiles_for(
    kernel: str, capability: Capability, terms: int, D: int, positives: int, sides: int = 1
) -> Tiles:
    """Return tiles that fit a GPU's registers and shared memory.

    Args:
        kernel: compare or pull.
        capability: of the GPU, 8.0 or more.
        terms: see `terms_for`.
        D: dimensions.
        positives: at most 8, that a program compares a score with.
        sides: of `pull`, on how many rows ask.
    """
    for rule in _RULES.get(capability[0], _AMPERE):
        fits = terms <= rule.terms and D <= rule.D and positives <= rule.positives
        if rule.kernel == kernel and fits and sides >= rule.sides:
            return rule.tiles
    raise AssertionError(f"no tiles for {kernel} of {terms} terms, {D=}, {positives=}")
