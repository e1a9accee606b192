"""Waves, steps, spots and noise, of which the generated pictures are made.

Coordinates: u and v are a specimen's own axes, with its centre at 0 and its radius at 1.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating]  # float32 throughout
Generator = np.random.Generator


def wave(x: Array) -> Array:
    """Return a cosine between 0 and 1, with period 1."""
    return 0.5 - 0.5 * np.cos(2 * math.pi * x)


def soft(x: Array) -> Array:
    """Return a step at 0 that takes one unit to rise from 0 to 1."""
    return np.clip(x + 0.5, 0, 1)


def wavy(
    angle: Array, rng: Generator, *, harmonics: tuple[int, ...], amplitude: float, mean: float
) -> Array:
    """Return the radius of an outline at each angle."""
    edge = np.full_like(angle, mean)
    for n in harmonics:
        edge += rng.uniform(0.3, 1) * amplitude * np.cos(n * angle + rng.uniform(0, 2 * math.pi))
    return edge


def swirl(u: Array, v: Array, rng: Generator) -> Array:
    """Return a slow disturbance between about -1 and 1."""
    a, b, c, d = (rng.uniform(1.5, 3.5, 4) * (2 * rng.integers(0, 2, 4) - 1)).tolist()
    return np.sin(a * u + b * v + rng.uniform(0, 6)) * np.cos(c * u + d * v + rng.uniform(0, 6))


def spots(
    u: Array, v: Array, rng: Generator, *, spacing: float, size: float, shift: float
) -> Array:
    """Return discs on a disturbed hexagonal grid; size and shift are in spacings."""
    b = v / (spacing * 0.87)
    row = np.floor(b)
    a = u / spacing + 0.5 * (row % 2)
    column = np.floor(a)
    table = rng.random((3, 32, 32), dtype=np.float32)
    x, y, grow = table[:, row.astype(np.int32) & 31, column.astype(np.int32) & 31]
    distance = np.hypot(a - column - 0.5 + shift * (x - 0.5), b - row - 0.5 + shift * (y - 0.5))
    return soft((size * (0.7 + 0.3 * grow) - distance) * 8)


def clouds(rng: Generator, height: int, width: int, cells: int) -> Array:
    """Return smooth noise, mean 0, deviation about 1, some `cells` bumps along the longer side."""
    unit = max(height, width) / cells
    grid = rng.standard_normal((int(height / unit) + 3, int(width / unit) + 3), dtype=np.float32)
    resized = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized) * 1.4
