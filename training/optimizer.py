"""Optimizers by name, with no weight decay on norms and biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.lars import LARS


def build_optimizer(
    module: nn.Module,
    *,
    fixed_rate: Sequence[nn.Module] = (),
    name: Literal["sgd", "adamw", "lars"],
    learning_rate: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """Return an optimizer of all trainable parameters of `module`.

    Args:
        module: whose parameters are trained.
        fixed_rate: its parts that `set_learning_rate` leaves at `learning_rate`.
        name: sgd, adamw, or lars as in You, Gitman, Ginsburg 2017, https://arxiv.org/abs/1708.03888.
        learning_rate: at the start; the schedule sets it every step.
        weight_decay: of matrices and filters.
        momentum: of sgd and lars; the first beta of adamw.
    """
    fixed = {id(p) for part in fixed_rate for p in part.parameters()}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for scheduled in (True, False) if fixed else (True,):
        own = [p for p in trained if (id(p) not in fixed) == scheduled]
        decaying = {"params": [p for p in own if p.ndim > 1], "weight_decay": weight_decay}
        # Scales and offsets of norms, and biases; lars does not adapt their rate either.
        others = {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0}
        if name == "lars":
            others["adapts"] = False
        groups += [{**group, "scheduled": scheduled} for group in (decaying, others)]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)
    return LARS(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the rate of all parameters but those of a fixed rate."""
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = learning_rate


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take up the state of an optimizer of the same parameters and settings.

    PyTorch compares neither: kernels would read beyond a tensor that is smaller than its parameter.

    Raises:
        ValueError: it is the state of another optimizer.
    """
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for before, group in zip(own, optimizer.param_groups, strict=True):
        for name, value in before.items():
            found = group.get(name)
            if name == "params" or (name == "lr" and isinstance(found, float)):  # set every step
                continue
            if found != value:
                raise ValueError(f"its optimizer has {name}={str(found)[:80]}, not {value}")
    if len({frozenset(values) for values in optimizer.state.values()}) > 1:
        raise ValueError("its optimizer keeps other values of some parameters than of others")
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            wanted = () if name == "step" else parameter.shape
            if not (isinstance(value, Tensor) and value.shape == wanted):
                found = list(value.shape) if isinstance(value, Tensor) else str(value)[:80]
                raise ValueError(
                    f"its optimizer has {name}={found} for a parameter of {list(parameter.shape)}"
                )
