"""How many steps fit into a budget of image views, or of seconds.

The schedule needs the number of steps before the run. A budget of seconds is therefore converted
to steps by a short pilot, which does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SECONDS = 12.0  # of a pilot, or a quarter of a run if that is less
RECORDS = 3  # the fewest of a pilot: one after its start is needed
MARGIN = 0.03  # share of the seconds that stays unused: no two runs are equally fast
WARM_SHARE = 0.25  # of a pilot's time that is not counted


@dataclass(frozen=True)
class StepTime:
    """How long steps take, as a pilot found."""

    seconds_per_step: float
    start_up: float
    """Further seconds of the first steps: compilation, filling the pipeline."""


@dataclass(frozen=True)
class RunLength:
    """Length of a run; exactly one of the two is given."""

    seconds: float | None = None
    """Seconds of training."""
    image_views: int | None = None
    """Number of samples times views that the encoder is shown."""

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.image_views is None):
            raise ValueError(
                f"seconds={self.seconds} and image_views={self.image_views}: the budget is exactly "
                "one of them. Give --seconds or --image_views."
            )
        for name, value in self.facts().items():
            if value <= 0:
                raise ValueError(f"{name}={value:g}, but the budget must be above 0.")

    def facts(self) -> dict[str, float]:
        """Return {name: value} of the one that is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def steps(self, image_views: int, step_time: StepTime | None) -> int:
        """Return how many steps fit.

        Args:
            image_views: number of them in one step.
            step_time: how long a step takes; needed for a budget of seconds.

        Raises:
            ValueError: not even one step fits.
        """
        if self.image_views is not None:
            steps, one = self.image_views // image_views, f"{image_views:,} image views"
        else:
            assert step_time is not None and self.seconds is not None
            free = (1 - MARGIN) * self.seconds - step_time.start_up
            each, start_up = step_time.seconds_per_step, step_time.start_up
            steps, one = int(free / each), f"{each:.3g} s, and {start_up:.3g} s more at the start"
        if steps < 1:
            budget = ", ".join(f"{name}={value:g}" for name, value in self.facts().items())
            raise ValueError(f"a step takes {one}; the budget, {budget}, is less. Give more.")
        return steps


def step_time_of(steps: Sequence[dict[str, Any]]) -> StepTime:
    """Return how long the steps of a pilot took.

    Args:
        steps: records of training steps, one or more, with `step` and `seconds`.
    """
    last = steps[-1]
    warm = [r for r in steps[:-1] if r["seconds"] >= WARM_SHARE * last["seconds"]]
    first = (warm or steps)[0]
    if first is last:  # with one record, the start cannot be separated
        return StepTime(last["seconds"] / last["step"], 0.0)
    each = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return StepTime(each, max(0.0, first["seconds"] - first["step"] * each))
