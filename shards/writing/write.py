"""Write a source as a shard set: shuffled over all of it, checked, complete or not there.

    permutation of the source ─▶ equal runs ─▶ one task each: tar, index, table ─▶ manifest ─▶ OUT
         [without copies]                       in any order, on any engine

Everything is written into OUT.partial (in an object store: into OUT, without a manifest). So what
a failure or a kill leaves is not taken for a shard set, and the same command goes on where the
writing ended. Memory does not grow with the images: the permutation takes 4 bytes a sample, and
the search for copies and equal keys takes 16 at the end.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.duplicates import groups_of_copies
from shards.engine import Engine, Serial, Totals
from shards.image import load_codec
from shards.layout import FORMAT, MANIFEST, PLAN, QUARANTINE, ShardSet, open_shards
from shards.shard_table import plain, read_table
from shards.source.source import Source
from shards.storage import Folder, Location, folder_at
from shards.writing.missing import MAX_MISSING, Missing, Outcome
from shards.writing.output import LOCK, OURS, output_folder
from shards.writing.prepare import Preparation
from shards.writing.summary import summarise
from shards.writing.tasks import HashContents, ShardJob, ShardTask, WriteShard
from shards.writing.writing_plan import WritingPlan, digest_of

# Small enough that a set of 20,000 images has ten tars, whose order DALI reshuffles every epoch;
# large enough that ImageNet's 641 tars, which DALI holds open, stay below the usual 1,024 files.
SAMPLES_PER_SHARD = 2000
MEASURED = 1000  # images that give the channel statistics
_HASHED = 4096  # samples of one task of the search for copies


@dataclass(frozen=True)
class Progress:
    """How far a writing has come."""

    stage: str
    """hashing (the search for copies), writing or indexing."""
    samples: int
    """Samples done, those of earlier attempts included."""
    total: int
    bytes: int
    """Written by this attempt."""
    resumed: int
    """Samples that earlier attempts did."""


class _Reporter:
    """Tells how far one stage of a writing has come, by the progress of its tasks."""

    def __init__(
        self,
        tell: Callable[[Progress], None] | None,
        stage: str,
        total: int,
        resumed: int = 0,
    ) -> None:
        self._tell, self._stage, self._total, self._resumed = tell, stage, total, resumed
        self._totals = Totals()

    def __call__(self, task: int, samples: int, size: int | None = None) -> None:
        """Take in a task's progress, and tell that of the stage."""
        self._totals.add(task, samples, size)
        if self._tell is not None:
            samples = self._resumed + self._totals.samples
            self._tell(
                Progress(self._stage, samples, self._total, self._totals.bytes, self._resumed)
            )


def write(
    source: Source,
    out: Location,
    *,
    seed: int = 0,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    limit: int | None = None,
    skip: int = 0,
    preparation: Preparation | None = None,
    drop_duplicates: bool = False,
    max_missing: float = MAX_MISSING,
    engine: Engine | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> ShardSet:
    """Write the samples of a source, in random order, as a shard set.

    The same source, seed, limit, skip, samples_per_shard, preparation and drop_duplicates give the
    same tars, byte for byte, on any engine and after any number of interruptions.

    Args:
        source: where the samples come from.
        out: folder to make; it may exist if it is empty. Local, or a URL that fsspec knows.
        seed: of the shuffle, 0 to 2**32 - 1.
        samples_per_shard: upper bound; the shards' sample counts differ by at most one, before
            samples are quarantined.
        limit: write only this many samples, chosen at random (the first of the shuffle).
        skip: leave out this many samples at the beginning of the shuffle. A set written with this
            number as its limit and the same seed then shares no sample with this one.
        preparation: how images are stored and checked.
        drop_duplicates: leave out images whose bytes are those of another; the first in the
            source's order stays. Reads every image once more.
        max_missing: largest share of the samples that may be missing because they cannot be read or
            decoded, 0 to 1; of a class, half or this share, whichever is larger. A single one may
            be missing, unless it is 0.
        engine: who does it; by default, this process alone.
        command: noted in the manifest.
        progress: called now and then.

    Raises:
        ValueError: a setting or a key is unusable, no image is usable, too many are missing, or
            another writing was begun there.
        FileExistsError: `out` is not empty, is the working folder, or is being written by another
            process.
        OSError: the disk is full or cannot be written; complete shards stay for another attempt.
    """
    preparation, engine = preparation or Preparation(), engine or Serial()
    _check(source, seed=seed, samples_per_shard=samples_per_shard, limit=limit, skip=skip)
    missing = Missing(max_missing, len(source), source.classes)
    missing.refuse_absent(source.absent)
    plan = WritingPlan(
        format=FORMAT,
        source=source.name,
        split=plain(source.split),
        samples=len(source),
        fingerprint=digest_of(source),
        classes=[plain(name) for name in source.classes],
        seed=seed,
        samples_per_shard=samples_per_shard,
        limit=limit,
        drop_duplicates=drop_duplicates,
        preparation=preparation,
        partners=source.partners,
        categories=tuple(plain(name) for name in source.categories),
        skip=skip,
        command=plain(command),
    )
    with output_folder(out, plan) as (folder, plan):
        order = shuffled(len(source), seed)[skip:][:limit]
        if drop_duplicates:
            report = _Reporter(progress, "hashing", len(order))
            order = _without_copies(source, order, engine, report)
        if plan.kept != len(order):
            plan = replace(plan, kept=len(order))
            folder.write(PLAN, plan.to_json().encode())
        runs = np.array_split(order, -(-len(order) // samples_per_shard))
        missing = Missing(max_missing, len(order), source.classes)
        do_tasks(
            WriteShard(source, folder, preparation),
            tasks_of(runs),
            missing,
            engine=engine,
            stage="writing",
            progress=progress,
        )
        finish(folder, plan)
    return open_shards(out)


def do_tasks(
    job: ShardJob,
    tasks: list[ShardTask],
    missing: Missing,
    *,
    engine: Engine,
    stage: str,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Do the tasks that no earlier attempt has done.

    Args:
        job: does one.
        tasks: of all shards.
        missing: counts what cannot be used.
        engine: who does it.
        stage: what it is called in the progress.
        progress: called now and then.

    Raises:
        ValueError: too much is missing.
    """
    done = _done(job.folder, tasks, missing)
    waiting = [task for task in tasks if task.name not in done]
    resumed = sum(len(task.positions) for task in tasks if task.name in done)
    total = sum(len(task.positions) for task in tasks)
    report = _Reporter(progress, stage, total, resumed)
    load_codec()
    for left, (number, outcome) in enumerate(engine.run(job, waiting, report), 1 - len(waiting)):
        report(number, len(waiting[number].positions))
        missing.add(outcome)
        missing.refuse(complete=left == 0)


def _check(
    source: Source, *, seed: int, samples_per_shard: int, limit: int | None, skip: int
) -> None:
    """Refuse settings that no writing can have, and an empty source."""
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}; expected 1 or more.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; expected 1 or more, or None for all samples.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected a number from 0 to {2**32 - 1}.")
    if skip and not 0 < skip < len(source):
        raise ValueError(
            f"skip={skip}; expected 0 or more, and fewer than the {len(source):,} samples."
        )
    if not len(source):
        raise ValueError(f"source {source.name}, split {source.split!r}, holds no samples.")


def shuffled(samples: int, seed: int) -> NDArray[np.integer]:
    """Return a permutation of the positions of a source: always the same for a seed."""
    order = np.arange(samples, dtype=np.int32 if samples < 2**31 else np.int64)
    # RandomState, not default_rng: its stream is promised never to change (NEP 19).
    np.random.RandomState(seed).shuffle(order)
    return order


def tasks_of(runs: Sequence[NDArray[np.integer]]) -> list[ShardTask]:
    """Return a task for each run of positions, which is not empty; some images are measured."""
    ends = np.cumsum([len(run) for run in runs])
    measured = np.zeros(ends[-1], dtype=bool)
    measured[np.linspace(0, len(measured) - 1, min(MEASURED, len(measured))).astype(int)] = True
    marks = np.split(measured, ends[:-1])
    return [
        ShardTask(f"{number:05d}", positions, mark)
        for number, (positions, mark) in enumerate(zip(runs, marks, strict=True))
    ]


def _without_copies(
    source: Source,
    order: NDArray[np.integer],
    engine: Engine,
    report: _Reporter,
) -> NDArray[np.integer]:
    """Return the order without images whose bytes an earlier sample of the source has."""
    positions = np.sort(order)
    tasks = [positions[i : i + _HASHED] for i in range(0, len(positions), _HASHED)]
    hashes = np.empty(len(positions), dtype="V16")
    for number, found in engine.run(HashContents(source), tasks, report):
        start = number * _HASHED
        hashes[start : start + len(tasks[number])] = np.frombuffer(found, dtype="V16")
        report(number, len(tasks[number]))
    copies = [positions[group[1:]] for group in groups_of_copies(hashes)]
    return order[~np.isin(order, np.concatenate(copies))] if copies else order


def _done(folder: Folder, tasks: list[ShardTask], missing: Missing) -> set[str]:
    """Return the shards that earlier attempts completed, and remove all else that they left.

    Where these miss too much, they are not done: what they miss is read again.
    """
    sizes, complete = folder.sizes(), dict[str, Outcome]()
    for task in tasks:
        if f"{task.name}.jsonl" in sizes:
            try:
                table = read_table(folder.read(f"{task.name}.jsonl"))
            except ValueError:
                continue
            if table.task != task.digest():
                continue
            files = {"tar": table.shard.tar.bytes, "idx": table.shard.index.bytes}
            if all(sizes.get(f"{task.name}.{ext}") == size for ext, size in files.items()):
                labels = Counter(row.label for row in table.rows)
                complete[task.name] = Outcome(labels, table.seen.quarantined)
    for outcome in complete.values():
        missing.add(outcome)
    if missing.excess(complete=len(complete) == len(tasks)):
        complete = {name: outcome for name, outcome in complete.items() if not outcome.missing}
        missing.clear()
        for outcome in complete.values():
            missing.add(outcome)
    for name in sizes:
        shard, _, _ = name.partition(".")
        if name not in (LOCK, PLAN) and shard not in complete and OURS.fullmatch(name):
            folder.remove(name)
    quarantine = folder_at(folder.path(QUARANTINE))
    if quarantine.exists():
        for shard in set(next(quarantine.walk())[1]) - complete.keys():
            quarantine.remove(shard)
    return set(complete)


def finish(folder: Folder, plan: WritingPlan) -> None:
    """Sum up the tables and write the manifest."""
    summary = summarise(folder, plan)
    for name in summary.empty:  # no sample was usable; its table says why
        for extension in ("idx", "tar"):
            folder.remove(f"{name}.{extension}")
    summary.write_reasons(folder)
    folder.write(MANIFEST, summary.manifest.to_json().encode())
