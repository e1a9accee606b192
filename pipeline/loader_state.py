"""What a loader refuses to go on from: state that is none, or that DALI does not take."""

from __future__ import annotations

from typing import Any

import torch


def check_state(state: Any) -> None:
    """Refuse what is no state of a loader.

    Raises:
        ValueError: a part is missing or has another type.
    """
    counts = {"samples": 1, "world_size": 1, "batch_size_per_rank": 1, "epoch": 0, "step": 0}
    if not isinstance(state, dict):
        raise ValueError(f"the state of its loader is {str(state)[:80]}")
    for name, least in counts.items():
        if not (isinstance(value := state.get(name), int) and least <= value < 2**53):
            raise ValueError(f"its loader has {name}={str(value)[:80]}")
    if getattr(state.get("pipeline"), "dtype", None) != torch.uint8:
        raise ValueError("its loader has no state of the pipeline")


def state_refused(error: Exception) -> ValueError | None:
    """Return what to say if DALI does not take the state of its pipeline; else None."""
    text = " ".join(str(error).split())
    if " checkpoint" not in text:  # it calls so what it is given to go on from, whatever is wrong
        return None
    return ValueError(
        "DALI cannot go on from the checkpoint: another version wrote it, or it was changed "
        f"({text[:200]}). Set --reshape_data true to begin the epoch again."
    )
