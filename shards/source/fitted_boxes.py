"""Boxes in the pixels of an image as it is decoded, wherever its annotations counted them."""

from typing import Any

from PIL import ExifTags, Image

from shards.image import DAMAGE, exif_orientation, open_with_pillow

HEAD = 65536  # bytes in which a JPEG has its size and EXIF, but for odd ones
Facts = dict[str, Any]
"""Of an image: width, height, and annotations in COCO's form."""


def boxed(*sides: float) -> Facts:
    """Return a box and its area, to thousandths of a pixel; whole numbers stay whole."""
    x, y, width, height = (round(side, 3) for side in sides)
    return {"bbox": [x, y, width, height], "area": round(width * height, 3)}


def fitted(facts: Facts, image: bytes) -> Facts:
    """Return what annotations say of an image in its own pixels as it is decoded: upright.

    Boxes are scaled where the image has another size than the file says, and turned where the file
    describes an image before EXIF turns it. They stay as they are where the file says no size, or
    exchanges width and height.

    Args:
        facts: width and height of the image, if they are said, and its annotations.
        image: the image's file, or its beginning. Of one that is no image nothing is changed.
    """
    try:
        opened = open_with_pillow(image)
    except ValueError:
        return facts
    orientation = _orientation(opened, image)
    # Pillow opens a TIFF as it stands upright.
    stored = opened.size[::-1] if opened.format == "TIFF" and orientation > 4 else opened.size
    said = (facts.get("width") or 0, facts.get("height") or 0)
    width, height = size = stored[::-1] if orientation > 4 else stored
    annotations = facts["annotations"]
    if said == stored != size:
        annotations = [_turned(each, orientation, width, height) for each in annotations]
    elif min(said) > 0 and said not in (size, size[::-1]):
        annotations = [_scaled(each, width / said[0], height / said[1]) for each in annotations]
    return {"width": width, "height": height, "annotations": annotations}


def _orientation(opened: Image.Image, image: bytes) -> int:
    """Return EXIF's orientation, 1 to 8; 1, as decoders take it, if there is no such number."""
    if opened.format in ("JPEG", "MPO", "PNG"):
        orientation = exif_orientation(image)
    else:
        try:
            orientation = int(opened.getexif().get(ExifTags.Base.Orientation, 1))
        except (OSError, *DAMAGE):
            orientation = 1
    return orientation if 1 <= orientation <= 8 else 1


def _scaled(annotation: Facts, across: float, down: float) -> Facts:
    if "bbox" not in annotation:
        return annotation
    x, y, width, height = annotation["bbox"]
    found = boxed(x * across, y * down, width * across, height * down)
    if "area" in annotation:  # of COCO's objects that of the outline
        found["area"] = round(annotation["area"] * across * down, 3)
    return annotation | found


def _turned(annotation: Facts, orientation: int, width: float, height: float) -> Facts:
    """Turn a box with its image, which then has this size; EXIF's orientations 5 to 8."""
    if "bbox" not in annotation:
        return annotation
    top, left, down, across = annotation["bbox"]  # its x is the new y: columns become rows
    if orientation in (6, 7):
        left = width - left - across
    if orientation in (7, 8):
        top = height - top - down
    turned = boxed(left, top, across, down)
    return turned | annotation | {"bbox": turned["bbox"]}
