"""Ids and labels in the file names of an index, for tars that others wrote and that hold neither.

    jpg 512 107714 KEY.jpg.000000000000000241000000000000000007     id 241, label 6

DALI names a component as its index does, and gives the name with the image. So the numbers come
with the sample that they belong to, in whatever order it reads (see `pipeline.read`). Each has
`DIGITS` digits, the id first. A label has 1 added: no label is -1.
"""

import re

DIGITS = 18  # ten to this power fits 64 bits
_LARGEST = 10**DIGITS - 1
_NUMBERS = re.compile(rf"[!-~]+\.([0-9]{{{DIGITS}}})([0-9]{{{DIGITS}}})")


def numbered(name: str, number: int, label: int) -> str:
    """Return a name for an index that holds a sample's id and label.

    Args:
        name: what the name begins with, such as KEY.jpg.
        number: the id.
        label: -1 if there is none.

    Raises:
        ValueError: a number has no place there.
    """
    for what, value in (("id", number), ("label", label + 1)):
        if not 0 <= value <= _LARGEST:
            raise ValueError(
                f"{name} has the {what} {number if what == 'id' else label}; an index holds ids of "
                f"0 to {_LARGEST} and labels from -1 on. Copy the tars instead: python -m "
                "tools.shard webdataset"
            )
    return f"{name}.{number:0{DIGITS}d}{label + 1:0{DIGITS}d}"


def numbers_in(name: str) -> tuple[int, int]:
    """Return the id and the label that a name in an index holds.

    Raises:
        ValueError: it holds none; the message does not name the file.
    """
    found = _NUMBERS.fullmatch(name)
    if found is None:
        raise ValueError(f"names a file {name[:80]!r}, which does not end with an id and a label")
    return int(found[1]), int(found[2]) - 1
