"""Around a run: a word in its folder if it ends badly, an end if it hangs, another start if not.

A sample that cannot be read ends the run too. With `--max_bad_samples` it is looked for, left out,
and the run starts again by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.unreadable import Unreadable
from shards.layout import open_shards
from shards.outage import answer_within
from training.config import Config
from training.launch import restart
from training.processes import rank_and_world_size
from training.run import quarantine
from training.run.failure import Phase, reported
from training.run.watchdog import Watchdog


@contextmanager
def supervised(config: Config) -> Iterator[Phase]:
    """Watch over what happens inside, which keeps the phase up to date.

    Raises:
        ValueError: a sample cannot be read, and none may be left out.
        Unreachable: a place does not answer; the same command may succeed later.
    """
    rank, world_size = rank_and_world_size()
    answer_within(config.hang_seconds)
    left_out: list[str] = []
    with (
        reported(config.run, rank=rank) as phase,
        Watchdog(config.run, phase, rank=rank, world_size=world_size, limit=config.hang_seconds),
    ):
        try:
            yield phase
        except Unreadable as error:
            left_out = _leave_out(config, phase, error)
    if left_out:
        restart()


def _leave_out(config: Config, phase: Phase, error: Unreadable) -> list[str]:
    """Return which samples the run goes on without; raise the error if it cannot."""
    whole = open_shards(config.shards)
    if error.root != whole.root:
        raise error
    if not config.max_bad_samples:
        remedy = "or let this run leave it out, with --max_bad_samples"
        raise ValueError(f"{error}; {remedy}") from error
    phase.search()
    found = quarantine.extend(
        config.run, whole, limit=config.max_bad_samples, progress=phase.search
    )
    if not found:
        raise error
    sys.stderr.write(f"warning: left out from now on: {'; '.join(found)} ({error})\n")
    return found
