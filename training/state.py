"""All that a run continues from: what every process saves, and how it takes it up again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.optimizer import load_optimizer
from model.random_numbers import random_state, set_random_state
from pipeline.loader import Loader
from training.data import Data
from training.run import checkpoint
from training.run.checkpoint import Checkpoint
from training.step import Step


@dataclass(frozen=True)
class State:
    """The objects of one process whose states make a checkpoint.

    Random numbers are this process's; the rest of a checkpoint is the same for all ranks, and
    rank 0 saves it.
    """

    step: Step
    loader: Loader
    scaler: Any
    """Of the loss, under fp16; else None."""
    rank: int

    def parts(self) -> dict[str, Any]:
        """Return what this process saves, by file."""
        own = {"loader": self.loader.state_dict(), "random": random_state()}
        parts: dict[str, Any] = {
            checkpoint.rank_file(self.rank): own | {"guard": self.step.guard.state_dict()}
        }
        if self.rank == 0:
            parts[checkpoint.METHOD] = self.step.method.state_dict()
            parts[checkpoint.OPTIMIZER] = {
                "optimizer": self.step.optimizer.state_dict(),
                "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            }
        return parts

    def restore(self, saved: Checkpoint, data: Data) -> None:
        """Take up what `parts` returned.

        Args:
            saved: the checkpoint.
            data: with what this process saved in it.

        Raises:
            ValueError: it is the state of another run, or was changed.
        """
        assert data.saved is not None
        method, states = saved.method(), saved.optimizer()
        with checkpoint.fits(saved.root, "this run"):
            self.step.method.load_state_dict(method)
            load_optimizer(self.step.optimizer, states["optimizer"])
            if self.scaler is not None:
                self.scaler.load_state_dict(states["scaler"])
            if self.rank < saved.world_size:
                set_random_state(data.saved["random"])
            self.step.guard.load_state_dict(data.saved["guard"])
        if not data.reshaped:
            self.loader.load_state_dict(data.saved["loader"])
