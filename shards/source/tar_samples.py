"""What is in the tars of a WebDataset: found by their headers, and read again by its place."""

import errno
import io
import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.layout import CATEGORIES
from shards.source.folder import EXTENSIONS
from shards.source.location import compressed
from shards.source.source import Names
from shards.source.tar_links import Contents, Members, Place
from shards.source.tar_members import Damaged, Entry, entries
from shards.source.usual_names import is_leftover
from shards.storage import Folder
from shards.tar import components

TEXT_BYTES = 65536  # longer components are not carried over
ROLES = 32  # most names of images in a sample, before they are taken for parts of file names
_TEXT = {"json", "jsn", "txt", "text", "caption", "captions", "transcript", "url", "id", "cls"}
_TEXT |= {"cls2", "index", "idx", "inx", "lang", "tag", "tags", "html", "xml", "yaml", "yml", "csv"}
_ID, _SHAPE = "id.i64", "shape.i64"
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_32_BITS = 1 << 32


@dataclass(frozen=True)
class Convention:
    """How the names of a tar's members are understood."""

    last_dot: bool
    """Whether the key ends at the last dot of the base name, not at the first."""
    image: tuple[str, ...]
    """The components that may be the image, best first; () for whatever is one by its ending."""
    label: str | None
    """A component, "COMPONENT:FIELD" for a field of JSON, "folder", or None for y.i64 or cls."""
    categories: bool = False
    """Whether the tars are of a multi-label set, whose categories are carried over."""
    undecided: bool = False
    """Stop as soon as it is clear that keys do not end at the first dot."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The components that may hold the label."""
        return ("y.i64", "cls") if self.label is None else (self.label.partition(":")[0],)


@dataclass
class Scan:
    """What one tar holds. The lists have one entry a sample."""

    keys: Names = field(default_factory=Names)
    starts: "array[int]" = field(default_factory=lambda: array("q"))
    """Offset of the first header that is needed of the sample."""
    spans: "array[int]" = field(default_factory=lambda: array("I"))
    """Bytes from there to the end of the last member that is needed."""
    image_offsets: "array[int]" = field(default_factory=lambda: array("I"))
    """Of the image's bytes, from that start."""
    labels: list[str | float | None] = field(default_factory=list)
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    """Of those samples that have one."""
    components: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    """Components that are not carried over."""
    several: Counter[str] = field(default_factory=Counter)
    """Names of images in samples that have more than one."""
    example: tuple[str, list[str]] | None = None
    """Key and images of the first of those."""
    without_image: int = 0
    apart: int = 0
    """Of those: the image of that key lies elsewhere in the tar."""
    contents: Contents = field(default_factory=Contents)
    links: int = 0
    """Links that lead to no file of the tar, and other entries without content."""
    damage: str = ""


@dataclass(slots=True)
class _Member:
    component: str
    entry: Entry
    size: int
    """Of its content, which may lie elsewhere."""
    data: bytes | None


def split_name(name: str, last_dot: bool) -> tuple[str, str] | None:
    """Return key and component of a member's name; None for what is no component by its name."""
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.lstrip("/").rpartition("/")
    if base.startswith(".") or any(map(is_leftover, folder.split("/"))):
        return None
    stem, _, component = base.rpartition(".") if last_dot else base.partition(".")
    return (f"{folder}{slash}{stem}", component.lower()) if stem and component else None


def scan(folder: Folder, name: str, convention: Convention, lines: list[str] | None = None) -> Scan:
    """Read the headers of a tar, and the labels.

    Members of a sample lie side by side, as WebDataset has it: a member with another key, or with
    a component that the sample has already, begins the next sample. Links are followed within the
    tar, and of members with the same name the last one counts.

    Args:
        folder: Of the tar.
        name: Of the tar.
        convention: How the names of members are understood.
        lines: Of its index, if it is a shard of ours: they name the members, not the headers.

    Raises:
        ValueError: It is compressed, or a label cannot be read.
        OSError: It cannot be opened.
    """
    found, unfollowed = _scan(folder, name, convention, Contents(), lines)
    if unfollowed is None or lines is not None:
        return found
    with folder.open(name) as file:
        contents = unfollowed.contents(file, file.seek(0, 2))
    return _scan(folder, name, convention, contents)[0] if contents != Contents() else found


def _listed(lines: list[str]) -> Iterator[Entry]:
    """Yield the members that the lines of an index name; before each is a header of one block."""
    for line in lines:
        for _, offset, size, name in components(line):
            yield Entry(name, "file", offset - BLOCKSIZE, offset, size)


def _scan(
    folder: Folder,
    name: str,
    convention: Convention,
    contents: Contents,
    lines: list[str] | None = None,
) -> tuple[Scan, Members | None]:
    """Return what a tar holds, and its members unless it is clear where their contents are."""
    found, members = Scan(contents=contents), Members()
    wanted = {*convention.labels, _ID}
    seen: set[str] = set()  # keys with an image
    orphans: list[str] = []
    key, sample = "", dict[str, _Member]()

    def finish() -> None:
        if sample and _add(found, key, sample, convention, folder.path(name)):
            seen.add(key)
        elif sample:
            orphans.append(key)

    with folder.open(name) as file:
        if file.read(6).startswith(_MAGIC):
            raise compressed(folder.path(name))
        try:
            listed = entries(file, file.seek(0, 2)) if lines is None else _listed(lines)
            for entry in listed:
                members.add(entry)
                place = contents.place_of(entry)
                if place is None:
                    found.links += contents.leads_nowhere(entry)
                    continue
                names = split_name(entry.name, convention.last_dot)
                if not names:
                    continue
                if names[0] != key or names[1] in sample:
                    finish()
                    if convention.undecided and len(found.several) > ROLES:
                        return found, None
                    key, sample = names[0], {}
                data, (offset, size) = None, place
                if names[1] in wanted:
                    file.seek(offset)
                    data = file.read(size)
                sample[names[1]] = _Member(names[1], entry, size, data)
            finish()
        except Damaged as damage:
            found.damage = str(damage)
            names = split_name(damage.before, convention.last_dot)
            # Else the sample before it may lack what is damaged, such as its label.
            if damage.at_end or (names and names[0] != key):
                finish()
    found.without_image = len(orphans)
    found.apart = sum(key in seen for key in orphans)
    return found, members


def _add(
    found: Scan,
    key: str,
    sample: dict[str, _Member],
    convention: Convention,
    path: str,
) -> bool:
    """Add a sample; False if it has no image."""
    for component in sample:
        if component in found.components or len(found.components) < 1000:
            found.components[component] += 1
    image = _image_of(found, key, sample, convention)
    if image is None:
        return False
    used = [image.entry]
    for component, member in sample.items():
        carried = (_SHAPE, CATEGORIES) if convention.categories else (_SHAPE,)
        if component in carried or _is_text(component, member.size):
            used.append(member.entry)
        elif component not in (image.component, _ID, *convention.labels):
            kind = component if len(found.left) < 100 else component.rpartition(".")[2]
            found.left[kind] += 1
    start = min(entry.header for entry in used)
    if image.entry.offset + image.entry.size - start >= _32_BITS:
        return False
    found.keys.append(key)
    found.starts.append(start)
    span = max(entry.offset + entry.size for entry in used) - start
    found.spans.append(min(span, _32_BITS - 1))
    found.image_offsets.append(image.entry.offset - start)
    found.labels.append(_label_of(sample, convention, f"{key} in {path}"))
    if _ID in sample:
        found.ids.append(_number(sample[_ID], f"{key} in {path}"))
    return True


def _image_of(
    found: Scan, key: str, sample: dict[str, _Member], convention: Convention
) -> _Member | None:
    images = [
        component
        for component in sample
        if component.rpartition(".")[2] in EXTENSIONS or (component == "rgb" and _SHAPE in sample)
    ]
    if len(images) > 1:
        found.example = found.example or (key, images)
        found.several.update(images)
    chosen = [name for name in convention.image or images if name in sample]
    return sample[chosen[0]] if chosen else None


def _is_text(component: str, size: int) -> bool:
    return component.rpartition(".")[2] in _TEXT and size <= TEXT_BYTES


def _label_of(sample: dict[str, _Member], convention: Convention, what: str) -> str | float | None:
    """Return the label: a text, one object for all that have it, or a fraction of JSON's."""
    member = next((sample[name] for name in convention.labels if name in sample), None)
    if member is None or member.data is None:
        return None
    if member.component.rpartition(".")[2] == "i64":
        return sys.intern(str(_number(member, what)))
    try:
        text = member.data.decode()
        if convention.label is None or ":" not in convention.label:
            return sys.intern(text.strip())
        read = json.loads(text)
        value = read.get(convention.label.partition(":")[2]) if isinstance(read, dict) else None
        if not isinstance(value, str | int | float | None):
            raise ValueError
        # What 3.0 and NaN mean is for `Labels` to say, as in a table.
        return value if value is None or isinstance(value, float) else sys.intern(str(value))
    except (ValueError, RecursionError):
        raise ValueError(
            f"the label {member.component} of {what} is not the text expected there. Choose "
            "another component as --label, or repair it."
        ) from None


def _number(member: _Member, what: str) -> int:
    if member.data is None or len(member.data) != 8:
        raise ValueError(
            f"{member.component} of {what} has {member.size} bytes; expected 8, a number "
            "little endian. Write the tar again, or choose another component as --label."
        )
    return int.from_bytes(member.data, "little", signed=True)


def read_sample(
    folder: Folder,
    name: str,
    start: int,
    span: int,
    image_offset: int,
    last_dot: bool,
    contents: Contents,
) -> tuple[bytes | NDArray[np.uint8], str, dict[str, Any], dict[str, Place], bytes]:
    """Return a sample's image, its member's name, components that are text, places, categories.

    The places are for `Sample.places`.

    Raises:
        OSError: The tar cannot be read there.
    """
    data = folder.read(name, start, span)
    if len(data) < span:
        raise OSError(errno.EIO, f"{folder.path(name)} has become shorter")
    data += bytes(-span % BLOCKSIZE + BLOCKSIZE)  # padding and an end mark
    image, shape, path, texts, categories = b"", b"", "", dict[str, Any](), b""
    places: dict[str, Place] = {}
    try:
        for entry in entries(io.BytesIO(data), len(data)):
            place = contents.place_of(entry, start)
            names = split_name(entry.name, last_dot)
            if place is None or names is None:
                continue
            offset, size = place
            is_image = entry.offset == image_offset
            if not (is_image or names[1] in (_SHAPE, CATEGORIES) or _is_text(names[1], size)):
                continue
            content = data[entry.offset : entry.offset + entry.size]
            if offset != start + entry.offset:
                content = _content(folder, name, offset, size)
            if is_image:
                image, path, places["image"] = content, entry.name, place
            elif names[1] == _SHAPE:
                shape = content
            elif names[1] == CATEGORIES:
                categories = content
            else:
                texts |= _text(names[1], content)
                if names[1] == "json" and isinstance(texts.get("json"), dict):
                    places["json"] = place
    except Damaged as damage:
        raise OSError(errno.EIO, f"{folder.path(name)} {damage}") from None
    if not path:
        raise OSError(errno.EIO, f"{folder.path(name)} has changed since it was listed")
    if shape and path.endswith(".rgb"):
        sides = [int.from_bytes(shape[i : i + 8], "little") for i in range(0, len(shape), 8)]
        if len(sides) != 3 or sides[2] != 3 or math.prod(sides) != len(image):
            raise OSError(errno.EIO, f"{len(image):,} bytes do not fit the shape {sides}", path)
        return np.frombuffer(image, np.uint8).reshape(sides), path, texts, places, categories
    return image, path, texts, places, categories


def _content(folder: Folder, name: str, offset: int, size: int) -> bytes:
    content = folder.read(name, offset, size) if size else b""
    if len(content) < size:
        raise OSError(errno.EIO, f"{folder.path(name)} has become shorter")
    return content


def _text(component: str, content: bytes) -> dict[str, Any]:
    """Return {component: text or what JSON says}; {} for what is not text at all."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return {}
    try:
        is_json = component.rpartition(".")[2] in ("json", "jsn")
        return {component: json.loads(text) if is_json else text}
    except (ValueError, RecursionError):
        return {component: text}
