"""Differences between variants, paired by seed, with their 95 % confidence intervals.

Runs with one seed begin with equal weights and read images in equal order, so that their difference
varies less than either. The interval is Student's: mean ± t · deviation / √pairs, with pairs - 1
degrees of freedom. It is of one difference: among twenty, one excludes zero by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

# 97.5 % quantiles of Student's t with 1 to 30 degrees of freedom; beyond, the bound of the last.
T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class PairedDifference:
    """How much more one variant has than another, over the seeds that both have."""

    mean: float
    half: float | None
    """Half of the interval's width; None with a single pair, which says nothing of it."""
    pairs: int

    def points(self) -> str:
        """Return a difference of shares, in points of a percent."""
        half = "" if self.half is None else f" ± {100 * self.half:.1f}"
        return f"{100 * self.mean:+.1f}{half}"

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.half is not None and self.mean - self.half > 0


def paired_difference(
    one: Mapping[int, float], other: Mapping[int, float]
) -> PairedDifference | None:
    """Return one less the other, each {seed: figure}; None if they share no seed."""
    seeds = one.keys() & other.keys()
    if not seeds:
        return None
    pairs = [one[seed] - other[seed] for seed in sorted(seeds)]
    n = len(pairs)
    half = None if n < 2 else T[min(n - 1, len(T)) - 1] * stdev(pairs) / n**0.5
    return PairedDifference(mean(pairs), half, n)


def best_of(rows: Mapping[int, Mapping[int, float]]) -> int | None:
    """Return the row that is better than each other one, beyond the interval of the difference.

    Args:
        rows: {row: {seed: figure}}; more is better.
    """
    if len(rows) < 2:
        return None
    best = max(rows, key=lambda row: mean(rows[row].values()))
    others = [paired_difference(rows[best], rows[row]) for row in rows if row != best]
    return best if all(each is not None and each.above_zero for each in others) else None
