"""A Ray cluster: tasks run on any of its machines, and run again elsewhere if one is lost."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from shards.engine.engine import Engine, Job, Progress
from shards.engine.workers import LocalWorkers

_RETRIES = 3  # of a task whose worker or machine was lost


def connected(address: str | None) -> Any:
    """Return the package ray, connected to a cluster.

    Args:
        address: of the cluster, as `ray.init` takes it; None starts one on this machine.

    Raises:
        ValueError: it is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            "engine=ray needs the package ray. Install it with uv pip install ray, "
            "or use --engine local."
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster answers at {address}: {error}. Start one with ray start "
                "--head, or leave the address out."
            ) from None
    return ray


class Ray(Engine):
    """Tasks of one CPU each on a Ray cluster (https://docs.ray.io), an optional package.

    Every machine must see the same input and output, in a shared file system or an object store.
    Every machine needs viewrank: start Ray's nodes where it is installed.

    Args:
        address: of the cluster, as `ray.init` takes it; None starts one on this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray = connected(address)

    def run(self, job: Job, tasks: Sequence[Any], progress: Progress) -> Iterator[tuple[int, Any]]:
        ray = self._ray
        do = ray.remote(_do).options(num_cpus=1, max_retries=_RETRIES)
        shared = ray.put(job)
        waiting, running = deque(enumerate(tasks)), {}
        try:
            while waiting or running:
                # No more than the cluster can begin soon: it may have grown since.
                room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
                while waiting and len(running) < room:
                    number, task = waiting.popleft()
                    running[do.remote(shared, task)] = number
                done, _ = ray.wait(list(running), timeout=1.0)
                for reference in done:
                    number = running.pop(reference)
                    try:
                        result, samples, size = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.RayError:
                        # It killed every worker: find the sample that does it here.
                        alone = LocalWorkers(1).run(job, [tasks[number]], _no_progress)
                        ((_, result),) = alone
                        samples, size = 0, 0
                    progress(number, samples, size)
                    yield number, result
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _no_progress(_number: int, _samples: int, _size: int) -> None:
    """Ignore a task's progress."""


def _do(job: Job, task: Any) -> tuple[Any, int, int]:
    """Do a task on a worker; return its result, its samples and their bytes."""
    last = (0, 0)

    def report(done: int, size: int) -> None:
        nonlocal last
        last = max(done, last[0]), size

    result = job(task, report)
    return result, *last
