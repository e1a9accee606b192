"""Rehearse a launch over two machines in one: network namespaces with addresses of their own.

    python -m tests.two_nodes [SCENARIO …]    # as root: all scenarios, a line each

Each node is a network namespace with one end of a cable (veth), a host name and, where that is the
scenario, a disk of its own. Nothing but the cable joins them: processes meet by address and port.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from shards.layout import ShardSet, open_shards
from shards.writing.write import write
from tests.conftest import Pictures
from tests.program import BIN, TWO, arguments, finish, kill, losses, start, wait_for_step, weights

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = "cable"
NAMES = Path("/etc/netns")  # where `ip netns exec` takes a node's own /etc/hosts from
STEPS, EVERY = "30", "5"
PATIENCE = 150
"""Seconds that a scenario has."""
FORGOTTEN = 20
"""Seconds after which torchrun's rendezvous has forgotten a node; a machine starts more slowly."""
# Else torchrun keeps the address of the first meeting to itself, and an agent that is started anew
# waits for it in vain (torch 2.15, DynamicRendezvousHandler.next_rendezvous).
COMES_BACK = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def available() -> bool:
    """Whether this process may make network namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and _ip("netns", "list") == 0


def _ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode


@contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """Give the names of two namespaces that a cable joins; they and all in them end afterwards."""
    names = (f"vr{os.getpid()}a", f"vr{os.getpid()}b")
    try:
        hosts = "".join(f"{a} {name}\n" for a, name in zip(ADDRESSES, names, strict=True))
        for name in names:
            assert _ip("netns", "add", name) == 0
            (NAMES / name).mkdir(parents=True)
            (NAMES / name / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        ends = [f"{name[-6:]}c" for name in names]
        assert _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]) == 0
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            assert _ip("link", "set", end, "netns", name) == 0
            inside = ["-n", name]
            assert _ip(*inside, "link", "set", end, "name", CABLE) == 0
            assert _ip(*inside, "addr", "add", f"{address}/24", "dev", CABLE) == 0
            assert _ip(*inside, "link", "set", CABLE, "up") == 0
            assert _ip(*inside, "link", "set", "lo", "up") == 0
        yield names
    finally:
        for name in names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for process in found.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            _ip("netns", "del", name)
            shutil.rmtree(NAMES / name, ignore_errors=True)


def on(node: str, program: list[str], *, own_disk: Path | None = None) -> list[str]:
    """Return the command that starts a program on a node.

    Args:
        node: its namespace.
        program: command line.
        own_disk: a folder where this node has a disk of its own, an empty one.
    """
    shell = f"hostname {node} && "
    if own_disk is not None:
        shell += f"mount -t tmpfs own {own_disk} && "
    shell += 'exec "$@"'
    return ["ip", "netns", "exec", node, "unshare", "--uts", "sh", "-c", shell, "sh", *program]


def accelerate(rank: int, words: list[str]) -> list[str]:
    """Return the launch of a node as the guide has it, with one process a node."""
    launch = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_machines", "2"]
    launch += ["--num_processes", "2", "--machine_rank", str(rank)]
    launch += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29500"]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", *words]


def elastic(rank: int, words: list[str]) -> list[str]:
    """Return a launch by torchrun whose nodes find each other again."""
    launch = [
        str(BIN / "torchrun"),
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--max_restarts",
        "3",
    ]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29400"]
    launch += ["--rdzv_id", "rehearsal", "--local_addr", ADDRESSES[rank]]
    return [*launch, "--monitor_interval", "0.5", "--", *words]


Launch = Callable[[int, list[str]], list[str]]


class Rehearsal:
    """Two nodes, a shard set, and a run of two processes of one machine to compare with."""

    def __init__(self, nodes: tuple[str, str], folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        set_folder = folder / "shards"
        if not set_folder.exists():
            write(Pictures(42), set_folder, samples_per_shard=8)
        self.shards: ShardSet = open_shards(set_folder)
        self.peaceful = folder / "peaceful"
        if not self.peaceful.exists():
            code, out, err = finish([str(BIN / "accelerate"), *TWO, *self.words(self.peaceful)])
            assert code == 0, out + err

    def words(self, run: Path, *more: str) -> list[str]:
        """Return train.py's command line."""
        run.parent.mkdir(parents=True, exist_ok=True)
        length = ["--steps", STEPS, "--checkpoint_every", EVERY, "--hang_seconds", "8"]
        return arguments(self.shards, run, *length, *more)

    def start(self, rank: int, run: Path, *more: str, **how: Any) -> subprocess.Popen[str]:
        """Start a node's part of a run."""
        launch: Launch = how.pop("launch", accelerate)
        program = on(self.nodes[rank], launch(rank, self.words(run, *more)), **how)
        # A core each, as two processes of one machine have: more threads add up in another order.
        program = ["taskset", "-c", str(rank % (os.cpu_count() or 1)), *program]
        return start(program, GLOO_SOCKET_IFNAME=CABLE, TP_SOCKET_IFNAME=CABLE, **COMES_BACK)

    def check(self, run: Path) -> str:
        """Compare a run with the one of a single machine, and say how they compare."""
        assert losses(run) == losses(self.peaceful)
        expected = weights(self.peaceful)
        assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
        return f"{len(losses(run))} losses and all weights are those of one machine, to the bit"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit code and output of a launcher."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out + err


def said(output: str) -> str:
    """Return the program's own line of a launcher's output."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    return lines[0] if lines else ""


def trains(rehearsal: Rehearsal, run: Path, launch: Launch = accelerate) -> str:
    """Two nodes with a shared folder are as one machine."""
    both = [rehearsal.start(rank, run, launch=launch) for rank in (0, 1)]
    for process in both:
        code, output = ended(process)
        assert code == 0, output
    return rehearsal.check(run)


def trains_elastic(rehearsal: Rehearsal, run: Path) -> str:
    """The same by torchrun's rendezvous."""
    return trains(rehearsal, run, elastic)


def refuses_own_disks(rehearsal: Rehearsal, run: Path) -> str:
    """The run's folder is on a disk that the second node does not see."""
    run.mkdir(parents=True)
    first, second = rehearsal.start(0, run), rehearsal.start(1, run, own_disk=run)
    outputs = [ended(process) for process in (first, second)]
    assert all(code != 0 for code, _ in outputs), outputs
    return said(outputs[1][1]) or said(outputs[0][1])


def refuses_differences(rehearsal: Rehearsal, run: Path) -> str:
    """The nodes were given different settings."""
    both = [rehearsal.start(0, run), rehearsal.start(1, run, "--learning_rate", "0.02")]
    outputs = [ended(process) for process in both]
    assert all(code != 0 for code, _ in outputs), outputs
    return said(outputs[0][1]) or said(outputs[1][1])


def outlives_a_node(rehearsal: Rehearsal, run: Path) -> str:
    """The second node loses its power; the first one ends and says so; the same command goes on."""
    both = [rehearsal.start(rank, run) for rank in (0, 1)]
    wait_for_step(both[0], run, 12)
    begin = time.monotonic()
    kill(both[1])
    kill_all(rehearsal.nodes[1])
    code, output = ended(both[0])
    assert code != 0, output
    seconds = time.monotonic() - begin
    both = [rehearsal.start(rank, run) for rank in (0, 1)]
    for process in both:
        again, text = ended(process)
        assert again == 0, text
    return f"ended after {seconds:.0f} s; started again: {rehearsal.check(run)}"


def comes_back(rehearsal: Rehearsal, run: Path) -> str:
    """The second node loses its power and is started again; torchrun on the first one waits."""
    both = [rehearsal.start(rank, run, launch=elastic) for rank in (0, 1)]
    wait_for_step(both[0], run, 12)
    kill(both[1])
    kill_all(rehearsal.nodes[1])
    time.sleep(FORGOTTEN)
    begin = time.monotonic()
    again = rehearsal.start(1, run, launch=elastic)
    for process in (both[0], again):
        code, output = ended(process)
        assert code == 0, output
    return f"done {time.monotonic() - begin:.0f} s later: {rehearsal.check(run)}"


def says_what_hangs(rehearsal: Rehearsal, run: Path) -> str:
    """The cable is pulled."""
    both = [rehearsal.start(rank, run) for rank in (0, 1)]
    wait_for_step(both[0], run, 12)
    begin = time.monotonic()
    assert _ip("-n", rehearsal.nodes[1], "link", "set", CABLE, "down") == 0
    code, output = ended(both[0])
    seconds = time.monotonic() - begin
    kill(both[1])
    kill_all(rehearsal.nodes[1])
    assert _ip("-n", rehearsal.nodes[1], "link", "set", CABLE, "up") == 0
    assert code != 0, output
    return f"ended after {seconds:.0f} s: {said(output) or output[-300:]}"


def kill_all(node: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True)
    for process in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


SCENARIOS: Mapping[str, Callable[[Rehearsal, Path], str]] = {
    "trains": trains,
    "trains_elastic": trains_elastic,
    "refuses_own_disks": refuses_own_disks,
    "refuses_differences": refuses_differences,
    "outlives_a_node": outlives_a_node,
    "comes_back": comes_back,
    "says_what_hangs": says_what_hangs,
}


def main() -> None:
    """Run all scenarios; print what each comes to."""
    with tempfile.TemporaryDirectory() as folder, two_nodes() as nodes:
        rehearsal = Rehearsal(nodes, Path(folder))
        for name in sys.argv[1:] or SCENARIOS:
            scenario = SCENARIOS[name]
            begin = time.monotonic()
            found = scenario(rehearsal, Path(folder) / name / "run")
            print(json.dumps({name: found, "seconds": round(time.monotonic() - begin)}), flush=True)


if __name__ == "__main__":
    main()
