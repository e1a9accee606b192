"""Who takes part in a run, on which device, in which precision."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    PartialState,
)
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.tuning import default_threads
from training.config import Config, gpu_available
from training.launch import launched, meet_again
from training.run.failure import Phase

# With those that do more, in collective operations. An evaluation may take longer than NCCL's ten
# minutes; what hangs is ended by the watchdog, or by nobody where --hang_seconds is 0.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, which have met; and this one among them."""

    accelerator: Accelerator
    rank: int
    world_size: int
    on_this_machine: int
    """How many of them run here."""
    precision: str
    """Of the networks: no, bf16 or fp16."""
    timeout: timedelta
    """How long one waits for another."""

    @classmethod
    def meet(cls, config: Config, phase: Phase) -> Processes:
        """Wait for all processes that the launcher has started.

        Args:
            config: of the run.
            phase: is kept up to date.
        """
        rank, world_size = rank_and_world_size()
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before its first product
            torch.use_deterministic_algorithms(True, warn_only=True)
        phase.enter("meeting of the ranks")
        meet_again(cpu=not config.on_gpu, timeout=_PATIENCE)
        precision = config.precision()
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=precision,
            dynamo_backend="no",  # config.compile decides, not the launcher
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=_PATIENCE),
                DistributedDataParallelKwargs(
                    find_unused_parameters=keeps_order(config, world_size)
                ),
            ],
        )
        phase.enter("preparation", patience=10)
        here = local_world_size()
        if accelerator.device.type == "cpu":
            use_threads(here)
        return cls(accelerator, rank, world_size, here, precision, _PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process is rank 0, which writes and speaks for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """What this process computes on."""
        device = self.accelerator.device
        # Accelerate numbers CPUs by rank: "cpu:0" is the same, and compares as another device.
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def machine(self) -> str:
        """Device and precision, such as "cpu, bf16": another one would round differently."""
        return f"{self.device.type}, {self.precision}"

    def leave(self, code: int, *, last: Callable[[], None]) -> NoReturn:
        """End this process.

        Args:
            code: its exit code.
            last: is called before it leaves the others.
        """
        last()
        self.accelerator.end_training()
        sys.exit(code)

    def from_first(self, *values: Any) -> Any:
        """Return the values that rank 0 gives, on all ranks; one value alone, several as a list."""
        given = list(values)
        if self.world_size > 1:
            given = broadcast_object_list(given)
        return given[0] if len(values) == 1 else given


def keeps_order(config: Config, world_size: int) -> bool:
    """Whether gradients are summed over the ranks in the same order in every step.

    After its first step distributed data parallel puts them into other buckets, so that a run which
    goes on would differ from one in peace by rounding, with three ranks or more. It does not where
    it looks for unused weights, which costs a walk through the graph a step.
    """
    exact = config.deterministic or not config.on_gpu  # of two, either order has one sum
    return config.method.trains_part or (exact and world_size > 2)


def rank_and_world_size() -> tuple[int, int]:
    """Return which process this is and of how many, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str) -> PartialState:
    """Wait for the other processes of a command that trains no run, if a launcher started some.

    Args:
        device: auto, cpu or gpu.
    """
    cpu = device == "cpu" or not gpu_available()
    meet_again(cpu=cpu, timeout=_PATIENCE)
    processes = PartialState(cpu=cpu, timeout=_PATIENCE)
    if cpu:
        use_threads(local_world_size())
    return processes


def use_threads(ranks_per_node: int = 1) -> None:
    """Give PyTorch a rank's share of the cores.

    What a person says by OMP_NUM_THREADS stays; a launcher sets that to 1 of its own accord.
    """
    if "OMP_NUM_THREADS" not in os.environ or launched():
        torch.set_num_threads(default_threads(ranks_per_node))


def local_world_size() -> int:
    """Return how many processes of this command run on this machine, as the launcher says.

    All of them, where it says only how many there are.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", rank_and_world_size()[1]))


def smallest(number: int) -> int:
    """Return the smallest of a number over all ranks, each of which calls this."""
    return min(gather_object([number]))
