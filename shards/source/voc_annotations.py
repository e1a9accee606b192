"""PASCAL VOC's annotation files, an XML an image: read and checked.

They may come from anybody. So none is read that is large or has a DOCTYPE, without which XML has no
entities: none from elsewhere, and none that unfold.
"""

import math
from xml.etree import ElementTree

from shards.one_line import one_line
from shards.source.fitted_boxes import Facts, boxed

OFFICIAL = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""The 20 classes of VOC2007 and later, in their order."""
LARGEST = 4 * 2**20  # bytes; 10,000 objects
_FURTHEST = 1e6  # pixels; beyond it nothing is a corner
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NO = {"", "0", "false", "no", "unspecified"}


def read_xml(data: bytes) -> Facts:
    """Return what an annotation file says: width, height, and annotations in COCO's form.

    VOC counts pixels from 1, and a box ends with its last pixel (devkit_doc, "Annotations"); in
    COCO's form a box is an area, so that xmin 1 and xmax 10 are x 0 and width 10. Parts of objects
    and whatever else is there are left out. A size that is not given is 0.

    Raises:
        ValueError: what is wrong, without the name of the file.
    """
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes, which no annotation needs")
    if b"<!DOCTYPE" in data.replace(b"\0", b""):  # in UTF-16 too
        raise ValueError("it has a DOCTYPE, which no annotation needs")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # of unknown encodings
        raise ValueError(f"it is not XML ({one_line(str(error))})") from None
    if root.tag != "annotation":
        raise ValueError(f"it is <{one_line(root.tag)[:40]}>; expected <annotation>")
    width, height = (_number(root, f"size/{side}", "0") for side in ("width", "height"))
    annotations = [_object(element) for element in root.findall("object")]
    return {"width": width, "height": height, "annotations": annotations}


def _object(element: ElementTree.Element) -> Facts:
    name = " ".join((element.findtext("name") or "").split())
    if not name:
        raise ValueError("it has an object without a name")
    left, top, right, bottom = (_number(element, f"bndbox/{corner}") for corner in _CORNERS)
    if right < left or bottom < top:
        raise ValueError(
            f"a box of {one_line(name)[:40]} ends before it begins: {', '.join(_CORNERS)} are "
            f"{left}, {top}, {right}, {bottom}"
        )
    box = boxed(left - 1, top - 1, right - left + 1, bottom - top + 1)
    found: Facts = {"category": name, "iscrowd": 0, **box}
    for flag in ("difficult", "truncated"):
        found[flag] = int((element.findtext(flag) or "").strip().lower() not in _NO)
    pose = " ".join((element.findtext("pose") or "").split())
    return found | ({"pose": pose} if pose.lower() not in _NO else {})


def _number(element: ElementTree.Element, where: str, default: str = "") -> float:
    text = (element.findtext(where) or default).strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= _FURTHEST:
        raise ValueError(f"{where} is {one_line(text)[:40]!r}; expected a number of pixels")
    return int(number) if number.is_integer() else number
