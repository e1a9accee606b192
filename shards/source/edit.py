"""Edits of an image as people make them before they post it again: 13 kinds, alone or together.

The kinds are those of the Image Similarity Challenge 2021 (https://arxiv.org/abs/2106.09672); that
their strengths are alike is not claimed. Each keeps the size of the image (a turn by 90 degrees
swaps the sides), takes all its random numbers from the generator given, and so repeats.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Rng = np.random.Generator
Edit = Callable[[Image.Image, Rng], Image.Image]
_FINE = 4  # shapes are drawn so many times larger and reduced, for smooth edges


@dataclass(frozen=True)
class Edited:
    """An edited image."""

    image: Image.Image
    edits: tuple[str, ...]
    """What was done, in this order."""


def edit(image: Image.Image, background: Image.Image, rng: Rng, least: int, most: int) -> Edited:
    """Return an edited copy.

    Args:
        image: RGB, 8 pixels or more each way.
        background: RGB, of any size; shown where the image is pasted onto another one.
        rng: decides everything.
        least: fewest edits.
        most: most edits; their number is uniform, and so is which ones, without repetition. They
            happen in the order of `kinds`.
    """
    known = kinds(background)
    names, count = list(known), int(rng.integers(least, most + 1))
    chosen = sorted(rng.choice(len(names), count, replace=False).tolist())
    for number in chosen:
        image = known[names[number]](image, rng)
    return Edited(image, tuple(names[number] for number in chosen))


def kinds(background: Image.Image) -> dict[str, Edit]:
    """Return all kinds of edits by name, in the order in which they happen."""
    return {
        "crop": crop,
        "flip": flip,
        "rotate": rotate,
        "color": color,
        "tone": tone,
        "blur": blur,
        "detail": detail,
        "pixelate": pixelate,
        "text": text,
        "emoji": emoji,
        "pad": pad,
        "onto": partial(onto, background=background),
        "jpeg": jpeg,
    }


# ── Geometry ────────────────────────────────────────────────────────────────────────────────────


def crop(image: Image.Image, rng: Rng) -> Image.Image:
    """Keep 30 to 80 % of the area, of an aspect ratio changed by up to 4:3, scaled back up."""
    area, ratio = rng.uniform(0.3, 0.8), math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    width = image.width * min(1.0, math.sqrt(area * ratio))
    height = image.height * min(1.0, math.sqrt(area / ratio))
    left, top = (
        rng.uniform(0, 1) * (image.width - width),
        rng.uniform(0, 1) * (image.height - height),
    )
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def flip(image: Image.Image, rng: Rng) -> Image.Image:
    """Mirror left and right (two of three), or top and bottom."""
    return ImageOps.mirror(image) if rng.uniform() < 2 / 3 else ImageOps.flip(image)


def rotate(image: Image.Image, rng: Rng) -> Image.Image:
    """Turn by 90, 180 or 270 degrees (half of all), or by 5 to 40 either way over one colour."""
    turns, angle, right = int(rng.integers(1, 4)), rng.uniform(5, 40), rng.uniform() < 0.5
    fill = _colour(rng)
    if right:
        return image.transpose(
            [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270][
                turns - 1
            ]
        )
    angle = angle if rng.uniform() < 0.5 else -angle
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)


def pad(image: Image.Image, rng: Rng) -> Image.Image:
    """Reduce to 60 to 85 % within a frame of one colour, off its middle."""
    scale = rng.uniform(0.6, 0.85)
    return _paste(image, Image.new("RGB", image.size, _colour(rng)), scale, rng)


def onto(image: Image.Image, rng: Rng, background: Image.Image) -> Image.Image:
    """Reduce to 50 to 80 % of each side and paste onto another image, anywhere."""
    scale = rng.uniform(0.5, 0.8)
    below = background.resize(image.size, Image.Resampling.BICUBIC)
    return _paste(image, below, scale, rng)


def _paste(image: Image.Image, below: Image.Image, scale: float, rng: Rng) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    left = round(rng.uniform() * (image.width - width))
    top = round(rng.uniform() * (image.height - height))
    below.paste(small, (left, top))
    return below


# ── Colour ──────────────────────────────────────────────────────────────────────────────────────


def color(image: Image.Image, rng: Rng) -> Image.Image:
    """Brightness, contrast and saturation each times 0.5 to 1.6; hue by up to 36 degrees."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.5, 1.6))
    hue, saturation, value = image.convert("HSV").split()
    shift = int(rng.integers(-25, 26))  # of 256
    turned = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def tone(image: Image.Image, rng: Rng) -> Image.Image:
    """Grey, sepia, posterised to 2 or 3 bits, solarised above 128, or inverted: one of them."""
    which, bits = int(rng.integers(5)), int(rng.integers(2, 4))
    grey = ImageOps.grayscale(image)
    if which == 0:
        return grey.convert("RGB")
    if which == 1:
        return ImageOps.colorize(grey, (30, 15, 0), (255, 240, 205))
    if which == 2:
        return ImageOps.posterize(image, bits)
    return ImageOps.solarize(image, 128) if which == 3 else ImageOps.invert(image)


# ── Filters ─────────────────────────────────────────────────────────────────────────────────────


def blur(image: Image.Image, rng: Rng) -> Image.Image:
    """Gaussian blur with a radius of 2 to 5 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.02, 0.05) * min(image.size)))


def detail(image: Image.Image, rng: Rng) -> Image.Image:
    """Sharpen, enhance edges, or add noise with a standard deviation of 10 to 30 grey levels."""
    which, sigma = int(rng.integers(3)), rng.uniform(10, 30)
    if which == 0:
        return image.filter(ImageFilter.UnsharpMask(radius=2, percent=250, threshold=0))
    if which == 1:
        return image.filter(ImageFilter.EDGE_ENHANCE_MORE)
    noisy = np.asarray(image) + rng.normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def pixelate(image: Image.Image, rng: Rng) -> Image.Image:
    """Reduce to 30 to 60 % of each side and show the pixels large."""
    scale = rng.uniform(0.3, 0.6)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.NEAREST
    )


# ── Overlays ────────────────────────────────────────────────────────────────────────────────────


def text(image: Image.Image, rng: Rng) -> Image.Image:
    """Write 1 to 3 lines of 3 to 9 random letters, each 12 to 25 % of the height."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    size = max(6, round(rng.uniform(0.12, 0.25) * image.height))
    top, colour = rng.uniform(0, 0.6) * image.height, _colour(rng)
    for line in range(int(rng.integers(1, 4))):
        letters = rng.choice(list("ABCDEFGHIKLMNOPRSTUVWaeimnorstu!?"), int(rng.integers(3, 10)))
        left = rng.uniform(-0.1, 0.4) * image.width
        draw.text((left, top + line * size), "".join(letters), colour, ImageFont.load_default(size))
    return image


def emoji(image: Image.Image, rng: Rng) -> Image.Image:
    """Draw 1 to 3 faces, hearts or stars, each 25 to 45 % of the shorter side across."""
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        side = max(4, round(rng.uniform(0.25, 0.45) * min(image.size)))
        shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
        large = Image.new("RGBA", (side * _FINE, side * _FINE), (0, 0, 0, 0))
        shape(ImageDraw.Draw(large), side * _FINE, rng)
        small = large.resize((side, side), Image.Resampling.LANCZOS)
        left = round(rng.uniform() * (image.width - side))
        top = round(rng.uniform() * (image.height - side))
        image.paste(small, (left, top), small)
    return image


def _face(draw: ImageDraw.ImageDraw, side: int, rng: Rng) -> None:
    def box(left: float, top: float, right: float, bottom: float) -> list[float]:
        return [side * part for part in (left, top, right, bottom)]

    draw.ellipse(box(0, 0, 1, 1), (255, 204, 51), (120, 80, 0), max(1, side // 24))
    for eye in (0.3, 0.6):
        draw.ellipse(box(eye, 0.25, eye + 0.12, 0.45), (70, 40, 10))
    begin = 20 if rng.uniform() < 0.7 else 200  # a smile, or its opposite
    middle = 0.5 if begin == 20 else 0.75
    draw.arc(
        box(0.22, middle - 0.2, 0.78, middle + 0.3),
        begin,
        begin + 140,
        (70, 40, 10),
        max(1, side // 12),
    )


def _heart(draw: ImageDraw.ImageDraw, side: int, rng: Rng) -> None:
    angle = np.linspace(0, 2 * np.pi, 60)
    across = 16 * np.sin(angle) ** 3
    up = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    points = np.stack([0.5 + across / 34, 0.47 - up / 34], axis=1) * side
    red = int(rng.integers(190, 256))
    draw.polygon([(float(x), float(y)) for x, y in points], (red, 30, 60))


def _star(draw: ImageDraw.ImageDraw, side: int, rng: Rng) -> None:
    angle = np.arange(10) * np.pi / 5 + rng.uniform(0, 2 * np.pi / 5)
    radius = np.where(np.arange(10) % 2, 0.2, 0.5)
    points = 0.5 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    draw.polygon([(float(x), float(y)) for x, y in points * side], _colour(rng))


_SHAPES = (_face, _heart, _star)


# ── Storage ─────────────────────────────────────────────────────────────────────────────────────


def jpeg(image: Image.Image, rng: Rng) -> Image.Image:
    """Compress as JPEG of quality 5 to 40, and decode."""
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(rng.integers(5, 41)))
    return Image.open(stored).convert("RGB")


def _colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue
