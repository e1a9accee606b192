"""Colours of many pixels at once: linear maps in YIQ, and shifts of the hue in HSV."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from pipeline.augment.color import LUMA

# Four digits: DALI's chroma rows have three, do not add up to 0 and would tint a gray view.
_YIQ = torch.tensor(
    [LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64
)


def color_map(factors_NF: Tensor, exchanged_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the linear map of brightness, contrast, saturation and hue, in DALI's order.

    rgb' = rgb @ map + pivot · lift, with map = b c (Y₀ + s cos(h) Y₁ + s sin(h) Y₂): the luma
    stays, the two chroma axes of YIQ are scaled by s and rotated by h.

    Args:
        factors_NF: brightness, contrast, saturation, hue in turns, … per view.
        exchanged_N: None: the hue is part of the map. Else it is shifted in HSV, of which the map
            exchanges the channels, at no cost; see `sixths`.

    Returns:
        The map [N, 3 (in), 3 (out)], and the lift [N], the same for all channels.
    """
    brightness, contrast, saturation, hue = factors_NF[:, :4].unbind(1)
    angle = 2 * math.pi * hue if exchanged_N is None else torch.zeros_like(hue)
    luma, chroma, turn = _chroma_maps(factors_NF.device)
    map_N33 = (
        luma
        + (saturation * angle.cos())[:, None, None] * chroma
        + (saturation * angle.sin())[:, None, None] * turn
    )
    map_N33 = (brightness * contrast)[:, None, None] * map_N33
    if exchanged_N is not None:
        channel_N3 = (torch.arange(3, device=map_N33.device) - exchanged_N[:, None]) % 3
        map_N33 = map_N33.gather(2, channel_N3[:, None].expand_as(map_N33))
    return map_N33, brightness * (1 - contrast)


def sixths(hue_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a shift of the HSV angle by `hue_N` turns in three parts that add up to it.

    Returns:
        exchanged: how often the channels move on, a third of a turn each, 0, 1 or 2; int64 [N].
        sign: -1 if each channel changes its place between lowest and highest, half a turn; else 1.
        f: what is left, in sixths of a turn, 0 to 1.
    """
    shift_N = 6 * hue_N
    whole_N = shift_N.floor()
    odd_N = whole_N.remainder(2)
    exchanged_N = ((whole_N - 3 * odd_N) / 2).remainder(3).to(torch.int64)
    return exchanged_N, 1 - 2 * odd_N, shift_N - whole_N


def shift_hue(rgb_CNP: Tensor, sign_N: Tensor, f_N: Tensor) -> Tensor:
    """Shift the HSV angle of pixels, 0..255, but for the exchange of channels, in place.

    Within a sixth of a turn one channel moves along its side of the hexagon, and a difference of
    two channels says how far it has come:

        r' = low + clamp(r - g + (1 - f if g >= b else f) · chroma, 0, chroma), and so in turn

    Half a turn more changes the signs of the differences. No angle is reckoned and nothing divided.
    It does without `where`, which takes ten times what a comparison that gives 0.0 and 1.0 does.

    Args:
        rgb_CNP: planes, since PyTorch's operators are slow on channels that lie side by side; the
            channels are exchanged already. See `sixths` for this and the others.
        sign_N: -1 or 1.
        f_N: sixths of a turn, 0 to 1.

    Returns:
        What is to be added to all three channels, [N, P].
    """
    r, g, b = rgb_CNP
    low, chroma = torch.minimum(r, g), torch.maximum(r, g)
    torch.minimum(low, b, out=low)
    torch.maximum(chroma, b, out=chroma).sub_(low)
    near = chroma * f_N[:, None]
    farther = chroma.sub(near, alpha=2)
    apart_4NP = rgb_CNP.new_empty(4, *r.shape)  # of a channel from the next one
    torch.sub(rgb_CNP[:2], rgb_CNP[1:], out=apart_4NP[:2])
    torch.sub(b, r, out=apart_4NP[2])
    apart_4NP[:3].mul_(sign_N[:, None])
    apart_4NP[3].copy_(apart_4NP[0])
    torch.ge(apart_4NP[1:], 0, out=rgb_CNP)
    torch.addcmul(near, rgb_CNP, farther, out=rgb_CNP).add_(apart_4NP[:3]).clamp_(min=0)
    torch.minimum(rgb_CNP, chroma, out=rgb_CNP)
    return low


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on the device; cached, because the host waits for the copy."""
    return torch.tensor(values, device=device)


@cache
def _chroma_maps(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return Y₀, Y₁, Y₂ of `color_map`, from RGB rows to RGB rows."""
    back = torch.linalg.inv(_YIQ)
    middle = torch.zeros(3, 3, 3, dtype=torch.float64)
    middle[0, 0, 0] = 1
    middle[1, 1, 1] = middle[1, 2, 2] = 1
    middle[2, 1, 2], middle[2, 2, 1] = 1, -1  # red turns towards yellow, as in HSV and DALI
    luma, chroma, turn = (back @ middle @ _YIQ).transpose(1, 2).float().to(device)
    return luma, chroma, turn
