"""Draws the generated data set: ten kinds of specimen, each an outline with its own surface.

A kind is what its outline and its surface have in common from image to image. Colours,
contrast, light, position, size, rotation, bending, background and clutter are drawn anew for
every image from the same distributions whatever the kind, so they tell nothing about it.

    background ─▶ clutter behind ─▶ shadow, specimen ─▶ clutter in front ─▶ light ─▶ halve ─▶ uint8

Coordinates: u and v are a specimen's own axes, with its centre at 0 and its radius at 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating]  # float32 throughout
Generator = np.random.Generator

TILT = 0.7  # radians that a specimen leans to either side at most
SUPERSAMPLING = 2  # drawn at twice the size, then averaged: clean edges


@dataclass(frozen=True, slots=True)
class Surface:
    """One kind at one rotation: per pixel of a window, how deep inside and how light it is."""

    depth: Array  # distance to the outline in radii: positive inside, negative outside
    tone: Array  # 0..1, from the specimen's first colour to its second


@dataclass(frozen=True, slots=True)
class Box:
    """Where a specimen is, in pixels of the finished image; right and bottom are excluded."""

    label: int
    left: int
    top: int
    right: int
    bottom: int
    area: int


# ── Ten kinds ───────────────────────────────────────────────────────────────────────────────────


def agate(u: Array, v: Array, rng: Generator) -> Surface:
    """A pebble with bands that follow its outline."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    edge = _wavy(angle, rng, harmonics=(2, 3, 4), amplitude=0.07, mean=0.88)
    ring = radius / edge + 0.12 * _swirl(u, v, rng)
    return Surface(edge - radius, _wave(ring * rng.uniform(3.5, 5.5) + rng.random()))


def basket(u: Array, v: Array, rng: Generator) -> Surface:
    """A rounded square, woven: blocks of strands that run across and along in turn."""
    power = rng.uniform(4, 7)
    depth = 0.86 - (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
    cells = rng.uniform(1.3, 1.9)
    a, b = u * cells + rng.random(), v * cells + rng.random()
    across = (np.floor(a) + np.floor(b)) % 2 == 0
    strands = 2
    return Surface(depth, _wave(np.where(across, b, a) * strands))


def citrus(u: Array, v: Array, rng: Generator) -> Surface:
    """A slice of fruit: segments between thin walls, inside a rind."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    segments = int(rng.integers(6, 10))
    wall = radius * np.abs(np.sin(angle * segments / 2)) * 2 / segments
    pulp = _soft((wall - 0.045) * 25) * _soft((0.76 - radius) * 30)
    rind = _soft((radius - 0.86) * 30)
    return Surface(0.93 - radius, np.maximum(pulp, rind))


def coral(u: Array, v: Array, rng: Generator) -> Surface:
    """A lobed cushion covered by a labyrinth of ridges."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    edge = _wavy(angle, rng, harmonics=(5, 6, 7), amplitude=0.1, mean=0.84)
    wavenumber = rng.uniform(13, 18)
    ridges = np.zeros_like(u)
    for turn in ((np.arange(7) + rng.random(7)) * (math.pi / 7)).tolist():
        a, b = wavenumber * math.cos(turn), wavenumber * math.sin(turn)
        ridges += np.sin(a * u + b * v + rng.uniform(0, 2 * math.pi))
    return Surface(edge - radius, _soft(ridges * 1.2))


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
    tone = np.where(u > 0.5, _wave(v * scales), _soft((arc - 0.5) * 9))
    eye = np.hypot(u + 0.72, v + 0.1)
    return Surface(np.maximum(body, tail), np.where(eye < 0.09, eye < 0.05, tone))


def leaf(u: Array, v: Array, rng: Generator) -> Surface:
    """A pointed blade with a midrib and slanting veins."""
    width = rng.uniform(0.45, 0.6)
    offset = (0.92 - width * width) / (2 * width)
    depth = math.hypot(offset, 0.96) - np.hypot(np.abs(v) + offset, u)
    veins = _wave((u - np.abs(v) * rng.uniform(0.6, 1.1)) * rng.uniform(2.5, 3.5))
    midrib = _soft((np.abs(v) - 0.035) * 40)
    return Surface(depth, _soft((veins - 0.4) * 7) * midrib)


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
    return Surface(depth, _soft(rib * 2.2 + growth))


def starfish(u: Array, v: Array, rng: Generator) -> Surface:
    """Five arms studded with small knobs."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    arm = np.abs((angle * 5 / (2 * math.pi) + 0.5) % 1 - 0.5) * 2  # 0 on an arm, 1 between two
    edge = 0.34 + 0.64 * (1 - arm) ** rng.uniform(1.3, 2.0)
    depth = (edge - radius) * 0.6
    return Surface(
        depth, 1 - _spots(u, v, rng, spacing=rng.uniform(0.2, 0.26), size=0.3, shift=0.1)
    )


def toadstool(u: Array, v: Array, rng: Generator) -> Surface:
    """A cap with round spots of several sizes on a plain stem."""
    cap = np.minimum((1 - np.hypot(u / 0.95, (v - 0.2) / 1.0)) * 0.9, 0.25 - v)
    stem_width = rng.uniform(0.2, 0.3)
    stem = np.minimum(stem_width + 0.08 * v - np.abs(u), 0.5 - np.abs(v - 0.42))
    spots = _spots(u, v, rng, spacing=rng.uniform(0.4, 0.55), size=0.36, shift=0.2)
    return Surface(np.maximum(cap, stem), np.where(v > 0.25, 0.15 + _wave(u * 5) * 0.2, spots))


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


# ── Pattern ─────────────────────────────────────────────────────────────────────────────────────


def _wave(x: Array) -> Array:
    """A cosine between 0 and 1, with period 1."""
    return 0.5 - 0.5 * np.cos(2 * math.pi * x)


def _soft(x: Array) -> Array:
    """A step at 0 that takes one unit to rise from 0 to 1."""
    return np.clip(x + 0.5, 0, 1)


def _wavy(
    angle: Array, rng: Generator, *, harmonics: tuple[int, ...], amplitude: float, mean: float
) -> Array:
    """The radius of an outline at each angle."""
    edge = np.full_like(angle, mean)
    for n in harmonics:
        edge += rng.uniform(0.3, 1) * amplitude * np.cos(n * angle + rng.uniform(0, 2 * math.pi))
    return edge


def _swirl(u: Array, v: Array, rng: Generator) -> Array:
    """A slow disturbance between about -1 and 1."""
    a, b, c, d = (rng.uniform(1.5, 3.5, 4) * (2 * rng.integers(0, 2, 4) - 1)).tolist()
    return np.sin(a * u + b * v + rng.uniform(0, 6)) * np.cos(c * u + d * v + rng.uniform(0, 6))


def _spots(
    u: Array, v: Array, rng: Generator, *, spacing: float, size: float, shift: float
) -> Array:
    """Discs on a disturbed hexagonal grid; size and shift are in spacings."""
    b = v / (spacing * 0.87)
    row = np.floor(b)
    a = u / spacing + 0.5 * (row % 2)
    column = np.floor(a)
    table = rng.random((3, 32, 32), dtype=np.float32)
    x, y, grow = table[:, row.astype(np.int32) & 31, column.astype(np.int32) & 31]
    distance = np.hypot(a - column - 0.5 + shift * (x - 0.5), b - row - 0.5 + shift * (y - 0.5))
    return _soft((size * (0.7 + 0.3 * grow) - distance) * 8)


def _clouds(rng: Generator, height: int, width: int, cells: int) -> Array:
    """Smooth noise, mean 0 and deviation about 1, with some `cells` bumps along the longer side."""
    unit = max(height, width) / cells
    grid = rng.standard_normal((int(height / unit) + 3, int(width / unit) + 3), dtype=np.float32)
    resized = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized) * 1.4


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
    mixture += rng.uniform(0.05, 0.2) * _clouds(rng, height, width, int(rng.integers(2, 6)))
    if rng.random() < 0.3:
        bend = 0.04 * _clouds(rng, height, width, 3)
        mixture += rng.uniform(0.05, 0.15) * np.sin((along + bend) * rng.uniform(12, 60))
    if rng.random() < 0.4:
        grain = _clouds(rng, height, width, int(rng.integers(12, 40)))
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
            paint = paint + _soft(np.sin(rng.uniform(2, 8) * u) * 3) * (second - paint)
        window.pixels_CHW[:] += _soft(depth * radius) * (paint - window.pixels_CHW)


def _specimen(
    canvas_CHW: Array, label: int, x: float, y: float, radius: float, rng: Generator
) -> Box:
    """Paint one specimen with its shadow; returns where, before anything is painted over it."""
    window = _window(canvas_CHW, x, y, radius, rng, tilt=TILT)
    # Bent and stretched a little: no two outlines are alike.
    bend = rng.uniform(0.02, 0.06)
    u = window.u + bend * _swirl(window.u, window.v, rng)
    v = window.v / rng.uniform(0.82, 1.0) + bend * _swirl(window.u, window.v, rng)
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
    shadow = _soft(depth[np.ix_(rows, columns)] * 8) * rng.uniform(0.2, 0.5)
    cover = _soft(depth * radius)
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
    for place, label in zip(rng.permutation(rows * columns).tolist(), labels, strict=False):
        row, column = divmod(place, columns)
        x = (column + rng.uniform(0.35, 0.65)) * w / columns
        y = (row + rng.uniform(0.35, 0.65)) * h / rows
        boxes.append(_specimen(canvas_CHW, label, x, y, cell * rng.uniform(0.25, 0.55), rng))
    _clutter(canvas_CHW, rng, count=int(rng.integers(0, 4)), size=h * 0.05)
    return _finish(canvas_CHW, rng), boxes
