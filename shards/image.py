"""Encoded images and their pixels: by the decoder that training uses, else by Pillow.

nvImageCodec is the library beneath DALI's image decoder. Used directly, it needs no pipeline,
reports the failure of each image, and gives the same pixels (a test compares them).
"""

import functools
import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from shards.bit_depth import bits_in_use, eight_bits, refuse_numbers, what_was_done

Pixels = NDArray[np.uint8]  # [H, W, 3], RGB

# Errors that Pillow's decoders are known to raise on damaged files, besides OSError.
DAMAGE = (SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)
DAMAGE += (struct.error, zlib.error, MemoryError, RuntimeError, AttributeError, ZeroDivisionError)
_ORIENTATION = 0x0112  # EXIF tag
# We limit the pixels, with an error and no warning (see `shards.writing.prepare`).
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class Header:
    """Facts about an image from its file's first bytes."""

    codec: str
    """As nvImageCodec names it: jpeg, png, webp, bmp, tiff, jpeg2k, pnm."""
    width: int
    height: int
    channels: int
    bits: int
    """Of a channel."""
    stream: Any
    """For `decode`, which then need not read the header again."""


def _codec() -> tuple[Any, Any, Any]:
    """Return nvImageCodec, a decoder and its settings."""
    return _codec_of(os.getpid())  # a decoder's threads do not live on in a fork


def load_codec() -> Any:
    """Import nvImageCodec; done before workers are forked, they share its memory."""
    # Keeps its messages off the terminal; our reasons name the failures.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        import nvidia.nvimgcodec
    except ImportError as error:
        raise ValueError(
            f"images are decoded with nvImageCodec, which is not here ({error}). It comes with "
            "DALI: uv pip install nvidia-dali-cuda130 (or -cuda120)."
        ) from None
    return nvidia.nvimgcodec  # a compiled module without stubs


@functools.cache
def _codec_of(_process: int) -> tuple[Any, Any, Any]:
    nvimgcodec = load_codec()
    decoder = nvimgcodec.Decoder(
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
    )
    settings = nvimgcodec.DecodeParams(
        apply_exif_orientation=True, color_spec=nvimgcodec.SRGB, allow_any_depth=False
    )
    return nvimgcodec, decoder, settings


def read_header(data: bytes) -> Header | None:
    """Return the facts in a file's header; None if training's decoder does not know the format."""
    nvimgcodec, _, _ = _codec()
    try:
        stream = nvimgcodec.CodeStream(data)
        return Header(
            codec=stream.codec_name,
            width=stream.width,
            height=stream.height,
            channels=stream.num_channels,
            bits=8 * np.dtype(stream.dtype).itemsize,
            stream=stream,
        )
    except (RuntimeError, ValueError, TypeError):
        return None


def decode(header: Header) -> Pixels | None:
    """Decode as training does, turned upright by EXIF; None if training's decoder cannot."""
    _, decoder, settings = _codec()
    try:
        image = decoder.decode(header.stream, params=settings)
    except RuntimeError:
        return None
    if image is None:
        return None
    pixels = np.asarray(image.cpu())
    return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 else None


def decode_16_bits(header: Header) -> NDArray[np.uint16] | None:
    """Return the values of a file of 16 bits, [H, W, 3], upright; None where the decoder cannot."""
    nvimgcodec, decoder, _ = _codec()
    settings = nvimgcodec.DecodeParams(
        apply_exif_orientation=True, color_spec=nvimgcodec.SRGB, allow_any_depth=True
    )
    try:
        image = decoder.decode(header.stream, params=settings)
    except RuntimeError:
        return None
    values = None if image is None else np.asarray(image.cpu())
    return values if values is not None and values.dtype == np.uint16 else None


@functools.cache
def _formats() -> list[str]:
    """Return the formats to try, without EPS and the like, which would start other programs."""
    Image.init()
    known = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA", "JPEG2000")
    return [name for name in (*known, "ICO", "AVIF", "PCX") if name in Image.OPEN]


def open_with_pillow(data: bytes) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        ValueError: the reason why it is not an image.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Image.UnidentifiedImageError:
        raise ValueError("no decoder knows it") from None
    except (OSError, *DAMAGE) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def frames(image: Image.Image) -> int:
    """Return the number of frames; 1 for a still picture."""
    try:
        return getattr(image, "n_frames", 1)
    except (OSError, *DAMAGE):
        return 1


def upright_pixels(image: Image.Image, *, bits: int | None = None) -> tuple[Pixels, list[str]]:
    """Decode by Pillow what training's decoder cannot, or not to the same pixels everywhere.

    Keeps the first of several frames. Leaves transparency out, as training's decoder does.

    Args:
        image: opened, not decoded.
        bits: that grey values of 16 bits use; by default, see `bits_in_use`.

    Returns:
        The pixels, and a list of what was done to get them.

    Raises:
        ValueError: the reason why it cannot be decoded.
    """
    done = []
    try:
        if frames(image) > 1:
            image = next(iter(ImageSequence.Iterator(image)))
            done.append("first of several frames")
        image.load()
        turned = ImageOps.exif_transpose(image)
        if turned.getexif().get(_ORIENTATION, 1) != image.getexif().get(_ORIENTATION, 1):
            done.append("turned upright")
    except (OSError, *DAMAGE) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    mode = turned.mode
    refuse_numbers(image)
    if mode.startswith("I"):
        values = np.asarray(turned).clip(0, 65535)
        bits = bits or bits_in_use(image, values)
        done.append(what_was_done(bits))
        grey = eight_bits(values, bits)
        return np.repeat(grey[:, :, None], 3, axis=2), done
    if mode == "CMYK":
        done.append("CMYK to RGB")
    elif mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        done.append("alpha left out")
    return np.asarray(turned.convert("RGB")), done


def exif_orientation(data: bytes) -> int:
    """Return the orientation in the EXIF data of a JPEG or PNG file; 1 if there is none.

    Orientation in XMP is ignored, as by training's decoder and by browsers.
    """
    if b"Exif\0\0" not in data[:65536] and b"eXIf" not in data:
        return 1  # without opening the file
    try:
        exif = Image.Exif()
        exif.load(open_with_pillow(data).info.get("exif", b""))
        return int(exif.get(_ORIENTATION, 1))
    except (OSError, *DAMAGE):
        return 1


def png_is_sound(data: bytes) -> bool:
    """Whether a PNG file is whole up to its last pixels, by its chunks' checksums.

    Pillow does not check: it returns black rows and a grey palette for missing parts.
    """
    if data[25:26] == b"\3" and b"PLTE" not in data[: data.find(b"IDAT")]:  # colours by number
        return False
    at, pixels = 8, False
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if pixels and kind != b"IDAT":
            return True
        pixels = kind == b"IDAT"
        end = at + 8 + length
        if data[end : end + 4] != zlib.crc32(data[at + 4 : end]).to_bytes(4):
            return False
        at = end + 4
    return pixels and at == len(data)


def png_still_beside_animation(data: bytes) -> bool:
    """Whether an animated PNG file has a still picture that is not one of its frames.

    A PNG reader without animation shows the picture; nvImageCodec 0.9 gives the first frame.
    """
    if b"acTL" not in data:
        return False
    frame = data.find(b"fcTL")
    return frame < 0 or frame > data.find(b"IDAT")


def jpeg_trouble(data: bytes) -> tuple[bool, bool]:
    """Look in a JPEG file's segments for trouble on which decoders disagree.

    Returns:
        Whether it has several EXIF blocks, and whether another image begins within its pixels, as
        after a download that was interrupted and begun again.
    """
    blocks, at = 0, 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # up to the pixels
        if data[at + 1] == 0xFF:  # filling
            at += 1
            continue
        blocks += data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if data[at : at + 2] != b"\xff\xda":  # filled up between segments: no pixels found
        return blocks > 1, False
    start, end = data.find(b"\xff\xd8", at), data.find(b"\xff\xd9", at)
    return blocks > 1, 0 <= start < end


def resize_shorter(pixels: Pixels, side: int) -> Pixels:
    """Reduce to a shorter side, filtered against aliasing (bicubic over the area)."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def encode_png(pixels: Pixels) -> bytes:
    """Encode losslessly; a grey picture as one channel."""
    red = pixels[:, :, 0]
    grey = np.array_equal(red, pixels[:, :, 1]) and np.array_equal(red, pixels[:, :, 2])
    encoded = io.BytesIO()
    # Level 3 of 9 takes 0.6 of the default level's time for 3 % more bytes (COCO at 96 x 96).
    Image.fromarray(red if grey else pixels).save(encoded, format="PNG", compress_level=3)
    return encoded.getvalue()


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode as baseline JPEG; from quality 90 on, colour at full resolution."""
    encoded = io.BytesIO()
    subsampling = 0 if quality >= 90 else 2
    Image.fromarray(pixels).save(encoded, "JPEG", quality=quality, subsampling=subsampling)
    return encoded.getvalue()


def colours(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Return the mean of an image's values, and of their squares, per RGB channel, in 0..1.

    From the histogram, which is exact for 8 bits and 20 times faster than arithmetic on pixels.
    """
    counts = np.reshape(Image.fromarray(pixels).histogram(), (3, 256))
    share = counts / counts[0].sum()
    values = np.arange(256) / 255
    return (share @ values).tolist(), (share @ values**2).tolist()
