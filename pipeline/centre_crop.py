"""One image as `Images` delivers it, for those who use an encoder without a shard set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.graph import scaled_shorter
from pipeline.normalisation import Normalisation
from shards.bit_depth import bits_in_use, eight_bits, refuse_numbers

_ORIENTATION = 0x0112  # EXIF's number


@dataclass(frozen=True)
class CentreCrop:
    """Makes an encoder's input of a Pillow image."""

    size: int
    """Height and width, in pixels."""
    normalisation: Normalisation

    def __call__(self, image: Any) -> Tensor:
        """Return the centre of an image [3, H, W], upright as EXIF has it, and normalised.

        Raises:
            ValueError: its pixels are numbers of 32 bits.
        """
        pixels_HWC = torch.from_numpy(_upright(image))
        # Sides and corner are rounded as DALI rounds them.
        scale = scaled_shorter(self.size) / min(pixels_HWC.shape[:2])
        height, width = (int(side * scale + 0.5) for side in pixels_HWC.shape[:2])
        resized_CHW = F.interpolate(
            pixels_HWC.permute(2, 0, 1)[None].float(),
            size=(height, width),
            mode="bilinear",
            antialias=True,
        )[0].round()
        top, left = ((side - self.size + 1) // 2 for side in (height, width))
        crop_CHW = resized_CHW[:, top : top + self.size, left : left + self.size]
        given = (self.normalisation.mean_255, self.normalisation.std_255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in given)
        return (crop_CHW - mean) / std


def _upright(image: Any) -> NDArray[np.uint8]:
    """Return an image's pixels [H, W, 3] as EXIF says that it stands upright."""
    # Not by `shards.image`, which lifts Pillow's limit of pixels for the whole program.
    if image.mode.startswith(("I", "F")):  # Pillow would make white of all above 255
        refuse_numbers(image)
        values_HW = np.asarray(image).clip(0, 65535)
        grey_HW = eight_bits(values_HW, bits_in_use(image, values_HW))
        pixels = np.repeat(grey_HW[:, :, None], 3, axis=2)
    else:
        pixels = np.array(image.convert("RGB"))
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of damaged EXIF Pillow raises nearly anything; training takes it for none
        orientation = 1
    if orientation in (5, 6, 7, 8):  # columns become rows
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
