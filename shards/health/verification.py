"""Compare a shard set with what was written, name what differs, and put it right.

Every byte is vouched for: the manifest by its own digest, tars, indexes and tables by the
manifest's hashes, and each sample's bytes in a tar by the table's CRC, which tells a bad sample
from good ones.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from shards.engine import Engine, Job, Report, Serial, Totals, no_report
from shards.image import decode, read_header
from shards.layout import MANIFEST, PARTNER, PLAN, File, Manifest, Shard, ShardSet
from shards.shard_table import SampleRow, ShardTable, read_table
from shards.storage import Folder, Location, folder_at
from shards.tar import components, hash_file, index_lines, label_bytes
from shards.writing.summary import summarise
from shards.writing.writing_plan import WritingPlan

CHANGED = "has other bytes than were written"


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written."""

    file: str
    """Relative to the shard set."""
    what: str
    key: str = ""
    """Of the sample, if it is one."""

    def __str__(self) -> str:
        sample = f", sample {self.key}" if self.key else ""
        return f"{self.file}{sample} {self.what}"


@dataclass(frozen=True)
class Verification:
    """What was checked, and what was found."""

    shards: int
    samples: int
    bytes: int
    problems: list[Problem]


def verify(
    root: Location,
    *,
    deep: bool = False,
    engine: Engine | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Verification:
    """Check counts, sizes, hashes and index of a shard set; with `deep`, decode every image too.

    Args:
        root: The shard set; its manifest may be damaged too.
        deep: Also decode with the decoder that training uses, and compare labels, ids and sizes.
        engine: Who does it; by default, this process.
        progress: Called with the samples done, their total, and the bytes read.

    Raises:
        FileNotFoundError: There is no such folder, or nothing in it that could be checked.
    """
    folder = folder_at(root)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; expected a shard set.")
    manifest, problems = read_manifest(folder)
    if manifest is None:
        return Verification(0, 0, 0, problems)
    shard_set = ShardSet(folder, manifest)
    totals = Totals()

    def report(task: int, samples: int, size: int) -> None:
        totals.add(task, samples, size)
        if progress is not None:
            progress(totals.samples, manifest.samples, totals.bytes)

    job = CheckShard(folder, shard_set.tar_folder, deep, manifest.partners)
    found: dict[int, list[Problem]] = {}
    for task, shard_problems in (engine or Serial()).run(job, manifest.shards, report):
        found[task] = shard_problems
    for task in sorted(found):
        problems += found[task]
    size = sum(shard.tar.bytes for shard in manifest.shards)
    return Verification(len(manifest.shards), manifest.samples, size, problems)


def read_manifest(folder: Folder) -> tuple[Manifest | None, list[Problem]]:
    """Return a shard set's manifest, made anew from its tables if it is damaged, and the damage."""
    problems = []
    try:
        plan = WritingPlan.from_json(folder.read(PLAN).decode())
    except FileNotFoundError:
        plan = None
    except (ValueError, UnicodeDecodeError) as error:
        problems.append(Problem(PLAN, str(error)))
        plan = None
    try:
        return Manifest.from_json(folder.read(MANIFEST).decode()), problems
    except FileNotFoundError:
        if plan is None:
            raise FileNotFoundError(
                f"{folder} has no {MANIFEST}: it is no shard set, or was not finished. Make one "
                "with python -m tools.shard"
            ) from None
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}, which is written last: writing did not finish. Repeat "
            "the command that wrote it (python -m tools.shard): it goes on there."
        ) from None
    except UnicodeDecodeError:
        problems.append(Problem(MANIFEST, "is not text"))
    except ValueError as error:
        problems.append(Problem(MANIFEST, str(error)))
    if plan is None:
        problems.append(Problem(PLAN, f"cannot stand in for {MANIFEST}: copy either again"))
        return None, problems
    try:
        return summarise(folder, plan).manifest, problems
    except (ValueError, OSError) as error:
        return None, [*problems, Problem(MANIFEST, f"cannot be made anew from the tables: {error}")]


@dataclass(frozen=True)
class CheckShard(Job):
    """Checks one shard."""

    folder: Folder
    tars: Folder
    deep: bool
    partners: bool
    """Whether every sample must have one."""

    def __call__(self, task: Shard, report: Report) -> list[Problem]:
        """Return what is wrong with a shard's files."""
        return [*self._check(task, report)]

    def without(self, task: Shard, done: int) -> Shard:
        """Refuse: leaving a sample out would call it sound."""
        raise ValueError(
            f"checking {task.name}.tar ends the process at its image {done}, twice: its decoder "
            "does not survive it. Check without --deep."
        )

    def _check(self, shard: Shard, report: Report) -> Iterator[Problem]:
        report(-1, 0)  # hashing a large tar takes its time
        tar_name, index_name = f"{shard.name}.tar", f"{shard.name}.idx"
        table, problem = load_table(self.folder, shard)
        if problem:
            yield problem
        lines, problem = load_index(self.folder, shard)
        if problem:
            yield problem
        try:
            with self.tars.open(tar_name) as tar:
                found = hash_file(tar)
                report(0, found.bytes)
                damaged = set()
                if found != shard.tar:
                    yield Problem(tar_name, difference(found, shard.tar))
                    if table is not None:
                        for row in bad_rows(tar, table.rows):
                            damaged.add(row.key)
                            yield Problem(tar_name, CHANGED, row.key)
                if lines is None:
                    return
                rows = {row.key: row for row in table.rows} if table is not None else None
                for done, line in enumerate(lines):
                    report(done, found.bytes)
                    for what, key in self._check_line(tar, line, found.bytes, rows, damaged):
                        where = tar_name if key else index_name
                        yield Problem(where, what, key)
        except FileNotFoundError:
            yield Problem(tar_name, "is missing: copy it again")
        except OSError as error:
            yield Problem(tar_name, f"cannot be read: {error}")
        report(shard.samples, shard.tar.bytes)

    def _check_line(
        self,
        tar: IO[bytes],
        line: str,
        size: int,
        rows: dict[str, SampleRow] | None,
        damaged: set[str],
    ) -> Iterator[tuple[str, str]]:
        """Yield (what is wrong, key of the sample) for one line of an index."""
        try:
            files = {extension: (at, n, name) for extension, at, n, name in components(line)}
        except ValueError as error:
            yield str(error), ""
            return
        outside = [name for at, n, name in files.values() if at % 512 or at + n > size]
        if outside:
            yield f"points outside the tar, for {outside[0]}", ""
            return
        if not self.deep:
            return
        key = next(iter(files.values()))[2].partition(".")[0] if files else ""
        if key in damaged:  # as said; to decode it might end the process
            return
        row = rows.get(key) if rows is not None else None
        if rows is not None and row is None:
            yield f"has a sample {key!r} that the table does not know", ""
            return
        data = {}
        for extension, (at, n, _) in files.items():
            tar.seek(at)
            data[extension] = tar.read(n)
        reason = undecodable(data, partners=self.partners)
        if reason:
            yield reason, key
        elif row is not None and data.get("id.i64") != label_bytes(row.id):
            yield f"has another id than {row.id}", key
        elif row is not None and data.get("y.i64") != label_bytes(row.label):
            yield f"has another label than {row.label}", key


def undecodable(files: dict[str, bytes], *, partners: bool = False) -> str | None:
    """Return why training could not use a sample, None if it can.

    Args:
        files: Its components by extension.
        partners: Whether it must have a partner; one that it has is looked at in any case.
    """
    reason = _undecodable(files)
    partner = {
        name.removeprefix(PARTNER): data for name, data in files.items() if name.startswith(PARTNER)
    }
    if reason is None and partner:
        reason = _undecodable(partner)
        return f"has a partner that {reason}" if reason else None
    if reason is None and partners:
        return "has no partner"
    return reason


def _undecodable(files: dict[str, bytes]) -> str | None:
    if "rgb" in files:
        shape = files.get("shape.i64", b"")
        sides = [int.from_bytes(shape[i : i + 8], "little", signed=True) for i in (0, 8, 16)]
        if len(shape) != 24 or sides[2] != 3 or sides[0] * sides[1] * 3 != len(files["rgb"]):
            return f"has {len(files['rgb']):,} bytes of pixels for the shape {sides}"
        return None
    for extension in ("jpg", "png"):
        if extension in files:
            header = read_header(files[extension])
            if header is None or decode(header) is None:
                return "cannot be decoded"
            return None
    return "has no image"


def load_table(folder: Folder, shard: Shard) -> tuple[ShardTable | None, Problem | None]:
    """Return a shard's table, None if it cannot be trusted, and what is wrong with it."""
    name = f"{shard.name}.jsonl"
    try:
        text = folder.read(name)
    except FileNotFoundError:
        return None, Problem(name, "is missing")
    except OSError as error:
        return None, Problem(name, f"cannot be read: {error}")
    try:
        table = read_table(text)
    except ValueError as error:
        return None, Problem(name, str(error))
    if table.shard.table != shard.table:
        return table, Problem(name, "is not the table that the manifest names")
    return table, None


def load_index(folder: Folder, shard: Shard) -> tuple[list[str] | None, Problem | None]:
    """Return the lines of a shard's index, None if it is damaged, and what is wrong with it."""
    name = f"{shard.name}.idx"
    try:
        with folder.open(name) as file:
            found = hash_file(file)
    except FileNotFoundError:
        return None, Problem(name, "is missing")
    except OSError as error:
        return None, Problem(name, f"cannot be read: {error}")
    if found != shard.index:
        return None, Problem(name, difference(found, shard.index))
    try:
        return index_lines(folder.read(name)), None
    except ValueError as error:
        return None, Problem(name, str(error))


def bad_rows(tar: IO[bytes], rows: list[SampleRow]) -> list[SampleRow]:
    """Return the rows whose bytes in the tar are not those that were written."""
    bad = []
    for row in rows:
        tar.seek(row.offset)
        if zlib.crc32(tar.read(row.bytes)) != row.crc32:
            bad.append(row)
    return bad


def difference(found: File, written: File) -> str:
    """Say how a file differs from what was written."""
    if found.bytes != written.bytes:
        return f"has {found.bytes:,} bytes; {written.bytes:,} were written"
    return "is not what was written: its sha256 differs"


def explain_failure(shard_set: ShardSet) -> str | None:
    """Return what is wrong with a shard set that could not be read, in a sentence; None if nothing.

    Checks shard by shard, up to the first that is not what was written.
    """
    where = shard_set.folder, shard_set.tar_folder
    job, deep = (CheckShard(*where, deep, shard_set.manifest.partners) for deep in (False, True))
    for shard in shard_set.manifest.shards:
        if job(shard, no_report):
            problems = deep(shard, no_report)
            problems.sort(key=lambda problem: not problem.key)  # a sample explains most
            return f"{shard_set.root}: {'; '.join(map(str, problems[:2]))}"
    return None
