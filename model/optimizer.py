"""Optimizers by name, with no weight decay on norms and biases, and rates by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.encoder import Encoder
from model.lars import LARS


def build_optimizer(
    module: nn.Module,
    *,
    fixed_rate: Sequence[nn.Module] = (),
    scales: Mapping[Tensor, float] | None = None,
    undecayed: Collection[Tensor] = (),
    name: Literal["sgd", "adamw", "lars"],
    learning_rate: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """Return an optimizer of all trainable parameters of `module`.

    Args:
        module: whose parameters are trained.
        fixed_rate: its parts that `set_learning_rate` leaves at `learning_rate`.
        scales: {parameter: the share of the learning rate that it gets}; 1 where it is not named.
        undecayed: parameters besides norms and biases without weight decay.
        name: sgd, adamw, or lars as in You, Gitman, Ginsburg 2017, https://arxiv.org/abs/1708.03888.
        learning_rate: at the start; the schedule sets it every step.
        weight_decay: of matrices and filters.
        momentum: of sgd and lars; the first beta of adamw.
    """
    fixed = {p for part in fixed_rate for p in part.parameters()}
    exempt = set(undecayed)
    by_rate: dict[tuple[bool, float], list[Tensor]] = {(True, 1.0): []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            rate = (parameter not in fixed, (scales or {}).get(parameter, 1.0))
            by_rate.setdefault(rate, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (scheduled, scale), own in sorted(by_rate.items(), reverse=True):
        decays = [p.ndim > 1 and p not in exempt for p in own]
        decaying = {"params": [*compress(own, decays)], "weight_decay": weight_decay}
        # Scales and offsets of norms, and biases; lars does not adapt their rate either.
        rest = [p for p, decay in zip(own, decays, strict=True) if not decay]
        others = {"params": rest, "weight_decay": 0.0}
        if name == "lars":
            others["adapts"] = False
        rate = {"scheduled": scheduled, "scale": scale, "lr": learning_rate * scale}
        groups += [{**group, **rate} for group in (decaying, others)]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)
    return LARS(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)


def encoders(module: nn.Module) -> list[Encoder]:
    """Return the encoders in a module, copies among them."""
    return [part for part in module.modules() if isinstance(part, Encoder)]


def undecayed(module: nn.Module) -> set[Tensor]:
    """Return the parameters of its encoders that get no weight decay, besides norms and biases."""
    return {each.get_parameter(name) for each in encoders(module) for name in each.undecayed()}


def layer_scales(module: nn.Module, *, rate: float, layer_decay: float) -> dict[Tensor, float]:
    """Return {parameter of its encoders: the share of the learning rate that it gets}.

        rate · layer_decay ** (layers above its own)

    Bao, Dong, Piao, Wei, "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022,
    https://arxiv.org/abs/2106.08254, for fine-tuning; as timm's `param_groups_layer_decay`.
    """
    if rate == layer_decay == 1:
        return {}
    scales: dict[Tensor, float] = {}
    for encoder in encoders(module):
        layers = encoder.layers()
        top = max(layers.values())
        for name, parameter in encoder.named_parameters():
            scales[parameter] = rate * layer_decay ** (top - layers[name])
    return scales


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the rate of all parameters but those of a fixed rate, each by its scale."""
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = learning_rate * group["scale"]


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
