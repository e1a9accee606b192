"""The same writing on a Ray cluster of several machines' worth of workers, one of them killed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.engine import Ray
from shards.source import Sample, Source
from shards.writing.write import write

ray = pytest.importorskip("ray", reason="the optional package ray is not installed")


class SlowSource(Source):
    """Pictures that take a while, so that a worker can be killed over them."""

    name = "slow"

    def __init__(self, folder: Path | None = None) -> None:
        self.split, self.classes = "", []
        self.folder = folder

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> Sample:
        if self.folder is not None:
            time.sleep(0.02)
            (self.folder / f"{os.getpid()}").touch()
        pixels = np.random.RandomState(index).randint(0, 256, (8, 9, 3)).astype(np.uint8)
        return Sample(f"{index:05d}", pixels, -1, index, {})


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    machines = Cluster()
    for _ in range(3):
        machines.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    here = str(Path(__file__).parent)
    ray.init(
        address=machines.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{here}:{Path(here).parents[1]}"}},
    )
    yield machines
    ray.shutdown()
    machines.shutdown()


def test_a_cluster_writes_the_same_bytes_though_a_worker_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    killed: list[int] = []

    def kill_one(progress: Any) -> None:
        if not killed and progress.samples >= 20:
            busy = max(pids.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            killed.append(int(busy.name))
            os.kill(killed[0], signal.SIGKILL)

    out = tmp_path / "out"
    write(SlowSource(pids), out, samples_per_shard=10, engine=Ray(), progress=kill_one)
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    workers = {int(path.name) for path in pids.iterdir()}
    assert len(workers) >= 3, "all three machines have work"
    alone = tmp_path / "alone"
    write(SlowSource(), alone, samples_per_shard=10)
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
