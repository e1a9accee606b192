"""An image between source and tar: kept, repaired, or refused with a reason.

bytes ─▶ read header ─┬▶ decode as training does ─┬▶ keep the bytes
                      └▶ else decode by Pillow ───┴▶ reduce ─▶ png · raw · jpeg ─▶ compare
"""

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.bit_depth import bits_in_use, eight_bits, what_was_done
from shards.image import (
    Header,
    Pixels,
    decode,
    decode_16_bits,
    encode_jpeg,
    encode_png,
    exif_orientation,
    jpeg_trouble,
    open_with_pillow,
    png_is_sound,
    png_still_beside_animation,
    read_header,
    resize_shorter,
    upright_pixels,
)

MAX_MEGAPIXELS = 90.0
TOO_LARGE, TOO_SMALL, TOO_ELONGATED = "too many pixels", "too small", "too elongated"
BY_SETTING = (TOO_LARGE, TOO_SMALL, TOO_ELONGATED)
"""Reasons to leave an image out that a setting gives, not its file."""
# The extensions of each codec's files; every other one is wrong.
_EXTENSIONS = {"jpeg": ("jpg", "jpeg", "jpe", "jfif", "jfi", "mpo"), "png": ("png", "apng")}


class Unusable(Exception):
    """An image that cannot be stored.

    Args:
        reason: one of a few, by which the summary counts.
        detail: what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images are stored."""

    encoding: str = "original"
    """original keeps the bytes of JPEG and PNG files and stores all else as png; png is lossless;
    raw is bare pixels, the fastest to train from for small images; jpeg:90 encodes at a quality of
    1 to 100."""
    resize_shorter: int | None = None
    """Reduce larger images to this shorter side, filtered against aliasing; with `original` these
    become png."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Larger images are quarantined: to decode one would take gigabytes in training too."""
    min_side: int = 8
    """Images with a shorter side of fewer pixels are left out and counted: a view of a few pixels
    shows nothing. 1 takes all."""
    max_aspect: float = 20.0
    """Images more elongated than this are left out and counted. Beyond 17:1 not even the smallest
    usual crop, 8 % of the area at 4:3, lies within an image; inf takes all."""
    bits: int | None = None
    """Bits that the values of 16-bit PNG and TIFF files use, 8 to 16; of these the upper 8 are
    kept. By default, for each image, what the TIFF says, else the fewest of 8, 10, 12, 14 or 16
    that hold its largest value."""
    verify_decode: bool = True
    """Decode every image once with the decoder that training uses. False trusts the headers."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"original|png|raw|jpeg:([1-9][0-9]?|100)", self.encoding):
            raise ValueError(
                f"encoding={self.encoding!r}; expected original, png, raw, or jpeg:QUALITY with a "
                "quality of 1 to 100, such as jpeg:95."
            )
        if self.resize_shorter is not None and self.resize_shorter < 8:
            raise ValueError(
                f"resize_shorter={self.resize_shorter} pixels; expected 8 or more, or None."
            )
        if not self.max_megapixels > 0:
            raise ValueError(f"max_megapixels={self.max_megapixels}; expected more than 0.")
        if self.min_side < 1:
            raise ValueError(f"min_side={self.min_side} pixels; expected 1 or more.")
        if not self.max_aspect >= 1:
            raise ValueError(f"max_aspect={self.max_aspect}; expected 1 or more.")
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits}; expected 8 to 16, or null.")


@dataclass(frozen=True, slots=True)
class Stored:
    """An image as it goes into the tar."""

    extension: str
    """jpg, png, or rgb for bare pixels."""
    data: bytes
    width: int
    height: int
    """As shown, that is after EXIF orientation."""
    remarks: tuple[str, ...]
    """What was done to the image, or readers should know."""
    repaired: bool
    """Whether its bytes are not the source's, or its extension was wrong."""
    pixels: Pixels | None
    """None if it was not decoded."""


def prepare(
    image: bytes | Pixels, how: Preparation, *, extension: str = "", measure: bool = False
) -> Stored:
    """Return an image as it is to be stored.

    Args:
        image: a file's bytes, or pixels [H, W, 3].
        how: the encoding, size and checks.
        extension: of the file's name, to compare with the content; "" if there is none.
        measure: decode even if nothing else needs it.

    Raises:
        Unusable: it cannot be stored; the error says why.
    """
    if isinstance(image, bytes):
        header, pixels, remarks = _examine(image, how, extension, measure)
    else:
        if not image.size:
            raise Unusable("empty", f"its pixels have the shape {list(image.shape)}")
        _check_size(image.shape[1], image.shape[0], how)
        header, pixels, remarks = None, np.ascontiguousarray(image), []
    repaired = isinstance(image, bytes) and (header is None or "wrong extension" in remarks)

    if header is not None and not _reencodes(header, how):
        assert isinstance(image, bytes)
        kind = "jpg" if header.codec == "jpeg" else "png"
        height, width = (header.height, header.width) if pixels is None else pixels.shape[:2]
        return Stored(kind, image, width, height, tuple(remarks), repaired, pixels)
    assert pixels is not None
    if how.resize_shorter is not None and min(pixels.shape[:2]) > how.resize_shorter:
        pixels = resize_shorter(pixels, how.resize_shorter)
        remarks.append("reduced")
    kind, data = _encode(pixels, how)
    height, width = pixels.shape[:2]
    return Stored(kind, data, width, height, tuple(remarks), repaired, pixels)


def _examine(
    image: bytes, how: Preparation, extension: str, measure: bool
) -> tuple[Header | None, Pixels | None, list[str]]:
    """Return a file's header if it can be kept, its pixels if they were needed, and remarks."""
    header = read_header(image) if image else None
    if header is not None and _keeps(image, header, how):
        if not (how.verify_decode or measure or _reencodes(header, how)):
            return header, None, _remarks(image, header, extension)
        pixels = decode(header)
        if pixels is not None:
            return header, pixels, _remarks(image, header, extension)
        if not (header.codec == "png" and png_is_sound(image)):
            # Pillow might read it, but would ignore what is missing.
            detail = f"training's decoder does not read this {header.codec} file"
            raise Unusable("truncated or corrupt", detail)
    return None, *_rescue(image, header, how, extension)


def _keeps(image: bytes, header: Header, how: Preparation) -> bool:
    """Whether training decodes such a file to the same 8-bit RGB pixels on every device."""
    _check_size(header.width, header.height, how)
    if header.bits != 8:
        return False
    if header.codec == "jpeg":
        several, interrupted = jpeg_trouble(image)
        if interrupted:
            raise Unusable("truncated or corrupt", "another image begins within its pixels")
        # CMYK: decoders convert it differently. Two EXIF blocks: nvImageCodec 0.9
        # takes the size from one and the orientation from the other, and writes past its buffer.
        return header.channels <= 3 and not several
    return header.codec == "png" and not png_still_beside_animation(image)


def _check_size(width: int, height: int, how: Preparation) -> None:
    if width * height > how.max_megapixels * 1e6:
        raise Unusable(
            TOO_LARGE,
            f"{width:,} x {height:,} = {width * height / 1e6:,.0f} megapixels, more than "
            f"{how.max_megapixels:g}",
        )
    shorter, longer = sorted((width, height))
    if not shorter:
        return  # a damaged header; decoding finds that out
    if shorter < how.min_side:
        detail = f"{width:,} x {height:,}, fewer than {how.min_side:,} pixels on its shorter side"
        raise Unusable(TOO_SMALL, detail)
    if longer > how.max_aspect * shorter:
        detail = f"{width:,} x {height:,}, more elongated than {how.max_aspect:g}:1"
        raise Unusable(TOO_ELONGATED, detail)


def _reencodes(header: Header, how: Preparation) -> bool:
    """Whether a sound file's bytes are not stored as they are."""
    side = how.resize_shorter
    if side is not None and min(header.width, header.height) > side:
        return True
    return not (how.encoding == "original" or how.encoding == header.codec == "png")


def _remarks(image: bytes, header: Header, extension: str) -> list[str]:
    remarks = []
    if extension and extension.lower() not in _EXTENSIONS[header.codec]:
        remarks.append("wrong extension")
    if exif_orientation(image) != 1:
        remarks.append("turned upright by the decoder (EXIF)")
    if header.codec == "png" and header.channels in (2, 4):
        remarks.append("alpha left out by the decoder")
    return remarks


def _rescue(
    image: bytes, header: Header | None, how: Preparation, extension: str
) -> tuple[Pixels, list[str]]:
    """Decode by Pillow a file whose bytes are not kept."""
    if not image:
        raise Unusable("empty", "the file has no bytes")
    if header is None and image.startswith(b"\xff\xd8\xff"):
        raise Unusable("truncated or corrupt", "a jpeg file whose header is damaged")
    if image.startswith(b"\x89PNG") and not png_is_sound(image):
        raise Unusable("truncated or corrupt", "a part of this png file has a wrong checksum")
    try:
        opened = open_with_pillow(image)
    except ValueError as error:
        if header is not None:
            detail = f"a {header.codec} file that no decoder reads"
            raise Unusable("truncated or corrupt", detail) from None
        reason = "truncated or corrupt" if _known(image) else "not an image"
        raise Unusable(reason, str(error)) from None
    _check_size(*opened.size, how)
    try:
        pixels, done = upright_pixels(opened, bits=how.bits)
    except ValueError as error:
        reason = "no 8-bit form" if "8-bit form" in str(error) else "truncated or corrupt"
        raise Unusable(reason, str(error)) from None
    if header is not None and header.bits == 16 and header.codec in ("png", "tiff"):
        pixels, more = _of_16_bits(header, opened, pixels, how.bits)
        done += more
    codec = (opened.format or "image").lower()
    remarks = [f"stored anew from {codec}", *done]
    if extension and codec in _EXTENSIONS and extension.lower() not in _EXTENSIONS[codec]:
        remarks.append("wrong extension")
    return np.ascontiguousarray(pixels), remarks


def _of_16_bits(
    header: Header, opened: Image.Image, pixels: Pixels, bits: int | None
) -> tuple[Pixels, list[str]]:
    """Scale colours of 16 bits, of which Pillow has only the upper 8 left, and say so.

    Where the decoders do not agree on these 8, Pillow's stay.
    """
    if opened.mode.startswith("I"):  # grey: scaled already
        return pixels, []
    values = decode_16_bits(header)
    if values is None or not np.array_equal(values >> 8, pixels):
        return pixels, ["16 bits to 8"]
    bits = bits or bits_in_use(opened, values)
    return eight_bits(values, bits), [what_was_done(bits)]


def _known(image: bytes) -> bool:
    """Whether it begins like a file of a known format."""
    return image.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*", b"MM\0"))


def _encode(pixels: Pixels, how: Preparation) -> tuple[str, bytes]:
    """Encode, and check that training's decoder returns the pixels."""
    if how.encoding == "raw":
        return "rgb", pixels.tobytes()
    name, _, quality = how.encoding.partition(":")
    lossy = name == "jpeg"
    data = encode_jpeg(pixels, int(quality)) if lossy else encode_png(pixels)
    if how.verify_decode:
        header = read_header(data)
        again = decode(header) if header is not None else None
        same = again is not None and (
            again.shape == pixels.shape if lossy else np.array_equal(again, pixels)
        )
        if not same:
            raise Unusable(
                "not reproducible", f"training's decoder does not give back its {name} form"
            )
    return ("jpg" if lossy else "png"), data
