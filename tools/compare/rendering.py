"""Columns of text as a table, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TableColumn:
    """A heading, its cells, and which cell is the best."""

    heading: str
    cells: list[str]
    best: int | None = None


def terminal_table(
    names: Sequence[str], quiet: Sequence[bool], shown: Sequence[TableColumn]
) -> Table:
    """Return a row for each name, dim where it is quiet, and these columns."""
    table = Table(header_style="bold cyan", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for column in shown:
        number = column.heading not in ("method", "objective", "views", "optimizer")
        table.add_column(column.heading, justify="right" if number else "left", no_wrap=number)
    for i, name in enumerate(names):
        cells = [
            Text(column.cells[i], style="bold" if column.best == i else "") for column in shown
        ]
        table.add_row(Text(name), *cells, style="dim" if quiet[i] else None)
    return table


def markdown_table(names: Sequence[str], shown: Sequence[TableColumn]) -> str:
    """Return a row for each name, and these columns, as Markdown."""
    lines = [["", *(column.heading for column in shown)], ["---", *["---:"] * len(shown)]]
    for i, name in enumerate(names):
        cells = [
            f"**{column.cells[i]}**" if column.best == i else column.cells[i] for column in shown
        ]
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
