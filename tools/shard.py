"""Write a data set as a shard set, from a source such as a folder, COCO or STL-10.

    python -m tools.shard folder --root my/images --out data/mine

Sources are the classes that `shards.source` imports, and those of a user's own modules, which
VIEWRANK_MODULES names; their flags are their constructors' arguments.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal

import rich.progress
from jsonargparse import set_parsing_settings
from rich.console import Console

from shards import source as sources
from shards.engine import Engine, LocalWorkers, Ray
from shards.layout import QUARANTINE, REASONS, ShardSet
from shards.shard_table import read_quarantined
from shards.source import Source
from shards.storage import is_remote
from shards.writing.missing import MAX_MISSING
from shards.writing.output import refuse_occupied
from shards.writing.prepare import Preparation
from shards.writing.write import SAMPLES_PER_SHARD, Progress, write
from training import own_modules
from training.command import run_command
from training.command_line import add_parameters, described, program
from training.flags import FlagParser, one_of
from training.terminal import Section, show


def _sources_in(module: ModuleType) -> dict[str, type[Source]]:
    """Return {name: class} of a module's sources."""
    return {
        source.name: source
        for source in vars(module).values()
        if isinstance(source, type)
        and issubclass(source, Source)
        and not inspect.isabstract(source)
    }


SOURCES = _sources_in(sources)
LINE_SECONDS = 5  # between progress lines where there is no terminal


def main() -> None:
    """Parse the flags of the source that is named, and write its shard set."""
    words, known = sys.argv[1:], dict(SOURCES)
    for module in own_modules.import_own():
        known |= _sources_in(module)
    if words[:1] in (["-h"], ["--help"]):
        print(_list(known))
        return
    name = words[0] if words else ""
    if name not in known:
        raise ValueError(
            f"the first word names the source: it is {name or 'missing'}, {one_of(name, known)} "
            f"{program(main)} SOURCE --help explains it."
        )
    flags = _parser(name, known[name]).read(words[1:]).as_dict()
    fields = Preparation.__dataclass_fields__
    preparation = Preparation(**{field: flags.pop(field) for field in fields})
    own = inspect.signature(shard).parameters
    settings = {name: flags.pop(name) for name in own if name in flags}
    shard(known[name], flags, preparation, **settings)


def shard(
    source: type[Source],
    flags: dict[str, Any],
    preparation: Preparation,
    *,
    out: str,
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    drop_duplicates: bool = False,
    max_missing: float = MAX_MISSING,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
) -> None:
    """Write a data set as shards: shuffled as a whole, balanced, indexed, every image decoded once.

    After a kill, the same command again continues where it was.

    Args:
        source: what is written.
        flags: arguments of its constructor.
        preparation: what happens to each image.
        out: folder to make, or a URL such as s3://…
        limit: write only this many samples, chosen at random by the seed.
        skip: leave out this many samples first: those that --limit of the same number and seed has
            written.
        seed: seed of the shuffle over all samples.
        samples_per_shard: upper bound; the counts of the shards differ by at most one.
        drop_duplicates: leave out images with the same bytes as another; reads all of them twice.
        max_missing: largest share of the samples that may be missing because they cannot be read or
            decoded; of a class, half or this share, whichever is larger. More ends the writing,
            and the same command with a larger share finishes it.
        workers: number of processes; by default, one for each core of this machine.
        engine: processes of this machine, or a Ray cluster.
        ray_address: address of a cluster, such as auto; by default, a local cluster is started.
    """
    chosen = _engine(engine, workers, ray_address)
    console = Console(stderr=True)
    refuse_occupied(out)  # before a source takes its time to list or download
    opened = source(**flags)
    begin = time.monotonic()
    with kept_on_interrupt(out), progress_shown(console) as progress:
        shard_set = write(
            opened,
            out,
            limit=limit,
            skip=skip,
            seed=seed,
            samples_per_shard=samples_per_shard,
            drop_duplicates=drop_duplicates,
            max_missing=max_missing,
            preparation=preparation,
            engine=chosen,
            command=shlex.join(["python", "-m", "tools.shard", *sys.argv[1:]]),
            progress=progress,
        )
    sum_up(shard_set, opened, time.monotonic() - begin)


@contextmanager
def kept_on_interrupt(out: str) -> Iterator[None]:
    """Say at Ctrl-C where the finished part of a shard set lies."""
    try:
        yield
    except KeyboardInterrupt:
        out = out.rstrip("/")
        folder = out if is_remote(out) else f"{out}.partial"
        sys.stderr.write(f"what is complete stays in {folder}; the same command goes on there\n")
        raise


def _engine(name: str, workers: int | None, address: str | None) -> Engine:
    if name == "ray":
        if workers is not None:
            raise ValueError("workers counts local processes; a Ray cluster uses all its CPUs.")
        return Ray(address)
    if address is not None:
        raise ValueError(f"ray_address={address}, but the engine is local; give --engine ray.")
    return LocalWorkers(workers if workers is not None else len(os.sched_getaffinity(0)))


def _list(known: dict[str, type[Source]]) -> str:
    """Return the help without a source: all of them, with what they are."""
    width = max(map(len, known)) + 2
    lines = [f"usage: {program(main)} SOURCE …, or {program(main)} SOURCE --help", ""]
    lines += [described(shard)[0], ""]
    return "\n".join([*lines, *(f"  {n:{width}}{_summary(s)}" for n, s in sorted(known.items()))])


def _summary(source: type[Source]) -> str:
    return (source.__doc__ or "").strip().partition("\n")[0]


def _parser(name: str, source: type[Source]) -> FlagParser:
    # The strings below the fields become their help.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = FlagParser(prog=f"{program(main)} {name}", description=_summary(source))
    parser.add_class_arguments(source)
    parser.add_class_arguments(Preparation)
    add_parameters(parser, shard, "source", "flags", "preparation")
    return parser


@contextmanager
def progress_shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show progress: a bar on a terminal, else a line every few seconds."""
    if console.is_terminal:
        with rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
        ) as bar:
            tasks: dict[str, rich.progress.TaskID] = {}
            begun: dict[str, float] = {}

            def advance(progress: Progress) -> None:
                stage = progress.stage
                if stage not in tasks:
                    begun[stage] = time.monotonic()
                    tasks[stage] = bar.add_task(
                        stage, total=progress.total, completed=progress.resumed, rate=""
                    )
                seconds = time.monotonic() - begun[stage]
                bar.update(tasks[stage], completed=progress.samples, rate=_rate(progress, seconds))

            yield advance
        return

    begun, last = {}, time.monotonic()

    def say(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        begin = begun.setdefault(progress.stage, now)
        if now - last >= LINE_SECONDS and progress.samples > progress.resumed:
            last = now
            seconds = now - begin
            left = (progress.total - progress.samples) * seconds
            left /= progress.samples - progress.resumed
            sys.stderr.write(
                f"{progress.stage} {progress.samples:,} of {progress.total:,}, "
                f"{_rate(progress, seconds)}, {left:,.0f} s left\n"
            )

    yield say


def _rate(progress: Progress, seconds: float) -> str:
    seconds = max(seconds, 1e-3)
    images = f"{(progress.samples - progress.resumed) / seconds:,.0f} images/s"
    return f"{images}, {progress.bytes / seconds / 1e6:,.1f} MB/s" if progress.bytes else images


def sum_up(shard_set: ShardSet, source: Source, seconds: float) -> None:
    """Print what became of a source, and what its shard set is like."""
    manifest, statistics = shard_set.manifest, shard_set.manifest.statistics
    account = manifest.account
    counts = sorted({shard.samples for shard in manifest.shards})
    total = sum(shard.tar.bytes for shard in manifest.shards)

    def channels(values: list[float]) -> str:
        return " ".join(f"{value:.3f}" for value in values)

    def span(smallest: int, largest: int) -> str:
        return f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"

    rows = {
        "samples": f"{account.found:,} of {len(source):,} found = {account.written:,} written "
        f"(of these {account.repaired:,} repaired) + {account.quarantined:,} quarantined + "
        f"{account.dropped:,} copies dropped",
        "classes": f"{len(manifest.classes):,}" if manifest.classes else "none",
        "categories": f"{len(manifest.categories):,}: a multi-label set",
        "shards": f"{len(manifest.shards):,} of {span(counts[0], counts[-1])} samples",
        "size": f"{total / 1e6:,.1f} MB, images as {' and '.join(manifest.extensions)}",
        "time": f"{seconds:,.1f} s, {account.found / seconds:,.0f} images/s",
        "width": f"{span(statistics.min_width, statistics.max_width)} px",
        "height": f"{span(statistics.min_height, statistics.max_height)} px",
        "shorter side": f"median {statistics.median_shorter_side:,g} px",
        "mean, std": f"{channels(statistics.mean)}, {channels(statistics.std)} (RGB, 0 to 1)",
    }
    del rows["classes" if manifest.categories else "categories"]
    if account.duplicates:
        rows["duplicates"] = (
            f"{account.duplicates:,} images have the bytes of another, and would be its false "
            "negatives"
        )
        if not manifest.indexed:
            rows["duplicates"] += "; --drop_duplicates true leaves them out"
    if account.quarantined:
        listed = read_quarantined(shard_set.folder.read(f"{QUARANTINE}/{REASONS}"))
        reasons = Counter(each.reason for each in listed)
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        rows["quarantine"] = f"{counted}; listed in {shard_set.folder.path(QUARANTINE)}/{REASONS}"
    if manifest.remarks:
        rows["remarks"] = ", ".join(f"{count:,} {what}" for what, count in manifest.remarks.items())
    rows |= {f"note {i}": note for i, note in enumerate(source.notes, start=1)}
    rows["where"] = shard_set.root
    rows["next"] = f"python -m tools.preview {shlex.quote(shard_set.root)}"
    title = f"{manifest.source} {manifest.split}".strip()
    show([Section(title, list(rows.items()))], Console())


if __name__ == "__main__":
    run_command(main)
