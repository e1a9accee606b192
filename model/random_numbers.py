"""The state of a process's random numbers, besides the data pipeline's: dropped units and paths."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """Return the state of this process's random numbers; the loader keeps its own."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # a CPU's run leaves the GPU alone
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
