"""Buffers are not reused while a tensor still reads them; planted early releases are found."""

import ctypes
import time
import weakref
from collections.abc import Callable
from itertools import islice
from threading import Thread
from typing import Any

import pytest
import torch

import pipeline.finish
import pipeline.loader
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.tuning import Tuning
from shards.layout import ShardSet
from tests.conftest import MakeShardSet

GROUPS = [ViewGroup(policy=SimCLRViews(), count=4, size=32)]
FORMS = ["dali", "fused"]


def late_readers_see_their_batch(shard_set: ShardSet, finish: Any, batches: int = 30) -> bool:
    """Let a slow reader sum up each batch while the loader already makes later ones.

    The reader holds the only reference: the memory may be reused as soon as it is done, and not
    earlier. The expected sums come from a loader whose batches are read at once.
    """

    def loader() -> Loader:
        return Loader(shard_set, GROUPS, batch_size_per_rank=8, tuning=Tuning(finish=finish))

    def add_up(views: torch.Tensor) -> float:
        return views.double().square().sum().item()

    seen = [0.0] * batches

    def read_late(step: int, views: torch.Tensor) -> None:
        time.sleep(0.02)  # as a kernel that is queued and has not begun
        seen[step] = add_up(views)

    with loader() as prompt:
        expected = [add_up(batch.views[0]) for batch in islice(prompt.endless(), batches)]
    with loader() as stressed:
        threads: list[Thread] = []
        for step, batch in enumerate(islice(stressed.endless(), batches)):
            threads.append(Thread(target=read_late, args=(step, batch.views[0])))
            threads[-1].start()
            del batch
        for thread in threads:
            thread.join()
    return seen == expected


@pytest.mark.parametrize("finish", FORMS)
def test_a_late_reader_sees_its_batch(make_shard_set: MakeShardSet, finish: str) -> None:
    assert late_readers_see_their_batch(make_shard_set(64), finish)


def without_ownership(output: Any) -> torch.Tensor:
    """Return DALI's memory as a tensor that does not keep it."""
    owner = _from_dlpack(output)
    memory = (ctypes.c_char * owner.nbytes).from_address(owner.data_ptr())
    return torch.frombuffer(memory, dtype=owner.dtype).view(owner.shape)


def returned_at_once(_: Any, give_back: Callable[..., None], *memory: Any) -> Any:
    give_back(*memory)
    return _finalize(give_back, lambda: None)


_from_dlpack, _finalize = torch.from_dlpack, weakref.finalize


@pytest.mark.parametrize("finish", FORMS)
def test_a_planted_early_release_is_found(
    make_shard_set: MakeShardSet, finish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = make_shard_set(64)
    if finish == "dali":
        monkeypatch.setattr(pipeline.loader.torch, "from_dlpack", without_ownership)
    else:
        monkeypatch.setattr(pipeline.finish.weakref, "finalize", returned_at_once)
    assert not late_readers_see_their_batch(shard_set, finish)


@pytest.mark.gpu
@pytest.mark.parametrize("finish", FORMS)
def test_a_late_kernel_sees_its_batch(make_shard_set: MakeShardSet, finish: Any) -> None:
    """The same with kernels: the host runs ahead and the device reads late."""
    device, batches = torch.device("cuda", 0), 50
    shard_set = make_shard_set(64)

    def sums(*, late: bool) -> torch.Tensor:
        tuning = Tuning(finish=finish)
        loader = Loader(shard_set, GROUPS, batch_size_per_rank=8, device=device, tuning=tuning)
        found: list[torch.Tensor] = []
        with loader:
            for batch in islice(loader.endless(), batches):
                if late:
                    torch.cuda._sleep(10_000_000)  # about 5 ms
                found.append(batch.views[0].double().square().sum())
                del batch
                if not late:
                    torch.cuda.synchronize(device)
        return torch.stack(found).cpu()

    assert torch.equal(sums(late=True), sums(late=False))
