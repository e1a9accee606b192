"""Harm one rank of two, and measure how the job comes back.

    python -m tests.rank_failure --rounds 3 --out benchmarks/results/rank-failure-cpu.json

A run under `accelerate launch --max_restarts` loses its second rank: killed, stopped (SIGSTOP), or
left without another page of memory. Nobody helps it. Measured are the seconds from the harm until a
rank of the next attempt lives and until the run is past the step that it had reached, and the steps
that were taken twice; losses and weights must in the end be those of a run in peace, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shards.layout import ShardSet, open_shards
from shards.writing.write import write
from tests.conftest import Pictures
from tests.program import BIN, TWO, arguments, finish, losses, start, wait_for_step, weights
from training.run import checkpoint, failure
from training.surroundings import surroundings

STEPS, EVERY, HANG_SECONDS = 150, 10, 8
PATIENCE = 170
"""Seconds that a job has to come back and end."""
LAUNCH = [str(BIN / "accelerate"), *TWO, "--max_restarts", "2", "--monitor_interval", "0.2"]


def command(shard_set: ShardSet, run: Path, *more: str) -> list[str]:
    """Return the command line of a run over two processes."""
    run.parent.mkdir(parents=True, exist_ok=True)
    words = ["--steps", str(STEPS), "--checkpoint_every", str(EVERY)]
    words += ["--hang_seconds", str(HANG_SECONDS), *more]
    return [*LAUNCH, *arguments(shard_set, run, *words)]


def process_of(run: Path, rank: int) -> int | None:
    """Return the process of a rank, as it says itself every few seconds."""
    try:
        return json.loads((run / failure.RANKS / f"rank-{rank}.json").read_text())["process"]
    except (OSError, ValueError):
        return None


def killed(process: int) -> None:
    """As the kernel does that has no memory left."""
    os.kill(process, signal.SIGKILL)


def stopped(process: int) -> None:
    """As a driver or a file system does that never answers."""
    os.kill(process, signal.SIGSTOP)


def starved(process: int) -> None:
    """Leave a process not a page more than it has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))


HARMS: Mapping[str, Callable[[int], None]] = {
    "killed": killed,
    "stopped": stopped,
    "starved": starved,
}


def recover(harm: str, shard_set: ShardSet, peaceful: Path, run: Path) -> dict[str, Any]:
    """Harm the second rank of a run, wait until the run has ended well, and compare.

    Args:
        harm: a name of `HARMS`.
        shard_set: what is trained on.
        peaceful: the run that nothing disturbed.
        run: folder of the new one.
    """
    program = start(command(shard_set, run))
    wait_for_step(program, run, EVERY + 2)
    victim = None
    while victim is None:
        victim = process_of(run, 1)
    HARMS[harm](victim)
    found = _watch(program, run)
    out, err = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, out + err
    assert losses(run) == losses(peaceful)
    expected = weights(peaceful)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    if harm == "stopped":
        assert "rank 1 (process" in err and "has stopped or lost its disk" in err, err
    assert not (run / failure.NAME).exists()  # it ended well
    return found


def _watch(program: subprocess.Popen[str], run: Path) -> dict[str, Any]:
    begin, first = time.monotonic(), process_of(run, 0)
    reached, alive, saved_step = 0, None, 0
    while program.poll() is None:
        assert time.monotonic() - begin < PATIENCE, program.communicate()
        steps = [step for step, _ in losses(run)]
        if alive is None and process_of(run, 0) in (first, None):
            reached = max([reached, *steps])
            saved = checkpoint.newest(run)
            saved_step = saved.step if saved else 0
        elif alive is None:
            alive = time.monotonic() - begin
        elif steps and steps[-1] > reached:
            return {
                "alive_after_seconds": round(alive, 1),
                "past_it_after_seconds": round(time.monotonic() - begin, 1),
                "step_reached": reached,
                "step_restored": saved_step,
                "steps_lost": reached - saved_step,
            }
        time.sleep(0.05)
    out, err = program.communicate()
    raise AssertionError(f"the run ended with {program.returncode}: {out}{err}")


def main() -> None:
    """Harm, watch and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each harm")
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {harm: [] for harm in HARMS}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write(Pictures(42), str(folder / "shards"))
        shard_set = open_shards(str(folder / "shards"))
        peaceful = folder / "peaceful" / "run"
        code, out, err = finish(command(shard_set, peaceful))
        assert code == 0, out + err
        for number in range(given.rounds):
            for harm, rounds in found.items():
                run = folder / f"{harm}-{number}" / "run"
                rounds.append(recover(harm, shard_set, peaceful, run))
                print(harm, rounds[-1], flush=True)
    done = {
        "command": f"python -m tests.rank_failure --rounds {given.rounds}",
        "surroundings": surroundings("torch", "accelerate", "nvidia-dali-cuda130"),
        "checkpoint_every_steps": EVERY,
        "hang_seconds": HANG_SECONDS,
        "equal_to_the_bit": True,
        "found": found,
    }
    if given.out:
        given.out.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
