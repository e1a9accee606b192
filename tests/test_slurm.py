"""The batch scripts of the guides: on SLURM itself where it is installed, and with a stand-in."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeShardSet
from tests.program import BIN, CPU, ROOT, arguments, losses, wait_for_step
from tests.slurm import SCENARIOS, SlurmCluster, available, cluster, of_run, script
from tests.two_nodes import Rehearsal
from training.run import checkpoint

pytestmark = pytest.mark.slow
SAID = {
    "trains": "30 losses and all weights are those of one machine, to the bit",
    "outlives_a_node": "30 losses and all weights are those of one machine, to the bit",
    "is_warned": "30 losses and all weights are those of one machine, to the bit",
    "runs_out_of_time": "queued again, and went on",
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SlurmCluster, Rehearsal]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as both:
        yield both


@pytest.mark.skipif(not available(), reason="root, SLURM, MUNGE and network namespaces are needed")
@pytest.mark.parametrize("name", SCENARIOS)
def test_slurm(name: str, slurm: tuple[SlurmCluster, Rehearsal], tmp_path: Path) -> None:
    assert SAID[name] in SCENARIOS[name](*slurm, tmp_path / "run")


def test_a_job_that_is_told_to_end_saves_is_queued_again_and_goes_on(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    """With a stand-in for SLURM's own command."""
    run, told = tmp_path / "run", tmp_path / "told"
    words = arguments(make_shard_set(42), run, "--steps", "400", "--checkpoint_every", "1000")
    batch = of_run(script("docs/reliability.md"), words, run)
    saved_then = f"ls {run / checkpoint.FOLDER} >> {told}"  # when it is queued, not afterwards
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {told}\n{saved_then}\n')
    (tmp_path / "scontrol").chmod(0o755)
    environment = {**os.environ, **CPU, "SLURM_JOB_ID": "17"}
    environment["PATH"] = f"{tmp_path}:{BIN}:{os.environ['PATH']}"

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", batch],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    job = submit()
    wait_for_step(job, run, 5)
    job.send_signal(signal.SIGUSR1)  # to the batch shell alone, as --signal=B:USR1 does
    out, err = job.communicate(timeout=60)
    saved = checkpoint.newest(run)
    assert saved is not None and saved.step == losses(run)[-1][0]
    assert told.read_text() == f"requeue 17\n{saved.root.name}\n", out + err

    again = submit()
    wait_for_step(again, run, saved.step + 5)
    os.killpg(again.pid, signal.SIGKILL)
    again.communicate()
    assert [step for step, _ in losses(run)] == list(range(1, losses(run)[-1][0] + 1))
