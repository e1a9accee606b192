"""From a step to an epoch, also when a run's batches have changed on the way.

With `--reshape_data` a run goes on with another batch size, number of processes or shard set. The
epoch that it was in is begun anew with the new batches, so that each of its samples is seen once,
and steps are counted on:

    steps    1 … 7            8 … 10       11 … 13
    epochs   0 (5), 1 (2 of)  1 (3, anew)  2 (3)
                              └ Course(step=7, epoch=1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Course:
    """The step, and the epoch that began with it, from which on batches are as they are now."""

    step: int = 0
    epoch: int = 0

    def epoch_at(self, step: int, steps_per_epoch: int) -> float:
        """Return how many epochs are done after so many steps."""
        return self.epoch + (step - self.step) / steps_per_epoch

    def seed(self, seed: int) -> int:
        """Return the loader's seed: an epoch that is begun anew makes other views."""
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
        return self.step + max(1, round((epochs - self.epoch) * steps_per_epoch))


def reshaped(step: int, loader: Mapping[str, Any]) -> Course:
    """Return the course of a run that goes on with other batches.

    Args:
        step: number of updates done.
        loader: the state of the loader then.
    """
    per_epoch = loader["samples"] // (loader["world_size"] * loader["batch_size_per_rank"])
    done = loader["step"] == per_epoch  # else its first samples are seen again
    return Course(step=step, epoch=loader["epoch"] + done)
