"""The training of a detector, and what it then finds.

A step's batch, and what is drawn of its images, follow from its number; ranks average their
gradients. It goes on after a kill, and with any number of workers. Only an encoder that drops units
or paths draws from a stream, which the state keeps: of each rank its own, so that another number of
ranks drops others.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from evaluation.detection.box_precision import FoundBoxes
from evaluation.detection.detection_set import BatchOrder, DetectionSet, collated, to_device
from evaluation.detection.detector import Detector
from evaluation.protocol import Trial
from evaluation.resumption import Task
from model.gather import average_gradients, gather_equal_rows, gather_rows
from model.random_numbers import random_state, set_random_state


@dataclass(frozen=True, kw_only=True)
class DetectorSchedule:
    """How long and how fast a detector learns.

    Args:
        iterations: steps of training.
        batch_size: images of a step, over all ranks.
        learning_rate: of SGD, for the whole batch.
        drops: steps from which the rate is a tenth of what it was.
        warmup: first steps, over which the rate rises from a thousandth.
        momentum: of SGD.
        weight_decay: of all weights but those of batch norm.
        shorter: shorter sides of images in training, in pixels; one is drawn for each.
        longest: the longer side of an image, in pixels, at most.
        seed: of order, augmentation, and what an encoder drops.
        workers: processes that read images.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    drops: Sequence[int]
    warmup: int
    momentum: float
    weight_decay: float
    shorter: Sequence[int]
    longest: int
    seed: int
    workers: int

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        rate = self.learning_rate * 0.1 ** sum(step >= drop for drop in self.drops)
        done = min(1.0, step / self.warmup) if self.warmup else 1.0
        return rate * (0.001 + 0.999 * done)


def train(
    trial: Trial, task: Task, detector: Detector, images: DetectionSet, schedule: DetectorSchedule
) -> None:
    """Train a detector, from the state that was saved last on.

    Args:
        trial: says which rank this is, and on what device.
        task: has the state, and saves it.
        detector: it.
        images: the set.
        schedule: how long and how fast.

    Raises:
        ValueError: an image cannot be read, or the loss is no number any more.
    """
    learner = _Learner(trial, detector, schedule)
    before = random_state()
    torch.manual_seed(schedule.seed + 1_000_003 * trial.rank)  # of units and paths that are dropped
    if task.state is not None:
        learner.restore(task.state)
    order = BatchOrder(
        images,
        batch_size=schedule.batch_size,
        shorter=schedule.shorter,
        longest=schedule.longest,
        seed=schedule.seed,
        start=learner.steps,
        stop=schedule.iterations,
        rank=trial.rank,
        world_size=trial.world_size,
    )
    detector.train()
    for batch in _loaded(trial, images, order, schedule.workers):
        trial.tell(f"detector on {images.images.location}", learner.steps, schedule.iterations)
        learner.step(*to_device(batch, trial.device))
        task.after_step(learner.state)
    learner.state()
    set_random_state(before)
    detector.eval()


@torch.inference_mode()
def detect(
    trial: Trial,
    detector: Detector,
    images: DetectionSet,
    *,
    shorter: int,
    longest: int,
    workers: int,
) -> FoundBoxes:
    """Return what a detector finds in all images, on every rank.

    Args:
        trial: says which rank this is, and on what device.
        detector: it.
        images: the set.
        shorter: the shorter side of an image, in pixels.
        longest: its longer side, at most.
        workers: processes that read images.
    """
    detector.eval()
    own = range(trial.rank, len(images), trial.world_size)
    draws = [[images.tested(index, shorter=shorter, longest=longest)] for index in own]
    what = f"detections in {images.images.location}"
    parts = [torch.zeros(0, 7, dtype=torch.float64, device=trial.device)]
    batches = zip(draws, _loaded(trial, images, draws, workers), strict=True)
    for number, ((draw,), batch) in enumerate(batches):
        trial.tell(what, number, len(own))
        (found,) = detector(to_device(batch, trial.device)[0])
        box_D4 = found["boxes"].double()
        box_D4[:, 2:] -= box_D4[:, :2]
        frame_2 = torch.from_numpy(images.frame_N2[draw.index]).to(trial.device)
        box_D4 *= (frame_2 / frame_2.new_tensor([draw.width, draw.height])).repeat(2)
        about_D3 = torch.stack(
            [
                torch.full_like(found["scores"], draw.index, dtype=torch.float64),
                found["labels"].double() - 1,  # 0 was background
                found["scores"].double(),
            ],
            dim=1,
        )
        parts.append(torch.cat([about_D3, box_D4], dim=1))
    rows_D7 = gather_rows(torch.cat(parts)).cpu().numpy()
    rows_D7 = rows_D7[np.argsort(rows_D7[:, 0], kind="stable")]  # alike for any number of ranks
    whole = rows_D7[:, :2].astype(np.int64)
    return FoundBoxes(whole[:, 0], whole[:, 1], rows_D7[:, 2], rows_D7[:, 3:])


class _Learner:
    """A detector and its optimizer, on all ranks alike."""

    def __init__(self, trial: Trial, detector: Detector, schedule: DetectorSchedule) -> None:
        self._schedule, self._detector, self._world_size = schedule, detector, trial.world_size
        self.steps = 0
        norms = {
            id(parameter)
            for module in detector.modules()
            if isinstance(module, _BatchNorm)
            for parameter in module.parameters(recurse=False)
        }
        self._trained = [each for each in detector.parameters() if each.requires_grad]
        groups = [
            {"params": [p for p in self._trained if id(p) not in norms]},
            {"params": [p for p in self._trained if id(p) in norms], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
        )
        half = trial.autocast == torch.float16
        self._scaler = torch.amp.GradScaler(trial.device.type, enabled=half)
        self._finite = torch.ones((), device=trial.device)

    def restore(self, state: Any) -> None:
        """Take up what `state` returned."""
        self.steps = state["steps"]
        self._detector.load_state_dict(state["detector"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])

    def state(self) -> Any:
        """Return all that the next steps depend on; every rank calls this after the same steps.

        Raises:
            ValueError: a loss was no number, on some rank.
        """
        if gather_equal_rows(self._finite[None]).mean() < 1:
            raise ValueError(
                f"the detector's loss is no number any more, at step {self.steps:,} or before: its "
                "training has diverged. Lower --detection.learning_rate, or raise "
                "--detection.warmup."
            )
        return {
            "steps": self.steps,
            "detector": self._detector.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": random_state(),
        }

    def step(self, images_BCHW: Tensor, targets: list[dict[str, Any]]) -> None:
        """Move the weights once; nothing here waits for the device, torchvision's losses do."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate(self.steps)
        loss_K, count_K = self._detector(images_BCHW, targets)
        if self._world_size > 1:
            # Gradients are averaged; a rank with more samples weighs more in the mean over all.
            total_K = gather_equal_rows(count_K[None]).sum(dim=0)
            loss_K = loss_K * (count_K * self._world_size / total_K)
        loss = loss_K.sum()
        self._finite = self._finite * loss.detach().isfinite()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        average_gradients(self._trained)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.steps += 1


def _loaded(
    trial: Trial, images: DetectionSet, order: BatchOrder | list[Any], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_sampler=order,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        collate_fn=collated,
        pin_memory=trial.device.type == "cuda",
        worker_init_fn=_ignore_signals,
        # Else the workers' seed is drawn, at every start, from the stream of what is dropped.
        generator=torch.Generator(),
    )


def _ignore_signals(_: int) -> None:
    """Leave Ctrl-C to the process that started this one, which ends it in peace."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
