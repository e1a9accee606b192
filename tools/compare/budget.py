"""What each run of a comparison may spend: seconds of training, or image views."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Budget:
    """Length of every run; exactly one of the two is given."""

    seconds: float | None = None
    """Seconds of training. The schedule follows them, so that a run on a busy machine has as many
    as any other, and ends its schedule; it makes fewer steps."""
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

    def steps(self, image_views: int) -> int | None:
        """Return how many steps fit; None if time decides.

        Args:
            image_views: number of them in one step.

        Raises:
            ValueError: not even one step fits.
        """
        if self.image_views is None:
            return None
        steps = self.image_views // image_views
        if steps < 1:
            raise ValueError(
                f"a step takes {image_views:,} image views; the budget, image_views="
                f"{self.image_views:,}, is less. Give more."
            )
        return steps
