"""A training step as one CUDA graph: the host launches it once, not some thousand kernels.

    batch ─ copied into ─▶ own tensors ─▶ forward ─▶ objective ─▶ backward ─▶ guard, optimizer, twin
    rate, progress ─ filled into ─▶ scalars on the device ────────────────────────▲
                                    └───────────────── recorded once, replayed ───────────────┘

The first steps run as they are written, on the stream that will be recorded: they compile kernels,
choose cuDNN's algorithms and make the optimizer's state. The next one is recorded, which computes
nothing, and replayed; so is every later one. All steps train.

What a graph needs, and where it is seen to:

- one place for all that changes. Learning rate and progress are scalars on the device, the rate in
  float32, as PyTorch's fused optimizers read it: rounded by 6e-8 of itself, nothing else differs
  from the eager step;
- no wait for the device and no choice by a value: tests/training/test_step_capture.py runs every
  method, objective and optimizer under a mode that refuses both;
- autocast is entered and left inside the model's forward pass, so no cast weight outlives a replay;
- what the step returns lies in the graph's memory: the next step overwrites it;
- DALI's threads go on meanwhile, and one of them waits for the whole device to give memory back.
  So the recording forbids unsafe calls to its own thread alone, and begins with the device idle.

Why no `torch.compile` of the whole step instead: objectives find their gradient in the forward pass
by loops over chunks and kernels of their own (`model.objective.one_pass`), which the compiler is
told to leave alone, and fused optimizers are one kernel already. What it gains is inside the
encoder. With `--compile` the compiled encoder is recorded like the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.method import Method, Output

WARM = 3
"""Steps before the recorded one; PyTorch's documentation has so many."""
IDLE = 0.5
"""Seconds in which DALI's queue is full again, and none of its threads waits for the device."""
SETTINGS = (
    *("method", "capture_step", "compile", "compile_mode"),
    *("micro_batch_size", "mixed_precision"),
)
"""Of the configuration, which `refuse` looks at."""
REMEDY = "Leave --capture_step out, or set it to false."


class TrainStep(Protocol):
    """Forward, backward and update, of a batch on the device."""

    def __call__(
        self, views: Sequence[Tensor], *, progress: float | Tensor, id_B: Tensor | None
    ) -> Output:
        """See `training.step.Step`."""
        ...


def refuse(
    *,
    method: Method,
    capture_step: bool,
    compile: bool,
    compile_mode: str,
    micro_batch_size: int | None,
    mixed_precision: str,
) -> None:
    """Refuse a configuration whose step cannot be recorded, whatever the device; see `Config`.

    Raises:
        ValueError: why it cannot.
    """
    if compile_mode != "default" and not compile:
        raise ValueError(
            f"compile_mode={compile_mode}, but compile=false: nothing is compiled. Set --compile "
            "true, or --compile_mode default."
        )
    if not capture_step:
        return
    if method.trains_part:
        raise ValueError(
            f"capture_step=true, but {type(method).__name__} trains another part of itself at "
            f"another time, and a recorded step is the same for ever. {REMEDY}"
        )
    if micro_batch_size is not None:
        raise ValueError(
            f"capture_step=true and micro_batch_size={micro_batch_size}: gradient caching puts "
            f"random states back from the host, which cannot be recorded. {REMEDY}"
        )
    if mixed_precision == "fp16":
        raise ValueError(
            "capture_step=true and mixed_precision=fp16, whose scaled losses have not been "
            "recorded and compared; bf16 needs no scale: set --mixed_precision bf16."
        )
    if compile_mode == "reduce-overhead":
        raise ValueError(
            "capture_step=true and compile_mode=reduce-overhead, which records the encoder as a "
            "graph of its own: a recorded step cannot hold another. Set --compile_mode default."
        )


def come_to_rest(device: torch.device) -> None:
    """Wait until nothing runs on a device, and no thread of DALI is about to wait for it."""
    for _ in range(2 if device.type == "cuda" else 0):  # what died meanwhile waits once more
        torch.cuda.synchronize(device)
        time.sleep(IDLE)


def refuse_ranks(world_size: int) -> None:
    """Refuse several processes.

    Raises:
        ValueError: there are several.
    """
    if world_size > 1:
        raise ValueError(
            f"capture_step=true on {world_size} processes, but a recorded step is of one: the "
            f"ranks' sums would have to be recorded on all of them at once. {REMEDY}"
        )


def describe(device: torch.device) -> str:
    """Return a line for the header of a run that asks for it."""
    if device.type == "cuda":
        return f"recorded as one CUDA graph after {WARM} steps"
    return "run as it is written: on the CPU there is nothing to record"


class StepCapture:
    """Runs a step from tensors of its own and, on a GPU, records it and replays that.

    On the CPU it runs the same step from the same tensors each time, for tests.

    Args:
        optimizer: what the step updates by; not as Accelerate wrapped it.
        train: the step.
        device: where it runs.
    """

    def __init__(self, optimizer: Optimizer, train: TrainStep, device: torch.device) -> None:
        self._optimizer = optimizer  # whose groups are others once a state is restored
        self._train = train
        self._rate = torch.zeros((), dtype=torch.float32, device=device)
        self._progress = torch.zeros((), dtype=torch.float64, device=device)
        self._views: tuple[Tensor, ...] = ()
        self._id_B: Tensor | None = None
        # One for both: a gradient is added up on the stream on which it was first asked for.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graph: Any = None
        self._output: Output | None = None
        self._steps = 0

    def __call__(
        self,
        views: Sequence[Tensor],
        *,
        learning_rate: float,
        progress: float,
        id_B: Tensor | None,
    ) -> Output:
        """Train on one batch; see `Step`. The next call overwrites what this one returns."""
        self._take(views, id_B)
        self._rate.fill_(learning_rate)
        self._progress.fill_(progress)
        if self._stream is None:
            return self._run()
        if self._output is None and self._steps < WARM:
            self._steps += 1
            return self._aside(self._stream)
        if self._output is None:
            self._output = self._record(self._stream)
        self._graph.replay()
        return self._output

    def _take(self, views: Sequence[Tensor], id_B: Tensor | None) -> None:
        """Copy a batch; the loader may have its memory back."""
        if not self._views:
            self._views = tuple(torch.empty_like(group) for group in views)  # strides, too
            self._id_B = None if id_B is None else torch.empty_like(id_B)
        for own, group in zip(self._views, views, strict=True):
            assert own.shape == group.shape, "batches of one shape"
            own.copy_(group)
        if self._id_B is not None and id_B is not None:
            self._id_B.copy_(id_B)

    def _run(self, *, recording: bool = False) -> Output:
        with self._device_rate(recording=recording):
            output = self._train(self._views, progress=self._progress, id_B=self._id_B)
        # Without the graph of the backward pass, whose nodes would outlive the step.
        return replace(output, loss=output.loss.detach())

    def _aside(self, stream: torch.cuda.Stream) -> Output:
        """Run the step on a stream that the current one waits for."""
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            output = self._run()
        current.wait_stream(stream)
        return output

    def _record(self, stream: torch.cuda.Stream) -> Output:
        """Record the step without running it.

        Raises:
            ValueError: something in it cannot be recorded.
        """
        come_to_rest(stream.device)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                return self._run(recording=True)
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"the step cannot be recorded as a CUDA graph ({why}), which all of this "
                f"project's methods are written for. {REMEDY}"
            ) from error

    @contextmanager
    def _device_rate(self, *, recording: bool) -> Iterator[None]:
        """Let the optimizer read its rate from the device, and be recorded.

        Outside, its groups hold numbers, as checkpoints do.
        """
        groups = self._optimizer.param_groups
        own = [dict(group) for group in groups]
        for group in groups:
            if group["scheduled"]:
                group["lr"] = self._rate * group["scale"]
            if "capturable" in group:  # asked of Adam's while it is recorded, unwelcome before
                group["capturable"] = recording
        try:
            yield
        finally:
            for group, before in zip(groups, own, strict=True):
                group["lr"] = before["lr"]
                if "capturable" in group:
                    group["capturable"] = before["capturable"]
