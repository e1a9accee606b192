"""A shard's table, NNNNN.jsonl: a line for each sample in its tar, and the quarantined samples.

The first line is about the shard: sizes and hashes of its files, facts about its images, and the
quarantined samples. The table is written after tar and index, so its presence means that the shard
is complete. The line is sealed (see `shards.sealed_json`): it can be trusted without the manifest.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from shards.layout import FORMAT, Channels, Count, Extension, File, Shard, Statistics
from shards.sealed_json import seal, unseal
from shards.tar import file_of
from shards.typed_json import from_values

_LARGEST = 2**63 - 1  # of 64 bits, signed, as tars hold ids and labels
Pixels = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# Sizes and offsets of which the sum of two fits 64 bits.
Place = Annotated[int, Meta(ge=0, le=2**62)]
Total = Annotated[int, Meta(ge=0, le=2**53)]
Digits = Annotated[str, Meta(pattern="^[0-9]{1,10}$")]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sample of a tar."""

    key: str
    id: Annotated[int, Meta(ge=-_LARGEST - 1, le=_LARGEST)]
    label: Annotated[int, Meta(ge=-1, le=_LARGEST)]
    image: Extension
    """Extension of the image."""
    width: Pixels
    height: Pixels
    offset: Place
    """Where the sample begins in the tar, at the header of its first file; of an indexed set, where
    its image does."""
    bytes: Place
    """Up to the next sample; of an indexed set, of its image."""
    crc32: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    """Of all these bytes."""
    content: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    """Hash of the image as the source had it, 128 bits of BLAKE2b in hexadecimal."""
    repaired: bool = False
    """Whether its bytes are not the source's, or its extension was wrong."""
    remarks: tuple[str, ...] = ()
    """What was done to the image, or readers should know."""

    def to_json(self) -> str:
        """Return the line of the table, without `repaired` and `remarks` where they are empty."""
        values = msgspec.to_builtins(self)
        for name in ("repaired", "remarks"):
            if not values[name]:
                del values[name]
        return json.dumps(values, separators=(",", ":"))


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be written."""

    origin: str
    """Its file or key in the source."""
    reason: str
    """One of a few: empty, not an image, truncated or corrupt, …"""
    detail: str
    file: str
    """Where its bytes are kept, relative to the shard set; "" if they are not."""
    label: int = -1


@dataclass
class Seen:
    """Facts about a shard's samples; those of several shards add up, in their order."""

    samples: Total = 0
    repaired: Total = 0
    extensions: dict[Extension, Total] = field(default_factory=dict)
    remarks: dict[str, Total] = field(default_factory=dict)
    shorter_sides: dict[Digits, Total] = field(default_factory=dict)
    widths: list[Pixels] = field(default_factory=list)  # smallest, largest
    heights: list[Pixels] = field(default_factory=list)
    measured: Total = 0  # images behind the sums below
    sum: Channels = field(default_factory=lambda: [0.0] * 3)  # of images' means, per channel
    sum_of_squares: Channels = field(default_factory=lambda: [0.0] * 3)
    quarantined: list[Quarantined] = field(default_factory=list)

    def add(self, other: "Seen") -> None:
        """Add the facts about the shards that follow."""
        self.samples += other.samples
        self.repaired += other.repaired
        for name in ("extensions", "remarks", "shorter_sides"):
            setattr(self, name, dict(Counter(getattr(self, name)) + Counter(getattr(other, name))))
        self.widths = _span(self.widths + other.widths)
        self.heights = _span(self.heights + other.heights)
        self.measured += other.measured
        self.sum = [a + b for a, b in zip(self.sum, other.sum, strict=True)]
        pairs = zip(self.sum_of_squares, other.sum_of_squares, strict=True)
        self.sum_of_squares = [a + b for a, b in pairs]
        self.quarantined += other.quarantined

    def see(self, row: SampleRow) -> None:
        """Count one sample."""
        self.samples += 1
        self.repaired += row.repaired
        for counts, names in (
            (self.extensions, (row.image,)),
            (self.shorter_sides, (str(min(row.width, row.height)),)),
            (self.remarks, row.remarks),
        ):
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        self.widths = _span([*self.widths, row.width])
        self.heights = _span([*self.heights, row.height])

    def statistics(self) -> Statistics:
        """Return the statistics of the manifest."""
        images = max(self.measured, 1)
        mean = np.array(self.sum) / images
        std = np.sqrt(np.maximum(np.array(self.sum_of_squares) / images - mean**2, 0))
        sides = sorted((int(side), count) for side, count in self.shorter_sides.items())
        up_to = np.cumsum([count for _, count in sides])
        # The two middle samples, counted from 0; the same one if their number is odd.
        middle = np.searchsorted(up_to, [(self.samples - 1) // 2, self.samples // 2], side="right")
        return Statistics(
            median_shorter_side=float(np.mean([sides[i][0] for i in middle])),
            min_width=self.widths[0],
            max_width=self.widths[-1],
            min_height=self.heights[0],
            max_height=self.heights[-1],
            mean=[round(value, 6) for value in mean.tolist()],
            std=[round(value, 6) for value in std.tolist()],
            images=self.measured,
        )


@dataclass(frozen=True)
class _Head:
    """The first line of a table, besides its digest."""

    format: int
    shard: Digits
    samples: Count
    tar: File
    index: File
    rows: str
    """SHA-256 of all other lines."""
    seen: Seen
    task: str = ""


@dataclass(frozen=True)
class ShardTable:
    """A shard's table, read."""

    shard: Shard
    seen: Seen
    rows: list[SampleRow]
    task: str
    """Digest of the samples that were to be written."""


def write_table(
    name: str, tar: File, index: File, seen: Seen, rows: list[SampleRow], task: str = ""
) -> tuple[bytes, Shard]:
    """Return the text of a table, and the shard's entry in the manifest.

    Args:
        name: of the shard.
        tar: its tar.
        index: its index.
        seen: facts about its samples.
        rows: its samples.
        task: digest of the samples that were to be written. A writing that goes on keeps the table
            only if its digest is equal.
    """
    lines = "".join(f"{row.to_json()}\n" for row in rows).encode()
    digest = hashlib.sha256(lines).hexdigest()
    head = _Head(FORMAT, name, len(rows), tar, index, digest, seen, task)
    text = seal(msgspec.to_builtins(head)).encode() + lines
    return text, Shard(name, len(rows), tar, index, file_of(text))


def read_table(text: bytes) -> ShardTable:
    """Read a table.

    Raises:
        ValueError: it is damaged; the message does not name the file.
    """
    first, _, lines = text.partition(b"\n")
    try:
        values = unseal(first.decode() + "\n")
    except UnicodeDecodeError:
        raise ValueError("is not text") from None
    if values.get("format") != FORMAT:
        raise ValueError(f"has format {values.get('format')!r}; expected {FORMAT}")
    head = from_values(values, _Head)
    if hashlib.sha256(lines).hexdigest() != head.rows:
        raise ValueError("was changed after it was written: its lines do not fit their hash")
    shard = Shard(head.shard, head.samples, head.tar, head.index, file_of(text))
    rows = read_rows(text, shard)
    seen = head.seen
    counted = seen.samples, sum(seen.shorter_sides.values()), sum(seen.extensions.values())
    if set(counted) != {len(rows)} or not len(seen.widths) == len(seen.heights) == 2 * bool(rows):
        raise ValueError("contradicts itself: its first line does not sum up the others")
    return ShardTable(shard, seen, rows, head.task)


def read_rows(text: bytes, shard: Shard) -> list[SampleRow]:
    """Read a table's samples; `read_table` or a hash must have vouched for the text.

    Raises:
        ValueError: a row is damaged or lies outside the tar, or they are not as many as in the
            shard; the message does not name the file.
    """
    _, _, lines = text.partition(b"\n")
    try:
        rows = msgspec.json.Decoder(SampleRow).decode_lines(lines)
    except msgspec.DecodeError as error:
        raise ValueError(f"is damaged: {error}") from None
    if len(rows) != shard.samples:
        raise ValueError(f"has {len(rows):,} rows for {shard.samples:,} samples")
    for row in rows:
        if row.offset + row.bytes > shard.tar.bytes:
            raise ValueError(
                f"points outside the tar: sample {row.key!r} has {row.bytes:,} bytes at "
                f"{row.offset:,}, the tar has {shard.tar.bytes:,}"
            )
    return rows


def read_quarantined(text: bytes) -> list[Quarantined]:
    """Read the list of quarantined samples, a line each.

    Raises:
        ValueError: it is damaged; the message does not name the file.
    """
    try:
        return msgspec.json.Decoder(Quarantined).decode_lines(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"is damaged: {error}") from None


def key_hash(key: str) -> int:
    """Return 64 bits of a key's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def plain(text: str) -> str:
    """Return text that can be written as UTF-8, which names of files need not be."""
    return text.encode("utf-8", "backslashreplace").decode()


def _span(values: list[int]) -> list[int]:
    return [min(values), max(values)] if values else []
