"""Tar files of samples with DALI's index: written, and read back sample by sample."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

from shards.layout import INDEX_VERSION, File

# Headers are filled into one that tarfile made. Its tobuf takes 16 µs, as long as decoding a small
# image, and a sample has four. No date, no owner: the same input gives the same bytes.
_TEMPLATE = tarfile.TarInfo("")
_TEMPLATE.mode = 0o444
_BLANK = bytearray(_TEMPLATE.tobuf(tarfile.USTAR_FORMAT))
_BLANK[124:136] = bytes(12)  # size
_BLANK[148:156] = b" " * 8  # checksum, counted as spaces
_SUM = sum(_BLANK)
_NAME = 100  # bytes
_LARGEST = 8**11 - 1


class TarWriter:
    """Appends samples to a tar, and collects the lines of its index."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.length = 0
        self.lines: list[str] = []

    def add(self, key: str, components: list[tuple[str, bytes]]) -> tuple[int, int, int]:
        """Append the files of a sample, and return their offset, bytes and CRC-32.

        Headers are included: all bytes of the tar but the end mark belong to a sample.
        """
        blocks, entries, offset = [], [], self.length
        for extension, data in components:
            name = f"{key}.{extension}"
            blocks += [_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)]
            entries.append(f"{extension} {offset + tarfile.BLOCKSIZE} {len(data)} {name}")
            offset += tarfile.BLOCKSIZE + len(data) + len(blocks[-1])
        whole = b"".join(blocks)
        start = self.length
        self._append(whole)
        self.lines.append(" ".join(entries))
        return start, len(whole), zlib.crc32(whole)

    def finish(self) -> File:
        """Append the end mark, two blocks of zeros up to a whole record; return size and hash."""
        self._append(bytes(2 * tarfile.BLOCKSIZE))
        self._append(bytes(-self.length % tarfile.RECORDSIZE))
        return File(self.length, self._sha256.hexdigest())

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.length += len(data)


def index_text(lines: list[str]) -> bytes:
    """Return an index file of these lines, one a sample."""
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""]).encode()


def index_lines(text: bytes) -> list[str]:
    """Return the lines of an index file, one a sample.

    Raises:
        ValueError: it is damaged; the message does not name the file.
    """
    try:
        first, *lines = text.decode("ascii").splitlines()
    except (UnicodeDecodeError, ValueError):
        raise ValueError("is not an index: it is empty or not text") from None
    if first != f"{INDEX_VERSION} {len(lines)}":
        raise ValueError(
            f"starts with {first[:40]!r}; expected '{INDEX_VERSION} {len(lines)}', as it has "
            f"{len(lines)} lines below"
        )
    return lines


def components(line: str) -> Iterator[tuple[str, int, int, str]]:
    """Yield extension, offset, size and file name of each component of an index line.

    Raises:
        ValueError: the line is damaged.
    """
    words = line.split(" ")
    if len(words) % 4:
        raise ValueError(f"has a line that is not in groups of four words: {line[:80]!r}")
    for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
        if not (offset.isdecimal() and size.isdecimal()):
            raise ValueError(f"has {offset!r} and {size!r} for offset and size of {name[:80]!r}")
        yield extension, int(offset), int(size), name


def key_of(line: str) -> str:
    """Return the key of the sample of an index line."""
    _, _, _, name = next(components(line))
    return name.partition(".")[0]


def component(tar: IO[bytes], line: str, extension: str) -> bytes | None:
    """Return one component of the sample of an index line; None if the sample lacks it."""
    for found, offset, size, _ in components(line):
        if found == extension:
            return read_part(tar, offset, size)
    return None


def read_part(tar: IO[bytes], offset: int, size: int) -> bytes:
    """Return some bytes of a tar; fewer where it ends before, whatever a table or index says."""
    end = tar.seek(0, os.SEEK_END)
    tar.seek(min(offset, end))
    return tar.read(max(0, min(size, end - offset)))


def hash_file(file: IO[bytes]) -> File:
    """Return size and SHA-256 of an open file, from its current position on."""
    sha256, length = hashlib.sha256(), 0
    while block := file.read(2**20):
        sha256.update(block)
        length += len(block)
    return File(length, sha256.hexdigest())


def file_of(data: bytes) -> File:
    """Return size and SHA-256 of bytes."""
    return File(len(data), hashlib.sha256(data).hexdigest())


def _header(name: str, size: int) -> bytes:
    encoded, digits = name.encode("ascii"), b"%011o\0" % size
    assert len(encoded) <= _NAME and size <= _LARGEST, (name, size)
    header = bytearray(_BLANK)
    header[: len(encoded)] = encoded
    header[124:136] = digits
    header[148:156] = b"%06o\0 " % (_SUM + sum(encoded) + sum(digits))
    return bytes(header)


def label_bytes(*values: int) -> bytes:
    """Return whole numbers as components hold them: 8 bytes each, little endian."""
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)
