"""The first things that a run does in its folder, and the objects that write there from then on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from training import machine_settings
from training.data import Data
from training.processes import Processes
from training.run import checkpoint, equal_ranks, failure, run_folder
from training.run.checkpoint import Checkpoint
from training.run.origin import commit, versions
from training.run.writer import Writer
from training.settings import Settings


def begin(
    settings: Settings,
    saved: Checkpoint | None,
    data: Data,
    processes: Processes,
    phase: failure.Phase,
    *,
    taken: bool,
) -> list[str]:
    """Make the folder this run's, on all ranks; return which processes were killed before.

    Args:
        settings: of the run.
        saved: what it continues from.
        data: whose pipeline settings are kept.
        processes: wait for each other here.
        phase: learns that the folder is this run's.
        taken: what `run_folder.take` returned.

    Raises:
        ValueError: the folder is another one on some machine; or the number of processes or their
            arithmetic is not what it was.
    """
    run = settings.config.run
    if saved is not None:  # before its configuration is replaced
        here = {"world_size": processes.world_size, "machine": processes.machine}
        run_folder.check_continues(saved, **here, reshaped=data.reshaped)
    killed: list[str] = []
    if processes.first:
        run_folder.prepare(run, settings, taken=taken)
        checkpoint.clean(run)
        killed = failure.silent_ends(run)
        machine_settings.write(run / machine_settings.NAME, data.loader.tuning)
    processes.accelerator.wait_for_everyone()
    equal_ranks.refuse_other_disks(run, processes)
    phase.prepared = True
    failure.keep_stderr(run, processes.rank)
    return killed


def newest_checkpoint(run: Path, processes: Processes) -> Checkpoint | None:
    """Return what the run goes on from, as rank 0 sees it, where this machine has the folder.

    Raises:
        ValueError: all checkpoints are damaged.
    """
    found = processes.from_first(checkpoint.newest(run) if processes.first else None)
    return found and found.below(run)


def open_writer(settings: Settings, data: Data, processes: Processes) -> Writer:
    """Return what writes the run's checkpoints."""
    config = settings.config
    facts = {
        "world_size": processes.world_size,
        "machine": processes.machine,
        "epoch_start": asdict(data.since),
        "commit": commit(),
        "versions": versions(),
        "config": settings.resolved,
    }
    return Writer(
        config.run,
        rank=processes.rank,
        facts=facts,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
    )
