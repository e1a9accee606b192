"""The jobs of writing: write one shard, and hash a run of images. Any process can do them."""

import errno
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.engine import Job, Report
from shards.image import Pixels, colours
from shards.layout import CATEGORIES, PARTNER, QUARANTINE, File
from shards.outage import Unreachable
from shards.shard_table import Quarantined, SampleRow, Seen, plain, write_table
from shards.source.source import Sample, Source
from shards.storage import Folder
from shards.tar import TarWriter, file_of, index_text, label_bytes
from shards.writing.missing import Outcome
from shards.writing.prepare import (
    TOO_ELONGATED,
    TOO_SMALL,
    Preparation,
    Stored,
    Unusable,
    prepare,
)
from shards.writing.reading import OutOfResources, Reader

_DEADLY = 5  # images of one shard that end their process: then the decoder is at fault


@dataclass(frozen=True)
class ShardTask:
    """One shard to write."""

    name: str
    """File name without extension."""
    positions: NDArray[np.integer]
    """In the source, in the order to write."""
    measured: NDArray[np.bool_]
    """True where an image's colours count for the statistics."""
    deadly: frozenset[int] = frozenset()
    """Positions whose images end the process that decodes them."""
    unread: frozenset[int] = frozenset()
    """Positions that end the process that reads them."""

    def digest(self) -> str:
        """Return a hash of what is to be written."""
        return hashlib.sha256(self.positions.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class ShardJob(Job):
    """Makes one shard of the samples at some positions of a source."""

    source: Source
    folder: Folder
    preparation: Preparation

    def rows(
        self,
        task: ShardTask,
        seen: Seen,
        report: Report,
        length: Callable[[], int],
        add: Callable[[Sample, Stored], tuple[int, int, int]],
    ) -> list[SampleRow]:
        """Read and check the samples; return a row for each that can be used.

        Args:
            task: the shard.
            seen: takes in facts about all samples.
            report: told before each sample.
            length: returns the bytes of the tar so far.
            add: takes a usable sample into the shard; returns its offset, bytes and CRC-32.
        """
        rows = []
        self.source.expect(task.positions.tolist())
        read = Reader(self.source, waiting=lambda: report(-1, length()))
        for done, position in enumerate(task.positions.tolist()):
            report(done, length())
            if position in task.unread:
                why = ("deadly", "reading it ended the process, twice")
                label = self.source.label(position)
                seen.quarantined.append(Quarantined(f"position {position}", *why, "", label))
                continue
            try:
                sample = read(position)
            except (OutOfResources, Unreachable):
                raise
            except OSError as error:
                seen.quarantined.append(self._unreadable(position, error))
                continue
            try:
                if position in task.deadly:
                    raise Unusable("deadly", "its decoder ended the process, twice")
                measure = bool(task.measured[done])
                stored = prepare(
                    sample.image, self.preparation, extension=sample.extension, measure=measure
                )
                row = _row(sample, stored, *add(sample, stored))
            except Unusable as error:
                seen.quarantined.append(self.quarantine(task.name, done, sample, error))
            else:
                seen.see(row)
                rows.append(row)
                if measure and stored.pixels is not None:
                    _measure(seen, stored.pixels)
        report(-1, length())
        return rows

    def complete(
        self, task: ShardTask, tar: File, lines: list[str], rows: list[SampleRow], seen: Seen
    ) -> Outcome:
        """Write the index and the table of a shard whose tar is there."""
        index = index_text(lines)
        self.folder.write(f"{task.name}.idx", index)
        # The table comes last: where it is, the shard is complete.
        text, _ = write_table(task.name, tar, file_of(index), seen, rows, task.digest())
        self.folder.write(f"{task.name}.jsonl", text)
        return Outcome(Counter(row.label for row in rows), seen.quarantined)

    def quarantine(self, shard: str, done: int, sample: Sample, error: Unusable) -> Quarantined:  # noqa: ARG002
        """Return what is noted of an image that cannot be used; its bytes stay where they are."""
        origin = str(sample.metadata.get("file", sample.key))
        return Quarantined(plain(origin), error.reason, plain(error.detail), "", sample.label)

    def without(self, task: ShardTask, done: int) -> ShardTask:
        """Return the task with one more image to quarantine: first undecoded, then unread."""
        position = int(task.positions[min(done, len(task.positions) - 1)])
        if len(task.deadly) == _DEADLY:
            raise OSError(
                errno.EIO,
                f"{_DEADLY} images of shard {task.name} ended the process that decodes them: the "
                "decoder seems broken, not the images. Is nvidia-nvimgcodec installed for this "
                "machine? Complete shards stay, and the same command goes on.",
            )
        if position in task.deadly:
            return replace(task, unread=task.unread | {position})
        return replace(task, deadly=task.deadly | {position})

    def _unreadable(self, position: int, error: OSError) -> Quarantined:
        origin = plain(str(error.filename or f"position {position}"))
        detail, label = plain(error.strerror or str(error)), self.source.label(position)
        return Quarantined(origin, "unreadable", detail, "", label)


@dataclass(frozen=True)
class WriteShard(ShardJob):
    """Writes the tar, the index and the table of a shard."""

    def __call__(self, task: ShardTask, report: Report) -> Outcome:
        """Write a shard; the files of an earlier attempt are replaced by equal ones."""
        seen = Seen()
        with self.folder.create(f"{task.name}.tar") as file:
            tar = TarWriter(file)

            def add(sample: Sample, stored: Stored) -> tuple[int, int, int]:
                assert len(sample.categories) == len(self.source.categories), sample.key
                return tar.add(sample.key, _components(sample, stored, self._partner(sample)))

            rows = self.rows(task, seen, report, lambda: tar.length, add)
            tar_file = tar.finish()
        outcome = self.complete(task, tar_file, tar.lines, rows, seen)
        report(len(task.positions), tar.length)
        return outcome

    def _partner(self, sample: Sample) -> Stored | None:
        if sample.partner is None:
            return None
        try:
            return prepare(sample.partner, self.preparation)
        except Unusable as error:
            raise Unusable(error.reason, f"its partner: {error.detail}") from None

    def quarantine(self, shard: str, done: int, sample: Sample, error: Unusable) -> Quarantined:
        """Keep the bytes of an image that cannot be stored, under a name that tells its origin.

        Those of one that is too small or too elongated are sound, and stay where they are.
        """
        noted = super().quarantine(shard, done, sample, error)
        if error.reason in (TOO_SMALL, TOO_ELONGATED):
            return noted
        name = noted.origin.rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].lstrip(".-")
        file = f"{QUARANTINE}/{shard}/{done:06d}-{name or 'image'}"
        data = sample.image if isinstance(sample.image, bytes) else sample.image.tobytes()
        self.folder.write(file, data)
        return replace(noted, file=file)


@dataclass(frozen=True)
class HashContents(Job):
    """Hashes the images of a run of positions."""

    source: Source

    def __call__(self, task: NDArray[np.integer], report: Report) -> bytes:
        """Return the hashes, 16 bytes each."""
        hashes = []
        read = Reader(self.source, waiting=lambda: report(-1, 0))
        self.source.expect(task.tolist())
        for done, position in enumerate(task.tolist()):
            report(done, 0)
            try:
                hashes.append(content_hash(read(position)))
            except (OutOfResources, Unreachable):
                raise
            except OSError:  # a hash that equals no other; writing names the image
                hashes.append(b"unread" + position.to_bytes(10, "little"))
        report(len(task), 0)
        return b"".join(hashes)


def content_hash(sample: Sample) -> bytes:
    """Return 128 bits of a hash of an image as the source has it."""
    shape = b"" if isinstance(sample.image, bytes) else repr(sample.image.shape).encode()
    data = sample.image if isinstance(sample.image, bytes) else sample.image.tobytes()
    return hashlib.blake2b(data, digest_size=16, person=shape[:16]).digest()


def _measure(seen: Seen, pixels: Pixels) -> None:
    mean, squares = colours(pixels)
    seen.measured += 1
    seen.sum = [a + b for a, b in zip(seen.sum, mean, strict=True)]
    seen.sum_of_squares = [a + b for a, b in zip(seen.sum_of_squares, squares, strict=True)]


def _row(sample: Sample, stored: Stored, offset: int, size: int, crc32: int) -> SampleRow:
    return SampleRow(
        key=sample.key,
        id=sample.id,
        label=sample.label,
        image=stored.extension,
        width=stored.width,
        height=stored.height,
        offset=offset,
        bytes=size,
        crc32=crc32,
        content=content_hash(sample).hex(),
        repaired=stored.repaired,
        remarks=stored.remarks,
    )


def _components(sample: Sample, stored: Stored, partner: Stored | None) -> list[tuple[str, bytes]]:
    """Return the files of a sample by extension, in the order of the tar."""
    metadata = sample.metadata
    if stored.repaired:
        metadata = {**metadata, "repaired": list(stored.remarks)}
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    return [
        ("id.i64", label_bytes(sample.id)),
        *_image("", stored),
        ("json", text.encode("utf-8", "backslashreplace")),
        *([(CATEGORIES, sample.categories)] if sample.categories else []),
        *(_image(PARTNER, partner) if partner is not None else []),
        ("y.i64", label_bytes(sample.label)),
    ]


def _image(prefix: str, stored: Stored) -> list[tuple[str, bytes]]:
    shape = label_bytes(stored.height, stored.width, 3)
    return [
        (prefix + stored.extension, stored.data),
        *([(f"{prefix}shape.i64", shape)] if stored.extension == "rgb" else []),
    ]
