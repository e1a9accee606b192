"""Columns of what variants have more than one of them, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.compare.rendering import TableColumn
from tools.compare.table_row import TableRow
from training.paired_difference import paired_difference


def difference_columns(
    found: Sequence[TableRow], figures: Mapping[str, str], against: str | None = None
) -> tuple[str, list[str], list[TableColumn]] | None:
    """Return what variants have more than one of them: a title, their names, and columns.

    Args:
        found: rows of the table.
        figures: {figure: heading}; more of each is better.
        against: label of the variant that the others are compared with; by default the best of
            those that had what all had, and then nothing is returned unless two seeds say how sure
            a difference is.
    """
    trained = [row for row in found if row.trained and row.figures]
    named = [row for row in trained if against in (None, row.label)]
    base = next((row for row in named if row.fair or against), next(iter(named), None))
    others = [row for row in trained if row is not base]
    if base is None or not others:
        return None
    kept: list[TableColumn] = []
    sure = against is not None
    for name, heading in figures.items():
        if name not in base.by_seed:
            continue
        known = [paired_difference(row.by_seed.get(name, {}), base.by_seed[name]) for row in others]
        sure = sure or any(each and each.half is not None for each in known)
        kept.append(TableColumn(heading, [each.points() if each else "" for each in known]))
    words = "paired by seed, ± half of the 95 % interval"
    names = [f"{row.label}{row.marks}" for row in others]
    return (f"differences to {base.label}, {words}", names, kept) if sure and kept else None
