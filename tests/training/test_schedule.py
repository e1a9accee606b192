"""The learning rate against PyTorch's own schedulers; steps and epochs agree after a reshape."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.learning_rate import learning_rate
from training.config import Config
from training.monitor import METRICS
from training.recorder import Recorder
from training.schedule import EpochStart, Moment, Schedule, reshaped
from training.settings import parse

LEAST = ["--shards", "x", "--run", "r", "--learning_rate", "1"]


def schedule(tmp_path: Path, *words: str, steps_per_epoch: int = 10) -> Schedule:
    config = parse(["--shards", "x", "--run", str(tmp_path), *words]).config
    return Schedule(config, EpochStart(), steps_per_epoch=steps_per_epoch)


@pytest.fixture(scope="module")
def epochs_3() -> Config:
    """Configuration of three epochs, read once: that takes longer than a test."""
    return parse([*LEAST, "--epochs", "3"]).config


def evaluations(found: Schedule, steps: int) -> list[int]:
    """Return the steps at whose end there is an evaluation before the last one."""
    dues = [
        found.due(step, since=Moment(step - 1), seconds=0, leaving=False)
        for step in range(1, steps + 1)
    ]
    return [step for step, due in enumerate(dues, start=1) if due.evaluation]


@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (5, 20), (20, 20)])
def test_it_is_pytorchs_linear_warmup_then_cosine(warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedules: list[torch.optim.lr_scheduler.LRScheduler] = []
    if warmup:
        schedules.append(
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=max(1, warmup - 1))
        )
    schedules.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - warmup)))
    milestones = [warmup] if warmup else []
    theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, milestones)
    for step in range(total):
        ours = learning_rate(step, peak=2.0, warmup_steps=warmup, total_steps=total)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_it_ends_at_zero_and_stays_there() -> None:
    for step in (10, 11, 500):
        assert learning_rate(step, peak=1.0, warmup_steps=2, total_steps=10) == pytest.approx(0)


def test_a_run_that_never_changes_counts_plainly() -> None:
    since = EpochStart()
    assert since.total_steps(steps=None, epochs=2.5, steps_per_epoch=10) == 25
    assert since.total_steps(steps=7, epochs=None, steps_per_epoch=10) == 7
    assert since.epoch_at(15, 10) == 1.5
    assert since.seed(3) == 3


@pytest.mark.parametrize(("within", "epoch"), [(0, 4), (3, 4), (5, 5)])
def test_the_epoch_that_is_not_done_begins_again(within: int, epoch: int) -> None:
    loader = {"epoch": 4, "step": within, "samples": 42, "world_size": 2, "batch_size_per_rank": 4}
    since = reshaped(20 + within, loader, before=EpochStart(), epochs=7)
    assert since == EpochStart(step=20 + within, epoch=epoch)
    # From there to the end, every epoch that is left has all its steps.
    total = since.total_steps(steps=None, epochs=7, steps_per_epoch=3)
    assert total == 20 + within + 3 * (7 - epoch)
    assert since.epoch_at(total, 3) == 7
    assert since.seed(3) != 3


def test_a_run_that_is_done_is_done_with_other_batches_too() -> None:
    assert EpochStart(step=15, epoch=3).total_steps(steps=None, epochs=3, steps_per_epoch=2) == 15
    assert EpochStart().total_steps(steps=None, epochs=0.1, steps_per_epoch=2) == 1


@pytest.mark.parametrize("epochs", [0.3, 1.5, 2, 2.5, 2.9])
@pytest.mark.parametrize("first", [EpochStart(), EpochStart(step=11, epoch=1)])
def test_a_run_that_ended_in_an_epoch_does_not_begin_it_again(
    epochs: float, first: EpochStart, epochs_3: Config
) -> None:
    """Whatever the new batches, and at no step before its last."""
    done, per_epoch = first.step, 5
    total = first.total_steps(steps=None, epochs=epochs, steps_per_epoch=per_epoch)
    config = replace(epochs_3, epochs=epochs)
    for epoch in range(first.epoch, 3):
        for step in range(1, per_epoch + 1):
            done += 1
            loader = {"epoch": epoch, "step": step, "samples": 20}
            loader |= {"world_size": 2, "batch_size_per_rank": 2}
            since = reshaped(done, loader, before=first, epochs=epochs)
            for after in (1, 2, 10, 1000):
                found = Schedule(config, since, steps_per_epoch=after)
                left = round((epochs - epoch - step // per_epoch) * after)
                assert found.over(done, 0) == (done >= total or left == 0), (done, after)
                assert found.describe().startswith(f"{epochs:g} epochs, now of {after:,} steps")


@pytest.mark.parametrize(("before", "after"), [(10, 100), (100, 10), (10, 10)])
@pytest.mark.parametrize("epoch", [1, 5])
def test_other_batches_change_neither_rate_nor_progress(
    before: int, after: int, epoch: int
) -> None:
    """Within the warm-up and after it: both follow the epochs."""
    config = parse([*LEAST, "--epochs", "10", "--warmup_epochs", "2"]).config
    old = Schedule(config, EpochStart(), steps_per_epoch=before)
    since = EpochStart(step=epoch * before, epoch=epoch)
    new = Schedule(config, since, steps_per_epoch=after)
    for more in range(10 - epoch):
        there, here = since.step + more * before, since.step + more * after
        assert new.progress(here, 0) == pytest.approx(old.progress(there, 0))
        assert new.rate(here, 0) == pytest.approx(old.rate(there, 0), abs=0.06)
    assert new.total_steps is not None
    assert new.total_steps == since.step + (10 - epoch) * after
    assert new.progress(new.total_steps, 0) == 1 and new.rate(new.total_steps, 0) < 1e-9
    assert new.describe().startswith(f"10 epochs, now of {after} steps")


@pytest.mark.parametrize("after", [40, 4000])
def test_a_run_of_steps_stays_as_long_with_other_batches(after: int) -> None:
    config = parse([*LEAST, "--steps", "60", "--warmup_epochs", "2"]).config
    found = Schedule(config, EpochStart(step=25, epoch=5), steps_per_epoch=after)
    assert found.total_steps == 60 and found.progress(30, 0) == 0.5
    assert found.warmup_steps == 10  # of 5 steps an epoch, then
    assert found.rate(25, 0) > found.rate(40, 0) > found.rate(59, 0)
    late = Schedule(config, EpochStart(step=5, epoch=1), steps_per_epoch=after)
    assert late.warmup_steps == min(5 + after, 59)


def test_a_warm_up_longer_than_the_time_falls_too() -> None:
    config = parse([*LEAST, "--max_seconds", "20", "--warmup_epochs", "5"]).config
    found = Schedule(config, EpochStart(), steps_per_epoch=10)
    rates = [found.rate(step, float(step)) for step in range(20)]
    assert rates[9] == pytest.approx(10 / 50)
    assert max(rates) < 0.3 and rates[19] < 0.02
    slow_at_first = [found.rate(step, 20 * (step / 60) ** 0.5) for step in range(60)]
    steps = [abs(b - a) for a, b in pairwise(slow_at_first)]
    assert max(steps) < 0.1, "no jump where the warm-up ends"


def test_a_fraction_of_an_epoch_does_not_drift() -> None:
    config = parse([*LEAST, "--steps", "30", "--evaluate_every", "1.5"]).config
    found = Schedule(config, EpochStart(), steps_per_epoch=5)
    assert evaluations(found, 30) == [8, 15, 23]
    often = parse([*LEAST, "--steps", "30", "--evaluate_every", "0.1"]).config
    every = Schedule(often, EpochStart(), steps_per_epoch=100)
    assert evaluations(every, 29) == [10, 20]


@pytest.mark.parametrize("warmup", ["0", "0.7"])
def test_a_schedule_of_time_is_that_of_steps_where_all_steps_take_as_long(
    warmup: str, tmp_path: Path
) -> None:
    words = ["--learning_rate", "2", "--warmup_epochs", warmup, "--max_seconds", "20"]
    by_time, by_steps = schedule(tmp_path, *words), schedule(tmp_path, *words, "--steps", "40")
    for step in range(40):
        assert by_time.rate(step, step / 2) == pytest.approx(by_steps.rate(step, 0.0)), step
        assert by_time.progress(step, step / 2) == by_steps.progress(step, 0.0)
        assert by_time.seconds_left(step, seconds=step / 2, seconds_per_step=9) == 20 - step / 2
        assert not by_time.over(step, step / 2)
    assert by_time.over(40, 20.0) and by_steps.over(40, 0.0)
    assert by_time.rate(41, 21.0) == pytest.approx(0, abs=1e-9)


def test_a_schedule_of_time_ends_on_a_machine_that_becomes_ten_times_slower(tmp_path: Path) -> None:
    """Half of its time a step takes 0.1 s, then 1 s; a forecast of 200 steps would not end."""
    found = schedule(tmp_path, "--max_seconds", "20", "--learning_rate", "1", "--evaluations", "4")
    seconds, step, rates, evaluated, saved = 0.0, 0, [], [], []
    while not found.over(step, seconds):
        rates.append(found.rate(step, seconds))
        before, seconds, step = seconds, seconds + (0.1 if seconds < 10 else 1.0), step + 1
        over = found.over(step, seconds)
        due = found.due(step, since=Moment(step - 1, before), seconds=seconds, leaving=over)
        evaluated += [seconds] if due.evaluation else []
        saved += [step] if due.save else []
        assert due.last == over
    assert 108 <= step <= 112 and 20 <= seconds < 21.1
    assert rates == sorted(rates, reverse=True) and rates[0] == 1 and rates[-1] < 0.02
    assert evaluated == pytest.approx([5, 10, 15], abs=1.01)  # the fourth is the last step's
    assert len(saved) == 4  # there is no telling how many steps there are between two


@pytest.mark.parametrize(("steps", "count"), [(15, 3), (16, 3), (7, 7), (5, 9), (100, 1)])
def test_evaluations_are_evenly_spread(steps: int, count: int, tmp_path: Path) -> None:
    found = schedule(tmp_path, "--steps", str(steps), "--evaluations", str(count))
    at = [*evaluations(found, steps), steps]
    assert len(at) == min(steps, count)
    gaps = [b - a for a, b in zip([0, *at], at, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_an_evaluation_that_a_signal_has_left_out_is_made_up(tmp_path: Path) -> None:
    for words in (["--evaluate_every", "1"], ["--evaluations", "4"]):
        found = schedule(tmp_path, "--steps", "40", *words)
        leaving = found.due(10, since=Moment(0), seconds=0, leaving=True)
        assert leaving.save and not leaving.evaluation
        assert found.due(11, since=Moment(0), seconds=0, leaving=False).evaluation
        assert not found.due(12, since=Moment(11), seconds=0, leaving=False).evaluation
        assert found.due(20, since=Moment(11), seconds=0, leaving=False).evaluation
    timed = schedule(tmp_path, "--max_seconds", "40", "--evaluations", "4")
    assert timed.due(9, since=Moment(3, 9.0), seconds=12.0, leaving=False).evaluation
    assert not timed.due(9, since=Moment(8, 11.0), seconds=12.0, leaving=False).evaluation


def last_evaluation(run: Path, step: int) -> Moment:
    """Return what a run that goes on from a step finds in its records."""
    recorder: Any = SimpleNamespace(  # as much of it as is asked for
        suite=True, config=SimpleNamespace(run=run), processes=SimpleNamespace(first=True)
    )
    return Recorder.last_evaluation(recorder, step, 0.0)


@pytest.mark.parametrize("per_epoch", [(200, 200), (200, 50), (50, 200)])
@pytest.mark.parametrize("how", [{"evaluate_every": 0.3}, {"evaluations": 10}])
@pytest.mark.parametrize("left", [[2.5], [0.2, 2.5, 2.2, 2.4], [0.9, 1.95, 1.96]])
def test_each_evaluation_is_made_once_where_epochs_begin_again(
    left: list[float],
    how: dict[str, Any],
    per_epoch: tuple[int, int],
    tmp_path: Path,
    epochs_3: Config,
) -> None:
    """A run is left after so many epochs, again and again, and goes on with other batches."""
    config = replace(epochs_3, **how)
    since, step, kept, metrics = EpochStart(), 0, list[float](), tmp_path / METRICS
    for part, end in enumerate([*left, 3.0]):
        each = per_epoch[part % 2]
        found = Schedule(config, since, steps_per_epoch=each)
        evaluated, again = last_evaluation(tmp_path, step), step
        while found.epoch_at(step) < end:
            step += 1
            if found.due(step, since=evaluated, seconds=step, leaving=False).evaluation:
                assert part == 0 or step > again + 1, "it is not made up at once"
                evaluated = Moment(step, step)
                kept.append(found.epoch_at(step))
                loss = {"step": step, "loss": 0, "seconds": step, "epoch": round(kept[-1], 4)}
                lines = [loss, {"step": step, "evaluation": "online"}]
                with metrics.open("a") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in lines))
        since = EpochStart(step, int(found.epoch_at(step)))
    # One at the end of each tenth, but for the last step's; a step is up to a fiftieth of an epoch.
    assert kept == pytest.approx([0.3 * (i + 1) for i in range(9)], abs=0.02)


def test_an_evaluation_is_not_made_again_because_its_record_rounds_its_epoch(
    epochs_3: Config,
) -> None:
    config = replace(epochs_3, evaluate_every=1 / 3)
    found = Schedule(config, EpochStart(), steps_per_epoch=20_000)
    for third in range(1, 9):
        step = -(-third * 20_000 // 3)
        rounded = round(step / 20_000, 4)
        assert found.due(step, since=Moment(step - 1), seconds=0, leaving=False).evaluation
        again = found.due(step + 1, since=Moment(step, 0, rounded), seconds=0, leaving=False)
        assert not again.evaluation, rounded


@pytest.mark.parametrize("length", [{"steps": 40}, {"max_seconds": 40.0}])
def test_other_batches_move_no_evaluation_of_a_run_of_steps_or_time(
    length: dict[str, Any], epochs_3: Config
) -> None:
    config = replace(epochs_3, epochs=None, evaluations=4, **length)
    found = Schedule(config, EpochStart(step=27, epoch=5), steps_per_epoch=1000)
    at = [
        step
        for step in range(28, 40)
        if found.due(step, since=Moment(20, 20.0, 3.9), seconds=step, leaving=False).evaluation
    ]
    assert at == list(range(30, 40))  # each would be the first since step 20


def test_a_run_has_one_length_and_one_kind_of_evaluation_times(tmp_path: Path) -> None:
    for words, message in (
        ([], "nothing says how long the run is"),
        (["--steps", "1", "--epochs", "1"], "set by one of them"),
        (["--steps", "1", "--evaluations", "2", "--evaluate_every", "1"], "give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule(tmp_path, *words)
