"""Draws the pictures of the generated data set: specimens, their background and their light.

Colours, contrast, light, position, size, rotation, bending, background and clutter are drawn again
for every image, from the same distributions for all kinds, so they tell nothing about the kind.

    background ─▶ clutter behind ─▶ shadow, specimen ─▶ clutter in front ─▶ light ─▶ halve ─▶ uint8
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shards.source.generated.kinds import KINDS
from shards.source.generated.pattern import Array, Generator, clouds, soft, swirl

TILT = 0.7  # radians that a specimen leans to either side at most
SUPERSAMPLING = 2  # drawn at twice the size, then averaged: clean edges


@dataclass(frozen=True, slots=True)
class Box:
    """Where a specimen is, in pixels of the finished image; right and bottom are excluded."""

    label: int
    left: int
    top: int
    right: int
    bottom: int
    area: int


# ── Colour ──────────────────────────────────────────────────────────────────────────────────────


def _colour(rng: Generator, lightness: float) -> Array:
    """A random hue and saturation at a given lightness between 0 and 1, [C, 1, 1]."""
    hue, saturation = rng.random(), rng.uniform(0.1, 0.9)
    wheel = [math.cos(2 * math.pi * (hue - third / 3)) for third in range(3)]
    grey = 0.3 * wheel[0] + 0.59 * wheel[1] + 0.11 * wheel[2]
    room = min(lightness, 1 - lightness) + 0.12
    colour = [min(1.0, max(0.0, lightness + saturation * room * (w - grey))) for w in wheel]
    return np.array(colour, np.float32)[:, None, None]


def _pair(rng: Generator, low: float, high: float) -> tuple[Array, Array]:
    """Two colours whose lightness differs by `low` to `high`, either one the lighter."""
    half = rng.uniform(low, high) / 2
    middle = rng.uniform(0.12 + half, 0.88 - half)
    if rng.random() < 0.5:
        half = -half
    return _colour(rng, middle + half), _colour(rng, middle - half)


# ── Picture ─────────────────────────────────────────────────────────────────────────────────────


@cache
def _axes(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return y, x


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of a canvas around a point, with its pixels' own coordinates."""

    pixels_CHW: Array  # a view into the canvas
    u: Array
    v: Array
    left: int
    top: int


def _window(
    canvas_CHW: Array, x: float, y: float, radius: float, rng: Generator, *, tilt: float
) -> _Window:
    """Look at the canvas around (x, y), turned by up to `tilt` radians and perhaps mirrored."""
    _, height, width = canvas_CHW.shape
    span = radius * 1.2
    top, bottom = max(0, int(y - span)), min(height, int(y + span) + 1)
    left, right = max(0, int(x - span)), min(width, int(x + span) + 1)
    rows, columns = _axes(height, width)
    area = (slice(top, bottom), slice(left, right))
    dx, dy = (columns[area] - x) / radius, (rows[area] - y) / radius
    turn = rng.uniform(-tilt, tilt)
    mirror = 1 if rng.random() < 0.5 else -1
    u = mirror * (math.cos(turn) * dx + math.sin(turn) * dy)
    v = math.cos(turn) * dy - math.sin(turn) * dx
    return _Window(canvas_CHW[:, area[0], area[1]], u, v, left, top)


def _background(rng: Generator, height: int, width: int) -> Array:
    """Two colours that run into each other: a gradient and clouds, some with ripples or grain."""
    y, x = _axes(height, width)
    size = max(height, width)
    turn = rng.uniform(0, 2 * math.pi)
    along = (math.cos(turn) / size) * (x - width / 2) + (math.sin(turn) / size) * (y - height / 2)
    mixture = 0.5 + rng.uniform(0.2, 0.8) * along
    mixture += rng.uniform(0.05, 0.2) * clouds(rng, height, width, int(rng.integers(2, 6)))
    if rng.random() < 0.3:
        bend = 0.04 * clouds(rng, height, width, 3)
        mixture += rng.uniform(0.05, 0.15) * np.sin((along + bend) * rng.uniform(12, 60))
    if rng.random() < 0.4:
        grain = clouds(rng, height, width, int(rng.integers(12, 40)))
        mixture += rng.uniform(0.03, 0.1) * grain
    first, second = _pair(rng, 0.05, 0.35)
    return first + np.clip(mixture, 0, 1) * (second - first)


def _clutter(canvas_CHW: Array, rng: Generator, *, count: int, size: float) -> None:
    """Paint small plain or striped discs, rings, sticks and chips, of a radius up to `size`."""
    _, height, width = canvas_CHW.shape
    for _ in range(count):
        radius = size * rng.uniform(0.25, 1)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        window = _window(canvas_CHW, x, y, radius, rng, tilt=math.pi)
        u, v = window.u, window.v
        form = rng.integers(4)
        if form == 0:
            depth = 0.9 - np.hypot(u, v)
        elif form == 1:
            depth = 0.25 - np.abs(0.65 - np.hypot(u, v))
        elif form == 2:
            depth = np.minimum(0.95 - np.abs(u), 0.16 - np.abs(v))
        else:
            depth = np.minimum(0.6 - v, 0.4 - 0.8 * np.abs(u) + 0.5 * v)
        paint, second = _pair(rng, 0.0, 0.4)
        if rng.random() < 0.4:
            paint = paint + soft(np.sin(rng.uniform(2, 8) * u) * 3) * (second - paint)
        window.pixels_CHW[:] += soft(depth * radius) * (paint - window.pixels_CHW)


def _specimen(
    canvas_CHW: Array, label: int, x: float, y: float, radius: float, rng: Generator
) -> Box:
    """Paint one specimen with its shadow; returns where, before anything is painted over it."""
    window = _window(canvas_CHW, x, y, radius, rng, tilt=TILT)
    # Bent and stretched a little: no two outlines are alike.
    bend = rng.uniform(0.02, 0.06)
    u = window.u + bend * swirl(window.u, window.v, rng)
    v = window.v / rng.uniform(0.82, 1.0) + bend * swirl(window.u, window.v, rng)
    surface = KINDS[label](u, v, rng)
    depth, tone = surface.depth, surface.tone

    # Light from one side: ridges catch it, the body turns away from it, the rim is darker.
    light = rng.uniform(0, 2 * math.pi)
    dx, dy = math.cos(light), math.sin(light)
    rise = rng.uniform(0.1, 0.6)
    slope = rng.uniform(0.05, 0.3)
    y0, x0 = (np.linspace(-slope, slope, n, dtype=np.float32) for n in tone.shape)
    shade = (1 + dy * y0)[:, None] + dx * x0
    shade *= 0.72 + 0.28 * np.sqrt(np.clip(depth * 4, 0, 1))
    shade[1:] += (rise * dy) * (tone[1:] - tone[:-1])
    shade[:, 1:] += (rise * dx) * (tone[:, 1:] - tone[:, :-1])

    first, second = _pair(rng, 0.3, 0.65)
    # The shadow lies on the far side of the light, over what is already there.
    rows, columns = (
        np.clip(np.arange(n) + round(radius * 0.07 * d), 0, n - 1)
        for n, d in zip(depth.shape, (dy, dx), strict=True)
    )
    shadow = soft(depth[np.ix_(rows, columns)] * 8) * rng.uniform(0.2, 0.5)
    cover = soft(depth * radius)
    window.pixels_CHW[:] *= 1 - shadow * (1 - cover) - cover
    window.pixels_CHW[:] += (cover * shade) * (first + tone * (second - first))
    return _box(label, cover, window)


def _box(label: int, cover: Array, window: _Window) -> Box:
    """The tight box around what is covered, in pixels of the finished image."""
    s = SUPERSAMPLING
    seen = cover > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert rows.size, "a specimen's centre lies in the image, and inside its outline"
    return Box(
        label,
        left=(window.left + int(columns[0])) // s,
        top=(window.top + int(rows[0])) // s,
        right=(window.left + int(columns[-1])) // s + 1,
        bottom=(window.top + int(rows[-1])) // s + 1,
        area=round(float(seen.sum()) / s**2),
    )


def _finish(canvas_CHW: Array, rng: Generator) -> NDArray[np.uint8]:
    """Halve the canvas, then the camera: gamma, exposure and a little noise."""
    c = canvas_CHW
    image = (c[:, ::2, ::2] + c[:, 1::2, ::2] + c[:, ::2, 1::2] + c[:, 1::2, 1::2]) / 4
    image = np.clip(image, 0, 1) ** rng.uniform(0.8, 1.25) * (rng.uniform(0.85, 1.1) * 255)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += rng.uniform(0.0, 5.0) * noise + 0.5
    return image.clip(0, 255).astype(np.uint8)


def portrait(label: int, rng: Generator, *, size: int = 96) -> NDArray[np.uint8]:
    """Return one large specimen in a square image, [C, H, W]."""
    side = size * SUPERSAMPLING
    canvas_CHW = _background(rng, side, side)
    _clutter(canvas_CHW, rng, count=int(rng.integers(0, 5)), size=side * 0.13)
    radius = side * rng.uniform(0.34, 0.52)
    x, y = (side / 2 + rng.uniform(-1, 1, 2) * (side * 0.54 - radius)).tolist()
    _specimen(canvas_CHW, label, x, y, radius, rng)
    _clutter(canvas_CHW, rng, count=int(rng.integers(0, 3)), size=side * 0.08)
    return _finish(canvas_CHW, rng)


def scene(
    labels: list[int], rng: Generator, *, height: int, width: int
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Return several specimens in one image, [C, H, W], and the box of each, in their order.

    They stand in the cells of a grid, out of place by some of a cell: neighbours may overlap.
    """
    h, w = height * SUPERSAMPLING, width * SUPERSAMPLING
    canvas_CHW = _background(rng, h, w)
    _clutter(canvas_CHW, rng, count=int(rng.integers(2, 9)), size=h * 0.08)
    rows = 1 if len(labels) < 3 else 2
    columns = math.ceil(len(labels) / rows)
    cell = min(h / rows, w / columns)
    boxes = []
    for cell_number, label in zip(rng.permutation(rows * columns).tolist(), labels, strict=False):
        row, column = divmod(cell_number, columns)
        x = (column + rng.uniform(0.35, 0.65)) * w / columns
        y = (row + rng.uniform(0.35, 0.65)) * h / rows
        boxes.append(_specimen(canvas_CHW, label, x, y, cell * rng.uniform(0.25, 0.55), rng))
    _clutter(canvas_CHW, rng, count=int(rng.integers(0, 4)), size=h * 0.05)
    return _finish(canvas_CHW, rng), boxes
