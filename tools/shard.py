"""Write a data set as a shard set: `python -m tools.shard SOURCE --root … --split … --out DIR`.

Sources are what `shards.source` imports; their flags are their constructors' arguments.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.progress
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

import shards.source
from shards.layout import ShardSet
from shards.source import Source
from shards.write import SAMPLES_PER_SHARD, refuse_occupied, write
from training.command import run_command

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in vars(shards.source).values()
    if isinstance(source, type) and issubclass(source, Source) and source is not Source
}
LINE_SECONDS = 5  # between progress lines where there is no terminal


def main() -> None:
    """Parse the flags, write the shard set, and sum up."""
    arguments = _parser().parse_args()
    name = arguments.pop("source")
    flags = vars(arguments[name])
    out, limit, seed = flags.pop("out"), flags.pop("limit"), flags.pop("seed")
    samples_per_shard = flags.pop("samples_per_shard")

    console = Console(stderr=True)
    refuse_occupied(out)  # before a source takes its time to list, download or generate
    source = SOURCES[name](**flags)
    begin = time.monotonic()
    with _progress(console) as progress:
        shard_set = write(
            source,
            out,
            seed=seed,
            samples_per_shard=samples_per_shard,
            limit=limit,
            command=shlex.join(["python", "-m", "tools.shard", *sys.argv[1:]]),
            progress=progress,
        )
    _sum_up(shard_set, source, time.monotonic() - begin)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.shard",
        description="Write a data set as shards: shuffled over all of it, balanced, indexed.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(dest="source", metavar="SOURCE")
    for name, source in sorted(SOURCES.items()):
        summary = (source.__doc__ or "").strip().partition("\n")[0]
        command = ArgumentParser(description=summary, allow_abbrev=False, exit_on_error=False)
        command.add_class_arguments(source)
        command.add_argument("--out", type=Path, required=True, help="Folder to make.")
        command.add_argument(
            "--limit", type=int, help="Write only this many samples, chosen at random by the seed."
        )
        command.add_argument("--seed", type=int, default=0, help="Of the shuffle over all samples.")
        command.add_argument(
            "--samples_per_shard",
            type=int,
            default=SAMPLES_PER_SHARD,
            help="Upper bound; the counts of the shards differ by at most one.",
        )
        commands.add_subcommand(name, command, help=summary)
    return parser


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show progress: a bar on a terminal, else a line every few seconds."""
    if console.is_terminal:
        with rich.progress.Progress(
            "writing",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]:,.0f} images/s"),
            rich.progress.TimeRemainingColumn(),
            console=console,
        ) as bar:
            task = bar.add_task("", total=None, rate=0)
            begin = time.monotonic()

            def advance(done: int, total: int) -> None:
                rate = done / (time.monotonic() - begin)
                bar.update(task, completed=done, total=total, rate=rate)

            yield advance
        return

    begin = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            rate = done / (now - begin)
            left = (total - done) / rate
            sys.stderr.write(
                f"writing {done:,} of {total:,}, {rate:,.0f} images/s, {left:,.0f} s left\n"
            )

    yield say


def _sum_up(shard_set: ShardSet, source: Source, seconds: float) -> None:
    manifest, statistics = shard_set.manifest, shard_set.manifest.statistics
    counts = sorted({shard.samples for shard in manifest.shards})
    total = sum(shard.bytes for shard in manifest.shards)

    def channels(values: list[float]) -> str:
        return " ".join(f"{value:.3f}" for value in values)

    def span(smallest: int, largest: int) -> str:
        return f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"

    rows = {
        "samples": f"{manifest.samples:,} of {len(source):,}",
        "classes": f"{len(manifest.classes):,}" if manifest.classes else "none",
        "shards": f"{len(manifest.shards):,} of {span(counts[0], counts[-1])} samples",
        "size": f"{total / 1e6:,.1f} MB, images as {' and '.join(manifest.extensions)}",
        "time": f"{seconds:,.1f} s, {manifest.samples / seconds:,.0f} images/s",
        "width": f"{span(statistics.min_width, statistics.max_width)} px",
        "height": f"{span(statistics.min_height, statistics.max_height)} px",
        "shorter side": f"median {statistics.median_shorter_side:,g} px",
        "mean, std": f"{channels(statistics.mean)}, {channels(statistics.std)} (RGB, 0 to 1)",
        **{f"note {i}": note for i, note in enumerate(source.notes, start=1)},
        "where": str(shard_set.root),
        "next": f"python -m tools.preview {shlex.quote(str(shard_set.root))}",
    }
    console = Console()
    if not console.is_terminal:  # whole lines, however long the paths
        for label, text in rows.items():
            print(f"{label:14}{text}")
        return
    table = Table(show_header=False, title=Text(f"{manifest.source} {manifest.split}".strip()))
    table.add_column()
    table.add_column(overflow="fold")
    for label, text in rows.items():
        table.add_row(label, Text(text))
    console.print(table)


if __name__ == "__main__":
    run_command(main)
