"""Trials of detectors on images of rectangles, whose state is kept in memory."""

import copy
from pathlib import Path
from typing import Any

import torch

from evaluation.bare_encoder import BareEncoder
from evaluation.detection.annotated_images import in_folder
from evaluation.detection.detection_set import DetectionSet
from evaluation.detection.detector import Detector, Kind, build
from evaluation.detection.detector_training import DetectorSchedule
from evaluation.protocol import Trial
from evaluation.resumption import Task
from model.encoder import Encoder, SmallResNet
from pipeline.normalisation import IMAGENET
from training.run.state_file import loads, pieces


class Saves:
    """What a task saves after each so many steps; the process ends after a number of saves."""

    def __init__(self, every: int, kills: int = -1) -> None:
        self.every, self.left, self.calls = every, kills, 0
        self.state: Any = None

    def task(self) -> Task:
        """Return a task that goes on where the saves are."""
        self.calls = 0
        return Task(copy.deepcopy(self.state), self._due, self._save)

    def _due(self) -> bool:
        self.calls += 1
        return self.calls % self.every == 0

    def _save(self, state: Any) -> None:
        # Through a file's bytes: what is not plain would show.
        self.state = loads(b"".join(pieces(state)))
        self.left -= 1
        if self.left == 0:
            raise MemoryError("killed")


def trial(encoder: Encoder | None = None, **changed: Any) -> Trial:
    encoder = encoder or small_encoder()
    settings: dict[str, Any] = {
        "encoder": encoder,
        "method": BareEncoder(encoder),
        "size": 64,
        "normalisation": IMAGENET,
        "device": torch.device("cpu"),
        "train": None,
        "test": None,
        "kept": None,
    }
    return Trial(**{**settings, **changed})


def small_encoder() -> SmallResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallResNet(width=4, stem_stride=2)


def detector(
    kind: Kind, *, train_batch_norm: bool = True, encoder: Encoder | None = None
) -> Detector:
    return build(
        encoder or small_encoder(),
        kind,
        categories=2,
        normalisation=IMAGENET,
        autocast=None,
        train_batch_norm=train_batch_norm,
        frozen_stages=0,
        finest_stage=2,
        channels=16,
        box_features=32,
        smallest_anchor=8,
        proposals=60,
        regions=64,  # more than there are: ranks sample differently many
        seed=0,
    )


def schedule(**changed: Any) -> DetectorSchedule:
    settings: dict[str, Any] = {
        "iterations": 6,
        "batch_size": 4,
        "learning_rate": 0.02,
        "drops": (4,),
        "warmup": 2,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "shorter": (48, 64),
        "longest": 128,
        "seed": 0,
        "workers": 0,
    }
    return DetectorSchedule(**{**settings, **changed})


def rectangles(folder: Path) -> DetectionSet:
    return DetectionSet.read(in_folder(folder, ["train2017"]), clip=True)
