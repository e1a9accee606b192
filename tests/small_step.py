"""A training step small enough for tests, of every method."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from training.config import Config
from training.settings import parse
from training.step import Step

METHODS = {
    "JointEmbedding": [],
    "MoCo": ["--method.queue_size", "32"],
    "SwAV": ["--method.prototypes", "6", "--method.queue_size", "16", "--method.queue_start", "0"],
    "SimSiam": [],
    "BYOL": [],
    "DINO": ["--method.prototypes", "12"],
}


def config_of(method: str, optimizer: str = "adamw", *more: str) -> Config:
    words = ["--shards", "x", "--run", "r", "--steps", "5", "--batch_size", "8"]
    words += ["--method", method, "--method.encoder", "SmallResNet"]
    words += ["--method.encoder.width", "4", "--method.hidden_size", "16"]
    words += ["--method.embedding_size", "8", *METHODS.get(method, []), "--optimizer", optimizer]
    return parse([*words, *more]).config


def step_of(method: str, optimizer: str = "adamw", *more: str) -> Step:
    return Step(config_of(method, optimizer, *more), Accelerator(cpu=True))


def tensors_of(step: Step) -> dict[str, Tensor]:
    """Return copies of the method's state and of the optimizer's."""
    found = {name: value.clone() for name, value in step.method.state_dict().items()}
    for number, values in enumerate(step.optimizer.state_dict()["state"].values()):
        found |= {f"{number}.{name}": torch.as_tensor(v).clone() for name, v in values.items()}
    return found
