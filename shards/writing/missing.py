"""How many samples may be missing from a shard set because they cannot be read or decoded.

The shuffle spreads a folder or a class that is gone thinly over all shards. So they are counted
over the whole set, and in each class.
"""

import math
from collections import Counter
from dataclasses import dataclass

from shards.one_line import one_line
from shards.shard_table import Quarantined
from shards.writing.prepare import BY_SETTING

MAX_MISSING = 0.1
_OF_A_CLASS = 0.5  # more than this of a class is no bad luck, where the whole set has a tenth
_SHOWN = 3  # classes in a message


@dataclass(frozen=True)
class Outcome:
    """What became of the samples of a shard."""

    written: Counter[int]
    """Samples in the tar, by label."""
    quarantined: list[Quarantined]

    @property
    def missing(self) -> list[Quarantined]:
        """The samples that could not be read or decoded."""
        return [one for one in self.quarantined if one.reason not in BY_SETTING]


class Missing:
    """Counts what is missing, and refuses too much of it.

    Too much is more than one sample, and more than the largest share of the set; of a class, more
    than one sample, and more than half or that share, whichever is larger.
    """

    def __init__(self, max_missing: float, samples: int, classes: list[str]) -> None:
        """Begin with nothing missing.

        Args:
            max_missing: largest share of the set, 0 to 1; 0 allows none.
            samples: that are to be written.
            classes: names by label.

        Raises:
            ValueError: the share is impossible.
        """
        if not 0 <= max_missing <= 1:
            raise ValueError(f"max_missing={max_missing}; expected a share from 0 to 1.")
        self._share, self._samples, self._classes = max_missing, samples, classes
        self.clear()

    def clear(self) -> None:
        """Forget what was added."""
        self._lost: Counter[int] = Counter()  # by label
        self._found: Counter[int] = Counter()
        self._reasons: Counter[str] = Counter()
        self._first: Quarantined | None = None

    def add(self, outcome: Outcome) -> None:
        """Count what became of a shard."""
        missing = outcome.missing
        self._lost.update(one.label for one in missing)
        self._reasons.update(one.reason for one in missing)
        self._found.update(outcome.written)
        self._found.update(one.label for one in missing)
        self._first = self._first or next(iter(missing), None)

    def refuse_absent(self, absent: int) -> None:
        """Refuse a source that knows too many samples to be absent.

        Raises:
            ValueError: too many are.
        """
        whole = self._samples + absent
        if self._exceeds(absent, whole, self._share):
            what = f"{absent:,} of {whole:,} samples ({absent / whole:.1%}) are absent"
            raise ValueError(f"{what}{self._remedy(absent / whole)}")

    def excess(self, *, complete: bool) -> str:
        """Return what is too much, "" if nothing is.

        Args:
            complete: whether all shards were added; classes are looked at only then.
        """
        lost, first = self._lost.total(), self._first
        if first is not None and complete and lost == self._found.total():
            return one_line(
                f"none of {lost:,} images can be used; {first.origin} is {first.reason} "
                f"({first.detail}). Mend them, or give another source."
            )
        if self._exceeds(lost, self._samples, self._share):
            share = lost / self._samples
            return self._said(f"{lost:,} of {self._samples:,} samples ({share:.1%})", share)
        limit = max(self._share, _OF_A_CLASS)
        shares = {
            label: count / self._found[label]
            for label, count in self._lost.items()
            if label >= 0 and self._exceeds(count, self._found[label], limit)
        }
        if not complete or not shares:
            return ""
        worst = sorted(shares, key=lambda label: (-shares[label], label))
        named = ", ".join(
            f"{self._lost[label]:,} of {self._found[label]:,} of class {self._name(label)}"
            for label in worst[:_SHOWN]
        )
        more = f" and too many of {len(worst) - _SHOWN:,} more classes" if worst[_SHOWN:] else ""
        return self._said(f"{named}{more}", shares[worst[0]])

    def refuse(self, *, complete: bool) -> None:
        """Refuse too much that is missing.

        Raises:
            ValueError: what is missing, why, and what to do.
        """
        if said := self.excess(complete=complete):
            raise ValueError(said)

    def _exceeds(self, lost: int, of: int, share: float) -> bool:
        return lost > max(share * of, 1 if self._share else 0)

    def _said(self, what: str, share: float) -> str:
        assert self._first is not None
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._reasons.most_common(4))
        example = one_line(f"{self._first.origin} ({self._first.detail})")
        return (
            f"{what} cannot be read or decoded: {reasons} in all, such as {example}"
            f"{self._remedy(share)}"
        )

    def _remedy(self, share: float) -> str:
        enough = min(1.0, math.ceil(100 * share) / 100)
        return (
            f"; expected at most {self._share:g} of the set, {max(self._share, _OF_A_CLASS):g} of "
            "a class. Complete shards stay: bring the images back and repeat the command, or go on "
            f"without them: --max_missing {enough:g}"
        )

    def _name(self, label: int) -> str:
        return repr(self._classes[label]) if label < len(self._classes) else str(label)
