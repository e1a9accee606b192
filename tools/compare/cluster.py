"""The runs of a comparison on a Ray cluster: each on one of its machines, several at a time.

Every machine sees OUT and the shard sets under the same paths, and has viewrank where this one has
it. A run is a child process of a Ray worker. If the worker is killed, or its machine is lost, Ray
starts the same command elsewhere, which continues the run from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from shards.engine.ray import connected
from tools.compare import run

RETRIES = 3  # of a run whose worker or machine was lost
SHARED = ("PYTHONPATH", "VIEWRANK_MODULES", "ACCELERATE_USE_CPU")
"""Variables of this environment that a run has, too."""


class Cluster:
    """Starts the children of a comparison on a Ray cluster (https://docs.ray.io).

    Args:
        address: of the cluster, as `ray.init` takes it; None starts one on this machine.
        cpus: cores that a run is given; its threads are as many.
        gpus: GPUs that a run is given.

    Raises:
        ValueError: Ray is not installed, no cluster answers, or no machine of it has so much.
    """

    def __init__(self, address: str | None, *, cpus: int, gpus: int) -> None:
        self._ray = connected(address)
        self._cpus, self._gpus = cpus, gpus
        self.at_once = sum(map(self._room, self._ray.nodes()))
        if not self.at_once:
            raise ValueError(
                f"no machine of the Ray cluster has {cpus} cores and {gpus} GPUs, which a run is "
                "to get; lower --cpus_per_run or --gpus_per_run."
            )
        self._running: set[Any] = set()

    def _room(self, node: dict[str, Any]) -> int:
        """Return how many runs a machine takes at a time."""
        has = node["Resources"] if node["Alive"] else {}
        cpus = int(has.get("CPU", 0)) // self._cpus
        return min(cpus, int(has.get("GPU", 0)) // self._gpus) if self._gpus else cpus

    def call(self, command: Sequence[str], log: Path) -> None:
        """Run a child process on the cluster, to its end; see `run.call`.

        Raises:
            Failed: the child failed, or its workers were lost several times.
        """
        environment = {name: os.environ[name] for name in SHARED if name in os.environ}
        do = self._ray.remote(_do).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=RETRIES
        )
        reference = do.remote(list(command), str(log), os.getcwd(), environment, self._cpus)
        self._running.add(reference)
        try:
            if failed := self._ray.get(reference):
                raise run.Failed(failed)
        except self._ray.exceptions.TaskCancelledError:
            raise run.Failed("it was stopped, and has saved") from None
        except self._ray.exceptions.RayTaskError as error:  # a defect, or a disk of the worker's
            raise run.Failed(" ".join(str(error.cause).split())[:300]) from None
        except self._ray.exceptions.RayError as error:
            lost = " ".join(str(error).split())[:300]
            raise run.Failed(f"its worker was lost {RETRIES + 1} times: {lost}") from None
        except BaseException:  # a signal, where no `each` is around
            self._ray.cancel(reference)
            raise
        finally:
            self._running.discard(reference)

    def each(self, do: Callable[[Any], None], work: Iterable[Any]) -> None:
        """Do some work, as many pieces at a time as the cluster has room for.

        A signal lets the runs save and end.
        """
        with ThreadPoolExecutor(self.at_once) as threads:
            futures = [threads.submit(do, piece) for piece in work]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                for reference in list(self._running):
                    self._ray.cancel(reference)  # interrupts the worker, which ends its child
                raise


def _do(command: list[str], log: str, folder: str, environment: dict[str, str], cpus: int) -> str:
    """Run a child process on a worker; return why it failed, "" if it did not."""
    os.chdir(folder)
    os.environ.update(environment)
    try:
        with _own_cores(cpus):
            run.call(command, Path(log), lambda: None)
    except run.Failed as failed:
        return str(failed)
    return ""


@contextmanager
def _own_cores(count: int) -> Iterator[None]:
    """Keep this process and its children to cores that no other run on this machine has.

    Ray counts cores and gives none in particular: two runs with threads for all of them take turns
    at each other's expense, and a step takes ten times as long.
    """
    all_cores = os.sched_getaffinity(0)
    with ExitStack() as held:
        mine: set[int] = set()
        top = f"{tempfile.gettempdir()}/viewrank-{os.getuid()}-core"  # others' files are closed
        for core in sorted(all_cores):
            lock = held.enter_context(open(f"{top}-{core}", "a"))
            if len(mine) < count:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    mine.add(core)
        os.sched_setaffinity(0, mine or all_cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, all_cores)
