"""Images of 16 bits a channel made into 8 bits.

Cameras, scanners and microscopes write values of 10, 12 or 14 bits into files of 16, and PNG does
not say so. Their upper 8 bits are then nearly black: of 10 bits they leave four grey levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # `pipeline` runs where Pillow is not
    from PIL import Image

_WIDTHS = (8, 10, 12, 14, 16)
_BITS_PER_SAMPLE = 258  # TIFF tag


def bits_in_use(image: Image.Image, values: NDArray[np.integer]) -> int:
    """Return the bits that an image's values use: as its format says, else by the largest value.

    A TIFF of 12 bits says so. Pillow has scaled the values of other formats than PNG and TIFF to
    16 bits, by what their headers say. In a PNG or TIFF of 16 bits it is the fewest of 8, 10, 12,
    14 or 16 bits that hold the largest value.

    Args:
        image: the file, opened by Pillow.
        values: [H, W] or [H, W, 3], 0 to 65,535.
    """
    if image.format not in ("PNG", "TIFF", None):  # None: a crop or a copy says nothing of it
        return 16
    stated = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) or (16,)
    if 8 < stated[0] < 16:
        return int(stated[0])
    return next(bits for bits in _WIDTHS if int(values.max()) < 2**bits)


def eight_bits(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Return the upper 8 of the lowest `bits` bits; values that need more become white."""
    return (values.clip(0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)


def refuse_numbers(image: Image.Image) -> None:
    """Refuse pixels of 32 bits.

    Raises:
        ValueError: Nobody says which of their values is white.
    """
    mode = image.mode
    if mode == "F" or (mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"its pixels are 32-bit numbers ({mode}), which have no 8-bit form")


def what_was_done(bits: int) -> str:
    """Return the remark on an image that was made into 8 bits."""
    return "16 bits to 8" if bits == 16 else f"16 bits to 8 ({bits} in use)"
