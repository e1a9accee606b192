"""Find out how the pipeline runs best on this machine, for one recipe; train.py picks it up.

    python -m tools.tune --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

What counts is the speed of training itself, steps fed by the pipeline, not of the pipeline alone:
without a GPU both share the cores. One setting after the other is varied, from the defaults on,
each value beside the one in use and in alternating order, so that a busy minute of the machine hits
both. Where a GPU computes, the fewest threads and batches ahead are taken that cost at most 1 %:
what they leave is free for other processes. Settings given as flags are kept as they are.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.graph import ViewGroup
from pipeline.tuning import Tuning, default_threads
from training import machine_settings
from training.command import run_command
from training.throughput import (
    Measurement,
    Workload,
    check_writable,
    feed_turn,
    fill_cache,
    machine,
    measure,
    milliseconds,
    parse_recipe,
    recipe_parser,
)

ROUNDS = 2  # of each value
FINAL_ROUNDS = 3  # of the settings begun with beside those found
SEARCH_END, ADVICE_END = 0.65, 0.75  # of the time; the rest is for the final rounds
DROP = 0.9  # of the speed of the value in use: slower than this at first, and it is given up
WORTH = 1.01  # times as fast is worth a change; less is as good
DRIFT = 1.05  # times as long, for the same, is worth a word about the machine
ADVISE = 1.10  # times as fast is worth a word about pixels
CACHE_SHARE = 0.25  # of the GPU's free memory that decoded images may take
FRUGAL = ("threads", "prefetch")  # settings of which a GPU's run takes the least that suffices
UNTRIED = "no time left for it"
PIXELS = {
    "resize": "it is filtered against aliasing, and costs no quality",
    "warp": "it is bilinear without a filter, so that crops which are scaled down alias",
    "supersample": "it is filtered from twice the size, so that only strong reductions alias",
}

Groups = tuple[ViewGroup, ...]


@dataclass
class Candidate:
    """Settings, and what came of them."""

    name: str
    tuning: Tuning
    groups: Groups | None = None
    """Instead of the recipe's."""
    ms: list[float] = field(default_factory=list)
    """Of a batch, one a round."""
    ratios: list[float] = field(default_factory=list)
    """Speed over that of the settings in use, one a round."""
    note: str = ""
    """What is to be said about it."""
    out: bool = False
    """Given up."""

    @property
    def ratio(self) -> float:
        """Median speed over that of the settings in use."""
        return median(self.ratios)


def main() -> None:
    """Search, show, and write what was found."""
    settings = parse_recipe(_command_line(), sys.argv[1:])
    options, config = settings.options, settings.config
    if options["seconds"] <= 0:
        raise ValueError(f"seconds={options['seconds']:g}, but the search needs more than 0.")
    check_writable(options, "out")
    console = Console(highlight=False)
    around = machine(torch.device("cuda" if config.on_gpu else "cpu"))
    workload = Workload(config)
    path = options["out"] or machine_settings.path_for(
        config, workload.shard_set, workload.device, config.batch_size, 1
    )
    start = config.tuning.filled(batch_size=config.batch_size)
    plan = [
        (name, values)
        for name, values in coordinates(workload)
        if getattr(config.tuning, name) is None
    ]
    search = Search(
        partial(measure_fed, workload, longest=options["seconds"] / 10),
        start,
        seconds=options["seconds"],
        gpu=workload.device.type == "cuda",
    )
    with Live(console=console, get_renderable=search.table, refresh_per_second=2):
        search.run(plan)
        advice = search.advise(resamplings(workload))
        found = search.verify()
    if not console.is_terminal:
        console.line()  # which rich leaves out there
    for line in (search.verdict, *advice):
        console.print(line, soft_wrap=True)

    remarks = {
        "made by": f"python -m tools.tune {' '.join(sys.argv[1:])}",
        "date": around.get("date"),
        "machine": f"{around['gpu'] or around.get('cpu')}, {around['cores']} cores",
        "training": search.verdict,
    }
    machine_settings.write(path, found, remarks=remarks)
    if options["out"] or config.tuned != "auto":
        console.print(f"written to {path}; train.py takes it with --tuned {path}", soft_wrap=True)
    else:
        console.print(
            f"written to {path}, where train.py finds it for such images, views and batches on "
            "this machine; its header says so",
            soft_wrap=True,
        )


def _command_line() -> ArgumentParser:
    command_line = recipe_parser(
        "python -m tools.tune", "Find settings of the pipeline for this machine and a recipe."
    )
    command_line.add_argument(
        "--seconds", type=float, default=150.0, help="How long to search, about."
    )
    command_line.add_argument(
        "--out",
        type=Path | None,
        help="YAML to write; by default where train.py looks for it, in ~/.cache/viewrank.",
    )
    return command_line


# ── what is tried ─────────────────────────────────────────────────────────────────────────────────


def coordinates(workload: Workload) -> Iterator[tuple[str, list[Any]]]:
    """Yield the settings to vary, those of most effect first, with their values."""
    manifest, batch_size = workload.shard_set.manifest, workload.config.batch_size
    if workload.device.type == "cuda":
        if not manifest.raw:
            yield "decode", ["gpu", "cpu"]
            yield "hw_decoder_load", [0.0, 0.5, 0.75, 0.9, 1.0]
        yield "minibatch", [batch_size, *(n for n in (256, 64) if n < batch_size)]
    yield "finish", ["fused", "dali"]
    cores = default_threads()
    yield "threads", sorted({cores, *(2**n for n in range(cores.bit_length()))})
    yield "prefetch", [1, 2, 3, 4]
    if workload.device.type == "cuda" and not manifest.raw:
        # Last, because the cache is filled anew for each measurement. The decoder reserves as much
        # as if all images were as large as the largest.
        largest = 3 * manifest.statistics.max_width * manifest.statistics.max_height
        free, _ = torch.cuda.mem_get_info(workload.device)
        if manifest.samples * largest <= CACHE_SHARE * free:
            yield "decode", ["cache"]


def near(threads: int) -> list[int]:
    """Return numbers of threads a quarter below and above, one more than cores at most."""
    step = max(1, threads // 4)
    return [n for n in (threads - step, threads + step) if 1 <= n <= default_threads() + 1]


def resamplings(workload: Workload) -> dict[str, Groups]:
    """Return the recipe's view groups with each resampling that is not theirs already."""
    groups = workload.config.groups
    now = {g.resampling_for(workload.shard_set, workload.device)[0] for g in groups}
    others: dict[str, Groups] = {}
    for resampling in ("resize", "warp", "supersample"):
        if now != {resampling}:
            others[resampling] = tuple(replace(g, resampling=resampling) for g in groups)
    return others


def measure_fed(
    workload: Workload, tuning: Tuning, groups: Groups | None, seconds: float, *, longest: float
) -> Measurement:
    """Measure training with a pipeline of its own.

    Args:
        workload: the recipe.
        tuning: how its pipeline runs.
        groups: view groups instead of the recipe's.
        seconds: how long, building and warming up included.
        longest: how long filling a cache of decoded images may take on top.

    Raises:
        ValueError: that takes longer.
    """
    # A small shuffle buffer, because filling it takes time and makes no batch slower.
    buffer = min(workload.config.shuffle_buffer, 4 * workload.config.batch_size)
    begin = time.perf_counter()
    with workload.loader(tuning, groups=groups, shuffle_buffer=buffer) as loader:
        begin_filled = time.perf_counter()
        if not fill_cache(loader, longest):
            raise ValueError(f"decoding all images once takes more than {longest:g} s")
        begin += time.perf_counter() - begin_filled
        turn = feed_turn(loader, workload.step)
        left = seconds - (time.perf_counter() - begin)
        return measure(turn, left, loader.device, loader=loader)


# ── the search ────────────────────────────────────────────────────────────────────────────────────


class Search:
    """Varies one setting after the other, and says in `verdict` what came of it.

    Args:
        measured: measures training under settings, with view groups or the recipe's, for seconds.
        start: the settings to begin with, none missing.
        seconds: how long all of it may take, about.
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
        """Return in words which resampling would be much faster; they change pixels."""
        in_use = Candidate("resampling as it is", self.best)
        rivals = [Candidate(f"resampling {name}", self.best, g) for name, g in others.items()]
        self._compare(in_use, rivals, ROUNDS, self._until(ADVICE_END), late=ADVICE_END)
        lines = []
        for name, rival in zip(others, rivals, strict=True):
            if not rival.out and rival.ratio >= ADVISE and min(rival.ratios) > 1:
                rival.note = "not taken: it changes pixels"
                lines.append(
                    f"advice: with --views.resampling {name} training would be {rival.ratio:.2f} "
                    f"times as fast; {PIXELS[name]}. It is another experiment, so it is not set."
                )
        return lines

    def verify(self) -> Tuning:
        """Hold what was found against what was begun with, and return what is to be used."""
        begun_with = Candidate("settings begun with, again", self.start)
        if self.best == self.start:
            self._compare(begun_with, [], 1, self._until(1) / 3)
            self.verdict = f"nothing was faster than the settings begun with{self._doubts()}"
            return self.start
        found = Candidate("settings found", self.best)
        self._compare(begun_with, [found], FINAL_ROUNDS, self._until(1), least=2)
        if found.out:
            self.verdict = f"the settings found do not last ({found.note}): nothing is changed"
            return self.start
        least, most = min(found.ratios), max(found.ratios)
        changes = ", ".join(
            f"{name} {value}"
            for name, value in asdict(self.best).items()
            if value != getattr(self.start, name)
        )
        figures = (
            f"{milliseconds(median(begun_with.ms))} → {milliseconds(median(found.ms))} ms a "
            f"batch, "
            f"{found.ratio:.3f} times as fast ({least:.3f}..{most:.3f} in {len(found.ratios)} "
            f"rounds){self._doubts()}"
        )
        if found.ratio > WORTH and least > 1:
            self.verdict = f"{changes}: {figures}"
            return self.best
        if self._gpu and self._frugal() and found.ratio * WORTH >= 1:
            self.verdict = f"{changes}: as fast, for less of the host; {figures}"
            return self.best
        self.verdict = f"{changes}: within the noise, nothing is changed; {figures}"
        return self.start

    def table(self) -> Table:
        """Return all that was measured so far."""
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
        """Measure all in turns; a rival that fails or is clearly slower is given up.

        Args:
            in_use: what the others are compared with.
            rivals: the others.
            rounds: how often, if time allows.
            seconds: how long.
            late: rivals whose first turn would begin after this share of the search's time have
                none.
            least: rounds that are taken however long they last, and whatever comes out.
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
                    # Whatever DALI, the driver or the memory has against it: others may do.
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

    def _doubts(self) -> str:
        """Return in words what speaks against the result."""
        doubts = ""
        untried = sum(each.note == UNTRIED for each in self.candidates)
        if untried:
            doubts = (
                f"; {untried} candidates were not tried, since --seconds {self._seconds:g} is over"
            )
        same = [e for e in self.candidates if e.ms and not e.groups and e.tuning == self.start]
        drift = median(same[-1].ms) / same[0].ms[0]
        if not 1 / DRIFT <= drift <= DRIFT:
            doubts += (
                f"; the same settings took {drift:.2f} times as long at the end as in the "
                "beginning: search again when nothing else runs here"
            )
        return doubts


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:100]}…"


if __name__ == "__main__":
    run_command(main)
