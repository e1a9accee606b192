"""Ten kinds of specimen, each an outline with its own surface.

A kind is what its outline and its surface have in common from image to image; all else is drawn
again for every image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shards.source.generated.pattern import Array, Generator, soft, spots, swirl, wave, wavy


@dataclass(frozen=True, slots=True)
class Surface:
    """One kind at one rotation: per pixel of a window, how deep inside and how light it is."""

    depth: Array  # distance to the outline in radii: positive inside, negative outside
    tone: Array  # 0..1, from the specimen's first colour to its second


def agate(u: Array, v: Array, rng: Generator) -> Surface:
    """A pebble with bands that follow its outline."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    edge = wavy(angle, rng, harmonics=(2, 3, 4), amplitude=0.07, mean=0.88)
    ring = radius / edge + 0.12 * swirl(u, v, rng)
    return Surface(edge - radius, wave(ring * rng.uniform(3.5, 5.5) + rng.random()))


def basket(u: Array, v: Array, rng: Generator) -> Surface:
    """A rounded square, woven: blocks of strands that run across and along in turn."""
    power = rng.uniform(4, 7)
    depth = 0.86 - (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
    cells = rng.uniform(1.3, 1.9)
    a, b = u * cells + rng.random(), v * cells + rng.random()
    across = (np.floor(a) + np.floor(b)) % 2 == 0
    strands = 2
    return Surface(depth, wave(np.where(across, b, a) * strands))


def citrus(u: Array, v: Array, rng: Generator) -> Surface:
    """A slice of fruit: segments between thin walls, inside a rind."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    segments = int(rng.integers(6, 10))
    wall = radius * np.abs(np.sin(angle * segments / 2)) * 2 / segments
    pulp = soft((wall - 0.045) * 25) * soft((0.76 - radius) * 30)
    rind = soft((radius - 0.86) * 30)
    return Surface(0.93 - radius, np.maximum(pulp, rind))


def coral(u: Array, v: Array, rng: Generator) -> Surface:
    """A lobed cushion covered by a labyrinth of ridges."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    edge = wavy(angle, rng, harmonics=(5, 6, 7), amplitude=0.1, mean=0.84)
    wavenumber = rng.uniform(13, 18)
    ridges = np.zeros_like(u)
    for turn in ((np.arange(7) + rng.random(7)) * (math.pi / 7)).tolist():
        a, b = wavenumber * math.cos(turn), wavenumber * math.sin(turn)
        ridges += np.sin(a * u + b * v + rng.uniform(0, 2 * math.pi))
    return Surface(edge - radius, soft(ridges * 1.2))


def crystal(u: Array, v: Array, rng: Generator) -> Surface:
    """A cut stone: a polygon of flat facets around a flat table."""
    sides = int(rng.integers(5, 8))
    turns = ((np.arange(sides) + rng.uniform(-0.15, 0.15, sides)) * (2 * math.pi / sides)).tolist()
    heights = np.stack([rng.uniform(0.68, 0.78) - math.cos(t) * u - math.sin(t) * v for t in turns])
    depth = heights.min(0)
    # Each crown facet in two flat halves, split where the next side comes nearer at half depth.
    half = np.stack(
        [math.cos(t + math.pi / sides) * u + math.sin(t + math.pi / sides) * v for t in turns]
    ).argmax(0)
    outer, inner = rng.random((2, sides), dtype=np.float32)
    tone = np.where(depth < 0.22, outer[heights.argmin(0)], inner[half])
    return Surface(depth, np.where(depth > 0.4, np.float32(rng.random()), tone))


def fish(u: Array, v: Array, rng: Generator) -> Surface:
    """A body with a tail, covered by overlapping scales."""
    width = rng.uniform(0.42, 0.52)
    body = (1 - np.hypot((u + 0.2) / 0.76, v / width)) * width
    tail = np.minimum(0.97 - u, (u - 0.25) * 0.75 - np.abs(v))
    scales = rng.uniform(4.0, 5.5)
    a, b = u * scales, v * scales * 1.2
    row = np.floor(b)
    a = a + 0.5 * (row % 2)
    arc = np.hypot(a - np.floor(a) - 0.15, (b - row - 0.5) * 1.1)
    tone = np.where(u > 0.5, wave(v * scales), soft((arc - 0.5) * 9))
    eye = np.hypot(u + 0.72, v + 0.1)
    return Surface(np.maximum(body, tail), np.where(eye < 0.09, eye < 0.05, tone))


def leaf(u: Array, v: Array, rng: Generator) -> Surface:
    """A pointed blade with a midrib and slanting veins."""
    width = rng.uniform(0.45, 0.6)
    offset = (0.92 - width * width) / (2 * width)
    depth = math.hypot(offset, 0.96) - np.hypot(np.abs(v) + offset, u)
    veins = wave((u - np.abs(v) * rng.uniform(0.6, 1.1)) * rng.uniform(2.5, 3.5))
    midrib = soft((np.abs(v) - 0.035) * 40)
    return Surface(depth, soft((veins - 0.4) * 7) * midrib)


def scallop(u: Array, v: Array, rng: Generator) -> Surface:
    """A fan of ribs spread from a hinge, with a scalloped rim."""
    across, along = u, v + 0.75
    radius, angle = np.hypot(across, along), np.arctan2(across, along)
    ribs = int(rng.integers(7, 11))
    rib = np.cos(angle * ribs * 1.5)
    opening = rng.uniform(0.75, 0.9)
    rim = 1.47 + 0.06 * rib - 0.18 * angle * angle
    depth = np.minimum(rim - radius, (opening - np.abs(angle)) * radius + 0.04)
    growth = 0.35 * np.sin(radius * rng.uniform(9, 14))
    return Surface(depth, soft(rib * 2.2 + growth))


def starfish(u: Array, v: Array, rng: Generator) -> Surface:
    """Five arms studded with small knobs."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    arm = np.abs((angle * 5 / (2 * math.pi) + 0.5) % 1 - 0.5) * 2  # 0 on an arm, 1 between two
    edge = 0.34 + 0.64 * (1 - arm) ** rng.uniform(1.3, 2.0)
    depth = (edge - radius) * 0.6
    return Surface(depth, 1 - spots(u, v, rng, spacing=rng.uniform(0.2, 0.26), size=0.3, shift=0.1))


def toadstool(u: Array, v: Array, rng: Generator) -> Surface:
    """A cap with round spots of several sizes on a plain stem."""
    cap = np.minimum((1 - np.hypot(u / 0.95, (v - 0.2) / 1.0)) * 0.9, 0.25 - v)
    stem_width = rng.uniform(0.2, 0.3)
    stem = np.minimum(stem_width + 0.08 * v - np.abs(u), 0.5 - np.abs(v - 0.42))
    dots = spots(u, v, rng, spacing=rng.uniform(0.4, 0.55), size=0.36, shift=0.2)
    return Surface(np.maximum(cap, stem), np.where(v > 0.25, 0.15 + wave(u * 5) * 0.2, dots))


KINDS: tuple[Callable[[Array, Array, Generator], Surface], ...] = (
    agate,
    basket,
    citrus,
    coral,
    crystal,
    fish,
    leaf,
    scallop,
    starfish,
    toadstool,
)
CLASSES = [kind.__name__ for kind in KINDS]
