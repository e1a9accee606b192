"""`pipeline.finish` as one Triton kernel; tests compare the two, also by Triton's interpreter."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 1024  # per program


def finish_on_gpu(
    pixels_NPC: Tensor,
    row_NR: Tensor,
    *,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
    color: bool,
    hsv: bool,
    solarize: bool,
) -> Tensor:
    """Return the finished views [N, P, C]; see `pipeline.finish.Finish`.

    Args:
        pixels_NPC: uint8, N views of P pixels of three channels.
        row_NR: 14 numbers a view: the 9 of its colour map, its shift, the sign and the part of a
            sixth of the hue's shift (`pipeline.color_space.sixths`), the threshold, and 1 if it is
            mirrored.
        side: of a view, in pixels; 0: no view is mirrored.
        mean: of the channels, in 0..255.
        std: of the channels, in 0..255.
        dtype: of the result.
        color: whether the colour map is applied.
        hsv: whether the hue is shifted in HSV.
        solarize: whether values from the threshold on are inverted.
    """
    out_NPC = torch.empty(pixels_NPC.shape, dtype=dtype, device=pixels_NPC.device)
    views, pixels, _ = pixels_NPC.shape
    kernel: Any = _finish
    # Triton launches on the current device, even if its arguments lie on another.
    with torch.cuda.device(pixels_NPC.device) if pixels_NPC.is_cuda else nullcontext():
        kernel[views, triton.cdiv(pixels, _PIXELS)](
            pixels_NPC,
            row_NR,
            out_NPC,
            pixels,
            side,
            *mean,
            *std,
            COLOR=color,
            HSV=hsv,
            SOLARIZE=solarize,
            MIRROR=side > 0,
            BLOCK=_PIXELS,
        )
    return out_NPC


@triton.jit
def _finish(
    source,
    rows,
    target,
    pixels,
    side,
    mean_r,
    mean_g,
    mean_b,
    std_r,
    std_g,
    std_b,
    COLOR: tl.constexpr,
    HSV: tl.constexpr,
    SOLARIZE: tl.constexpr,
    MIRROR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    view = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row = rows + view * 14
    seen = pixel
    if MIRROR:
        turned = pixel + side - 1 - 2 * (pixel % side)
        seen = tl.where(tl.load(row + 13) != 0, turned, pixel)
    of = (view * pixels + seen) * 3
    r = tl.load(source + of, mask=inside, other=0).to(tl.float32)
    g = tl.load(source + of + 1, mask=inside, other=0).to(tl.float32)
    b = tl.load(source + of + 2, mask=inside, other=0).to(tl.float32)
    if COLOR:
        shift = tl.load(row + 9)
        red = r * tl.load(row) + g * tl.load(row + 3) + b * tl.load(row + 6) + shift
        green = r * tl.load(row + 1) + g * tl.load(row + 4) + b * tl.load(row + 7) + shift
        blue = r * tl.load(row + 2) + g * tl.load(row + 5) + b * tl.load(row + 8) + shift
        r = tl.minimum(tl.maximum(red, 0.0), 255.0)
        g = tl.minimum(tl.maximum(green, 0.0), 255.0)
        b = tl.minimum(tl.maximum(blue, 0.0), 255.0)
    if HSV:
        sign = tl.load(row + 10)
        low = tl.minimum(tl.minimum(r, g), b)
        chroma = tl.maximum(tl.maximum(r, g), b) - low
        near = chroma * tl.load(row + 11)
        apart_r, apart_g, apart_b = (r - g) * sign, (g - b) * sign, (b - r) * sign
        r = _shifted(apart_r, apart_g, low, chroma, near)
        g = _shifted(apart_g, apart_b, low, chroma, near)
        b = _shifted(apart_b, apart_r, low, chroma, near)
    if SOLARIZE:
        threshold = tl.load(row + 12)
        r = tl.where(r >= threshold, 255 - r, r)
        g = tl.where(g >= threshold, 255 - g, g)
        b = tl.where(b >= threshold, 255 - b, b)
    at = (view * pixels + pixel) * 3
    tl.store(target + at, (r - mean_r) / std_r, mask=inside)
    tl.store(target + at + 1, (g - mean_g) / std_g, mask=inside)
    tl.store(target + at + 2, (b - mean_b) / std_b, mask=inside)


@triton.jit
def _shifted(apart, next_apart, low, chroma, near):
    moved = apart + tl.where(next_apart >= 0, chroma - near, near)
    return low + tl.minimum(tl.maximum(moved, 0.0), chroma)
