"""The search: one setting after the other, each value measured beside the one in use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.graph import ViewGroup
from pipeline.profile import milliseconds
from pipeline.tuning import Tuning, default_threads
from training.throughput import Measurement, drift

ROUNDS = 2  # of each value
FINAL_ROUNDS = 3  # of the first settings beside those found
SEARCH_END, ADVICE_END = 0.65, 0.75  # of the time; the rest is for the final rounds
DROP = 0.9  # of the speed of the value in use: a value slower than this at first is given up
WORTH = 1.01  # times as fast is worth a change; less counts as equal
DRIFT = 0.05  # part by which the same settings may take longer: more hides what is sought
ADVISE = 1.10  # times as fast is worth a word about pixels
FRUGAL = ("threads", "prefetch")  # on a GPU, the least that suffices is taken
UNTRIED = "no time left for it"
PIXELS = {
    "resize": "it is filtered against aliasing, and costs no quality",
    "warp": "it is bilinear without a filter, so that crops which are scaled down alias",
    "supersample": "it is filtered from twice the size, so that only strong reductions alias",
}

Groups = tuple[ViewGroup, ...]


@dataclass
class Candidate:
    """Settings, and how fast training was with them."""

    name: str
    tuning: Tuning
    groups: Groups | None = None
    """View groups instead of the recipe's."""
    ms: list[float] = field(default_factory=list)
    """Milliseconds of a batch, one for each round."""
    ratios: list[float] = field(default_factory=list)
    """Speed divided by that of the settings in use, one for each round."""
    note: str = ""
    """A remark for the table."""
    out: bool = False
    """Whether it was given up."""

    @property
    def ratio(self) -> float:
        """Median speed divided by that of the settings in use."""
        return median(self.ratios)


class Search:
    """Varies one setting after the other; `verdict` says what was found.

    Args:
        measured: measures training under settings, with view groups or the recipe's, for seconds.
        start: the settings to begin with; none may be missing.
        seconds: about how long the whole search may take.
        gpu: whether a GPU computes, so that threads and memory of the host are worth saving.
    """

    def __init__(
        self,
        measured: Callable[[Tuning, Groups | None, float], Measurement],
        start: Tuning,
        *,
        seconds: float,
        gpu: bool,
    ) -> None:
        self._measured, self._seconds, self._gpu = measured, seconds, gpu
        self._begin = time.perf_counter()
        self._now = "warming up"
        self.start = self.best = start
        self.candidates: list[Candidate] = []
        self.verdict = ""

    def run(self, plan: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Find the best value of each setting, in this order.

        Args:
            plan: names and values of settings.
        """
        self._measured(self.start, None, 0.0)  # compiles, allocates, reads the first shards
        left = sum(len(values) for _, values in plan)
        for name, values in plan:
            share = self._until(SEARCH_END) * len(values) / left
            left -= len(values)
            if name == "hw_decoder_load" and self.best.decode != "gpu":
                continue  # no engine has a share
            if name != "threads":
                self._vary(name, values, share)
                continue
            begin = time.perf_counter()
            self._vary(name, values, share * 2 / 3)
            assert self.best.threads is not None
            beside = [n for n in near(self.best.threads) if n not in values]
            self._vary(name, beside, share - (time.perf_counter() - begin))

    def advise(self, others: dict[str, Groups]) -> list[str]:
        """Return in words which resamplings would be much faster; they change pixels."""
        in_use = Candidate("resampling as it is", self.best)
        rivals = [Candidate(f"resampling {name}", self.best, g) for name, g in others.items()]
        self._compare(in_use, rivals, ROUNDS, self._until(ADVICE_END), late=ADVICE_END)
        lines = []
        for name, rival in zip(others, rivals, strict=True):
            if not rival.out and rival.ratio >= ADVISE and _faster(in_use, rival):
                rival.note = "not taken: it changes pixels"
                lines.append(
                    f"advice: with --views.resampling {name} training would be {rival.ratio:.2f} "
                    f"times as fast; {PIXELS[name]}. It is another experiment, so it is not set."
                )
        return lines

    def verify(self) -> Tuning:
        """Compare the settings found with the first ones, and return those to use."""
        begun_with = Candidate("settings begun with, again", self.start)
        if self.best == self.start:
            self._compare(begun_with, [], 1, self._until(1) / 3)
            same = [e for e in self.candidates if not e.groups and e.tuning == self.start]
            drifted = drift(ms for each in same for ms in each.ms)
            self.verdict = f"nothing was faster than the settings begun with{self._untried()}"
            if DRIFT < drifted < math.inf:
                self.verdict = f"no difference found: {_drifts(drifted)}{self._untried()}"
            return self.start
        found = Candidate("settings found", self.best)
        self._compare(begun_with, [found], FINAL_ROUNDS, self._until(1), least=2)
        if found.out:
            self.verdict = f"the settings found do not last ({found.note}): nothing is changed"
            return self.start
        changes = ", ".join(
            f"{name} {value}"
            for name, value in asdict(self.best).items()
            if value != getattr(self.start, name)
        )
        figures = (
            f"{milliseconds(median(begun_with.ms))} → {milliseconds(median(found.ms))} ms a "
            f"batch, {found.ratio:.3f} times as fast ({min(found.ratios):.3f}.."
            f"{max(found.ratios):.3f} in {len(found.ratios)} rounds){self._untried()}"
        )
        drifted = max(drift(begun_with.ms), drift(found.ms))
        if found.ratio > WORTH and _faster(begun_with, found):
            self.verdict = f"{changes}: {figures}"
            return self.best
        if self._gpu and self._frugal() and found.ratio * WORTH >= 1 and drifted <= DRIFT:
            self.verdict = f"{changes}: as fast, for less of the host; {figures}"
            return self.best
        if drifted >= abs(found.ratio - 1):
            self.verdict = (
                f"{changes}: no difference found, nothing is changed: {_drifts(drifted)}; {figures}"
            )
        else:
            self.verdict = f"{changes}: not faster, nothing is changed; {figures}"
        return self.start

    def table(self) -> Table:
        """Return a table of everything measured so far."""
        seconds = time.perf_counter() - self._begin
        title = f"{seconds:.0f} of {self._seconds:.0f} s: {self._now}"
        if self.verdict:
            title = f"training, in the order of the search, {seconds:.0f} s"
        table = Table(title=title, title_justify="left")
        table.add_column("settings")
        table.add_column("ms a batch", justify="right")
        table.add_column("speed", justify="right")
        table.add_column("")
        for each in self.candidates:
            ms = milliseconds(median(each.ms)) if each.ms else ""
            ratio = f"{each.ratio:.3f}" if each.ratios else ""
            table.add_row(each.name, ms, ratio, Text(each.note))
        return table

    def _vary(self, name: str, values: Sequence[Any], seconds: float) -> None:
        """Compare values of a setting with the one in use, and use the best from then on."""
        value = getattr(self.best, name)
        in_use = Candidate(f"{name} {value}", self.best, note="in use")
        rivals = [
            Candidate(f"{name} {other}", replace(self.best, **{name: other}))
            for other in values
            if other != value
        ]
        if not rivals:
            return
        self._compare(in_use, rivals, ROUNDS, seconds, late=SEARCH_END)
        if not in_use.ratios:
            return
        left = [in_use, *(rival for rival in rivals if not rival.out)]
        best = max(left, key=lambda candidate: candidate.ratio)
        if self._gpu and name in FRUGAL:
            enough = [each for each in left if each.ratio * WORTH >= best.ratio]
            best = min(enough, key=lambda candidate: getattr(candidate.tuning, name))
        elif best.ratio <= WORTH or min(best.ratios) <= 1:
            best = in_use
        if best is not in_use:
            best.note = "taken"
        self.best = best.tuning

    def _compare(
        self,
        in_use: Candidate,
        rivals: Sequence[Candidate],
        rounds: int,
        seconds: float,
        *,
        late: float = math.inf,
        least: int = 1,
    ) -> None:
        """Measure all in turn; a rival that fails or is clearly slower is given up.

        Args:
            in_use: what the others are compared with.
            rivals: the others.
            rounds: how often, if time allows.
            seconds: how long.
            late: share of the search's time after which no rival gets its first turn.
            least: rounds that are always taken, whatever they last and show.
        """
        if rivals and not self._until(late):
            for each in rivals:
                each.out, each.note = True, UNTRIED
            self.candidates += rivals
            return
        deadline = time.perf_counter() + seconds
        self.candidates += [in_use, *rivals]
        for number in range(rounds):
            left = [each for each in (in_use, *rivals) if not each.out]
            if number and len(left) == 1 and rivals:
                return
            if number >= least and time.perf_counter() >= deadline:
                return
            for place, each in enumerate(left if number % 2 == 0 else reversed(left)):
                if number == 0 and each is not in_use and not self._until(late):
                    each.out, each.note = True, UNTRIED
                    continue
                turns = len(left) * (rounds - number) - place
                self._now = each.name
                try:
                    span = max(0.0, deadline - time.perf_counter()) / turns
                    measurement = self._measured(each.tuning, each.groups, span)
                except Exception as error:
                    # DALI, the driver or the memory refuses these settings; others may work.
                    if each is in_use:
                        raise
                    reason = _short(str(error) or type(error).__name__)
                    each.out, each.note = True, f"failed: {reason}"
                else:
                    each.ms.append(1000 * measurement.seconds_a_batch)
            for each in left:
                if not each.out:
                    each.ratios.append(in_use.ms[-1] / each.ms[-1])
                    if number == 0 and least == 1 and each.ratio < DROP:
                        each.out, each.note = True, "clearly slower"

    def _until(self, share: float) -> float:
        """Return the seconds left of a share of the time."""
        return max(0.0, self._begin + share * self._seconds - time.perf_counter())

    def _frugal(self) -> bool:
        """Whether what was found takes less of the host's cores or memory."""
        pairs = [(getattr(self.best, name), getattr(self.start, name)) for name in FRUGAL]
        return all(new <= old for new, old in pairs) and any(new < old for new, old in pairs)

    def _untried(self) -> str:
        """Return in words what the search had no time for."""
        untried = sum(each.note == UNTRIED for each in self.candidates)
        if not untried:
            return ""
        return f"; {untried} candidates were not tried, since --seconds {self._seconds:g} is over"


def _faster(in_use: Candidate, rival: Candidate) -> bool:
    """Whether a rival is faster in every round, and by more than the measurements drift."""
    drifted = max(drift(in_use.ms), drift(rival.ms))
    return min(rival.ratios) > 1 and rival.ratio - 1 > drifted


def _drifts(part: float) -> str:
    return (
        f"the measurements of the same settings drift by {part:.1%}; search again when nothing "
        "else runs here"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:100]}…"


def near(threads: int) -> list[int]:
    """Return numbers of threads a quarter below and above, one more than cores at most."""
    step = max(1, threads // 4)
    return [n for n in (threads - step, threads + step) if 1 <= n <= default_threads() + 1]
