"""One step with all that it depended on, for `python -m tools.replay`.

RUN/dumps/00000123-rank-0.safetensors   weights, buffers, views and ids of one rank
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.loader import Batch
from shards import durable
from training.processes import Processes
from training.run import state_file

FOLDER = "dumps"


@dataclass(frozen=True)
class Dump:
    """Weights, views and ids of one process at a step."""

    step: int
    """Number of updates before it, skipped ones included."""
    rank: int
    world_size: int
    method: dict[str, Tensor]
    """Weights and buffers before the step, which a skipped one leaves as they were."""
    views: tuple[Tensor, ...]
    """One tensor a view group, [V, B, C, H, W]."""
    id_B: Tensor


def write(
    run: Path,
    *,
    step: int,
    rank: int,
    world_size: int,
    method: nn.Module,
    views: Sequence[Tensor],
    id_B: Tensor,
) -> Path:
    """Write a dump of a skipped step of this process, and return its path.

    Args:
        run: the run's folder.
        step: number of updates before it.
        rank: this process.
        world_size: number of processes.
        method: the trained method, which the step has left unchanged.
        views: of the step, one tensor a view group, [V, B, C, H, W].
        id_B: stable ids of its samples.

    Raises:
        OSError: the disk refused.
    """
    state = {"step": step, "rank": rank, "world_size": world_size, "method": method.state_dict()}
    state |= {"views": list(views), "id": id_B}
    path = run / FOLDER / f"{step:08d}-rank-{rank}.safetensors"
    path.parent.mkdir(exist_ok=True)
    held = state_file.to_host(state)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # the copies are under way
    durable.replace(path, state_file.pieces(held))
    return path


def given_up(
    run: Path, processes: Processes, method: nn.Module, batch: Batch, *, step: int, in_a_row: int
) -> ValueError:
    """Write the last of several bad steps, and return the error that ends the run.

    Args:
        run: the run's folder.
        processes: of the run.
        method: what is trained.
        batch: of the last step.
        step: number of updates, the bad ones included.
        in_a_row: how many of the last steps changed nothing.
    """
    try:
        path = write(
            run,
            step=step - 1,
            rank=processes.rank,
            world_size=processes.world_size,
            method=method,
            views=batch.views,
            id_B=batch.id_B,
        )
        look = f"Look at it with python -m tools.replay {path}."
    except OSError as error:
        look = f"It could not be dumped ({error})."
    return ValueError(
        f"the gradient was not finite in the last {in_a_row} steps up to {step:,}; they changed "
        f"nothing. {look} Lower --learning_rate, raise --warmup_epochs, set --clip_gradient_norm 1 "
        "or --mixed_precision bf16 instead of fp16, in a new --run."
    )


def read(path: Path) -> Dump:
    """Read what `write` wrote; no code of it runs.

    Raises:
        ValueError: it is no dump.
    """
    try:
        state: dict[str, Any] = state_file.loads(durable.read(path))
        found = Dump(
            step=int(state["step"]),
            rank=int(state["rank"]),
            world_size=int(state["world_size"]),
            method={str(name): tensor for name, tensor in state["method"].items()},
            views=tuple(state["views"]),
            id_B=state["id"],
        )
        _refuse_misfits(found)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is no dump of a step ({error}).") from None
    return found


def _refuse_misfits(found: Dump) -> None:
    """Refuse tensors that are not weights, views and ids of one batch."""
    if not all(isinstance(tensor, Tensor) for tensor in found.method.values()):
        raise ValueError("its weights are no tensors")
    ids: Any = found.id_B
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1 or not len(ids):
        raise ValueError("its ids are no row of whole numbers")
    for view in found.views:
        if not isinstance(view, Tensor) or not view.is_floating_point() or view.ndim != 5:
            raise ValueError("its views are no images [V, B, C, H, W]")
        if view.shape[1] != len(ids):
            raise ValueError(f"it has views of {view.shape[1]} samples and ids of {len(ids)}")
