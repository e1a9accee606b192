"""Checkpoints: written aside, synced and renamed, so that whatever exists is complete.

    RUN/checkpoints/00000500/
        method.safetensors   networks, queues and averages of the method
        optimizer.pt         optimizer and loss scaler
        rank-0.pt …          one a process: state of its loader and of its random numbers
        checkpoint.json      written last: step, training time, versions, sha256 of the files above

Nothing is loaded that could run code: safetensors, JSON, and torch.load with weights_only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

FOLDER = "checkpoints"
RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk; `newest` finds it."""

    root: Path
    step: int
    seconds: float
    """Training time so far."""
    world_size: int
    machine: str
    """Device and precision, such as "cpu, bf16": another one would round differently."""

    def method(self) -> dict[str, Tensor]:
        """Return the method's state, on the CPU."""
        return safetensors.torch.load_file(self.root / "method.safetensors")

    def optimizer(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the loss scaler."""
        return torch.load(self.root / "optimizer.pt", map_location="cpu", weights_only=True)

    def rank(self, rank: int) -> dict[str, Any]:
        """Return what one process saved of its own."""
        return torch.load(self.root / f"rank-{rank}.pt", map_location="cpu", weights_only=True)


def save(
    run: Path,
    *,
    step: int,
    seconds: float,
    method: dict[str, Tensor],
    optimizer: dict[str, Any],
    rank_state: dict[str, Any],
    rank: int,
    world_size: int,
    machine: str,
    keep: int,
    barrier: Callable[[], None],
) -> None:
    """Write a checkpoint; every rank calls this at the same step.

    Args:
        run: the run's folder.
        step: number of updates done.
        seconds: training time so far.
        method: state of the method; written by rank 0.
        optimizer: state of the optimizer and scaler; written by rank 0.
        rank_state: what this process alone knows.
        rank: this process.
        world_size: number of processes.
        machine: device and precision; a run continues on the same.
        keep: how many of the newest checkpoints stay.
        barrier: returns once every rank has called it.

    Raises:
        OSError: the disk refused; earlier checkpoints are untouched.
    """
    folder = run / FOLDER
    partial, final = folder / f".{step:08d}.partial", folder / f"{step:08d}"
    if rank == 0:
        for leftover in folder.glob(".*.partial"):  # of a process that was killed while writing
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    barrier()
    try:
        torch.save(rank_state, partial / f"rank-{rank}.pt")
        if rank == 0:
            tensors = {name: tensor.contiguous() for name, tensor in method.items()}
            safetensors.torch.save_file(tensors, partial / "method.safetensors")
            torch.save(optimizer, partial / "optimizer.pt")
    except (RuntimeError, safetensors.SafetensorError) as error:  # what both make of a full disk
        raise OSError(
            errno.EIO,
            f"the checkpoint could not be written ({error}); earlier ones are untouched. Free "
            "space and run the same command again",
            str(partial),
        ) from error
    barrier()
    if rank == 0:
        files = sorted(partial.iterdir())
        for path in files:
            _sync(path)
        record = {
            "step": step,
            "seconds": seconds,
            "world_size": world_size,
            "machine": machine,
            "sha256": {path.name: _sha256(path) for path in files},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        _sync(partial / RECORD)
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)  # the same step of a run that was continued
        partial.rename(final)
        _sync(folder)
        for old in _complete(run)[:-keep]:
            shutil.rmtree(old)
    barrier()


def newest(run: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or none.

    Raises:
        ValueError: it is damaged: a file is missing or differs from what was written.
    """
    complete = _complete(run)
    return read(complete[-1]) if complete else None


def read(root: Path) -> Checkpoint:
    """Open one checkpoint and compare its files with their recorded hashes.

    Raises:
        ValueError: a file is missing or differs from what was written.
    """
    try:
        record = json.loads((root / RECORD).read_text())
        hashes = record["sha256"]
        checkpoint = Checkpoint(
            root=root,
            step=int(record["step"]),
            seconds=float(record["seconds"]),
            world_size=int(record["world_size"]),
            machine=str(record["machine"]),
        )
        for name, expected in hashes.items():
            if _sha256(root / name) != expected:
                raise ValueError(f"{name} is not what was written")
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"the checkpoint {root} is damaged ({error}). Remove that folder to continue from the "
            "checkpoint before it."
        ) from error
    return checkpoint


def random_state() -> dict[str, Tensor]:
    """Return the state of this process's random numbers; the loader keeps its own."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _complete(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / FOLDER).glob(f"[0-9]*/{RECORD}"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until the file or folder is on the disk, not only in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
