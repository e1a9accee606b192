"""Rehearse the batch scripts of the guides on SLURM itself, with two nodes in this machine.

    python -m tests.slurm [SCENARIO …]    # as root, with SLURM and MUNGE: a line for each

The nodes are those of `tests.two_nodes`, and each has a slurmd; slurmctld is on the first. GPUs
are only names that SLURM counts: a job of `--gpus-per-node=8` gets them, and trains on the CPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.program import BIN, CPU, ROOT, losses
from tests.two_nodes import ADDRESSES, CABLE, PATIENCE, Rehearsal, kill_all, on, two_nodes
from tests.two_nodes import available as namespaces_are_available
from training.run import checkpoint

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun")
CONFIGURATION = """
ClusterName=rehearsal
SlurmctldHost={first}({address})
SlurmUser=root
AuthType=auth/munge
# A job that is queued again waits until its first start's credentials have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""

FILES = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}
"""{flag of munged: ending of the file}."""


def available() -> bool:
    """Whether SLURM is installed, and this process may make namespaces."""
    return all(map(shutil.which, PROGRAMS)) and namespaces_are_available()


def script(page: str) -> str:
    """Return the batch script of a page."""
    text = (ROOT / page).read_text()
    (found,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, flags=re.DOTALL)
    return found


def of_run(batch: str, words: list[str], run: Path) -> str:
    """Return a guide's script for a run of our own, with one process a node."""
    given = " ".join(words)
    batch, changed = re.subn(r"train\.py --config recipes/X\.yaml --run runs/X", given, batch)
    assert changed == 1
    batch = batch.replace("runs/X", str(run)).replace("--nproc_per_node 8", "--nproc_per_node 1")
    assert batch.count(str(run)) >= 2
    return batch


class SlurmCluster:
    """SLURM on two nodes.

    Args:
        nodes: their namespaces.
        folder: for its files.
    """

    def __init__(self, nodes: tuple[str, str], folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        (folder / "state").mkdir()
        lines = [
            f"NodeName={name} NodeAddr={address} CPUs=1 RealMemory=1000 Gres=gpu:8"
            for name, address in zip(nodes, ADDRESSES, strict=True)
        ]
        names = {"first": nodes[0], "address": ADDRESSES[0], "folder": folder}
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(CONFIGURATION.format(**names, nodes="\n".join(lines)))
        devices = "\n".join(f"Name=gpu File=/dev/tty{number}" for number in range(8))
        (folder / "gres.conf").write_text(devices)
        # No cgroup is used; looking for one fails in a network namespace, whose /sys is its own.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.munge: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle."""
        self._start_munge()
        self._daemon(self.nodes[0], ["slurmctld", "-D", "-f", str(self.configuration)])
        for node in self.nodes:
            self.node(node)
        idle = lambda: self.ask("sinfo", "--noheader", "--format=%t %D") == "idle 2"  # noqa: E731
        self._wait(idle, self.logs)

    def stop(self) -> None:
        """End MUNGE's daemon; those of SLURM end with their namespaces."""
        if self.munge is not None:
            self.munge.send_signal(signal.SIGTERM)
            self.munge.wait()

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in paths)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}={self.folder}/munge.{end}" for name, end in FILES.items()]
        program = ["munged", "--foreground", "--force", *files]
        with (self.folder / "munged.out").open("a") as log:
            self.munge = subprocess.Popen(program, stdout=log, stderr=log)

    def _daemon(self, node: str, program: list[str]) -> None:
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        with (self.folder / f"{node}.out").open("a") as log:
            subprocess.Popen(on(node, program), env=environment, stdout=log, stderr=log)

    def node(self, name: str) -> None:
        """Start a node's daemon, which has a core: more threads add up in another order."""
        core = str(self.nodes.index(name) % (os.cpu_count() or 1))
        self._daemon(name, ["taskset", "-c", core, "slurmd", "-D", "-f", str(self.configuration)])

    def ask(self, *words: str) -> str:
        """Return what a command of SLURM's says on the first node."""
        return subprocess.run(
            on(self.nodes[0], list(words)),
            env={
                **os.environ,
                **CPU,
                "SLURM_CONF": str(self.configuration),
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "GLOO_SOCKET_IFNAME": CABLE,
                "TP_SOCKET_IFNAME": CABLE,
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()

    def submit(self, batch: str, *flags: str) -> str:
        """Queue a batch script; return the job's number."""
        path = self.folder / "job.sh"
        path.write_text(batch)
        output = f"--output={self.folder}/job-%j.out"
        number = self.ask("sbatch", "--parsable", output, *flags, str(path))
        assert number.isdigit(), number
        return number

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of a job."""
        said = self.ask("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\w+)=(\S*)", said))

    def output(self, number: str) -> str:
        """Return what a job has said so far."""
        path = self.folder / f"job-{number}.out"
        return path.read_text() if path.exists() else ""

    def wait_for(self, number: str, **fields: str) -> None:
        """Wait until a job's fields are such."""
        self._wait(lambda: fields.items() <= self.job(number).items(), lambda: self.said(number))

    def wait_for_step(self, number: str, run: Path, step: int) -> None:
        """Wait until a job's run has made a step."""
        made = lambda: any(at >= step for at, _ in losses(run))  # noqa: E731
        self._wait(made, lambda: self.said(number))

    def said(self, number: str) -> str:
        """Return all that is known of a job, for a failed test."""
        return f"{self.job(number)}\n{self.output(number)}"

    def _wait(self, true: Callable[[], bool], why: Callable[[], str]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, why()
            time.sleep(0.05)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[SlurmCluster, Rehearsal]]:
    """Give a cluster, and the runs to compare with; all of it ends afterwards."""
    with two_nodes() as nodes:
        slurm = SlurmCluster(nodes, folder)
        try:
            slurm.start()
            yield slurm, Rehearsal(nodes, folder)
        finally:
            slurm.stop()


def trains(slurm: SlurmCluster, rehearsal: Rehearsal, run: Path) -> str:
    """The script of two machines."""
    batch = of_run(script("docs/guides/launching.md"), rehearsal.words(run), run)
    job = slurm.submit(batch)
    slurm.wait_for(job, JobState="COMPLETED")
    return rehearsal.check(run)


def outlives_a_node(slurm: SlurmCluster, rehearsal: Rehearsal, run: Path) -> str:
    """The second machine loses its power and comes back: SLURM queues the job again."""
    batch = of_run(script("docs/guides/launching.md"), rehearsal.words(run), run)
    job = slurm.submit(batch)
    slurm.wait_for_step(job, run, 12)
    kill_all(slurm.nodes[1])
    begin = time.monotonic()
    slurm.wait_for(job, Restarts="1")
    seconds = time.monotonic() - begin
    slurm.node(slurm.nodes[1])
    slurm.wait_for(job, Restarts="1", JobState="COMPLETED")
    return f"queued again after {seconds:.0f} s: {rehearsal.check(run)}"


def is_warned(slurm: SlurmCluster, rehearsal: Rehearsal, run: Path) -> str:
    """The two machines are told that their time ends: the run saves, and goes on."""
    batch = of_run(script("docs/guides/launching.md"), rehearsal.words(run), run)
    job = slurm.submit(batch)
    slurm.wait_for_step(job, run, 12)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1 does
    slurm.wait_for(job, Restarts="1")
    saved = checkpoint.newest(run)
    assert saved is not None and saved.step == losses(run)[-1][0], slurm.said(job)
    slurm.wait_for(job, Restarts="1", JobState="COMPLETED")
    return f"saved at step {saved.step}: {rehearsal.check(run)}"


def runs_out_of_time(slurm: SlurmCluster, rehearsal: Rehearsal, run: Path) -> str:
    """One machine's script, and a job of two minutes: SLURM's own warning."""
    words = rehearsal.words(run, "--steps", "100000", "--checkpoint_every", "100000")
    job = slurm.submit(of_run(script("docs/reliability.md"), words, run), "--time=2")
    slurm.wait_for(job, Restarts="1")
    saved = checkpoint.newest(run)
    assert saved is not None and saved.step == losses(run)[-1][0], slurm.said(job)
    slurm.wait_for_step(job, run, saved.step + 5)
    slurm.ask("scancel", job)
    slurm.wait_for(job, JobState="CANCELLED")
    assert [step for step, _ in losses(run)] == list(range(1, losses(run)[-1][0] + 1))
    return "saved at the last step, queued again, and went on"


SCENARIOS: Mapping[str, Callable[[SlurmCluster, Rehearsal, Path], str]] = {
    "trains": trains,
    "outlives_a_node": outlives_a_node,
    "is_warned": is_warned,
    "runs_out_of_time": runs_out_of_time,
}


def main() -> None:
    """Run all scenarios; print what each comes to."""
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as (slurm, rehearsal):
        for name in sys.argv[1:] or SCENARIOS:
            begin = time.monotonic()
            found = SCENARIOS[name](slurm, rehearsal, Path(folder) / name / "run")
            print(json.dumps({name: found, "seconds": round(time.monotonic() - begin)}), flush=True)


if __name__ == "__main__":
    main()
