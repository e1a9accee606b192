"""Write a source as a shard set: shuffled over all of it, checked, complete or not there.

    permutation of the source ─▶ equal runs ─▶ one task each: tar, index, table ─▶ manifest ─▶ OUT
         [without copies]                       in any order, on any engine

Everything is written into OUT.partial (in an object store: into OUT, without a manifest), so that
a failure or a kill leaves nothing that could be taken for a shard set, and the same command goes
on where it ended. Memory does not grow with the images: the permutation takes 4 bytes a sample,
and the search for copies and equal keys 16 at the end.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.copies import groups_of_copies
from shards.engine import Engine, Job, Report, Serial
from shards.image import colours, load_codec
from shards.layout import (
    FORMAT,
    MANIFEST,
    PLAN,
    QUARANTINE,
    REASONS,
    ShardSet,
    open_shards,
)
from shards.place import Location, Place, is_remote, place
from shards.prepare import Preparation, Stored, Unusable, prepare
from shards.seal import seal, unseal
from shards.source.source import Sample, Source
from shards.summary import summarise
from shards.table import Quarantined, Row, Seen, read_head, task_of, write_table
from shards.tar import TarWriter, file_of, index_text, label_bytes

# Small enough that a set of 20,000 images has ten tars, whose order DALI reshuffles every epoch;
# large enough that ImageNet's 641 tars, which DALI holds open, stay below the usual 1,024 files.
SAMPLES_PER_SHARD = 2000
MEASURED = 1000  # images that give the channel statistics
_HASHED = 4096  # samples of one task of the search for copies
_LOCK = ".lock"
_OURS = re.compile(rf"\d{{5,}}\.(tar|idx|jsonl)|{PLAN}|{MANIFEST}|{QUARANTINE}|\..*")
# What is wrong with a file, not with the disk or the network that it is on.
_OF_THE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG),
}
_PAUSES = (1.0, 5.0, 25.0)  # seconds between attempts to read what else may be an outage
_LOST = 20  # images in a row that cannot be read: then it is not they
_DEADLY = 5  # images of one shard that end their process: then it is not they


@dataclass(frozen=True)
class Progress:
    """How far a writing is."""

    stage: str
    """hashing (the search for copies) or writing."""
    samples: int
    """Done, by earlier attempts too."""
    total: int
    bytes: int
    """Written by this attempt."""
    resumed: int
    """Of the samples: done by earlier attempts."""


def write(
    source: Source,
    out: Location,
    *,
    seed: int = 0,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    limit: int | None = None,
    preparation: Preparation | None = None,
    drop_duplicates: bool = False,
    engine: Engine | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> ShardSet:
    """Write the samples of a source, in random order, as a shard set.

    The same source, seed, limit, samples_per_shard, preparation and drop_duplicates give the same
    tars, byte for byte, on any engine, broken off and taken up again or not.

    Args:
        source: Where the samples come from.
        out: Folder to make; it may exist if it is empty. Local, or a URL that fsspec knows.
        seed: Of the shuffle, 0 to 2**32 - 1.
        samples_per_shard: Upper bound; the shards' sample counts differ by at most one, and by
            what was quarantined.
        limit: Write only this many samples, chosen at random (the first of the shuffle).
        preparation: How images are stored and checked.
        drop_duplicates: Leave out images whose bytes are those of another; the first in the
            source's order stays. Reads every image once more.
        engine: Who does it; by default, this process alone.
        command: Noted in the manifest.
        progress: Called now and then.

    Raises:
        ValueError: A setting or a key is unusable, no image is usable, or another writing was
            begun there.
        FileExistsError: `out` is not empty, or is being written by another process.
        OSError: The disk is full or cannot be written; what is complete stays for another attempt.
    """
    preparation, engine = preparation or Preparation(), engine or Serial()
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}; expected 1 or more.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; expected 1 or more, or none for all samples.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected a number from 0 to {2**32 - 1}.")
    if not len(source):
        raise ValueError(f"source {source.name}, split {source.split!r}, holds no samples.")
    plan = {
        "format": FORMAT,
        "source": source.name,
        "split": _plain(source.split),
        "samples": len(source),
        "fingerprint": hashlib.sha256(
            f"{_plain(source.origin)}\n".encode() + source.fingerprint()
        ).hexdigest(),
        "classes": [_plain(name) for name in source.classes],
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "limit": limit,
        "drop_duplicates": drop_duplicates,
        "preparation": asdict(preparation),
    }

    with _begun(out, {**plan, "command": _plain(command)}) as (folder, plan):
        order = shuffled(len(source), seed)[:limit]
        found = len(order)
        if drop_duplicates:
            order = _without_copies(source, order, engine, _reporter(progress, "hashing", found))
        if plan.get("kept") != len(order):
            plan["kept"] = len(order)
            folder.write(PLAN, seal(plan, indent=1).encode())
        tasks = _tasks(order, samples_per_shard)
        done = _done(folder, tasks)
        waiting = [task for task in tasks if task.name not in done]
        resumed = sum(len(task.positions) for task in tasks if task.name in done)
        report = _reporter(progress, "writing", len(order), resumed)
        load_codec()
        for place_of_task, _ in engine.run(
            WriteShard(source, folder, preparation), waiting, report
        ):
            report(place_of_task, len(waiting[place_of_task].positions), None)
        _finish(folder, plan)
    return open_shards(out)


def shuffled(samples: int, seed: int) -> NDArray[np.integer]:
    """Return a permutation of the positions of a source, the same for ever for a seed."""
    order = np.arange(samples, dtype=np.int32 if samples < 2**31 else np.int64)
    # RandomState, not default_rng: its stream is promised never to change (NEP 19).
    np.random.RandomState(seed).shuffle(order)
    return order


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
class WriteShard(Job):
    """Writes the tar, the index and the table of a shard."""

    source: Source
    place: Place
    preparation: Preparation

    def __call__(self, task: ShardTask, report: Report) -> None:
        """Write a shard; an earlier attempt's files are replaced by the same bytes."""
        seen, rows = Seen(), []
        lost_in_a_row = 0
        with self.place.create(f"{task.name}.tar") as file:
            tar = TarWriter(file)
            for done, position in enumerate(task.positions.tolist()):
                report(done, tar.length)
                if position in task.unread:
                    detail = "reading it ended the process, twice"
                    seen.quarantined.append(
                        Quarantined(f"position {position}", "deadly", detail, "")
                    )
                    continue
                try:
                    sample = self._read(position)
                    lost_in_a_row = 0
                except OSError as error:
                    lost_in_a_row += 1
                    if lost_in_a_row == _LOST:
                        raise OSError(
                            error.errno,
                            f"{_LOST} images in a row cannot be read, the last with {error}: the "
                            "source seems to be gone. What is complete stays; bring the source "
                            "back and repeat the command.",
                        ) from None
                    origin = _plain(str(error.filename or f"position {position}"))
                    detail = _plain(error.strerror or str(error))
                    seen.quarantined.append(Quarantined(origin, "unreadable", detail, ""))
                    continue
                try:
                    row = self._add(tar, sample, seen, bool(task.measured[done]), position, task)
                except Unusable as error:
                    seen.quarantined.append(self._quarantine(task.name, done, sample, error))
                else:
                    rows.append(row)
            report(-1, tar.length)
            tar_file = tar.finish()
        index = index_text(tar.lines)
        self.place.write(f"{task.name}.idx", index)
        # The table comes last: where it is, the shard is complete.
        text, _ = write_table(task.name, tar_file, file_of(index), seen, rows, task.digest())
        self.place.write(f"{task.name}.jsonl", text)
        report(len(task.positions), tar.length)

    def without(self, task: ShardTask, done: int) -> ShardTask:
        """Return the task with one image more that is to be quarantined undecoded, then unread."""
        position = int(task.positions[min(done, len(task.positions) - 1)])
        if len(task.deadly) == _DEADLY:
            raise OSError(
                errno.EIO,
                f"{_DEADLY} images of shard {task.name} ended the process that decodes them: not "
                "they, but the decoder seems broken. Is nvidia-nvimgcodec installed for this "
                "machine? What is complete stays, and the same command goes on.",
            )
        if position in task.deadly:
            return replace(task, unread=task.unread | {position})
        return replace(task, deadly=task.deadly | {position})

    def _read(self, position: int) -> Sample:
        """Return a sample; what may be an outage rather than the file's own fault is waited for."""
        for pause in (*_PAUSES, None):
            try:
                return self.source[position]
            except OSError as error:
                if error.errno in _OF_THE_FILE or pause is None:
                    raise
                time.sleep(pause)
            except ValueError as error:
                raise ValueError(f"sample {position} of the source: {error}") from None
        raise AssertionError

    def _add(
        self, tar: TarWriter, sample: Sample, seen: Seen, measure: bool, at: int, task: ShardTask
    ) -> Row:
        if at in task.deadly:
            raise Unusable("deadly", "its decoder ended the process, twice")
        stored = prepare(
            sample.image, self.preparation, extension=sample.extension, measure=measure
        )
        if measure and stored.pixels is not None:
            mean, squares = colours(stored.pixels)
            seen.measured += 1
            seen.sum = [a + b for a, b in zip(seen.sum, mean, strict=True)]
            seen.sum_of_squares = [a + b for a, b in zip(seen.sum_of_squares, squares, strict=True)]
        start, length, crc32 = tar.add(sample.key, _components(sample, stored))
        row = Row(
            key=sample.key,
            id=sample.id,
            label=sample.label,
            image=stored.extension,
            width=stored.width,
            height=stored.height,
            offset=start,
            bytes=length,
            crc32=crc32,
            content=content_hash(sample).hex(),
            repaired=stored.repaired,
            remarks=stored.remarks,
        )
        seen.see(row)
        return row

    def _quarantine(self, shard: str, done: int, sample: Sample, error: Unusable) -> Quarantined:
        """Keep the bytes of an image that cannot be stored, under a name that says where from."""
        origin = str(sample.metadata.get("file", sample.key))
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", origin.rpartition("/")[2])[-80:].lstrip(".-")
        file = f"{QUARANTINE}/{shard}/{done:06d}-{name or 'image'}"
        data = sample.image if isinstance(sample.image, bytes) else sample.image.tobytes()
        self.place.write(file, data)
        return Quarantined(_plain(origin), error.reason, _plain(error.detail), file)


@dataclass(frozen=True)
class HashContents(Job):
    """Hashes the images of a run of positions."""

    source: Source

    def __call__(self, task: NDArray[np.integer], report: Report) -> bytes:
        """Return the hashes, 16 bytes each."""
        hashes = []
        for done, position in enumerate(task.tolist()):
            report(done, 0)
            try:
                hashes.append(content_hash(self.source[position]))
            except OSError:  # like no other; writing names it
                hashes.append(b"unread" + position.to_bytes(10, "little"))
        report(len(task), 0)
        return b"".join(hashes)


def content_hash(sample: Sample) -> bytes:
    """Return 128 bits of a hash of an image as the source has it."""
    shape = b"" if isinstance(sample.image, bytes) else repr(sample.image.shape).encode()
    data = sample.image if isinstance(sample.image, bytes) else sample.image.tobytes()
    return hashlib.blake2b(data, digest_size=16, person=shape[:16]).digest()


def _components(sample: Sample, stored: Stored) -> list[tuple[str, bytes]]:
    """Return the files of a sample by extension, in the order of the tar."""
    metadata = sample.metadata
    if stored.repaired:
        metadata = {**metadata, "repaired": list(stored.remarks)}
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    shape = label_bytes(stored.height, stored.width, 3)
    return [
        ("id.i64", label_bytes(sample.id)),
        (stored.extension, stored.data),
        *([("shape.i64", shape)] if stored.extension == "rgb" else []),
        ("json", text.encode("utf-8", "backslashreplace")),
        ("y.i64", label_bytes(sample.label)),
    ]


def _tasks(order: NDArray[np.integer], samples_per_shard: int) -> list[ShardTask]:
    runs = np.array_split(order, -(-len(order) // samples_per_shard))
    measured = np.zeros(len(order), dtype=bool)
    measured[np.linspace(0, len(order) - 1, min(MEASURED, len(order))).astype(int)] = True
    marks = np.array_split(measured, len(runs))
    return [
        ShardTask(f"{number:05d}", positions, mark)
        for number, (positions, mark) in enumerate(zip(runs, marks, strict=True))
    ]


def _without_copies(
    source: Source,
    order: NDArray[np.integer],
    engine: Engine,
    report: Callable[[int, int, int | None], None],
) -> NDArray[np.integer]:
    """Return the order without images whose bytes an earlier position of the source has."""
    positions = np.sort(order)
    tasks = [positions[i : i + _HASHED] for i in range(0, len(positions), _HASHED)]
    hashes = np.empty(len(positions), dtype="V16")
    for number, found in engine.run(HashContents(source), tasks, report):
        start = number * _HASHED
        hashes[start : start + len(tasks[number])] = np.frombuffer(found, dtype="V16")
        report(number, len(tasks[number]), None)
    copies = [positions[group[1:]] for group in groups_of_copies(hashes)]
    return order[~np.isin(order, np.concatenate(copies))] if copies else order


def _done(folder: Place, tasks: list[ShardTask]) -> set[str]:
    """Return the shards that earlier attempts completed; what else they left is removed."""
    sizes, complete = folder.sizes(), set()
    for task in tasks:
        if f"{task.name}.jsonl" in sizes:
            text = folder.read(f"{task.name}.jsonl")
            try:
                shard, _ = read_head(text)
            except ValueError:
                continue
            if task_of(text) != task.digest():
                continue
            files = {"tar": shard.tar.bytes, "idx": shard.index.bytes}
            if all(sizes.get(f"{task.name}.{ext}") == size for ext, size in files.items()):
                complete.add(task.name)
    for name in sizes:
        shard, _, _ = name.partition(".")
        if name not in (_LOCK, PLAN) and shard not in complete and _OURS.fullmatch(name):
            folder.remove(name)
    quarantine = place(folder.path(QUARANTINE))
    if quarantine.exists():
        for shard in set(next(quarantine.walk())[1]) - complete:
            quarantine.remove(shard)
    return complete


def _finish(folder: Place, plan: dict[str, Any]) -> None:
    """Sum up the tables and write the manifest."""
    summary = summarise(folder, plan)
    for name in summary.empty:  # nothing in it was usable; its table says why
        for extension in ("idx", "tar"):
            folder.remove(f"{name}.{extension}")
    if summary.quarantined:
        lines = [json.dumps(asdict(one), ensure_ascii=False) for one in summary.quarantined]
        folder.write(f"{QUARANTINE}/{REASONS}", "\n".join([*lines, ""]).encode())
    folder.write(MANIFEST, summary.manifest.to_json().encode())


def refuse_occupied(out: Location) -> None:
    """Refuse an output folder that holds anything; `write` does, a command may do so earlier.

    Raises:
        FileExistsError: What is in the way, and what to do.
    """
    if not is_remote(out) and Path(out).exists() and not Path(out).is_dir():
        raise FileExistsError(f"{out} is a file; expected a folder to write. Give another --out.")
    folder = place(out)
    if not folder.exists():
        return
    _, folders, files = next(folder.walk())
    names = sorted((*folders, *files))
    if MANIFEST in names:
        raise FileExistsError(
            f"{out} already holds a shard set ({MANIFEST}). Give another --out, or remove it."
        )
    if names and not (is_remote(out) and PLAN in names):
        raise FileExistsError(
            f"{out} is not empty: it holds {names[0]}. Give another --out, or remove it."
        )


@contextlib.contextmanager
def _begun(out: Location, plan: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Give the folder to write into, which becomes OUT unless something goes wrong.

    With it comes the plan that began the writing: this one, or that of an earlier attempt.
    """
    refuse_occupied(out)
    with contextlib.ExitStack() as stack:
        if is_remote(out):
            folder = place(out)
        else:
            folder = place(stack.enter_context(_aside(Path(os.path.abspath(out)))))
        try:
            yield folder, _agree(folder, plan)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                complete = sum(name.endswith(".jsonl") for name in folder.sizes())
                raise OSError(
                    error.errno,
                    f"no space left for {out}; {complete} complete shards stay in {folder}. Free "
                    "space and repeat the command: it goes on there. To give up, remove that "
                    "folder.",
                ) from None
            raise


def _agree(folder: Place, plan: dict[str, Any]) -> dict[str, Any]:
    """Begin a writing, or make sure that the one begun there is the same, and return its plan."""
    try:
        text = folder.read(PLAN).decode()
    except FileNotFoundError:
        folder.write(PLAN, seal(plan, indent=1).encode())
        return plan
    remedy = "Repeat the command that began it, or remove that folder."
    try:
        begun = unseal(text)
    except ValueError as error:
        raise ValueError(f"{folder.path(PLAN)} {error}. Remove {folder} and begin anew.") from None
    # As JSON, in which tuples are lists.
    for name, here in json.loads(json.dumps(plan)).items():
        if name != "command" and begun.get(name) != here:
            there = str(begun.get(name))[:80]
            raise ValueError(
                f"{folder} holds an unfinished writing with another {name}: {there} there, "
                f"{str(here)[:80]} here. {remedy}"
            )
    return begun


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a folder OUT.partial to write into, which becomes OUT unless something goes wrong.

    A living writer holds a lock in it, which the system frees with the process, however that ends.
    """
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name in sorted(os.listdir(partial)):
        if not _OURS.fullmatch(name):
            raise FileExistsError(
                f"{partial} is needed for writing, but it holds {name}, which is no shard. "
                "Give another --out, or remove it."
            )
    # A POSIX lock: unlike flock's it is not inherited by workers, which may outlive a killed
    # parent for a moment.
    with open(partial / _LOCK, "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FileExistsError(
                f"{partial} is being written by another process. Wait for it, or give another "
                "--out."
            ) from None
        except OSError:
            pass  # a file system without locks: two writers at once are then the user's own affair
        try:
            yield partial
        finally:
            for ghost in partial.glob(".[0-9]*"):  # files that killed workers had begun
                with contextlib.suppress(OSError):
                    ghost.unlink()
        os.unlink(partial / _LOCK)
        os.rename(partial, out)  # also over an existing folder, if that is empty


def _plain(text: str) -> str:
    """Return a text that any file can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _reporter(
    progress: Callable[[Progress], None] | None, stage: str, total: int, resumed: int = 0
) -> Callable[[int, int, int | None], None]:
    """Return a function that adds up the counters of all tasks; bytes of None stay as they are."""
    counters: dict[int, tuple[int, int]] = {}
    samples_in_all, bytes_in_all = resumed, 0

    def report(task: int, samples: int, size: int | None) -> None:
        nonlocal samples_in_all, bytes_in_all
        before_samples, before_bytes = counters.get(task, (0, 0))
        size = before_bytes if size is None else size
        counters[task] = samples, size
        samples_in_all += samples - before_samples
        bytes_in_all += size - before_bytes
        if progress is not None:
            progress(Progress(stage, samples_in_all, total, bytes_in_all, resumed))

    return report
