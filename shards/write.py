"""Write a source as a shard set: shuffled over all of it, balanced, complete or not there.

    permutation of the source ─▶ equal runs ─▶ one tar + index each ─▶ manifest ─▶ rename to OUT

Everything is written into OUT.partial, so that a failure or a kill leaves nothing that could be
taken for a shard set. Memory does not grow with the images: only the permutation and a 64-bit
hash of every key are held, 16 bytes a sample.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.image import colours, decode, size
from shards.layout import (
    FORMAT,
    INDEX_VERSION,
    MANIFEST,
    Manifest,
    Shard,
    ShardSet,
    Statistics,
    open_shards,
)
from shards.source.source import Sample, Source

# Small enough that a set of 20,000 images has ten tars, whose order DALI reshuffles every epoch;
# large enough that ImageNet's 641 tars, which DALI holds open, stay below the usual 1,024 files.
SAMPLES_PER_SHARD = 2000
MEASURED = 1000  # images that give the channel statistics
_OURS = re.compile(r"\d{5,}\.(tar|idx)|manifest\.json")


def write(
    source: Source,
    out: Path,
    *,
    seed: int = 0,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> ShardSet:
    """Write the samples of a source, in random order, as a shard set.

    The same source, seed, limit and samples_per_shard give the same tars, byte for byte.

    Args:
        source: Where the samples come from.
        out: Folder to make; it may exist if it is empty.
        seed: Of the shuffle, 0 to 2**32 - 1.
        samples_per_shard: Upper bound; the shards' sample counts differ by at most one.
        limit: Write only this many samples, chosen at random (the first of the shuffle).
        command: Noted in the manifest.
        progress: Called after each sample with the number written and their total.

    Raises:
        ValueError: A setting, an image or a key is unusable; nothing is left behind.
        FileExistsError: `out` is not empty, or is being written by another process.
        OSError: The disk is full or cannot be written.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}; expected 1 or more.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; expected 1 or more, or none for all samples.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected a number from 0 to {2**32 - 1}.")
    if not len(source):
        raise ValueError(f"source {source.name}, split {source.split!r}, holds no samples.")

    # RandomState, not default_rng: its stream is promised never to change (NEP 19).
    order = np.random.RandomState(seed).permutation(len(source))[:limit]
    runs = np.array_split(order, -(-len(order) // samples_per_shard))
    measured = np.zeros(len(order), dtype=bool)
    measured[np.linspace(0, len(order) - 1, min(MEASURED, len(order))).astype(int)] = True
    measured_runs = np.array_split(measured, len(runs))

    with _aside(out) as folder:
        shards: list[Shard] = []
        found = Findings()
        for number, (indices, marks) in enumerate(zip(runs, measured_runs, strict=True)):
            before = found.samples

            def report(done: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, len(order))

            shard, seen = write_shard(source, indices, marks, folder, f"{number:05d}", report)
            shards.append(shard)
            found.add(seen)
        _refuse_duplicates(source, order, found)
        manifest = Manifest(
            format=FORMAT,
            source=source.name,
            split=source.split,
            samples=len(order),
            classes=list(source.classes),
            extensions=sorted(found.extensions),
            shards=shards,
            statistics=found.statistics(),
            seed=seed,
            command=command,
        )
        with _durable(folder / MANIFEST) as file:
            file.write(manifest.to_json().encode())
    return open_shards(out)


@dataclass
class Findings:
    """What was seen of the images while writing; that of several shards adds up, in order."""

    samples: int = 0
    extensions: set[str] = field(default_factory=set)
    key_hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    shorter_sides: Counter[int] = field(default_factory=Counter)
    widths: tuple[int, int] = (2**31, 0)  # smallest, largest
    heights: tuple[int, int] = (2**31, 0)
    images: int = 0  # measured: those behind the sums below
    sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # of images' means
    sum_of_squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def see(self, sample: Sample, *, measure: bool) -> None:
        """Decode one image, and note its size and, if asked to, its colours."""
        try:
            image = decode(sample.image, sample.extension)
        except ValueError as error:
            origin = sample.metadata.get("file")
            raise ValueError(
                f"sample {sample.key}{f' ({origin})' if origin else ''} cannot be decoded: {error}."
                " Repair or remove it, and run this again."
            ) from None
        width, height = size(image)
        self.samples += 1
        self.extensions.add(sample.extension)
        self.shorter_sides[min(width, height)] += 1
        self.widths = (min(self.widths[0], width), max(self.widths[1], width))
        self.heights = (min(self.heights[0], height), max(self.heights[1], height))
        if measure:
            mean, mean_of_squares = colours(image)
            self.images += 1
            self.sum += mean
            self.sum_of_squares += mean_of_squares

    def add(self, other: "Findings") -> None:
        """Take in what was seen in the shards that follow."""
        self.samples += other.samples
        self.extensions |= other.extensions
        self.key_hashes += other.key_hashes
        self.shorter_sides += other.shorter_sides
        self.widths = (min(self.widths[0], other.widths[0]), max(self.widths[1], other.widths[1]))
        self.heights = (
            min(self.heights[0], other.heights[0]),
            max(self.heights[1], other.heights[1]),
        )
        self.images += other.images
        self.sum += other.sum
        self.sum_of_squares += other.sum_of_squares

    def statistics(self) -> Statistics:
        """Return what the manifest says about the images."""
        mean = self.sum / self.images
        std = np.sqrt(np.maximum(self.sum_of_squares / self.images - mean**2, 0))
        sides = sorted(self.shorter_sides.items())
        up_to = np.cumsum([count for _, count in sides])
        # The two middle samples, counted from 0; the same one if their number is odd.
        middle = np.searchsorted(up_to, [(self.samples - 1) // 2, self.samples // 2], side="right")
        return Statistics(
            median_shorter_side=float(np.mean([sides[i][0] for i in middle])),
            min_width=self.widths[0],
            max_width=self.widths[1],
            min_height=self.heights[0],
            max_height=self.heights[1],
            mean=[round(value, 6) for value in mean.tolist()],
            std=[round(value, 6) for value in std.tolist()],
            images=self.images,
        )


def write_shard(
    source: Source,
    indices: NDArray[np.int64],
    measured: NDArray[np.bool_],
    folder: Path,
    name: str,
    report: Callable[[int], None] | None = None,
) -> tuple[Shard, Findings]:
    """Write one tar and its index: a function of its arguments only, so any process may do it.

    Args:
        source: Where the samples come from.
        indices: Positions in the source, in the order to write.
        measured: True where an image's colours count for the statistics.
        folder: Where to write.
        name: File name without extension.
        report: Called after each sample with the number written.
    """
    found = Findings()
    key_hashes = np.empty(len(indices), dtype=np.uint64)
    with (
        _durable(folder / f"{name}.tar") as raw,
        _durable(folder / f"{name}.idx") as index,
    ):
        index.write(f"{INDEX_VERSION} {len(indices)}\n".encode())
        tar = _Tar(raw)
        for done, (position, measure) in enumerate(zip(indices, measured, strict=True)):
            sample = source[int(position)]
            found.see(sample, measure=bool(measure))
            key_hashes[done] = _hash(sample.key)
            entries = []
            for extension, data in _components(sample):
                file = f"{sample.key}.{extension}"
                entries.append(f"{extension} {tar.add(file, data)} {len(data)} {file}")
            index.write(f"{' '.join(entries)}\n".encode())
            if report is not None:
                report(done + 1)
        tar.finish()
    found.key_hashes.append(key_hashes)
    return Shard(name, len(indices), tar.length, tar.sha256.hexdigest()), found


def _components(sample: Sample) -> list[tuple[str, bytes]]:
    """Return the files of a sample by extension, in the order of the tar."""
    metadata = json.dumps(sample.metadata, sort_keys=True, ensure_ascii=False)
    return [
        ("id.i64", sample.id.to_bytes(8, "little", signed=True)),
        (sample.extension, sample.image),
        ("json", metadata.encode("utf-8", "backslashreplace")),
        ("y.i64", sample.label.to_bytes(8, "little", signed=True)),
    ]


class _Tar:
    """A tar file that is appended to, and knows its length and SHA-256.

    Headers are tarfile's. Not webdataset's TarWriter: importing webdataset imports torch, and it
    does not tell the offsets that the index needs.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = 0
        self.sha256 = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append a file of no date and no owner, and return where its data begin."""
        entry = tarfile.TarInfo(name)  # time, user and group are 0
        entry.size, entry.mode = len(data), 0o444
        self._append(entry.tobuf(tarfile.USTAR_FORMAT))
        offset = self.length
        self._append(data)
        self._append(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> None:
        """Append the end mark: two blocks of zeros, filled up to a whole record."""
        self._append(bytes(2 * tarfile.BLOCKSIZE))
        self._append(bytes(-self.length % tarfile.RECORDSIZE))

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.length += len(data)


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing; leaving means that it is on the disk."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def refuse_occupied(out: Path) -> None:
    """Refuse an output folder that holds anything; `write` does, a command may do so earlier.

    Raises:
        FileExistsError: What is in the way, and what to do.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; expected a folder to write. Give another --out.")
    if out.is_dir() and (names := sorted(os.listdir(out))):
        if MANIFEST in names:
            raise FileExistsError(
                f"{out} already holds a shard set ({MANIFEST}). Give another --out, or remove it."
            )
        raise FileExistsError(
            f"{out} is not empty: it holds {names[0]}. Give another --out, or remove it."
        )


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a folder OUT.partial to write into, which becomes OUT unless something goes wrong.

    What a killed writer left in OUT.partial is replaced. A living writer holds a lock on it, which
    the system frees with the process, however that ends.
    """
    out = Path(os.path.abspath(out))
    refuse_occupied(out)
    missing = [parent for parent in out.parents if not parent.exists()]
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"{partial} is being written by another process. Wait for it, or give another "
                "--out."
            ) from None
        except OSError:
            pass  # a file system without locks: two writers at once are then the user's own affair
        for name in sorted(os.listdir(partial)):
            if not _OURS.fullmatch(name):
                raise FileExistsError(
                    f"{partial} is needed for writing, but it holds {name}, which is no shard. "
                    "Give another --out, or remove it."
                )
        for path in partial.iterdir():
            path.unlink()
        try:
            yield partial
            os.fsync(lock)
            os.rename(partial, out)  # also over an existing folder, if that is empty
        except BaseException as error:  # Ctrl-C as well
            written = sum(path.stat().st_size for path in partial.glob("*")) / 1e6
            shutil.rmtree(partial, ignore_errors=True)
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    error.errno,
                    f"no space left for {out}; the {written:,.0f} MB written so far were removed "
                    "again. Free space, or give an --out on another disk.",
                ) from None
            raise
    finally:
        os.close(lock)


def _hash(key: str) -> int:
    """Return 64 bits of a key's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _refuse_duplicates(source: Source, order: NDArray[np.int64], found: Findings) -> None:
    """Refuse two samples of one key: readers would take them for one, or drop one."""
    hashes = np.concatenate(found.key_hashes)
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    seen: dict[str, int] = {}
    for group in hashes[first[counts > 1]]:
        for position in order[hashes == group].tolist():
            key = source[position].key
            if key in seen:
                raise ValueError(
                    f"samples {seen[key]} and {position} of source {source.name} have the same key "
                    f"{key!r}; keys must be unique. Rename one of them."
                )
            seen[key] = position
