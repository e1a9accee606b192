"""What becomes of one image, against Pillow and against DALI's own decoder."""

import dataclasses
import io
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.dali import Pipeline, fn, types
from shards.image import decode, read_header
from shards.writing.prepare import BY_SETTING, Preparation, Unusable, prepare
from tests.shards.damaged_inputs import LETHAL, TURNED_BY_XMP, UNNOTICED, DamageDraw, torture

ORIGINAL = Preparation(min_side=1, max_aspect=float("inf"))


def picture(height: int = 40, width: int = 60, mode: str = "RGB") -> Image.Image:
    coarse = np.random.RandomState(height * width).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def as_pillow_shows(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def as_dali_decodes(data: bytes) -> np.ndarray | None:
    pipeline: Any = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        source = fn.external_source(source=lambda: [np.frombuffer(data, np.uint8)], batch=True)
        image = fn.decoders.image(
            source, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        pipeline.set_outputs(image)
    pipeline.build()
    try:
        return np.asarray(pipeline.run()[0].at(0))
    except RuntimeError:
        return None


def test_the_checking_decoder_is_dalis(tmp_path: Path) -> None:
    """nvImageCodec, used directly, accepts and gives what fn.decoders.image does."""
    seen: Counter[str] = Counter()
    compared = accepted = 0
    for name in torture(tmp_path):
        kind = name.rpartition("/")[2].partition("-")[0]
        seen[kind] += 1
        data = (tmp_path / name).read_bytes()
        header = read_header(data) if data else None
        if seen[kind] > 2 or not data:  # two of a kind, as DALI takes 10 ms a file
            continue
        if header and header.width * header.height > 90e6:
            continue
        ours = decode(header) if header else None
        theirs = as_dali_decodes(data)
        assert (ours is None) == (theirs is None), name
        compared += 1
        kept = header is not None and header.codec in ("jpeg", "png") and header.bits == 8
        if kept and ours is not None and theirs is not None:
            assert np.array_equal(ours, theirs), name
            accepted += 1
    assert compared > 60 and accepted > 30


def test_every_odd_file_is_kept_repaired_or_refused_as_it_should(tmp_path: Path) -> None:
    for name, expectation in torture(tmp_path).items():
        data = (tmp_path / name).read_bytes()
        try:
            stored = prepare(data, ORIGINAL, extension=name.rpartition(".")[2])
        except Unusable as error:
            assert expectation == "quarantined", f"{name}: {error}"
            continue
        assert expectation == ("repaired" if stored.repaired else "written"), name
        header = read_header(stored.data)
        assert header is not None and header.codec in ("jpeg", "png")
        pixels = decode(header)
        assert pixels is not None and pixels.shape == (stored.height, stored.width, 3), name
        if not stored.repaired:
            assert stored.data == data, name
            assert np.array_equal(pixels, as_pillow_shows(data)), name


@pytest.mark.parametrize("kind", UNNOTICED)
def test_damage_that_one_decoder_passes_over_is_refused(kind: str) -> None:
    for number in range(4):
        with pytest.raises(Unusable, match="truncated or corrupt"):
            prepare(UNNOTICED[kind](DamageDraw(kind, number, 0)), ORIGINAL, extension=kind[:3])


def test_two_exif_blocks_which_kill_the_decoder_are_never_shown_to_it() -> None:
    data = LETHAL(DamageDraw("lethal", 0, 0))
    stored = prepare(data, ORIGINAL, extension="jpg")
    assert stored.repaired and stored.extension == "png"
    assert np.array_equal(as_pillow_shows(stored.data), as_pillow_shows(data))


@pytest.mark.parametrize("extension", TURNED_BY_XMP)
def test_orientation_is_what_exif_says_not_xmp(extension: str) -> None:
    data = TURNED_BY_XMP[extension](DamageDraw("xmp", 0, 0))
    stored = prepare(data, ORIGINAL, extension=extension)
    assert stored.data == data and not stored.remarks
    assert (stored.width, stored.height) == Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize("format", ["WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA"])
def test_other_formats_become_png_without_loss(format: str) -> None:
    settings: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(picture(), format, **settings)
    stored = prepare(data, ORIGINAL, extension=format.lower())
    assert stored.extension == "png" and stored.repaired
    assert np.array_equal(as_pillow_shows(stored.data), as_pillow_shows(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("encoding", ["original", "png", "raw", "jpeg:95"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_once_in_every_encoding(
    format: str, encoding: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), format, exif=exif)
    stored = prepare(data, Preparation(encoding=encoding))
    shown = as_pillow_shows(data)
    assert (stored.height, stored.width) == shown.shape[:2]
    if stored.extension == "rgb":
        pixels = np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    else:
        found = as_dali_decodes(stored.data)
        assert found is not None
        pixels = found
    assert pixels.shape == shown.shape
    assert np.abs(pixels.astype(int) - shown).mean() < (4 if encoding == "jpeg:95" else 1e-9)


def test_sixteen_bits_become_their_upper_eight() -> None:
    values = np.random.RandomState(0).randint(0, 65536, (9, 13)).astype(np.uint16)
    stored = prepare(encoded(Image.fromarray(values), "PNG"), ORIGINAL, extension="png")
    assert "16 bits to 8" in stored.remarks
    assert np.array_equal(as_pillow_shows(stored.data)[:, :, 0], values >> 8)


def png_of_16_bits(values_HWC: np.ndarray, **extra: bytes) -> bytes:
    """A PNG file by hand: Pillow does not write colours of 16 bits."""
    height, width, channels = values_HWC.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    parts = {"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0), **extra}
    parts |= {"IDAT": zlib.compress(rows), "IEND": b""}
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in parts.items():
        body = name.encode() + content
        data += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return data


def tiff_of(values_HWC: np.ndarray, bits: int) -> bytes:
    """A TIFF file by hand, of 16 bits or of 12 that are packed."""
    height, width, channels = values_HWC.shape
    if bits == 16:
        pixels = values_HWC.astype("<u2").tobytes()
    else:
        digits = np.unpackbits(values_HWC.astype(">u2").view(np.uint8)).reshape(height, -1, 16)
        pixels = np.packbits(digits[..., 16 - bits :].reshape(height, -1), axis=1).tobytes()
    many = struct.pack("<HHH", *[bits] * 3)
    end = 8 + len(pixels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1)]
    tags += [
        (258, 3, channels, end if channels == 3 else bits),
        (262, 3, 1, 2 if channels == 3 else 1),
    ]
    tags += [(273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    data = b"II*\0" + struct.pack("<I", end + len(many)) + pixels + many
    data += struct.pack("<H", len(tags))
    return data + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags)) + bytes(4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", ["png", "tif"])
def test_values_of_fewer_than_16_bits_keep_their_upper_eight(form: str, bits: int, channels: int):
    if form == "tif" and channels in (2, 4):
        return
    random = np.random.RandomState(bits)
    values = random.randint(0, 2**bits, (20, 30, channels)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    data = png_of_16_bits(values) if form == "png" else tiff_of(values, 16)
    stored = prepare(data, ORIGINAL, extension=form)
    expected = values[..., :1] if channels < 3 else values[..., :3]
    # By whole numbers: a value is as far up its 256 levels as it is up its bits.
    assert np.array_equal(
        as_pillow_shows(stored.data),
        (expected // 2 ** (bits - 8)).repeat(3 // expected.shape[2], 2),
    )
    assert ("16 bits to 8" if bits == 16 else f"16 bits to 8 ({bits} in use)") in stored.remarks
    assert stored.repaired


def test_a_tiff_that_says_how_many_bits_it_has_is_believed() -> None:
    dark = np.random.RandomState(0).randint(0, 200, (16, 20, 1)).astype(np.uint16)
    stored = prepare(tiff_of(dark, 12), ORIGINAL, extension="tif")
    assert "16 bits to 8 (12 in use)" in stored.remarks
    assert np.array_equal(as_pillow_shows(stored.data)[..., :1], dark // 16)


def test_formats_that_state_their_largest_value_are_not_guessed_at() -> None:
    dark = np.random.RandomState(0).randint(0, 100, (16, 20)).astype(np.uint16)
    data = b"P5 20 16 1023\n" + dark.astype(">u2").tobytes()
    stored = prepare(data, ORIGINAL, extension="pgm")
    shown = as_pillow_shows(stored.data)[:, :, 0].astype(int)
    assert np.abs(shown - dark / 1023 * 255).max() <= 1


def test_bits_can_be_set_for_a_whole_set() -> None:
    for channels in (1, 3):
        dark = np.random.RandomState(0).randint(0, 900, (16, 20, channels)).astype(np.uint16)
        dark[0, 0] = 5000
        data = png_of_16_bits(dark)
        stored = prepare(data, dataclasses.replace(ORIGINAL, bits=12), extension="png")
        shown = as_pillow_shows(stored.data)
        assert np.array_equal(shown[1:], (dark[1:] // 16).repeat(3 // channels, 2))
        assert (shown[0, 0] == 255).all() and "16 bits to 8 (12 in use)" in stored.remarks


@pytest.mark.parametrize("orientation", range(1, 9))
def test_colours_of_16_bits_are_turned_upright_too(orientation: int) -> None:
    values = np.random.RandomState(0).randint(0, 1024, (16, 20, 3)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png_of_16_bits(values, eXIf=exif.tobytes().removeprefix(b"Exif\0\0"))
    stored = prepare(data, ORIGINAL, extension="png")
    plain = Image.fromarray((values // 4).astype(np.uint8))
    plain.getexif()[0x0112] = orientation
    assert np.array_equal(as_pillow_shows(stored.data), np.asarray(ImageOps.exif_transpose(plain)))


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (1, 1, "too small"),
        (7, 400, "too small"),
        (400, 7, "too small"),
        (8, 161, "too elongated"),
        (3000, 100, "too elongated"),
        (8, 8, None),
        (8, 160, None),
        (2000, 100, None),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "pixels"])
def test_images_too_small_or_elongated_for_a_view_are_left_out(
    width: int, height: int, reason: str | None, form: str
) -> None:
    image = Image.new("RGB", (width, height), "navy")
    data = np.asarray(image) if form == "pixels" else encoded(image, form)
    if reason is None:
        assert prepare(data, Preparation()).width == width
        return
    with pytest.raises(Unusable) as refused:
        prepare(data, Preparation())
    assert refused.value.reason == reason in BY_SETTING
    assert f"{width:,} x {height:,}" in refused.value.detail
    assert prepare(data, ORIGINAL).height == height


def test_a_whole_image_of_malformed_exif_is_refused_with_the_reason() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (40, 20)).save(file, "JPEG", exif=b"Exif\0\0junkjunkjunkjunk")
    with pytest.raises(Unusable, match="TIFF"):
        prepare(file.getvalue(), ORIGINAL, extension="jpg")


def test_cmyk_becomes_pillows_rgb() -> None:
    data = encoded(picture(mode="CMYK"), "JPEG")
    stored = prepare(data, ORIGINAL, extension="jpg")
    assert stored.extension == "png" and "CMYK to RGB" in stored.remarks
    assert np.array_equal(as_pillow_shows(stored.data), as_pillow_shows(data))


@pytest.mark.parametrize(
    ("encoding", "extension"), [("png", "png"), ("raw", "rgb"), ("jpeg:90", "jpg")]
)
def test_pixels_are_stored_in_every_encoding(encoding: str, extension: str) -> None:
    pixels = np.asarray(picture())
    stored = prepare(pixels, Preparation(encoding=encoding))
    assert stored.extension == extension and not stored.repaired
    if encoding == "raw":
        assert stored.data == pixels.tobytes()
    else:
        difference = np.abs(as_pillow_shows(stored.data).astype(int) - pixels)
        assert difference.max() == 0 if encoding == "png" else difference.mean() < 3


def test_a_grey_picture_takes_one_channel() -> None:
    stored = prepare(encoded(picture(mode="L"), "BMP"), ORIGINAL)
    assert Image.open(io.BytesIO(stored.data)).mode == "L"


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (33, 33)])
def test_larger_images_are_reduced_and_smaller_ones_left(height: int, width: int) -> None:
    how = Preparation(resize_shorter=32)
    data = encoded(picture(height, width), "JPEG")
    stored = prepare(data, how)
    assert min(stored.width, stored.height) == 32
    assert stored.width / stored.height == pytest.approx(width / height, rel=0.02)
    assert stored.extension == "png" and "reduced" in stored.remarks
    small = encoded(picture(30, 90), "JPEG")
    assert prepare(small, how).data == small


def test_reducing_is_filtered_against_aliasing() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    stored = prepare(stripes, Preparation(encoding="raw", resize_shorter=32))
    pixels = np.frombuffer(stored.data, np.uint8).astype(int)
    assert np.abs(pixels - 128).max() <= 12  # grey, not stripes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"encoding": "jpg"}, "encoding='jpg'; expected original, png, raw, or jpeg:QUALITY"),
        ({"encoding": "jpeg:0"}, "jpeg:QUALITY with a quality of 1 to 100"),
        ({"encoding": "jpeg:101"}, "jpeg:QUALITY"),
        ({"resize_shorter": 4}, "resize_shorter=4 pixels; expected 8 or more"),
        ({"max_megapixels": 0}, "max_megapixels=0; expected more than 0"),
        ({"min_side": 0}, "min_side=0 pixels; expected 1 or more"),
        ({"max_aspect": 0.5}, "max_aspect=0.5; expected 1 or more"),
        ({"max_aspect": float("nan")}, "max_aspect=nan; expected 1 or more"),
        ({"bits": 7}, "bits=7; expected 8 to 16"),
    ],
)
def test_impossible_preparations_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Preparation(**settings)


def test_without_verification_headers_are_trusted_and_pixels_not_decoded() -> None:
    data = encoded(picture(), "JPEG")
    stored = prepare(data[:-200], Preparation(verify_decode=False))
    assert stored.pixels is None and (stored.width, stored.height) == (60, 40)
    with pytest.raises(Unusable):
        prepare(data[:-200], ORIGINAL)
