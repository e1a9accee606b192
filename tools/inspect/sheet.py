"""A contact sheet of a shard set as one picture: histograms above, thumbnails below."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.image import decode, read_header
from shards.layout import CATEGORIES, PRESENT, ShardSet
from shards.one_line import one_line
from shards.shard_index import lines_of
from shards.survey import Survey, by_shard, rows_of
from shards.tar import component
from training.terminal import Bins, aspect_bins, bins_of

COLUMNS = 8
_THUMB = 144  # pixels, of a thumbnail with its letterbox
_GAP = 16
_TEXT = 38  # below a thumbnail
_MARGIN = 24
_PANEL = 190  # height of a histogram
_LETTERS = 300  # more do not fit on a line
_CLASSES = 12  # of the histogram of classes
_INK, _QUIET, _BAR, _BOX, _PAPER = "#1f2328", "#6e7781", "#4078c0", "#eceff2", "#ffffff"


@dataclass(frozen=True)
class Picture:
    """A sample to show."""

    key: str
    name: str
    """Of its class, or of all categories that it shows; "" if it has none."""
    pixels: NDArray[np.uint8] | None
    """None if it does not decode."""


def pictures(shard_set: ShardSet, samples: int, seed: int) -> list[Picture]:
    """Read and decode samples drawn at random, in the order of the tars."""
    drawn = np.random.RandomState(seed).permutation(len(shard_set))[:samples]
    return [*pictures_at(shard_set, drawn).values()]


def pictures_at(shard_set: ShardSet, positions: NDArray[np.integer]) -> dict[int, Picture]:
    """Read and decode the samples at some positions, in the order of the tars."""
    classes, categories = shard_set.manifest.classes, shard_set.manifest.categories
    shown = {}
    for shard, start, inside in by_shard(shard_set, np.unique(positions)):
        rows, lines = rows_of(shard_set, shard), lines_of(shard_set, shard)
        with shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
            for position in inside:
                row, line = rows[position - start], lines[position - start]
                data = component(tar, line, row.image) or b""
                shape = component(tar, line, "shape.i64") if row.image == "rgb" else None
                name = classes[row.label] if 0 <= row.label < len(classes) else ""
                if categories:
                    values = component(tar, line, CATEGORIES) or b""
                    there = zip(categories, values, strict=False)
                    name = ", ".join(each for each, value in there if value == PRESENT)
                shown[position] = Picture(row.key, name, _pixels(data, shape))
    return shown


def contact_sheet(shard_set: ShardSet, found: Survey, shown: list[Picture]) -> Image.Image:
    """Draw histograms of all samples and thumbnails of some."""
    lines = -(-len(shown) // COLUMNS)
    width = 2 * _MARGIN + COLUMNS * (_THUMB + _GAP) - _GAP
    top = _MARGIN + 44 + _PANEL + 24
    sheet = Image.new("RGB", (width, top + lines * (_THUMB + _TEXT) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)

    manifest = shard_set.manifest
    title = f"{manifest.source} {manifest.split}".strip()
    title = _fit(draw, title, width / 2, 20)
    draw.text((_MARGIN, _MARGIN - 6), title, _INK, _font(20))
    about = f"{len(shard_set):,} samples, {shard_set.root}"
    right = draw.textlength(title, _font(20)) + _MARGIN + 14
    draw.text((right, _MARGIN), _fit(draw, about, width - right - _MARGIN, 14), _QUIET, _font(14))

    panels = _panels(shard_set, found)
    each = (width - 2 * _MARGIN + 28) // len(panels)
    for number, (name, bins) in enumerate(panels):
        box = (_MARGIN + number * each, _MARGIN + 36, each - 28, _PANEL)
        _histogram(draw, name, bins, box)

    for number, picture in enumerate(shown):
        line, column = divmod(number, COLUMNS)
        left = _MARGIN + column * (_THUMB + _GAP)
        _thumbnail(sheet, draw, picture, left, top + line * (_THUMB + _TEXT))
    return sheet


def pair_sheet(title: str, pairs: list[tuple[Picture, Picture, str]]) -> Image.Image:
    """Draw pairs of an image and its partner side by side, a line of text above each."""
    across = COLUMNS // 2
    lines, each = -(-len(pairs) // across), 2 * _THUMB + _GAP
    width = 2 * _MARGIN + across * (each + 2 * _GAP) - 2 * _GAP
    top = _MARGIN + 32
    sheet = Image.new("RGB", (width, top + lines * (_THUMB + _TEXT + 22) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 6), _fit(draw, title, width - 2 * _MARGIN, 14), _INK, _font(14))
    for number, (picture, partner, text) in enumerate(pairs):
        line, column = divmod(number, across)
        left, y = _MARGIN + column * (each + 2 * _GAP), top + line * (_THUMB + _TEXT + 22)
        draw.text((left, y), _fit(draw, text, each, 12), _INK, _font(12))
        _thumbnail(sheet, draw, picture, left, y + 18)
        _thumbnail(sheet, draw, partner, left + _THUMB + _GAP, y + 18)
    return sheet


def _pixels(data: bytes, shape: bytes | None) -> NDArray[np.uint8] | None:
    if shape is not None:
        size = np.frombuffer(shape, dtype="<i8")
        whole = size.prod() == len(data)
        return np.frombuffer(data, dtype=np.uint8).reshape(size) if whole else None
    header = read_header(data) if data else None
    return decode(header) if header is not None else None


def _panels(shard_set: ShardSet, found: Survey) -> list[tuple[str, Bins]]:
    classes = shard_set.manifest.classes
    panels = [
        ("shorter side, pixels", bins_of(np.minimum(found.widths, found.heights))),
        ("width : height, nearest", aspect_bins(found.widths, found.heights)),
        ("bytes an image", bins_of(found.image_bytes)),
    ]
    if classes:
        counts = found.class_counts(len(classes))
        order = np.argsort(-counts, kind="stable")
        if len(order) <= _CLASSES:
            bins = [(classes[label], int(counts[label])) for label in range(len(order))]
            panels.append(("classes", bins))
        else:
            half = _CLASSES // 2
            ends = [*order[:half].tolist(), *order[-half:].tolist()]
            bins = [(classes[label], int(counts[label])) for label in ends]
            panels.append((f"{half} largest and smallest of {len(order):,} classes", bins))
    return panels


def _histogram(
    draw: ImageDraw.ImageDraw, name: str, bins: Bins, box: tuple[int, int, int, int]
) -> None:
    """Draw horizontal bars with labels to their left and counts to their right."""
    left, top, width, height = box
    draw.text((left, top), _fit(draw, name, width, 13), _INK, _font(13))
    step = min((height - 24) / len(bins), 20)
    size = 12 if step >= 15 else 11 if step >= 13 else 9
    longest = max(draw.textlength(one_line(label), _font(size)) for label, _ in bins)
    labels = min(longest, 0.45 * width)
    largest = max(count for _, count in bins)
    counts = draw.textlength(f"{largest:,}", _font(size))
    room = width - labels - counts - 14
    for number, (label, count) in enumerate(bins):
        y, x = top + 24 + number * step, left + labels + 8
        text = _fit(draw, label, labels, size)
        draw.text((x - 8, y + step / 2), text, _QUIET, _font(size), anchor="rm")
        end = x + room * count / max(largest, 1)
        if count:
            draw.rectangle((x, y + 1.5, max(end, x + 1), y + step - 1.5), fill=_BAR)
        draw.text((end + 5, y + step / 2), f"{count:,}", _QUIET, _font(size), anchor="lm")


def _thumbnail(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Picture, left: int, top: int
) -> None:
    draw.rectangle((left, top, left + _THUMB - 1, top + _THUMB - 1), fill=_BOX)
    middle = left + _THUMB // 2
    if picture.pixels is None:
        draw.text((middle, top + _THUMB // 2), "does not decode", _INK, _font(12), anchor="mm")
    else:
        image = _scaled(Image.fromarray(picture.pixels))
        across, down = (_THUMB - image.width) // 2, (_THUMB - image.height) // 2
        sheet.paste(image, (left + across, top + down))
    below = top + _THUMB + 3
    if picture.name:
        name = _fit(draw, picture.name, _THUMB, 12)
        draw.text((middle, below), name, _INK, _font(12), anchor="ma")
        below += 14
    key = _fit(draw, picture.key, _THUMB, 10, end=True)
    draw.text((middle, below), key, _QUIET, _font(10), anchor="ma")


def _scaled(image: Image.Image) -> Image.Image:
    """Fit into a thumbnail; small images by whole numbers, so that their pixels can be seen."""
    scale = _THUMB / max(image.size)
    method = Image.Resampling.LANCZOS
    if scale >= 2:
        scale, method = int(scale), Image.Resampling.NEAREST
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize((size[0], size[1]), method)


def _fit(
    draw: ImageDraw.ImageDraw, text: str, width: float, size: int, *, end: bool = False
) -> str:
    """Shorten a text to one line of a width; with `end`, its end is kept."""
    text = one_line(text)
    if draw.textlength(text, _font(size)) <= width:
        return text
    text = text[-_LETTERS:] if end else text[:_LETTERS]  # else thousands are measured one by one
    while text and draw.textlength(f"{text}…", _font(size)) > width:
        text = text[1:] if end else text[:-1]
    return f"…{text}" if end else f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
