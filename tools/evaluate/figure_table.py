"""What was found, for people and for programs: one table, its remarks, and a JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from evaluation.figures import ordered
from evaluation.protocol import Evaluation
from shards import durable
from tools.evaluate.evaluated_encoder import GIVEN, RANDOM
from training.terminal import literal_console

Found = Mapping[str, Mapping[str, Evaluation]]
"""What is found out about the columns, by their names, on each set, by its name; "" if it is
the only one."""


def show(title: str, found: Found, seconds: Mapping[str, Mapping[str, float]]) -> None:
    """Print a row for each figure on each set, and a column for each encoder; then the remarks.

    Args:
        title: what was evaluated.
        found: the figures.
        seconds: how long each column took, by protocol.
    """
    console = literal_console()
    columns = list(dict.fromkeys(name for evaluations in found.values() for name in evaluations))
    several = len(found) > 1 or "" not in found
    table = Table(title=title, title_justify="left")
    for heading in (*(["set"] if several else []), "encoder"):
        table.add_column(heading)
    for name in columns:
        table.add_column(name, justify="right")
    for name, evaluations in found.items():
        texts = {n: {f: text for f, _, text in ordered(e.figures)} for n, e in evaluations.items()}
        figures = {f: value for e in evaluations.values() for f, value in e.figures.items()}
        rows = list(ordered(figures))
        for number, (figure, figure_name, _) in enumerate(rows):
            cells = [name if number == 0 else ""] if several else []
            cells += [figure_name, *(texts.get(n, {}).get(figure, "") for n in columns)]
            table.add_row(*cells, end_section=number == len(rows) - 1)
    if table.row_count:
        console.print(table)
    for name, evaluations in found.items():
        for remark in dict.fromkeys(r for e in evaluations.values() for r in e.remarks):
            line = f"{name}: {remark}" if several else remark
            console.print(line, soft_wrap=True)
    for name, spent in seconds.items():
        text = ", ".join(f"{protocol} {each:.1f} s" for protocol, each in spent.items())
        console.print(f"{name}: {text}", soft_wrap=True, style="dim")


def write(
    path: Path,
    title: str,
    step: int,
    data: Mapping[str, Mapping[str, str | None]],
    found: Found,
    *,
    failed: Sequence[str] = (),
) -> None:
    """Write the figures of the last column, and those beside it, as JSON.

    Args:
        path: of the file.
        title: what was evaluated.
        step: of the run; 0 if it is not known.
        data: the shard sets, by the sets' names.
        found: the figures.
        failed: protocols that found nothing.
    """
    records = {name: {**data[name], **_record(each)} for name, each in found.items()}
    record = {"run": title, "step": step, **records.pop("", {})}
    if failed:
        record["failed"] = sorted({*failed})
    if records:
        record["sets"] = records
    durable.replace_json(path, record)


def _record(found: Mapping[str, Evaluation]) -> dict[str, object]:
    """Return the figures of the last column as JSON has them, and those beside it."""
    *beside, (_, evaluation) = found.items()
    record: dict[str, object] = dict(evaluation.figures)
    if evaluation.remarks:
        record["remarks"] = evaluation.remarks
    if evaluation.details:
        record["details"] = evaluation.details
    others = {name: each.figures for name, each in beside}
    for begun in (RANDOM, GIVEN):
        if begun in others:
            record["random_init"] = others.pop(begun)
    if others:
        record["beside"] = others
    return record
