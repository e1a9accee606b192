"""A run's shard sets, and the loader that goes on where the last checkpoint was."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from evaluation.suite import Suite
from pipeline.loader import Loader
from pipeline.loader_state import check_state
from pipeline.selfcheck import check_decoder, check_finish
from pipeline.tuning import float_type
from shards.layout import ShardSet, open_shards
from shards.outage import Unreachable
from shards.storage import folder_at
from training import machine_settings
from training.config import EVALUATION_SETS, Config
from training.processes import Processes
from training.run import checkpoint, quarantine, run_folder
from training.run.checkpoint import Checkpoint
from training.run.failure import Phase
from training.schedule import EpochStart, reshaped
from training.settings import place


@dataclass(frozen=True)
class ShardSets:
    """The shard sets that a configuration names, opened."""

    train: ShardSet
    """Without the samples in quarantine."""
    left_out: int
    """How many samples are in quarantine."""
    evaluation_test: ShardSet | None
    evaluation_train: ShardSet | None
    evaluation_queries: ShardSet | None
    evaluation_references: ShardSet | None

    @classmethod
    def open(cls, config: Config, *, rank: int) -> ShardSets:
        """Open them, and refuse what is missing or damaged, before any device is touched."""
        whole = _open(config, "shards", config.shards)
        train, left_out = quarantine.without(config.run, whole, rank=rank)
        located = ((name, getattr(config, name)) for name in EVALUATION_SETS)
        return cls(
            train, left_out, *(_open(config, *each) if each[1] else None for each in located)
        )

    def by_setting(self) -> dict[str, ShardSet]:
        """Return the sets that there are, by the setting that names them."""
        found = {name: getattr(self, name) for name in EVALUATION_SETS}
        return {"shards": self.train} | {n: each for n, each in found.items() if each is not None}


def _open(config: Config, name: str, location: str) -> ShardSet:
    """Open the set of a setting; if it is not there any more, its disk may be back later."""
    try:
        return open_shards(location)
    except FileNotFoundError:
        begun = (config.run / run_folder.CONFIG).exists() and not folder_at(location).exists()
        if not begun or place(name, location) != place(
            name, run_folder.read_config(config.run).get(name)
        ):
            raise
        text = "was there when this run began, and is not any more. Is its disk mounted?"
        raise Unreachable(errno.ENOENT, text, location) from None


@dataclass(frozen=True)
class Data:
    """The loader of the training set, and where it goes on."""

    loader: Loader
    since: EpochStart
    saved: dict[str, Any] | None
    """This process's file of the checkpoint that the run continues; None at its start."""
    reshaped: bool
    """Whether the batches are other ones than in the checkpoint, so that the epoch begins again."""
    tuning_source: str
    """Where the settings of the pipeline come from, in words."""


def open_data(
    config: Config,
    sets: ShardSets,
    saved: Checkpoint | None,
    processes: Processes,
    phase: Phase,
) -> Data:
    """Make the loader that goes on where a checkpoint was, or the first one of a run.

    Args:
        config: of the run.
        sets: its shard sets.
        saved: what the run continues from.
        processes: its processes.
        phase: is kept up to date while a loader looks for what cannot be read.
    """
    size = config.batch_size_per_rank(processes.world_size)
    found = machine_settings.resolve(
        config,
        sets.train,
        device=processes.device,
        batch_size_per_rank=size,
        ranks_per_node=processes.on_this_machine,
        continued=saved is not None,
    )
    tuning, source = processes.from_first(*found)  # files may differ between machines
    make = partial(
        Loader,
        sets.train,
        config.groups,
        batch_size_per_rank=size,
        rank=processes.rank,
        world_size=processes.world_size,
        device=processes.device,
        dtype=float_type(processes.device, config.autocast()),
        shuffle_buffer=config.shuffle_buffer,
        tuning=tuning,
        normalisation=config.normalisation,
        searching=phase.search,
        waiting=phase.wait,
    )
    if saved is None:
        return Data(make(seed=config.seed), EpochStart(), None, False, source)
    loader, since, own, begun_again = _continued(make, saved, config, sets, processes.rank)
    return Data(loader, since, own, begun_again, source)


def _continued(
    make: Callable[..., Loader], saved: Checkpoint, config: Config, sets: ShardSets, rank: int
) -> tuple[Loader, EpochStart, dict[str, Any], bool]:
    since, own = saved.since, saved.rank(rank if rank < saved.world_size else 0)
    with checkpoint.fits(saved.root, "this run"):
        check_state(own["loader"])
    loader = make(seed=since.seed(config.seed))
    differences = loader.differences(own["loader"])
    fewer = sets.left_out > 0 and differences.keys() <= {"samples", "manifest"}
    begins_again = bool(differences) and (config.reshape_data or fewer)
    if begins_again:
        loader.close()
        since = reshaped(saved.step, own["loader"], before=saved.since, epochs=config.epochs)
        loader = make(seed=since.seed(config.seed))
    loader.epoch = since.epoch
    return loader, since, own, begins_again


def open_suite(config: Config, sets: ShardSets, data: Data, processes: Processes) -> Suite | None:
    """Return the evaluations of the run; None if it has none."""
    if sets.evaluation_test is None:
        return None
    return Suite(
        test=sets.evaluation_test,
        train=sets.evaluation_train,
        queries=sets.evaluation_queries,
        references=sets.evaluation_references,
        group=config.views,
        device=processes.device,
        autocast=config.autocast(),
        normalisation=config.normalisation,
        rank=processes.rank,
        world_size=processes.world_size,
        tuning=data.loader.tuning,
        neighbours=config.evaluation_neighbours,
        temperature=config.evaluation_temperature,
    )


def check_device(
    config: Config, sets: ShardSets, data: Data, *, say: Callable[[str], object]
) -> None:
    """Compare a GPU's decoder and kernel with the CPU's on one batch, if the configuration says so.

    Args:
        config: of the run.
        sets: its shard sets.
        data: whose pipeline settings are used.
        say: shows a line to people.

    Raises:
        ValueError: the pixels differ by more than decoders do.
    """
    loader = data.loader
    if config.self_check and loader.device.type == "cuda":
        say(check_decoder(sets.train, device=loader.device, tuning=loader.tuning))
        if loader.tuning.finish == "fused":
            check_finish(
                config.groups,
                device=loader.device,
                dtype=loader.dtype,
                normalisation=loader.normalisation,
            )
