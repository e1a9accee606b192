"""Runs a views graph: batches on the device, epochs without a repeat, and exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.dali import Pipeline
from pipeline.finish import Finish, single_threaded
from pipeline.graph import GRAPH, GraphSettings, ViewGroup, views_pipeline
from pipeline.loader_state import check_state, state_refused
from pipeline.normalisation import IMAGENET, Normalisation
from pipeline.part import part_of, part_size, shards_of
from pipeline.tuning import Tuning
from pipeline.unreadable import allow_open_files, comes_back, unreadable
from pipeline.wait_clock import WaitClock
from shards.layout import Shard, ShardSet
from shards.outage import PAUSES
from shards.subset.masked import whole_of


@dataclass(frozen=True)
class Batch:
    """The samples that one rank trains on in one step."""

    views: tuple[Tensor, ...]
    """One tensor a view group, [V, B, C, H, W], normalised, channels-last in memory, each sample's
    views side by side: `views.transpose(0, 1).flatten(0, 1)` is [B·V, C, H, W] without a copy."""
    id_B: Tensor
    """Stable sample ids, int64 [B]."""
    label_B: Tensor
    """Labels, int64 [B]; −1 for a sample without one."""


class Loader:
    """This rank's part of a shard set as batches of random views; iterating gives one epoch.

    An epoch has floor(samples / (world_size · batch_size)) steps. Within it no sample is repeated
    and no two ranks share one: a repeat would be a false negative to any ranking or contrastive
    objective. Samples that do not fill a last batch are left out, other ones each epoch.

    Tensors are DALI's own buffers or those of the last pass. They stay valid as long as they are
    referenced. On a GPU they are ordered on the stream that is current when the batch is taken, so
    use them on that stream.

    Args:
        shard_set: where the samples come from.
        groups: the views of every sample.
        batch_size_per_rank: samples a step on this rank.
        rank: this process.
        world_size: number of processes.
        device: where the views are made and delivered.
        seed: decides the order of the samples and every view.
        dtype: of the views: float32, float16, or with the fused finish bfloat16.
        shuffle_buffer: samples held for shuffling. The encoded images behind them stay in the page
            cache, not in this process.
        tuning: how it runs on this machine; by default, with all threads that this process may use.
        normalisation: what the encoder is trained with.
        searching: called while it looks for an unreadable sample, as it gets on: that takes as long
            as reading the whole shard set.
        waiting: told which place it waits for, if one does not answer while batches are taken.

    Raises:
        ValueError: a part has fewer samples than a batch.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        groups: Sequence[ViewGroup],
        *,
        batch_size_per_rank: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        shuffle_buffer: int = 8192,
        tuning: Tuning | None = None,
        normalisation: Normalisation = IMAGENET,
        searching: Callable[[], object] = lambda: None,
        waiting: Callable[[str], object] = lambda _: None,
    ) -> None:
        device = device or torch.device("cpu")
        self.shard_set = shard_set
        self.groups = tuple(groups)
        self.batch_size_per_rank = batch_size_per_rank
        self.rank, self.world_size = rank, world_size
        self.device, self.dtype, self.normalisation = device, dtype, normalisation
        samples = len(shard_set)
        # Samples may be left out of a set as a run goes on, which stays the same set.
        manifest = shard_set.manifest.digest()
        whole = whole_of(shard_set).manifest.digest() if shard_set.replaced else manifest
        self._digests = {"whole": whole, "manifest": manifest}
        self._steps = samples // (world_size * batch_size_per_rank)
        if samples < world_size:
            raise ValueError(
                f"{shard_set.root} has {samples} samples, fewer than the {world_size} processes; "
                "every one needs some of its own."
            )
        if self._steps == 0:
            raise ValueError(
                f"batch_size={world_size * batch_size_per_rank} exceeds the {samples} samples of "
                f"{shard_set.root}; set --batch_size {samples // world_size * world_size} or lower."
            )
        self._reader_steps = -(-part_size(samples, rank, world_size) // batch_size_per_rank)
        self.tuning = (tuning or Tuning()).filled(batch_size=batch_size_per_rank)
        self._finishes: list[Finish | None] = [None] * len(self.groups)
        self._workers: ThreadPoolExecutor | None = None
        if self.tuning.finish == "fused":
            if device.type == "cpu":
                self._workers = single_threaded(self.tuning.threads or 1)
            self._finishes = [
                Finish(
                    group.policy.late,
                    dtype=dtype,
                    normalisation=normalisation,
                    workers=self._workers,
                )
                for group in self.groups
            ]
        self._settings = GraphSettings(
            batch_size=batch_size_per_rank,
            rank=rank,
            device=device,
            seed=seed,
            # DALI has no bfloat16: networks that compute in it convert float16.
            dtype=torch.float16 if dtype == torch.bfloat16 else dtype,
            shuffle_buffer=shuffle_buffer,
            tuning=self.tuning,
            normalisation=normalisation,
        )
        self.searching, self.waiting = searching, waiting
        self.epoch = 0
        self.step = 0  # within the epoch
        self._pipeline: Pipeline | None = None
        self._checkpoint: bytes | None = None  # of a pipeline that has given nothing yet
        self._given = False  # whether this pipeline has given a batch
        self._clock = WaitClock(device)
        self._host_seconds = 0.0

    def __len__(self) -> int:
        """Steps per epoch, the same on every rank."""
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch, or the whole next one if this one has ended."""
        if self.step == self._steps:
            # Pass over the batch that the reader had to pad.
            for _ in range(self._reader_steps - self._steps):
                self._take()
            self.epoch, self.step = self.epoch + 1, 0
        while self.step < self._steps:
            yield self._next()  # this frame holds nothing of the batch while it waits

    def endless(self) -> Iterator[Batch]:
        """Return the batches of all epochs, one after the other, as training takes them."""
        return chain.from_iterable(repeat(self))

    def _next(self) -> Batch:
        begin = time.perf_counter()
        with self._clock:
            outputs = self._take()
            batch = self.finished(outputs) if self.device.type == "cpu" else None
        # On a GPU the last pass is work of its stream, not a wait for data.
        batch = batch or self.finished(outputs)
        self._host_seconds += time.perf_counter() - begin
        self.step += 1
        return batch

    def wait_seconds(self) -> float:
        """Return how long training has waited for data; the call does not wait for the device.

        On a GPU this is how long its stream stood still for batches; on the CPU, how long this
        process did.
        """
        return self._clock.seconds()

    def host_seconds(self) -> float:
        """Return how long this process has been inside the loader.

        On the CPU that is the waiting. On a GPU it should be close to 0, since the loader only
        queues work; the next step is queued later by this time.
        """
        return self._host_seconds

    def own_shards(self) -> list[Shard]:
        """Return the tars that this rank reads; of those that it shares, the ones it begins."""
        shards, seed = self.shard_set.manifest.shards, self._settings.seed
        return shards_of(shards, self.rank, self.world_size, seed=seed)

    def stage(self, stage: Literal["read", "decode", "augment"]) -> Pipeline:
        """Return a separate pipeline, built, that ends after a stage, for `pipeline.profile`."""
        batch_size = self.batch_size_per_rank
        if self.device.type == "cpu":  # there time grows with the batch: measure a small one
            batch_size = min(batch_size, 8 * (self.tuning.threads or 1))
        # A small shuffle buffer, because the time to fill it would count too.
        settings = replace(self._settings, batch_size=batch_size, shuffle_buffer=batch_size)
        with self._part() as part:
            built = views_pipeline(part, self.groups, settings, checkpoint=None, stage=stage)
            built.build()
        return built

    def finished(self, outputs: tuple[Tensor, ...]) -> Batch:
        """Return the batch made of the graph's outputs; see `views_pipeline`."""
        left = iter(outputs)
        views: list[Tensor] = []
        for group, finish in zip(self.groups, self._finishes, strict=True):
            rows = next(left)  # [B, V · size, size, 3]
            frames = rows.unflatten(1, (group.count, group.size))
            if finish is not None:
                pixels_NPC = frames.flatten(0, 1).flatten(1, 2)
                mirrored_N, factors_NF = group.policy.late_factors(next(left).flatten(0, 1))
                frames = finish(pixels_NPC, factors_NF, mirrored_N).view_as(frames)
            views.append(frames.permute(1, 0, 4, 2, 3))
        id_B, label_B = (column.squeeze(1) for column in left)
        return Batch(views=tuple(views), id_B=id_B, label_B=label_B)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a loader continues with the next batch, bit for bit."""
        array = np.frombuffer(bytearray(self._saved() or b""), dtype=np.uint8)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "pipeline": torch.from_numpy(array),
            **self._identity(),
        }

    def differences(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return {name: value of this loader} for all that `load_state_dict` would refuse."""
        return {n: here for n, here in self._identity().items() if state.get(n) != here}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; only before the first batch.

        Raises:
            ValueError: the state belongs to another shard set, rank, world size or batch size.
        """
        assert self._pipeline is None, "restore before the first batch is taken"
        for name, here in self.differences(state).items():
            if name in ("whole", "manifest"):
                raise ValueError(
                    f"{self.shard_set.root} is not the shard set that the run was trained on so "
                    "far: its manifest differs. Give that shard set, or a new --run, or set "
                    "--reshape_data true to begin the epoch again with this one."
                )
            if name in ("graph", "parts"):
                raise ValueError(
                    "another version of viewrank wrote the checkpoint, and its pipeline drew other "
                    "random numbers or samples. Continue with that version, or set --reshape_data "
                    "true to begin the epoch again."
                )
            raise ValueError(
                f"the checkpoint's loader has {name}={state.get(name)}, this run has {here}: "
                "the next batch would be a different one. Continue with the same shards, batch "
                "size, number of processes and --tuning, or set --reshape_data true to begin the "
                "epoch again."
            )
        check_state(state)
        if state["step"] > self._steps:
            raise ValueError(
                f"the checkpoint's loader is at step {state['step']} of an epoch of {self._steps}."
            )
        self.epoch, self.step = state["epoch"], state["step"]
        self._checkpoint = state["pipeline"].numpy().tobytes() or None

    def close(self) -> None:
        """Stop the pipeline's threads and free its buffers."""
        self._stop()
        if self._workers is not None:
            self._workers.shutdown()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        """Return what a state and its loader must have in common."""
        # In older versions a rank had another part in each epoch, and one alone the set's order.
        dealt = self.world_size > 1 or self.shard_set.manifest.indexed
        parts = {"parts": "kept, dealt by MT19937"} if dealt else {}
        return parts | {
            "whole": self._digests["whole"],
            "samples": len(self.shard_set),
            "manifest": self._digests["manifest"],
            "world_size": self.world_size,
            "rank": self.rank,
            "batch_size_per_rank": self.batch_size_per_rank,
            "shuffle_buffer": self._settings.shuffle_buffer,
            # Another graph would restore the random state of other operators.
            "graph": GRAPH,
            "finish": self.tuning.finish,
            "decode": self.tuning.decode,
            # Of the encoder: another version of timm may say otherwise.
            "normalisation": [*self.normalisation.mean, *self.normalisation.std],
        }

    @contextmanager
    def _part(self) -> Iterator[ShardSet]:
        """Give the samples of this rank, to build a reader of; their tars may all be open."""
        seed = self._settings.seed
        with part_of(self.shard_set, self.rank, self.world_size, seed=seed) as part:
            allow_open_files(len(part.tars))
            yield part

    def _saved(self) -> bytes | None:
        """Return the pipeline's state after the batch that it gave last, if it failed since too."""
        return self._pipeline.checkpoint() if self._pipeline and self._given else self._checkpoint

    def _stop(self) -> None:
        """End the pipeline; another one goes on after the batch that it gave last."""
        self._checkpoint = self._saved()
        self._pipeline, self._given = None, False

    def _take(self) -> tuple[Any, ...]:
        """Return the next outputs of the pipeline; if their place is away, wait for it."""
        pauses = iter(PAUSES)
        while True:
            try:
                return self._run()
            except (RuntimeError, OSError) as error:  # DALI's, or of an index that is checked first
                if self._checkpoint is not None and (refused := state_refused(error)):
                    raise refused from error
                if not comes_back(self.shard_set, error, pauses, waiting=self.waiting):
                    raise unreadable(self.shard_set, error, searching=self.searching) from error
                self._stop()

    def _run(self) -> tuple[Any, ...]:
        """Return the next outputs of the pipeline, and let it begin another batch."""
        if self._pipeline is None:
            # Built at the first batch, because DALI restores a state only at construction.
            with self._part() as part:
                built = views_pipeline(
                    part, self.groups, self._settings, checkpoint=self._checkpoint
                )
                built.build()
            built.schedule_run()
            self._pipeline = built
        outputs = self._pipeline.share_outputs(current_stream(self.device))
        tensors = tuple(torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._given = True
        try:
            # Only the queue's slot is released: the tensors own their buffers. When the last tensor
            # of one dies, a thread of DALI's waits until the device has done what was queued so
            # far, whatever the stream, before the buffer is used again.
            self._pipeline.release_outputs()
            self._pipeline.schedule_run()
        except RuntimeError:  # of a later batch: this one is whole
            self._stop()
        return tensors


def current_stream(device: torch.device) -> Any:
    """Return the stream that batches are ordered on; None on the CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None
