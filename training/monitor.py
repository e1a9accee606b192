"""The records of a run: on the terminal for people, in metrics.jsonl for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as ProgressTask
from rich.table import Table
from rich.text import Text

from evaluation.figures import ordered
from shards import durable
from training.stream import Lasting, Tee

METRICS = "metrics.jsonl"
Record = Mapping[str, float | int | str]


class Monitor:
    """Shows and stores the records of a run; silent on all ranks but the first.

    On a terminal it draws a header and a progress line; elsewhere it prints plain lines. Every
    figure shown is in metrics.jsonl, one JSON object a line, `step` first.

    Args:
        run: the run's folder.
        main: whether this process is rank 0.
        step: where the run starts; later records of a run that was cut off are removed, because
            they are going to be made again.
        total_steps: where it ends; None if the time decides.
        console: where to draw; by default the standard output.
    """

    def __init__(
        self,
        run: Path,
        *,
        main: bool,
        step: int,
        total_steps: int | None,
        console: Console | None = None,
    ) -> None:
        console = console or Console(file=cast(TextIO, Lasting(sys.stdout)), highlight=False)
        self.console = console if main else Console(quiet=True)
        self._live = main and self.console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]step {task.fields[at]}"),
            BarColumn(bar_width=24),
            _Figures(),
            console=self.console,
            disable=not self._live,
            refresh_per_second=4,
        )
        self._of = "" if total_steps is None else f"/{total_steps:,}"
        self._task = self._progress.add_task("", total=1.0, at=f"{step:,}{self._of}")
        self._path = run / METRICS
        self._main = main
        if main:
            keep_records(self._path, up_to=step)
        self._bytes = self._path.stat().st_size if self._path.exists() else 0
        self._unwritten: list[str] = []

    def header(self, rows: Mapping[str, str]) -> None:
        """Show the header of the run."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan")
        table.add_column()
        for name, text in rows.items():
            table.add_row(name, Text(text))
        if self._live:
            self.console.print(Panel(table, title="viewrank", title_align="left", expand=False))
        else:
            self.console.print(table)

    def advance(self, step: int, progress: float) -> None:
        """Move the progress bar to a step, with which this part of the run is done."""
        self._progress.update(self._task, completed=progress, at=f"{step:,}{self._of}")

    def step(self, record: Record) -> None:
        """Store and show the record of a training step."""
        self._store(record)
        figures = describe(record)
        if self._live:
            self._progress.update(self._task, figures=figures)
        else:
            self.say(f"step {record['step']:,}{self._of}  {figures}")

    def evaluation(self, record: Record) -> None:
        """Store and show the record of an evaluation."""
        self._store(record)
        measured = {name: value for name, value in record.items() if isinstance(value, float)}
        parts = " · ".join(f"{name} {text}" for _, name, text in ordered(measured))
        kind = "final evaluation" if record["evaluation"] == "final" else "evaluation"
        self.say(f"{kind} at step {record['step']:,}  {parts or 'no figures'}")

    def evaluating(self, what: str, done: int, total: int) -> None:
        """Show on a terminal how far an evaluation is; see `evaluation.suite.Progressed`."""
        self._progress.update(self._task, figures=f"evaluating: {what}, {done / total:.0%}")

    def say(self, text: str) -> None:
        """Show one line."""
        self.console.print(Text(text), soft_wrap=True)  # a path may look like markup: runs/x[abl]

    def __enter__(self) -> Monitor:
        kept = sys.stderr
        self._progress.start()
        if isinstance(kept, Tee) and sys.stderr is not kept:  # drawn above the progress line
            sys.stderr = kept.beside(sys.stderr)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def _store(self, record: Record) -> None:
        if not self._main:
            return
        self._unwritten.append(json.dumps(dict(record)) + "\n")
        try:
            with self._path.open("ab") as file:
                file.truncate(self._bytes)  # what a full disk has cut off
                file.write("".join(self._unwritten).encode())
            self._bytes = self._path.stat().st_size
        except OSError as error:
            if len(self._unwritten) == 1:
                sys.stderr.write(f"warning: {self._path}: {error}; records wait for its disk\n")
        else:
            self._unwritten.clear()


def describe(record: Record) -> str:
    """Return a step's record as one line for people."""
    value: dict[str, Any] = dict(record)
    parts = [
        f"loss {value['loss']:.4f}",
        f"batch AP {value['batch_ap']:.3f}",
        f"{value['images_per_second']:,.0f} images/s",
        f"{value['views_per_second']:,.0f} views/s",
        f"waiting for data {value['data_wait']:.1%}",
        f"memory {value['memory_gib']:.1f} GiB",
        f"{_clock(value['seconds_left'])} left",
    ]
    if damaged := value.get("damaged_files"):
        parts.append(f"{damaged:.0f} DAMAGED FILES")
    return " · ".join(parts)


def keep_records(path: Path, *, up_to: int) -> None:
    """Remove the records after a step, and a last line that was cut off; other lines stay."""
    if not path.exists():
        return
    kept: list[bytes] = []
    content = durable.read(path)
    for line in content.split(b"\n"):
        try:
            if json.loads(line)["step"] <= up_to:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    text = b"".join(kept)
    if content.startswith(text):
        os.truncate(path, len(text))  # a full disk has no room for a second file
    else:
        durable.replace(path, [text])


def records(run: Path) -> list[dict[str, Any]]:
    """Return all records of a run, but for a last line that was cut off.

    Raises:
        ValueError: a line is no record.
    """
    path, found = run / METRICS, []
    for number, (line, record) in enumerate(_lines(path), start=1):
        if record is None:
            raise ValueError(f"{path}, line {number} is no record of a run: {line[:80]!r}")
        found.append(record)
    return found


def legible_records(run: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a run that can be read, and how many lines cannot."""
    found = [record for _, record in _lines(run / METRICS)]
    return [record for record in found if record is not None], found.count(None)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield each whole line and its record, None if it holds none."""
    if not path.exists():
        return
    *lines, _ = durable.read(path).decode(errors="replace").split("\n")
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        known = isinstance(record, dict) and isinstance(record.get("step"), int)
        yield line, record if known else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Figures(ProgressColumn):
    """The latest record, beside the bar."""

    def render(self, task: ProgressTask) -> Text:
        return Text(task.fields.get("figures", "first step …"))
