"""Sections of a report: tables on a terminal, aligned lines in a file; bars and bins."""

import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.one_line import one_line

_BAR = 30  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉"
_BINS = 12
# Ratios of width to height; the borders of the bins lie between them.
_RATIOS = {
    "1:3": 1 / 3,
    "1:2": 1 / 2,
    "9:16": 9 / 16,
    "2:3": 2 / 3,
    "3:4": 3 / 4,
    "1:1": 1.0,
    "4:3": 4 / 3,
    "3:2": 3 / 2,
    "16:9": 16 / 9,
    "2:1": 2.0,
    "3:1": 3.0,
}
Bins = list[tuple[str, int]]


@dataclass(frozen=True)
class Section:
    """A part of a report: rows of a label and its values."""

    title: str
    rows: list[tuple[str, ...]]
    """All of the same length; numbers are formatted already."""


def literal_console() -> Console:
    """Return a console on which text means itself: a name may look like markup, as [abl] does."""
    return Console(highlight=False, markup=False, emoji=False)


def show(sections: list[Section], console: Console) -> None:
    """Print a report. Names of strangers in it stay on their line, and do not rule the terminal."""
    sections = [
        Section(one_line(each.title), [tuple(map(one_line, row)) for row in each.rows])
        for each in sections
    ]
    if not console.is_terminal:  # long paths are not wrapped
        for number, section in enumerate(sections):
            print(("\n" if number else "") + section.title)
            widths = [max(map(len, column)) for column in zip(*section.rows, strict=True)]
            for row in section.rows:
                cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
                print(f"  {'  '.join(cells)}".rstrip())
        return
    for section in sections:
        table = Table(show_header=False, title=Text(section.title), title_justify="left")
        for _ in section.rows[0]:
            table.add_column(overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))
        console.print(table)


def bar(count: int, largest: int) -> str:
    """Return a bar of characters, exact to an eighth; every count above 0 is visible."""
    eighths = max(round(8 * _BAR * count / max(largest, 1)), int(count > 0))
    text = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    encoding = sys.stdout.encoding or "ascii"
    return text if encoding.lower().startswith("utf") else "#" * -(-eighths // 8)


def bars(bins: Bins) -> list[tuple[str, ...]]:
    """Return rows of label, count, share and bar."""
    largest, total = max(count for _, count in bins), sum(count for _, count in bins)
    wide = max(len(f"{count:,}") for _, count in bins)
    return [
        (label, f"{count:{wide},}", f"{count / total:6.1%}", bar(count, largest))
        for label, count in bins
    ]


def bins_of(values: NDArray[np.integer]) -> Bins:
    """Count whole numbers in bins with round borders, of equal or of growing width.

    The first and the last bin are open, so that a few outliers do not stretch the others.
    """
    low, high = (int(value) for value in np.percentile(values, [1, 99]).round())
    if low == high and len(np.unique(values)) == 1:
        return [(f"{low:,}", len(values))]
    if high <= 4 * low:
        steps = [unit * 10**power for power in range(10) for unit in (1, 2, 5)]
        step = next(step for step in steps if high - low + 1 <= step * (_BINS - 2))
        borders = list(range(low // step * step, high + step + 1, step))
    else:
        units = [unit * 10**power for power in range(18) for unit in (10, 15, 20, 30, 50, 70)]
        borders = [border for border in (2, 3, 5, 7, *units) if low < border <= high] or [high]
        while len(borders) > _BINS:
            borders = borders[::2]
    counts = np.bincount(np.searchsorted(borders, values, side="right"), minlength=len(borders) + 1)
    labels = [f"under {borders[0]:,}"]
    labels += [
        f"{left:,}" if right == left + 1 else f"{left:,} to {right - 1:,}"
        for left, right in pairwise(borders)
    ]
    labels.append(f"{borders[-1]:,} and more")
    return _trimmed(list(zip(labels, counts.tolist(), strict=True)))


def aspect_bins(widths: NDArray[np.integer], heights: NDArray[np.integer]) -> Bins:
    """Count images by the nearest of the usual ratios of width to height."""
    ratios = np.log(list(_RATIOS.values()))
    nearest = np.searchsorted((ratios[1:] + ratios[:-1]) / 2, np.log(widths / heights))
    counts = np.bincount(nearest, minlength=len(ratios))
    names = [f"{name} or narrower" if name == "1:3" else name for name in _RATIOS]
    names = [f"{name} or wider" if name == "3:1" else name for name in names]
    return _trimmed(list(zip(names, counts.tolist(), strict=True)))


def _trimmed(bins: Bins) -> Bins:
    """Remove empty bins at both ends."""
    full = [number for number, (_, count) in enumerate(bins) if count]
    return bins[full[0] : full[-1] + 1]
