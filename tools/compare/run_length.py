"""How many steps a run may have: by the image views it is shown, or by the seconds a pilot took.

The schedule needs the number of steps beforehand, and is a function of the step alone; so seconds
are turned into steps before the run, by a short pilot that is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SECONDS = 12.0  # of a pilot, or a quarter of a run if that is less
RECORDS = 3  # that a pilot needs, for a lap after its start
MARGIN = 0.03  # of the seconds that are left free: no two runs of a machine are equally fast
WARM_SHARE = 0.25  # of a pilot's time that is not counted


@dataclass(frozen=True)
class StepTime:
    """What a pilot found."""

    seconds_per_step: float
    start_up: float
    """Seconds that the first steps took on top: compilation, filling the pipeline."""


@dataclass(frozen=True)
class RunLength:
    """How long a run is: exactly one of the two."""

    seconds: float | None = None
    """Of training."""
    image_views: int | None = None
    """Samples times views that the encoder is shown."""

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

    def steps(self, image_views: int, pace: StepTime | None) -> int:
        """Return how many steps fit.

        Args:
            image_views: of one step.
            pace: of its steps, for a budget of seconds.

        Raises:
            ValueError: none does.
        """
        if self.image_views is not None:
            steps, one = self.image_views // image_views, f"{image_views:,} image views"
        else:
            assert pace is not None and self.seconds is not None
            free = (1 - MARGIN) * self.seconds - pace.start_up
            steps = int(free / pace.seconds_per_step)
            one = f"{pace.seconds_per_step:.3g} s, and {pace.start_up:.3g} s more at the start"
        if steps < 1:
            budget = ", ".join(f"{name}={value:g}" for name, value in self.facts().items())
            raise ValueError(f"a step takes {one}; the budget, {budget}, is less. Give more.")
        return steps


def pace_of(steps: Sequence[dict[str, Any]]) -> StepTime:
    """Return what a pilot's records say.

    Args:
        steps: records of training steps, one or more, with `step` and `seconds`.
    """
    last = steps[-1]
    warm = [r for r in steps[:-1] if r["seconds"] >= WARM_SHARE * last["seconds"]]
    first = (warm or steps)[0]
    if first is last:  # one record alone: its start cannot be told apart
        return StepTime(last["seconds"] / last["step"], 0.0)
    each = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return StepTime(each, max(0.0, first["seconds"] - first["step"] * each))
