"""What becomes of one image, against Pillow and against DALI's own decoder."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.dali import Pipeline, fn, types
from shards.image import decode, read_header
from shards.writing.prepare import Preparation, Unusable, prepare
from tests.shards.damaged_inputs import LETHAL, TURNED_BY_XMP, UNNOTICED, DamageDraw, torture

ORIGINAL = Preparation()


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
