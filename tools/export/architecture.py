"""Which network of torchvision or timm an encoder is, under the same names of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from model.encoder import ResNet, Timm
from tools.export.subject import Subject


def of_timm(subject: Subject) -> tuple[str, dict[str, Any]] | None:
    """Return timm's architecture and the arguments of `timm.create_model`; None if it has none."""
    encoder = subject.encoder
    if isinstance(encoder, Timm):
        return encoder.name.partition(".")[0], encoder.arguments()
    name = _of_resnet(subject)
    return None if name is None else (name, {"num_classes": 0})


def of_torchvision(subject: Subject) -> str | None:
    """Return the name of torchvision's ResNet that takes these weights; None if there is none."""
    import torchvision.models as published

    encoder = subject.encoder
    name = _of_resnet(subject)
    if isinstance(encoder, Timm):
        name = encoder.name.partition(".")[0]
    if name is None or name not in published.list_models():
        return None
    with torch.device("meta"):  # it is compared, not run
        network = published.get_model(name, weights=None)
    if not isinstance(network, published.ResNet):
        return None  # other families have other names there
    network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    there = {name: tensor.shape for name, tensor in network.state_dict().items()}
    here = {name: tensor.shape for name, tensor in subject.tensors().items()}
    return name if there == here else None


def described(subject: Subject) -> str:
    """Return what an encoder is, for a message."""
    if isinstance(subject.encoder, ResNet):
        return f"ResNet with a {_stem(subject)} stem"
    return subject.encoder.describe()


def _of_resnet(subject: Subject) -> str | None:
    if not isinstance(subject.encoder, ResNet) or _stem(subject) != "large":
        return None
    return f"resnet{subject.facts['arguments'].get('depth', 18)}"


def _stem(subject: Subject) -> str:
    return subject.facts["arguments"].get("stem", "large")
