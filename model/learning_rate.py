"""Learning rates as pure functions of the step: there is nothing to save."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the rate of the given step: a linear warm-up to `peak`, then a cosine to zero.

    Args:
        step: 0 for the first update.
        peak: highest rate, reached by the last step of the warm-up.
        warmup_steps: length of the warm-up; 0 starts at the peak.
        total_steps: length of the run, warm-up included; the rate after it would be zero.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * cosine(progress)


def cosine(progress: float) -> float:
    """Return half a cosine, from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
