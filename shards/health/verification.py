"""Compare a shard set with what was written, and name the differences.

Every byte has a check sum. The manifest holds its own digest and the hashes of tars, indexes and
tables. A table holds the CRC of each sample's bytes in the tar, which tells bad samples from good.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from shards.engine import Engine, Job, Report, Serial, Totals
from shards.image import decode, read_header
from shards.layout import (
    CATEGORIES,
    MANIFEST,
    PARTNER,
    PLAN,
    UNKNOWN,
    File,
    Manifest,
    Shard,
    ShardSet,
)
from shards.named_numbers import numbers_in
from shards.outage import Unreachable
from shards.shard_index import check_index, lines_of
from shards.shard_table import SampleRow, ShardTable, read_table
from shards.storage import Folder, Location, folder_at
from shards.subset.masked import whole_of
from shards.tar import components, hash_file, index_lines, key_of, label_bytes, read_part
from shards.writing.summary import summarise
from shards.writing.writing_plan import WritingPlan

CHANGED = "has other bytes than were written"
_NUMBERS = ("id.i64", "y.i64")


@dataclass(frozen=True)
class Problem:
    """One difference from what was written."""

    file: str
    """Relative to the shard set."""
    what: str
    key: str = ""
    """Of the sample, if the problem is one sample's."""

    def __str__(self) -> str:
        sample = f", sample {self.key}" if self.key else ""
        return f"{self.file}{sample} {self.what}"


@dataclass(frozen=True)
class Verification:
    """How much was checked, and the problems found."""

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
        root: the shard set; its manifest may be damaged.
        deep: also decode with the decoder that training uses, and compare labels and ids.
        engine: who does it; by default, this process.
        progress: called with the samples done, their total, and the bytes read.

    Raises:
        FileNotFoundError: the folder, or all that could be checked in it, is missing.
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

    job = CheckShard.of(shard_set, deep=deep)
    found: dict[int, list[Problem]] = {}
    for task, shard_problems in (engine or Serial()).run(job, manifest.shards, report):
        found[task] = shard_problems
    for task in sorted(found):
        problems += found[task]
    size = sum(shard.tar.bytes for shard in manifest.shards)
    return Verification(len(manifest.shards), manifest.samples, size, problems)


def read_manifest(folder: Folder) -> tuple[Manifest | None, list[Problem]]:
    """Return a shard set's manifest and its problems; it is made again if it is damaged."""
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
                f"{folder} has no {MANIFEST}: it is not a shard set, or was not finished. Make one "
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
        return None, [
            *problems,
            Problem(MANIFEST, f"cannot be made again from the tables: {error}"),
        ]


@dataclass(frozen=True)
class CheckShard(Job):
    """Checks one shard."""

    folder: Folder
    tars: Folder
    deep: bool
    partners: bool
    """Whether every sample must have a partner."""
    indexed: bool
    """Whether ids and labels are in the index."""
    categories: int
    """How many of them every sample must have."""

    @classmethod
    def of(cls, shard_set: ShardSet, *, deep: bool) -> "CheckShard":
        """Return the check of a set's shards."""
        manifest = shard_set.manifest
        where = shard_set.folder, shard_set.tar_folder
        of_set = manifest.partners, manifest.indexed, len(manifest.categories)
        return cls(*where, deep, *of_set)

    def __call__(self, task: Shard, report: Report) -> list[Problem]:
        """Return what is wrong with a shard's files."""
        return [*self._check(task, report)]

    def without(self, task: Shard, done: int) -> Shard:
        """Refuse: a sample that is left out would count as sound."""
        raise ValueError(
            f"checking {task.name}.tar ends the process at its image {done}, twice: the "
            "decoder does not survive it. Check without --deep."
        )

    def _check(self, shard: Shard, report: Report) -> Iterator[Problem]:
        report(-1, 0)  # hashing a large tar takes its time
        tar_name, index_name = f"{shard.name}.tar", f"{shard.name}.idx"
        table, problem = load_table(self.folder, shard)
        if problem:
            yield problem
        lines, problem = load_index(
            self.folder, shard, indexed=self.indexed, categories=self.categories
        )
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
                        report(-1, found.bytes)  # reading it again takes its time, too
                        for row in bad_rows(tar, table.rows):
                            damaged.add(row.key)
                            yield Problem(tar_name, CHANGED, row.key)
                if lines is None:
                    return
                rows = {row.key: row for row in table.rows} if table is not None else None
                for done, line in enumerate(lines):
                    report(done, found.bytes)
                    wrong = self._check_line(tar, line, found.bytes, rows, damaged)
                    if wrong is not None:
                        what, key = wrong
                        yield Problem(tar_name if key else index_name, what, key)
        except FileNotFoundError:
            yield Problem(tar_name, "is missing: copy it again")
        except Unreachable:  # says nothing of the tar
            raise
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
    ) -> tuple[str, str] | None:
        """Return what is wrong with a line of the index or its sample, and the sample's key."""
        try:
            files = {extension: (at, n, name) for extension, at, n, name in components(line)}
        except ValueError as error:
            return str(error), ""
        outside = [name for at, n, name in files.values() if at % 512 or at + n > size]
        if outside:
            return f"points outside the tar, for {outside[0]}", ""
        if not self.deep:
            return None
        name = next(iter(files.values()))[2] if files else ""
        key = name.partition(".")[0]
        if key in damaged:  # reported already; to decode it might end the process
            return None
        row = rows.get(key) if rows is not None else None
        if rows is not None and row is None:
            return f"has a sample {key!r} that the table does not know", ""
        data = {}
        for extension, (at, n, _) in files.items():
            data[extension] = read_part(tar, at, n)
        reason = undecodable(data, partners=self.partners, categories=self.categories)
        if reason:
            return reason, key
        if row is None:
            return None
        if self.indexed:
            data |= zip(_NUMBERS, map(label_bytes, numbers_in(name)), strict=True)
        for extension, what, number in zip(
            _NUMBERS, ("id", "label"), (row.id, row.label), strict=True
        ):
            if data.get(extension) != label_bytes(number):
                return f"has another {what} than {number}", key
        return None


def undecodable(
    files: dict[str, bytes], *, partners: bool = False, categories: int = 0
) -> str | None:
    """Return why training cannot use a sample; None if it can.

    Args:
        files: its components by extension.
        partners: whether it must have a partner. A partner that it has is decoded in any case.
        categories: how many it must have, if it is of a multi-label set.
    """
    reason = _undecodable(files)
    labels = files.get(CATEGORIES, b"")
    if reason is None and categories and len(labels) != categories:
        return f"has {len(labels):,} categories; the manifest names {categories:,}"
    if reason is None and categories and max(labels) > UNKNOWN:
        return f"has a category of {max(labels)}; expected 0 (absent), 1 (present) or 2 (neither)"
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
    """Return a shard's table (None if it cannot be trusted), and what is wrong with it."""
    name = f"{shard.name}.jsonl"
    try:
        text = folder.read(name)
    except FileNotFoundError:
        return None, Problem(name, "is missing")
    except Unreachable:
        raise
    except OSError as error:
        return None, Problem(name, f"cannot be read: {error}")
    try:
        table = read_table(text)
    except ValueError as error:
        return None, Problem(name, str(error))
    if table.shard.table != shard.table:
        return table, Problem(name, "is not the table that the manifest names")
    return table, None


def load_index(
    folder: Folder, shard: Shard, *, indexed: bool = False, categories: int = 0
) -> tuple[list[str] | None, Problem | None]:
    """Return the lines of a shard's index (None if damaged), and what is wrong with it."""
    name = f"{shard.name}.idx"
    try:
        with folder.open(name) as file:
            found = hash_file(file)
    except FileNotFoundError:
        return None, Problem(name, "is missing")
    except Unreachable:
        raise
    except OSError as error:
        return None, Problem(name, f"cannot be read: {error}")
    if found != shard.index:
        return None, Problem(name, difference(found, shard.index))
    try:
        text = folder.read(name)
        check_index(text, shard, indexed=indexed, categories=categories)
        return index_lines(text), None
    except ValueError as error:
        return None, Problem(name, str(error))


def bad_rows(tar: IO[bytes], rows: list[SampleRow]) -> list[SampleRow]:
    """Return the rows whose bytes in the tar differ from those that were written."""
    return [r for r in rows if zlib.crc32(read_part(tar, r.offset, r.bytes)) != r.crc32]


def difference(found: File, written: File) -> str:
    """Say how a file differs from what was written."""
    if found.bytes != written.bytes:
        return f"has {found.bytes:,} bytes; {written.bytes:,} were written"
    return "is not what was written: its sha256 differs"


class CheckSeen:
    """Checks the shards of a set as this process sees it, which may have left out samples.

    Of such a shard the files are checked as they were written; what is wrong with samples that the
    set has no more is not told, nor that the tar differs because of them.

    Args:
        shard_set: the set.
        progress: called before each sample, and each file that is read at once.
    """

    def __init__(self, shard_set: ShardSet, progress: Callable[[], object]) -> None:
        self._shard_set, self._progress = shard_set, progress
        self._written = {shard.name: shard for shard in whole_of(shard_set).manifest.shards}

    def __call__(self, shard: Shard, *, deep: bool) -> list[Problem]:
        """Return what is wrong with a shard of the set."""

        def report(_done: int, _size: int) -> None:
            self._progress()

        found = CheckShard.of(self._shard_set, deep=deep)(self._written[shard.name], report)
        if not found or shard.name not in self._shard_set.replaced:
            return found
        here = {key_of(line) for line in lines_of(self._shard_set, shard)}
        kept = [problem for problem in found if problem.key in here]
        gone = any(problem.key and problem.key not in here for problem in found)
        return kept if kept or gone else found


def explain_failure(
    shard_set: ShardSet, *, progress: Callable[[], object] = lambda: None
) -> str | None:
    """Return in one sentence why a shard set could not be read; None if it is sound.

    Checks shard by shard, up to the first one that is damaged. `progress` is called before each
    sample, and each file that is read at once.

    Raises:
        Unreachable: its place does not answer.
    """
    check = CheckSeen(shard_set, progress)
    for shard in shard_set.manifest.shards:
        if check(shard, deep=False):
            problems = check(shard, deep=True)
            problems.sort(key=lambda problem: not problem.key)  # a bad sample explains most
            return f"{shard_set.root}: {'; '.join(map(str, problems[:2]))}"
    return None
