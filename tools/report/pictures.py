"""Pictures inside the page: small WebP files as text."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_QUALITY = 80


def data_uri(picture: Tensor | NDArray[np.uint8], *, widest: int | None = None) -> str:
    """Return a picture as an address that holds it.

    Args:
        picture: uint8, a tensor [3, H, W] or an array [H, W, 3].
        widest: width that is enough, in pixels; a wider one is made smaller.
    """
    if isinstance(picture, Tensor):
        picture = picture.permute(1, 2, 0).numpy()
    image, file = Image.fromarray(np.ascontiguousarray(picture)), BytesIO()
    if widest is not None and image.width > widest:
        image.thumbnail((widest, image.height), Image.Resampling.BOX)
    image.save(file, format="WEBP", quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def sprite(pictures_NCHW: Tensor, size: int) -> tuple[str, int, int]:
    """Return many small pictures as one, which is smaller than each with a header of its own.

    Args:
        pictures_NCHW: uint8 [N, 3, H, W].
        size: largest height and width of one, in pixels.

    Returns:
        Its address, how many pictures stand in a row, and the height and width of each.
    """
    if pictures_NCHW.shape[-1] > size:
        small = F.interpolate(pictures_NCHW.float(), size, mode="bilinear", antialias=True)
        pictures_NCHW = small.round().clamp(0, 255).byte()
    N, _, H, W = pictures_NCHW.shape
    columns = int(np.ceil(np.sqrt(N)))
    rows = -(-N // columns)
    sheet = np.zeros((rows * columns, H, W, 3), dtype=np.uint8)
    sheet[:N] = pictures_NCHW.permute(0, 2, 3, 1).numpy()
    sheet = sheet.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)
    return data_uri(sheet), columns, H
