"""A row of a comparison's table: a variant over its seeds."""

from __future__ import annotations

from dataclasses import dataclass, field

Spread = tuple[float, float | None]


@dataclass(frozen=True)
class TableRow:
    """A variant, or the random encoder, over its seeds."""

    label: str
    figures: dict[str, Spread]
    fair: bool
    """Whether it has figures of every seed, each from the whole budget and an idle machine."""
    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    """{figure: {seed: value}}."""
    trained: bool = True
    marks: str = ""
    notes: list[str] = field(default_factory=list)
    """Remarks below the table."""
