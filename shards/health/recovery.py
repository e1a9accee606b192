"""Rows and index lines of a shard, read out of its tar."""

import hashlib
import io
import tarfile
import zlib
from typing import IO

from shards.image import read_header
from shards.shard_table import SampleRow
from shards.tar import component, components, read_part


def segment_of(tar: IO[bytes], row: SampleRow) -> bytes:
    """Return all bytes of a sample in a tar, headers included."""
    return read_part(tar, row.offset, row.bytes)


def files_of(segment: bytes) -> dict[str, bytes]:
    """Return the components in a sample's bytes, by extension."""
    return {
        member.name.rpartition("/")[2].partition(".")[2]: segment[
            member.offset_data : member.offset_data + member.size
        ]
        for member in _members(segment)
    }


def index_line(segment: bytes, row: SampleRow) -> str:
    """Return the line of the index for a sample, given all its bytes."""
    entries = []
    for member in _members(segment):
        extension = member.name.rpartition("/")[2].partition(".")[2]
        entries.append(f"{extension} {row.offset + member.offset_data} {member.size} {member.name}")
    return " ".join(entries)


def _members(segment: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(segment + bytes(1024)), mode="r:") as members:
        return members.getmembers()


def rows_of_tar(tar: IO[bytes], lines: list[str] | None) -> list[SampleRow]:
    """Return the rows of an intact tar whose table is lost.

    The hash of an image as its source had it is lost with the table. The hash of the stored image
    takes its place; it is the same unless the image was encoded again.
    """
    if lines is None:
        lines = _index_lines(tar)
    rows = []
    for line in lines:
        files = list(components(line))
        folder, _, base = files[0][3].rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0]
        start = min(offset for _, offset, _, _ in files) - tarfile.BLOCKSIZE
        _, last, size, _ = max(files, key=lambda file: file[1])
        end = last + size + -size % tarfile.BLOCKSIZE
        image = next(ext for ext, *_ in files if ext in ("jpg", "png", "rgb"))
        data = component(tar, line, image) or b""
        if image == "rgb":
            shape = component(tar, line, "shape.i64") or b""
            height, width = (int.from_bytes(shape[i : i + 8], "little") for i in (0, 8))
        else:
            header = read_header(data)
            height, width = (header.height, header.width) if header else (0, 0)
        whole = read_part(tar, start, end - start)
        rows.append(
            SampleRow(
                key=key,
                id=_number(component(tar, line, "id.i64")),
                label=_number(component(tar, line, "y.i64")),
                image=image,
                width=width,
                height=height,
                offset=start,
                bytes=len(whole),
                crc32=zlib.crc32(whole),
                content=hashlib.blake2b(data, digest_size=16).hexdigest(),
            )
        )
    return rows


def _index_lines(tar: IO[bytes]) -> list[str]:
    """Return the lines of the index of an intact tar."""
    lines: dict[str, list[str]] = {}
    tar.seek(0)
    with tarfile.open(fileobj=tar, mode="r:") as members:
        for member in members:
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            entry = f"{extension} {member.offset_data} {member.size} {member.name}"
            lines.setdefault(f"{folder}/{stem}", []).append(entry)
    return [" ".join(entries) for entries in lines.values()]


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "little", signed=True)
