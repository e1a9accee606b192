"""All that a run continues from: what every process saves, and how it takes it up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.loader import Loader
from training.course import Course, reshaped
from training.run import checkpoint
from training.run.checkpoint import Checkpoint
from training.step import Step


@dataclass(frozen=True)
class Data:
    """Where the samples come from, and since when."""

    loader: Loader
    course: Course
    own: dict[str, Any] | None
    """What this process saved of its own; none at the start of a run."""
    anew: bool
    """Whether batches are others than in the checkpoint, so that the epoch begins anew."""


def open_data(
    make_loader: Callable[..., Loader],
    saved: Checkpoint | None,
    *,
    seed: int,
    rank: int,
    reshape: bool,
    left_out: int = 0,
) -> Data:
    """Make the loader that goes on where a checkpoint was, or the first one of a run.

    Args:
        make_loader: makes it from a seed.
        saved: what the run continues from.
        seed: of the run.
        rank: this process.
        reshape: whether other batches than the checkpoint's are allowed.
        left_out: how many samples are in quarantine; they may have been in the checkpoint's.
    """
    if saved is None:
        return Data(make_loader(seed=seed), Course(), own=None, anew=False)
    course, own = saved.course, saved.rank(rank if rank < saved.world_size else 0)
    loader = make_loader(seed=course.seed(seed))
    differences = loader.differences(own["loader"])
    fewer = left_out > 0 and differences.keys() <= {"samples", "manifest"}
    anew = bool(differences) and (reshape or fewer)
    if anew:
        loader.close()
        course = reshaped(saved.step, own["loader"])
        loader = make_loader(seed=course.seed(seed))
    loader.epoch = course.epoch
    return Data(loader, course, own, anew)


@dataclass(frozen=True)
class State:
    """The objects of one process whose states make a checkpoint.

    Random numbers are this process's; the rest of a checkpoint is the same for all ranks, and
    rank 0 saves it.
    """

    step: Step
    loader: Loader
    scaler: Any
    """Of the loss, under fp16; else none."""
    rank: int

    def parts(self) -> dict[str, Any]:
        """Return what this process saves, by file."""
        own = {"loader": self.loader.state_dict(), "random": checkpoint.random_state()}
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
        """Take up what `parts` returned."""
        assert data.own is not None
        self.step.method.load_state_dict(saved.method())
        states = saved.optimizer()
        self.step.optimizer.load_state_dict(states["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(states["scaler"])
        if not data.anew:
            self.loader.load_state_dict(data.own["loader"])
        if self.rank < saved.world_size:
            checkpoint.set_random_state(data.own["random"])
        self.step.guard.load_state_dict(data.own["guard"])
