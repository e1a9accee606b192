"""Image files that are good, odd and bad, with what packing has to make of each of them.

    a table: kind, how to make one ─▶ FOLDER/odd_NN/KIND-N.EXTENSION ─▶ {path: expectation}

The expectations are those of Pillow 13 and nvImageCodec 0.9; `test_torture_files.py` asks both.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageCms

Size = tuple[int, int]


class DamageDraw:
    """What chance decides in one file, and its number among those of its kind."""

    def __init__(self, kind: str, number: int, *seed: int) -> None:
        self.number = number
        self.random = np.random.default_rng([*seed, zlib.crc32(kind.encode()), number])

    def pixels(self, channels: int, size: Size | None = None) -> NDArray[np.uint16]:
        """Return [H, W, channels] of 16 bits: smooth, with an edge and a little noise."""
        width, height = size or self.random.integers(17, 80, 2).tolist()
        x, y = np.linspace(0, 6, width)[None, :, None], np.linspace(0, 6, height)[:, None, None]
        slope_x, slope_y, phase = self.random.uniform(0.3, 2, (3, channels))
        values = np.sin(slope_x * x + phase) + np.cos(slope_y * y * (1 + (x > 3)))
        values = values * 15_000 + self.random.normal(32_768, 1_500, (height, width, channels))
        return values.clip(0, 65_535).astype(np.uint16)

    def image(self, mode: str, size: Size | None = None) -> Image.Image:
        if mode in {"1", "P"}:
            image = self.image("L" if mode == "1" else "RGB", size)
            return image.convert("1") if mode == "1" else image.quantize(64)
        pixels = self.pixels(len(Image.new(mode, (1, 1)).getbands()), size)
        if mode in {"I;16", "F"}:
            return Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else "f4"))
        return Image.frombytes(mode, pixels.shape[1::-1], (pixels >> 8).astype(np.uint8).tobytes())


Make = Callable[[DamageDraw], bytes]


def saved(save: Callable[..., Any], *settings: Any, **named: Any) -> bytes:
    save(file := io.BytesIO(), *settings, **named)
    return file.getvalue()


def by_pillow(
    form: str, mode: str = "RGB", size: Size | None = None, *, frames: int = 1, **settings: Any
) -> Make:
    def make(draw: DamageDraw) -> bytes:
        first = draw.image(mode, size)
        rest = [draw.image(mode, first.size) for _ in range(frames - 1)]
        several = {"save_all": True, "append_images": rest} if rest else {}
        return saved(first.save, form, **several, **settings)

    return make


def jpeg(mode: str = "RGB", size: Size | None = None, **settings: Any) -> Make:
    return by_pillow("JPEG", mode, size, **{"quality": 90, **settings})


def edited(make: Make, edit: Callable[[bytes], bytes]) -> Make:
    return lambda draw: edit(make(draw))


def cut(make: Make, *shares: float) -> Make:
    """Leave the first share of a file: one share after the other, from file to file."""
    return lambda draw: (data := make(draw))[: int(len(data) * shares[draw.number % len(shares)])]


def joined(first: Make, second: Make, end: float = 1, start: float = 0) -> Make:
    """The first file up to a share of it, then the second from a share of it on."""

    def make(draw: DamageDraw) -> bytes:
        one, other = first(draw), second(draw)
        return one[: int(len(one) * end)] + other[int(len(other) * start) :]

    return make


def exif(orientation: int) -> bytes:
    (tags := Image.Exif())[0x0112] = orientation
    return tags.tobytes()


def turned(form: str, mode: str = "RGB", orientations: tuple[int, ...] = (*range(1, 9),)) -> Make:
    """With one EXIF orientation after the other, from file to file."""
    makes = [by_pillow(form, mode, exif=exif(orientation)) for orientation in orientations]
    return lambda draw: makes[draw.number % len(makes)](draw)


def with_segment(marker: int, content: bytes, make: Make | None = None) -> Make:
    """Put a segment at the front, before JFIF's."""
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    return edited(make or jpeg(), lambda data: data[:2] + segment + data[2:])


def with_header(make: Make, *changes: tuple[int, bytes]) -> Make:
    """Overwrite in SOF, at 1: its type, 4: bits, 5: height, 7: width, 9: channels, 11: sampling."""

    def edit(data: bytes) -> bytes:
        at, result = 2, bytearray(data)
        while data[at + 1] not in (0xC0, 0xC2):
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        for offset, new in changes:
            result[at + offset : at + offset + len(new)] = new
        return bytes(result)

    return edited(make, edit)


def without(marker: int) -> Make:
    """Make all segments of a kind APP12, which decoders pass over."""
    return edited(jpeg(), lambda data: data.replace(bytes([0xFF, marker]), b"\xff\xec"))


COLOURS = {"gray": (0, 1), "RGB": (2, 3), "palette": (3, 1), "LA": (4, 2), "RGBA": (6, 4)}
ADAM7 = ("0088", "4088", "0448", "2044", "0224", "1022", "0112")  # x, y, step in x, step in y


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def head(width: int, height: int, bits: int, colours: str = "RGB", passes: int = 1) -> bytes:
    content = (width, height, bits, COLOURS[colours][0], 0, 0, passes > 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *content))


def png(
    colours: str = "RGB",
    bits: int = 8,
    size: Size | None = None,
    *,
    passes: tuple[str, ...] = ("0011",),
    extra: bytes = b"",
    piece: int = 1 << 20,
    damage: Callable[[bytes], bytes] = bytes,
) -> Make:
    """A PNG put together by hand: what Pillow does not write, and damage under right checksums."""

    def lines(values: NDArray[np.uint16]) -> bytes:
        rows = np.unpackbits(values.astype(">u2")[..., None].view(np.uint8), axis=-1)
        packed = np.packbits(rows[..., 16 - bits :].reshape(len(values), -1), axis=1)
        return b"".join(b"\0" + line.tobytes() for line in packed)

    def make(draw: DamageDraw) -> bytes:
        values = draw.pixels(COLOURS[colours][1], size) >> np.uint16(16 - bits)
        steps = (map(int, step) for step in passes)
        parts = [lines(part) for x, y, dx, dy in steps if (part := values[y::dy, x::dx]).size]
        data = damage(zlib.compress(b"".join(parts)))
        body = [chunk(b"IDAT", data[at : at + piece]) for at in range(0, len(data), piece)]
        palette = [chunk(b"PLTE", draw.random.bytes(3 << bits))] if colours == "palette" else []
        begin = head(values.shape[1], values.shape[0], bits, colours, len(passes))
        return b"".join([begin, *palette, extra, *body, END])

    return make


def bomb(draw: DamageDraw) -> bytes:
    """108 million sound pixels of one bit, in some kilobytes."""
    rows = (b"\0" + draw.random.bytes(1) * 1_500) * 9_000
    return head(12_000, 9_000, 1, "gray") + chunk(b"IDAT", zlib.compress(rows)) + END


def flipped(data: bytes, at: int, count: int = 1) -> bytes:
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + count]) + data[at + count :]


def half_zeros(data: bytes) -> bytes:
    return data[: len(data) // 2].ljust(len(data), b"\0")


END = chunk(b"IEND", b"")
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ICC = PROFILE[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + PROFILE[36:]  # not today's date
ADOBE = b"Adobe\0\x64\0\0\0\0\0"  # and then 0: RGB or CMYK, 1: YCbCr, 2: YCCK
BIG = (200, 160)  # so that shares of a file are of its image data
RGB, BASELINE, PROGRESSIVE = jpeg(), jpeg(size=BIG), jpeg(size=BIG, progressive=True)
LARGE, MODES = png(size=BIG), ("1", "L", "P", "RGB", "RGBA")


def text(template: bytes) -> Make:
    return lambda draw: template % draw.random.bytes(8).hex().encode()


def garbage(draw: DamageDraw) -> bytes:
    return draw.random.bytes(3_000)


JPEG: dict[str, Make] = {  # bytes kept
    **{f"sampling_{s}": jpeg(subsampling=i) for i, s in enumerate(("444", "422", "420"))},
    # Other factors with as many blocks to a unit, and a size that takes as many units.
    "sampling_440": with_header(
        jpeg(size=(48, 32), subsampling=1), (5, b"\0;\0\25"), (11, b"\x12")
    ),
    "sampling_411": with_header(
        jpeg(size=(48, 32), subsampling=2), (5, b"\0\17\0]"), (11, b"\x41")
    ),
    **{f"quality_{quality}": jpeg(quality=quality) for quality in (1, 100)},
    **{f"{w}x{h}": jpeg(size=(w, h)) for w, h in ((1, 1), (1, 9), (17, 1), (15, 33), (65_500, 1))},
    "gray": jpeg("L"),
    "gray_1x1": jpeg("L", (1, 1)),
    "gray_sampled_2x2": with_header(jpeg("L"), (11, b"\x22")),
    "progressive": jpeg(progressive=True),
    "progressive_gray": jpeg("L", progressive=True),
    "optimized": jpeg(optimize=True),
    "extended": with_header(RGB, (1, b"\xc1")),
    "adobe_rgb": jpeg(keep_rgb=True),
    "adobe_ycc": with_segment(0xEE, ADOBE + b"\1"),
    "restart_blocks": jpeg(restart_marker_blocks=2),
    "restart_rows": jpeg(restart_marker_rows=1),
    "profile": jpeg(icc_profile=ICC),
    "comment": jpeg(comment=b"made for a test" * 3_000),
    "exif_garbage": with_segment(0xE1, b"Exif\0\0garbage"),
    "exif_cut": with_segment(0xE1, exif(6)[:20]),
    "exif_0_or_9": turned("JPEG", orientations=(0, 9)),
    "garbage_after": joined(RGB, garbage),
    "zeros_after": edited(RGB, lambda data: data + bytes(5_000)),
    "another_after": joined(RGB, RGB),
    "no_jfif": edited(RGB, lambda data: data[:2] + data[20:]),
    "no_huffman_table": without(0xC4),  # as in motion JPEG: the standard's own is meant
    "filled": edited(RGB, lambda data: data[:2] + b"\xff\xff" + data[2:]),
    "two_frames": by_pillow("MPO", frames=2),
}
PNG: dict[str, Make] = {  # bytes kept
    **{f"pillow_{mode}": by_pillow("PNG", mode) for mode in (*MODES, "LA")},
    **{f"{c}_{bits}": png(c, bits) for c in ("gray", "palette") for bits in (1, 2, 4, 8)},
    **{f"interlaced_{colours}": png(colours, passes=ADAM7) for colours in COLOURS},
    **{f"interlaced_gray_{bits}": png("gray", bits, passes=ADAM7) for bits in (1, 2, 4)},
    "interlaced_3x5": png(size=(3, 5), passes=ADAM7),
    "1x1": by_pillow("PNG", size=(1, 1)),
    "palette_alpha": by_pillow("PNG", "P", transparency=bytes(range(64))),
    "gray_key": by_pillow("PNG", "L", transparency=127),
    "rgb_key": by_pillow("PNG", transparency=(127, 127, 127)),
    "animated": by_pillow("PNG", frames=3),
    "profile": by_pillow("PNG", icc_profile=ICC),
    "gamma": png(extra=chunk(b"gAMA", struct.pack(">I", 100_000))),
    "background": png(extra=chunk(b"bKGD", bytes(6))),
    "many_pieces": png(piece=50),
    "garbage_after": joined(png(), garbage),
}
REPAIRED: dict[str, Make] = {  # under the extension that each begins with
    "jpg_cmyk": jpeg("CMYK"),
    "jpg_ycck": edited(jpeg("CMYK"), lambda data: data.replace(ADOBE + b"\0", ADOBE + b"\2")),
    # Pillow decodes the still picture; nvImageCodec the first frame of the animation.
    "png_still_and_animation": by_pillow("PNG", frames=3, default_image=True),
    # All of the picture is there, and Pillow decodes it; nvImageCodec refuses.
    "png_no_end": edited(png(), lambda data: data.removesuffix(END)),
    "png_foreign_chunk": png(extra=chunk(b"ABCD", b"critical")),
    "png_cut_after_first_frame": cut(by_pillow("PNG", size=(40, 40), frames=9), 0.5, 0.6, 0.7),
    **{f"png_16_{c}": png(c, 16) for c in ("gray", "RGB", "LA", "RGBA")},
    **{f"webp_{mode}": by_pillow("WEBP", mode) for mode in ("L", "RGB", "RGBA")},
    "webp_lossless": by_pillow("WEBP", "RGBA", lossless=True),
    "webp_animated": by_pillow("WEBP", frames=3),
    **{f"bmp_{mode}": by_pillow("BMP", mode) for mode in MODES},
    **{f"tif_{m}": by_pillow("TIFF", m) for m in (*MODES, "LA", "I;16", "CMYK", "YCbCr")},
    **{f"tif_{c}": by_pillow("TIFF", compression=c) for c in ("tiff_lzw", "packbits", "jpeg")},
    "tif_fax": by_pillow("TIFF", "1", compression="group4"),
    "tif_pages": by_pillow("TIFF", frames=3),
    **{f"gif_{mode}": by_pillow("GIF", mode) for mode in MODES},
    "gif_animated": by_pillow("GIF", "P", frames=3),
    "gif_transparent": by_pillow("GIF", "P", transparency=0),
    **{f"p{n}m": by_pillow("PPM", mode) for n, mode in (("b", "1"), ("g", "L"), ("p", "RGB"))},
    **{f"tga_{mode}": by_pillow("TGA", mode) for mode in ("L", "P", "RGB", "RGBA")},
    **{f"jp2_{mode}": by_pillow("JPEG2000", mode) for mode in ("L", "LA", "RGB", "RGBA")},
    "ico": by_pillow("ICO", "RGBA", (48, 48)),
    "avif": by_pillow("AVIF", "RGBA", speed=10),
}
QUARANTINED: dict[str, Make] = {
    "text": text(b"hello %s\n"),
    "html": text(b"<!DOCTYPE html><html><title>403</title><p>%s</html>"),
    "lfs_pointer": text(b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n"),
    "svg": text(b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="4" id="%s"/></svg>'),
    "mp4": text(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2 %s"),
    "zip": lambda draw: saved(np.savez, draw.pixels(3)),
    "array": lambda draw: saved(np.save, draw.pixels(3)),
    "random": garbage,
    "float": by_pillow("TIFF", "F"),
    "jpg_cut_in_header": cut(RGB, 0.02, 0.05, 0.1, 0.15),
    "jpg_cut": cut(BASELINE, 0.3, 0.4, 0.5, 0.7),
    "jpg_cut_progressive": cut(PROGRESSIVE, 0.3, 0.4, 0.5, 0.7),
    "jpg_cut_restart": cut(jpeg(size=BIG, restart_marker_rows=1), 0.3, 0.4, 0.5, 0.7),
    "jpg_start_and_random": lambda draw: b"\xff\xd8\xff" + draw.random.bytes(40),
    "jpg_start_zeroed": edited(RGB, lambda data: bytes(2) + data[2:]),
    "jpg_no_size": with_header(RGB, (5, bytes(4))),
    "jpg_no_width": with_header(RGB, (7, bytes(2))),
    "jpg_no_channels": with_header(RGB, (9, bytes(1))),
    "jpg_3_billion_pixels": with_header(RGB, (5, struct.pack(">HH", 60_000, 60_000))),
    "jpg_no_quantization": without(0xDB),
    "jpg_no_scan": without(0xDA),
    "jpg_hole_in_header": edited(BASELINE, lambda data: data[:100] + bytes(300) + data[400:]),
    "jpg_tail_of_zeros": edited(BASELINE, half_zeros),
    "jpg_as_utf_8": edited(RGB, lambda data: data.decode("latin1").encode()),
    "jpg_half_and_another": joined(PROGRESSIVE, BASELINE, end=0.5),
    "png_cut": cut(LARGE, 0.01, 0.3, 0.5, 0.69),
    "png_cut_interlaced": cut(png(size=BIG, passes=ADAM7), 0.01, 0.3, 0.5, 0.69),
    "png_cut_16": cut(png("gray", 16, BIG, piece=500), 0.01, 0.3, 0.5, 0.69),
    "png_flipped": edited(LARGE, lambda data: flipped(data, len(data) // 2)),
    "png_stream_flipped": png(size=BIG, damage=lambda data: flipped(data, len(data) // 2, 99)),
    "png_stream_no_head": png(damage=lambda data: bytes(2) + data[2:]),
    "png_stream_cut": png(damage=lambda data: data[: len(data) // 2]),
    "png_no_data": png(damage=lambda _: b""),
    "png_head_flipped": edited(png(), lambda data: flipped(data, 29)),
    "png_as_text": edited(LARGE, lambda data: data.replace(b"\r\n", b"\n")),
    "png_two_halves": joined(LARGE, LARGE, end=0.5, start=0.5),
    "png_3_bits": edited(png(), lambda data: head(9, 9, 3) + data[33:]),
    "png_2_billion_pixels": edited(png(), lambda data: head(50_000, 50_000, 8) + data[33:]),
    **{
        f"cut_{form}": cut(by_pillow(form, size=BIG), 0.1, 0.3, 0.5, 0.69)
        for form in ("GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "TGA", "AVIF")
    },
}
SINGLE: dict[str, Make] = {
    "empty": lambda _: b"",
    "zeros": lambda _: bytes(1 << 20),
    "jpg_start": lambda _: b"\xff\xd8",
    "jpg_start_and_end": lambda _: b"\xff\xd8\xff\xd9",
    "bomb": bomb,
}
# Damage that one of the two does not notice: it should be quarantined, but which tool sees it?
UNNOTICED: dict[str, Make] = {
    "png_tail_of_zeros": edited(
        by_pillow("PNG", size=BIG), half_zeros
    ),  # Pillow: the lost rows are black
    "png_checksum": edited(LARGE, lambda data: flipped(data, len(data) - 13)),  # Pillow
    "png_no_palette": edited(png("palette"), lambda data: data[:33] + data[813:]),  # Pillow
    "jpg_as_text": edited(BASELINE, lambda data: data.replace(b"\n", b"\r\n")),  # Pillow
    "jpg_half_and_another": joined(BASELINE, BASELINE, end=0.5),  # nvImageCodec
}
if int(PIL.__version__.split(".")[0]) < 13:  # which cannot read what it writes; nvImageCodec can
    UNNOTICED["tif_YCbCr"] = REPAIRED.pop("tif_YCbCr")
# Pillow turns these two; nvImageCodec and browsers do not.
TURNED_BY_XMP: dict[str, Make] = {
    "jpg": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
    "png": png(extra=chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP)),
}
# Two EXIF segments that differ: nvImageCodec 0.9 writes past its memory, and the process dies or
# hangs. Pillow decodes it. Not in `torture`; decode it in a process that may be lost.
LETHAL = with_segment(0xE1, exif(1), with_segment(0xE1, exif(6)))
ORIENTED = {mode: turned("JPEG", mode) for mode in ("L", "RGB")}
LONG = {"wide": jpeg(size=(30_000, 20)), "tall": jpeg(size=(20, 30_000))}
ORIENTED_PNG = {mode: turned("PNG", mode) for mode in ("L", "P", "RGB", "RGBA")}
ORIENTED_OTHER = {form: turned(form) for form in ("WEBP", "TIFF")}
# Expectation, kinds, files of each, their extensions in turn (none: as the kind begins).
TABLES: list[tuple[str, dict[str, Make], int, tuple[str, ...]]] = [
    ("written", JPEG, 3, ("jpg", "jpeg", "JPG")),
    ("written", LONG, 1, ("jpg",)),
    ("written", ORIENTED, 8, ("jpg",)),
    ("written", PNG, 3, ("png",)),
    ("written", ORIENTED_PNG, 8, ("png",)),
    ("repaired", JPEG, 1, ("png",)),
    ("repaired", PNG, 1, ("jpg",)),
    ("repaired", REPAIRED, 3, ("", "jpg", "png")),
    ("repaired", ORIENTED_OTHER, 8, ("jpg",)),
    ("quarantined", QUARANTINED, 4, ("jpg", "png", "jpeg", "webp")),
    ("quarantined", SINGLE, 1, ("jpg",)),
]


def torture(folder: Path, *, seed: int = 0) -> dict[str, str]:
    """Write the files; return {path relative to folder: "written", "repaired" or "quarantined"}."""
    expected: dict[str, str] = {}
    seen: set[bytes] = set()
    for row, (expectation, table, count, extensions) in enumerate(TABLES):
        for (kind, make), number in itertools.product(table.items(), range(count)):
            draws = (DamageDraw(kind, number, seed, row, attempt) for attempt in itertools.count())
            data = next(data for draw in draws if (data := make(draw)) not in seen)
            seen.add(data)
            extension = extensions[number % len(extensions)] or kind.split("_")[0]
            name = f"odd_{len(expected) % 10:02d}/{kind}-{len(expected):04d}.{extension}"
            write(folder / name, data)
            expected[name] = expectation
    return expected


def good(folder: Path, count: int, *, classes: int = 10, seed: int = 0) -> None:
    """Write small sound files, JPEG and PNG by turns, into class folders."""
    for number in range(count):
        draw, extension = DamageDraw("good", number, seed), ("jpg", "png")[number % 2]
        size = (int(draw.random.integers(32, 97)), int(draw.random.integers(32, 97)))
        data = (jpeg if extension == "jpg" else png)(size=size)(draw)
        write(folder / f"good_{number % classes:02d}/{number:07d}.{extension}", data)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
