"""Checkpoints: written under another name, synced and renamed, so that each one is complete.

    RUN/checkpoints/00000500/
        method.safetensors            networks, queues and averages of the method
        optimizer.safetensors         optimizer and loss scaler
        rank-0.safetensors …          one a process: its loader and its random numbers
        checkpoint.json               written last: step, training time, versions, and the sha256
                                      of the files above
    RUN/checkpoints/.00000500.partial being written; removed by the next writer

Nothing is loaded that could run code: `training.run.state_file` is safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from shards import durable
from training.command import out_of_memory
from training.run import state_file
from training.schedule import EpochStart

FOLDER = "checkpoints"
RECORD = "checkpoint.json"
METHOD, OPTIMIZER = "method.safetensors", "optimizer.safetensors"
_MOST_STEPS = 10**12
# What PyTorch and its optimizers raise where a state has other names, shapes or types.
_MISFITS = (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, ValueError)


def rank_file(rank: int) -> str:
    """Return the name of what one process saves of its own."""
    return f"rank-{rank}.safetensors"


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
    since: EpochStart = field(default_factory=EpochStart)
    """Where the epoch began from which on batches were as they are in this checkpoint."""

    def below(self, run: Path) -> Checkpoint:
        """Return the same checkpoint, as a machine finds it that has the run's folder there."""
        return replace(self, root=run / FOLDER / self.root.name)

    def method(self) -> dict[str, Tensor]:
        """Return the method's state, on the CPU."""
        return self._load(METHOD)

    def optimizer(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the loss scaler."""
        return self._load(OPTIMIZER)

    def rank(self, rank: int) -> dict[str, Any]:
        """Return what one process saved of its own."""
        return self._load(rank_file(rank))

    def _load(self, name: str) -> Any:
        try:
            return state_file.loads(durable.read(self.root / name))
        except ValueError as error:
            raise ValueError(f"{self.root / name}: {error}") from error


@contextmanager
def fits(where: Path, what: str) -> Iterator[None]:
    """Say in one line that a saved state, which is taken up inside, is not what takes it up.

    Args:
        where: the state comes from.
        what: takes it up.

    Raises:
        ValueError: the state has other names, shapes or types.
    """
    try:
        yield
    except _MISFITS as error:
        if out_of_memory(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(f"{where} does not fit {what} ({kind}{text}).") from error


def partial(run: Path, step: int) -> Path:
    """Return the folder in which the checkpoint of a step is being made."""
    return run / FOLDER / f".{step:08d}.partial"


def clean(run: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed a checkpoint.

    Called by one process, which has the run's folder for itself, before any of them writes.
    """
    for leftover in (run / FOLDER).glob(".*.partial"):
        shutil.rmtree(leftover)


def write_part(run: Path, step: int, name: str, pieces: Sequence[bytes | memoryview]) -> None:
    """Write one file of the checkpoint of a step, piece after piece, and its hash beside it.

    Raises:
        OSError: the disk refused; earlier checkpoints are untouched.
    """
    folder = partial(run, step)
    folder.parent.mkdir(exist_ok=True)  # not the run's: if that was deleted, it stays so
    folder.mkdir(exist_ok=True)
    durable.write(folder / name, pieces)
    # Of the bytes in memory: a file that is read back may be damaged already.
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    durable.write(folder / f"{name}.sha256", [digest.hexdigest().encode()])


def commit(run: Path, step: int, facts: dict[str, Any]) -> None:
    """Make the checkpoint of which all processes have written their parts one that `newest` finds.

    Args:
        run: the run's folder.
        step: number of updates done.
        facts: what goes into its record besides the step and the hashes; `world_size` among them.

    Raises:
        OSError: the disk refused, or a part is missing; earlier checkpoints are untouched.
    """
    folder, begun = run / FOLDER, partial(run, step)
    # By name: a part that is not seen here, as of a folder that ranks do not share, is missing.
    parts = (METHOD, OPTIMIZER, *map(rank_file, range(facts["world_size"])))
    hashes = {name: (begun / f"{name}.sha256").read_text() for name in parts}
    for name in parts:
        (begun / f"{name}.sha256").unlink()
    record = {"step": step, **facts, "sha256": hashes}
    durable.write(begun / RECORD, [json.dumps(record, indent=1).encode(), b"\n"])
    durable.sync(begun)
    final, replaced = folder / f"{step:08d}", None
    if final.exists():  # it was damaged, or the run would have continued from it
        replaced = final.rename(folder / f".{step:08d}.replaced.partial")
    begun.rename(final)
    durable.sync(folder)
    durable.sync(run)  # in which the first checkpoint has made that folder
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def drop_old(run: Path, *, step: int, keep: int, keep_every: int) -> None:
    """Remove all checkpoints but the newest, and those of every N-th step.

    Args:
        run: the run's folder.
        step: of the newest. Checkpoints of later steps were damaged when the run was continued:
            they do not count, and are replaced when their step comes.
        keep: how many of the newest stay.
        keep_every: N; the checkpoints of its multiples stay too. 0: no others.

    Raises:
        OSError: the disk refused.
    """
    for old in [each for each in complete(run) if int(each.name) <= step][:-keep]:
        if keep_every == 0 or int(old.name) % keep_every:
            # First its name: half a checkpoint is never found.
            shutil.rmtree(old.rename(run / FOLDER / f".{old.name}.partial"))


def abandon(run: Path, step: int) -> None:
    """Remove what there is of a checkpoint that cannot be finished, to free its space."""
    shutil.rmtree(partial(run, step), ignore_errors=True)


def exists(run: Path) -> bool:
    """Whether a run has a checkpoint, damaged or not."""
    return last_step(run) is not None


def last_step(run: Path) -> int | None:
    """Return the step of a run's newest checkpoint, damaged or not; None if it has none."""
    found = complete(run)
    return int(found[-1].name) if found else None


def newest(run: Path) -> Checkpoint | None:
    """Return the newest undamaged checkpoint of a run; None if it has no checkpoint.

    Newer ones that are damaged are named on stderr: a run loses the steps since then, no more.

    Raises:
        ValueError: all of them are damaged.
    """
    found = complete(run)
    for root in reversed(found):
        try:
            return read(root)
        except ValueError as error:
            sys.stderr.write(f"warning: {error}\n")
    if found:
        raise ValueError(
            f"all {len(found)} checkpoints in {run / FOLDER} are damaged. Restore "
            "one from a copy, or remove that folder to start the run again."
        )
    return None


def read(root: Path) -> Checkpoint:
    """Open one checkpoint and compare its files with their recorded hashes.

    Raises:
        ValueError: a file is missing or differs from what was written.
    """
    try:
        record = json.loads(durable.read(root / RECORD))
        hashes = record["sha256"]
        since = record.get("epoch_start", {})
        checkpoint = Checkpoint(
            root=root,
            step=int(record["step"]),
            seconds=float(record["seconds"]),
            world_size=int(record["world_size"]),
            machine=str(record["machine"]),
            since=EpochStart(**{k: int(v) for k, v in since.items()}),
        )
        _refuse_impossible(checkpoint, files=len(hashes))
        expected = {METHOD, OPTIMIZER, *map(rank_file, range(checkpoint.world_size))}
        if missing := expected - set(hashes):
            raise ValueError(f"its record lacks {', '.join(sorted(missing))}")
        for name in expected:
            if _sha256(root / name) != hashes[name]:
                raise ValueError(f"{name} is not what was written")
    except (
        *(KeyError, TypeError, AttributeError, ValueError, OverflowError),
        *(OSError, RecursionError),
    ) as error:
        raise ValueError(f"the checkpoint {root} is damaged ({error})") from error
    return checkpoint


def _refuse_impossible(read: Checkpoint, *, files: int) -> None:
    """Refuse numbers that no run writes, before anything is counted up to them."""
    steps = (0, read.since.step, read.step, _MOST_STEPS)
    if sorted(steps) != list(steps) or not 0 <= read.since.epoch <= _MOST_STEPS:
        raise ValueError(f"its record says step {read.step} and epoch {read.since}")
    if not 0 < read.world_size <= files:
        raise ValueError(f"its record says {read.world_size} processes and {files} files")
    if not (math.isfinite(read.seconds) and read.seconds >= 0):
        raise ValueError(f"its record says {read.seconds} seconds")


def complete(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first.

    Copies that somebody has made beside them, as 00000500-2, are none of them.
    """
    named = (path.parent for path in (run / FOLDER).glob(f"[0-9]*/{RECORD}"))
    return sorted(
        (each for each in named if each.name.isascii() and each.name.isdecimal()),
        key=lambda each: int(each.name),
    )


def _sha256(path: Path) -> str:
    with durable.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
