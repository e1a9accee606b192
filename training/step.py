"""One optimiser step: forward, backward, clipping, update; the same for training and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.encoder import Encoder
from model.method import Output
from model.optimizer import build_optimizer, layer_scales, set_learning_rate, undecayed
from model.sync_batch_norm import synchronise
from training.config import Config
from training.gradient_cache import backward_in_parts
from training.guard import Guard
from training.step_capture import WARM, StepCapture, come_to_rest, refuse_ranks


class Step:
    """A method on its device with its optimizer.

    Args:
        config: which method and optimizer.
        accelerator: `accelerate.Accelerator`, for precision and several ranks.
    """

    def __init__(self, config: Config, accelerator: Any) -> None:
        device: torch.device = accelerator.device
        if config.capture_step:
            refuse_ranks(accelerator.num_processes)
        self._benchmark = device.type == "cuda" and not config.deterministic
        self._accelerator = accelerator
        self._clip = config.clip_gradient_norm
        self._samples = config.micro_batch_size_per_rank(accelerator.num_processes)
        method: Any = config.method  # Any, because nn.Module's conversions are untyped
        method = method.to(device).to(memory_format=torch.channels_last)
        if config.sync_batch_norm and accelerator.num_processes > 1:
            synchronise(method)
        if config.compile:
            for part in method.modules():
                if isinstance(part, Encoder):  # moving averages of it too
                    # Crops of two sizes are two programs: one of any size is slower at both.
                    part.compile(dynamic=False, mode=_compile_mode(config))
        self.method = method
        optimizer = build_optimizer(
            method,
            fixed_rate=method.fixed_rate(),
            scales=layer_scales(method, rate=config.encoder_rate, layer_decay=config.layer_decay),
            undecayed=undecayed(method),
            name=config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        self._model, self.optimizer = accelerator.prepare(method, optimizer)
        if config.sync_batch_norm and isinstance(self._model, DistributedDataParallel):
            # Batch norm over all ranks keeps the same statistics on each by itself.
            self._model.broadcast_buffers = False
        self.guard = Guard(method, optimizer, scaled=accelerator.scaler is not None)
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self._capture: StepCapture | None = None
        if config.capture_step and device.type == "cuda":
            self._capture = StepCapture(optimizer, self.train, device)
        self._graphs = config.compile_mode != "default" and not config.capture_step
        self._unrecorded = WARM + 2 if self._graphs else 0  # steps in which they may be recorded
        method.train()

    def __call__(
        self,
        views: Sequence[Tensor],
        *,
        learning_rate: float,
        progress: float = 0.0,
        id_B: Tensor | None = None,
    ) -> Output:
        """Train on one batch; the host never waits for the device.

        Args:
            views: one tensor a view group, [V, B, C, H, W].
            learning_rate: of this step.
            progress: which part of the run is done with this step.
            id_B: stable ids of the samples.
        """
        set_learning_rate(self.optimizer, learning_rate)
        # Every step has the same shapes, and no evaluation.
        torch.backends.cudnn.benchmark = self._benchmark
        if self._capture is not None:
            return self._capture(views, learning_rate=learning_rate, progress=progress, id_B=id_B)
        if self._graphs:  # of the encoder: what it returned last is not needed any more
            torch.compiler.cudagraph_mark_step_begin()
            if self._unrecorded:
                self._unrecorded -= 1
                come_to_rest(self._accelerator.device)
        return self.train(views, progress=progress, id_B=id_B)

    def train(
        self, views: Sequence[Tensor], *, progress: float | Tensor, id_B: Tensor | None
    ) -> Output:
        """Do all of it but setting the learning rate, so that it can be recorded and replayed."""
        self.guard.before()
        if self._samples is not None:
            output = backward_in_parts(
                self.method, self._model, self._accelerator, views, samples=self._samples
            )
        else:
            output = self._model(views, id_B)
            self._accelerator.backward(output.loss)
        norm = None
        if self._clip is not None:
            norm = self._accelerator.clip_grad_norm_(self.parameters, self._clip)
        self.guard.step(self.optimizer, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(progress)
        self.guard.after()
        return output


def _compile_mode(config: Config) -> str | None:
    """Return PyTorch's name of the mode; a recorded step holds no graphs of the compiler's own."""
    if config.compile_mode == "max-autotune" and config.capture_step:
        return "max-autotune-no-cudagraphs"
    return None if config.compile_mode == "default" else config.compile_mode
