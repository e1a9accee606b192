"""The members of a tar by their headers, fast, and telling damage from the end.

Not by webdataset's own reader, `tar_file_iterator`, for three reasons. It streams, and gives no
offsets: the shuffle over all tars reads any sample at any time. It reads every byte: a scan of
20,000 samples of a kilobyte took 1.7 s with it and 0.32 s here; of 256 COCO images, 0.046 and
0.006 s. It ends silently at a damaged header: of a tar with one overwritten it gave a quarter of
its members, and no error. What belongs to a sample is decided as in webdataset: `split_name`.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_MATTERS = (b"path=", b"size=", b"GNU.", b"hdrcharset=")  # in an extended header
_BEHIND = 65536  # bytes after the end mark that are looked at
_EXTENDED = 65536  # longest extended header that is read here


@dataclass(slots=True)
class Entry:
    """A member of a tar."""

    name: str
    kind: str
    """"file", "folder", "link" or "other"."""
    header: int
    """Offset of its first header."""
    offset: int
    """Of its content."""
    size: int
    target: str = ""
    """Of a link: the plain name of the member that it leads to; "" if it leads out of the tar."""
    hard: bool = False


class Damaged(Exception):
    """From here on a tar cannot be read; the message says why."""

    def __init__(self, why: str, *, before: str = "", at_end: bool = False) -> None:
        super().__init__(why)
        self.before = before
        """The name of the member that the damage is in, if it has one."""
        self.at_end = at_end
        """Whether what came before ends well."""


def entries(file: IO[bytes], size: int) -> Iterator[Entry]:
    """Yield what a tar holds, in constant memory, and tell its end from damage.

    Common headers are read here, several times faster than by tarfile, with which a large data set
    takes hours; all else, such as long names and links, is tarfile's.
    """
    position = 0
    while True:
        file.seek(position)
        block = file.read(tarfile.BLOCKSIZE)
        if block.count(0) == len(block):  # the end mark, or nothing
            break
        entry = _common(file, block, position) or _uncommon(file, position)
        end = entry.offset + entry.size
        if entry.kind == "file" and end > size:
            raise Damaged(f"ends within {entry.name}: it is truncated", before=entry.name)
        yield entry
        position = end + -end % tarfile.BLOCKSIZE
    if not block:
        what = "has no end mark, so it may be truncated" if position else "is empty"
        raise Damaged(what, at_end=True)
    if any(file.read(_BEHIND)):
        raise Damaged("goes on after its end mark, where it is not read", at_end=True)


def _common(file: IO[bytes], block: bytes, position: int) -> Entry | None:
    """Read a header as tarfile does, if it is a file's, has a short name, and is sound."""
    offset = position + tarfile.BLOCKSIZE
    if block[156:157] == tarfile.XHDTYPE:  # Python puts one before each file, for its time alone
        extended = file.read(min(_size(block) or 0, _EXTENDED))
        if any(word in extended for word in _MATTERS):
            return None
        offset += len(extended) + -len(extended) % tarfile.BLOCKSIZE
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        offset += tarfile.BLOCKSIZE
    name, size = block[:100].partition(b"\0")[0], _size(block)
    if size is None or block[156] not in b"0\0" or name.endswith(b"/"):
        return None
    if block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return Entry(name.decode("utf-8", "surrogateescape"), "file", position, offset, size)


def _size(block: bytes) -> int | None:
    """Return the size in a header, if it is written in the common way and the header is sound."""
    if len(block) < tarfile.BLOCKSIZE:
        return None
    try:
        checksum = int(block[148:156].partition(b"\0")[0], 8)
        sound = checksum == sum(block) - sum(block[148:156]) + 8 * ord(" ")
        size = int(block[124:136].partition(b"\0")[0], 8)
        return size if sound and size >= 0 else None
    except ValueError:
        return None


def _uncommon(file: IO[bytes], position: int) -> Entry:
    file.seek(position)
    try:
        tar: Any = tarfile.TarFile(fileobj=file)
        member = tar.next()
        # To tarfile a damaged header is an end like any other, and a size may be negative.
        if member is None or member.size < 0 or not position < tar.offset < 2**62:
            raise ValueError
    except (tarfile.TarError, ValueError, IndexError, OverflowError, MemoryError, RecursionError):
        what = f"is damaged at byte {position:,}" if position else "is no tar"
        raise Damaged(what) from None
    kind = "folder" if member.isdir() else "other"
    kind = "file" if member.isreg() and not member.issparse() else kind
    kind = "link" if member.islnk() or member.issym() else kind
    # Where the next one is: content that links and folders announce may not be there.
    size = member.size if kind == "file" else tar.offset - member.offset_data
    target = _target(member) if kind == "link" else ""
    return Entry(member.name, kind, position, member.offset_data, size, target, member.islnk())


def plain_name(name: str) -> str:
    """Return a member's name as it is unpacked: without "./" before it, and what else says nothing.

    ".." at its beginning, which leads out of the tar, stays.
    """
    if "./" in name or "//" in name or name.startswith("/"):
        return posixpath.normpath(name).lstrip("/")
    return name


def _target(link: tarfile.TarInfo) -> str:
    if link.islnk():
        return plain_name(link.linkname)
    if link.linkname.startswith("/"):
        return ""
    target = posixpath.join(posixpath.dirname(plain_name(link.name)), link.linkname)
    target = posixpath.normpath(target)
    return "" if target.startswith("..") else target
