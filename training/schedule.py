"""Length, learning rate and appointments of a run, as pure functions of step and training time.

There is nothing to save and nothing to restore. A run is as long as `epochs` or `steps` say; with
neither, `max_seconds` is its length, and what follows the steps otherwise follows the time. Its
steps then depend on the machine: two such runs differ, as their steps take different times.

With `--reshape_data` a run goes on with another batch size, number of processes or shard set. The
epoch that it was in begins again with the new batches, so that each of its samples is seen once,
and steps are counted on:

    steps    1 … 7            8 … 10       11 … 13
    epochs   0 (5), 1 (2 of)  1 (3, again) 2 (3)
                              └ EpochStart(step=7, epoch=1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from model.learning_rate import cosine, learning_rate
from training.config import Config

EPOCH_DIGITS = 4
"""Decimals of the epoch in a run's records."""


@dataclass(frozen=True)
class EpochStart:
    """The step, and the epoch that began with it, from which on batches are as they are now."""

    step: int = 0
    epoch: int = 0

    def epoch_at(self, step: int, steps_per_epoch: int) -> float:
        """Return how many epochs are done after so many steps."""
        return self.epoch + (step - self.step) / steps_per_epoch

    def seed(self, seed: int) -> int:
        """Return the loader's seed: an epoch that begins again makes other views."""
        return seed + 1_000_003 * self.step

    def total_steps(self, *, steps: int | None, epochs: float | None, steps_per_epoch: int) -> int:
        """Return the length of the run.

        Args:
            steps: what the configuration says, or
            epochs: what it says instead.
            steps_per_epoch: of the present batches.
        """
        if steps is not None:
            return steps
        assert epochs is not None
        left = round((epochs - self.epoch) * steps_per_epoch)
        return self.step + max(left, 0 if self.step else 1)

    def step_at(self, epoch: float, steps_per_epoch: int) -> int:
        """Return after how many steps an epoch is reached, or was with the batches before."""
        if epoch < self.epoch:
            return round(epoch * self.step / self.epoch)
        return self.step + round((epoch - self.epoch) * steps_per_epoch)


def reshaped(
    step: int, loader: Mapping[str, Any], *, before: EpochStart, epochs: float | None
) -> EpochStart:
    """Return where the epoch began of a run that goes on with other batches.

    Args:
        step: number of updates done.
        loader: the state of the loader then.
        before: from which step on batches were as they are in that state.
        epochs: length of the run; None: it is counted in steps or seconds.
    """
    per_epoch = loader["samples"] // (loader["world_size"] * loader["batch_size_per_rank"])
    done = loader["step"] == per_epoch  # else its first samples are seen again
    if epochs is not None:  # of a run that is over, a part of an epoch was all of it
        total = before.total_steps(steps=None, epochs=epochs, steps_per_epoch=per_epoch)
        done = done or step >= total
    return EpochStart(step=step, epoch=loader["epoch"] + done)


class Moment(NamedTuple):
    """A step, and what was done at its end."""

    step: int = 0
    seconds: float = 0.0
    """Training time."""
    epoch: float | None = None
    """As its record says, since batches may have been other ones; None: they are still the same."""


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    record: bool
    evaluation: bool
    save: bool
    last: bool


class Schedule:
    """Length, learning rate and appointments of a run.

    The seconds that its functions are given are training time on which all ranks agree.

    Args:
        config: of the run, which speaks in epochs, steps or seconds.
        since: from which step on batches are what they are now.
        steps_per_epoch: of these batches.

    Raises:
        ValueError: the warm-up is as long as the run.
    """

    def __init__(self, config: Config, since: EpochStart, *, steps_per_epoch: int) -> None:
        self._config, self._since, self._steps_per_epoch = config, since, steps_per_epoch
        self.total_steps: int | None = None
        """None: the run ends by the time."""
        if not config.length_is_time:
            self.total_steps = since.total_steps(
                steps=config.steps, epochs=config.epochs, steps_per_epoch=steps_per_epoch
            )
        # Where epochs are the length, rate and progress follow them through a change of batches,
        # so they count in steps of the present ones. Otherwise in those that were made.
        by_epochs = self.total_steps is not None and config.steps is None
        self._more = since.epoch * steps_per_epoch - since.step if by_epochs else 0
        reached = EpochStart() if by_epochs else since
        self.warmup_steps = reached.step_at(config.warmup_epochs, steps_per_epoch)
        if self.total_steps is not None and self.warmup_steps >= self._at(0)[1]:
            if since.step == 0:
                raise ValueError(
                    f"warmup_epochs={config.warmup_epochs:g} are {self.warmup_steps} steps, but "
                    f"the run has {self.total_steps}; the learning rate would never reach its "
                    "peak. Shorten the warm-up."
                )
            # With the batches before it was shorter than the run.
            self.warmup_steps = max(0, self._at(0)[1] - 1)

    def _at(self, step: int) -> tuple[int, int]:
        """Return a step and the length, as `warmup_steps` counts: in steps of present batches."""
        assert self.total_steps is not None
        return step + self._more, self.total_steps + self._more

    def describe(self) -> str:
        """Return the length in words."""
        each, limit = self._steps_per_epoch, self._config.max_seconds
        if self.total_steps is None:
            return f"{limit:g} s of training, epochs of {each:,} steps"
        text = f"{self.total_steps / each:g} epochs × {each:,} steps = {self.total_steps:,} steps"
        if self._since.step:
            epochs = self._config.epochs or self.epoch_at(self.total_steps)
            text = f"{epochs:g} epochs, now of {each:,} steps, {self.total_steps:,} steps in all"
        return f"{text}, at most {limit:g} s" if limit else text

    def rate(self, step: int, seconds: float) -> float:
        """Return the learning rate of a step, counted from 0, which begins after this time."""
        peak, warmup = self._config.learning_rate, self.warmup_steps
        if self.total_steps is not None:
            step, total = self._at(step)
            return learning_rate(step, peak=peak, warmup_steps=warmup, total_steps=total)
        done = self.progress(step, seconds)
        late = cosine(max(0.0, 2 * done - 1))  # a warm-up longer than half the time falls too
        if step < warmup:
            return peak * (step + 1) / warmup * late
        # The warm-up took its steps' share of the time: exact where all steps take as long.
        begin = done * warmup / max(1, step)
        found = cosine((done - begin) / (1 - begin) if begin < 1 else 1.0)
        return peak * (min(found, late) if begin > 0.5 else found)

    def progress(self, step: int, seconds: float) -> float:
        """Return which part of the run is done after so many steps and seconds, 0 to 1."""
        if self.total_steps is not None:
            step, total = self._at(step)
            return step / total
        assert self._config.max_seconds is not None
        return min(1.0, seconds / self._config.max_seconds)

    def epoch_at(self, steps: int) -> float:
        """Return how many epochs are done after so many steps."""
        return self._since.epoch_at(steps, self._steps_per_epoch)

    def over(self, step: int, seconds: float) -> bool:
        """Whether nothing of the run is left after so many steps and seconds."""
        return self.out_of_time(seconds) or (
            self.total_steps is not None and step >= self.total_steps
        )

    def out_of_time(self, seconds: float) -> bool:
        """Whether the limit of training time is reached."""
        limit = self._config.max_seconds
        return limit is not None and seconds >= limit

    def seconds_left(self, step: int, *, seconds: float, seconds_per_step: float) -> float:
        """Return how long training is going to take yet, after a step and so much training time."""
        left = math.inf
        if self.total_steps is not None:
            left = (self.total_steps - step) * seconds_per_step
        if self._config.max_seconds is not None:
            left = max(0.0, min(left, self._config.max_seconds - seconds))
        return left

    def due(self, step: int, *, since: Moment, seconds: float, leaving: bool) -> Due:
        """Return what is to be done after so many steps.

        Args:
            step: number of updates done.
            since: when the last evaluation was made, or the run began.
            seconds: training time so far.
            leaving: whether this is the last one for another reason than its number.
        """
        last = leaving or step == self.total_steps
        evaluation = not last and self._evaluation(step, since=since, seconds=seconds)
        save = last or step % self._config.checkpoint_every == 0
        if self.total_steps is None:  # how many steps there are between two is not known
            save = save or evaluation
        record = save or evaluation or step % self._config.log_every == 0
        return Due(record=record, evaluation=evaluation, save=save, last=last)

    def _evaluation(self, step: int, *, since: Moment, seconds: float) -> bool:
        count, every = self._config.evaluations, self._config.evaluate_every
        if count is not None and self.total_steps is None:
            before, now = (count * self.progress(0, each) for each in (since.seconds, seconds))
        elif count is not None and self._config.steps is not None:
            before, now = (count * each / self._config.steps for each in (since.step, step))
        else:  # by epochs, which a change of batches does not move, as it does their steps
            if count is not None:
                assert self.total_steps is not None
                every = self.epoch_at(self.total_steps) / count
            if every is None:
                return False
            before, now = self._epochs(since) / every, self.epoch_at(step) / every
        return math.floor(before + 1e-9) < math.floor(now + 1e-9)  # 0.3 / 0.1 is below 3

    def _epochs(self, at: Moment) -> float:
        """Return how many epochs were done; where a record rounds them, not fewer."""
        if at.epoch is None:
            return self.epoch_at(at.step)
        return at.epoch + 0.5 * 10**-EPOCH_DIGITS
