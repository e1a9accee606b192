"""Encoded images and their pixels, by Pillow."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What a shard set stores; DALI decodes both on the CPU and on the GPU.
FORMATS = {"jpg": "JPEG", "png": "PNG"}
# What Pillow's decoders are known to raise on damaged files, besides OSError.
_DAMAGE = (SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, the picture is shown turned by 90 degrees


def extension_of(data: bytes) -> str | None:
    """Return "jpg" or "png" by the first bytes of a file, whatever its name; None for others."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "png" if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def decode(data: bytes, extension: str | None = None) -> Image.Image:
    """Decode all of an image; of one with several frames, the first.

    Args:
        data: The encoded image.
        extension: "jpg" or "png" to accept only that; None for whatever Pillow reads.

    Raises:
        ValueError: The reason why it cannot be decoded, without the name of the image.
    """
    if not data:
        raise ValueError("the file is empty")
    if extension is not None and extension_of(data) != extension:
        raise ValueError(f"its bytes are not those of a {FORMATS[extension]} file")
    try:
        image = Image.open(io.BytesIO(data), formats=[FORMATS[extension]] if extension else None)
        image.load()
    except Image.UnidentifiedImageError:
        raise ValueError("it is no image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    except (OSError, *_DAMAGE) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    return image


def size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as shown, that is after EXIF orientation, which DALI applies."""
    turned = image.getexif().get(_ORIENTATION, 1) >= 5
    return (image.height, image.width) if turned else (image.width, image.height)


def colours(image: Image.Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of a decoded image's values, and of their squares, per RGB channel, in 0..1.

    From the histogram, which is exact for 8 bits and 20 times faster than arithmetic on pixels.
    """
    if image.mode.startswith("I"):  # 16-bit grey: its upper 8 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    counts = np.reshape(image.convert("RGB").histogram(), (3, 256))
    share = counts / counts[0].sum()
    values = np.arange(256) / 255
    return share @ values, share @ values**2


def encode_png(image: Image.Image) -> bytes:
    """Encode losslessly; modes that PNG does not know (CMYK, YCbCr, …) become RGB first."""
    if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}:
        image = image.convert("RGB")
    encoded = io.BytesIO()
    # Level 3 of 9 takes 0.6 of the default level's time for 3 % more bytes (COCO at 96 x 96).
    image.save(encoded, format="PNG", compress_level=3)
    return encoded.getvalue()
