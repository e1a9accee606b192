"""Steps whose gradient is not finite change nothing, and the host does not wait to find out.

The device knows whether the gradient is finite, after the backward pass of all ranks; they take its
mean, so all find the same. The optimizer and the buffers learn it on the device, too:

    buffers ─ kept ─▶ forward, backward ─▶ gradient finite? ─▶ optimizer: found_inf, as for fp16
                                                    └────────▶ buffers: new, or as kept

Skipped steps are counted on the device; the loop reads the counts with its next record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from model.memory_bank import rings


class Guard:
    """Skips the steps of one method and optimizer that would spoil the weights.

    Args:
        method: whose buffers (statistics of batch norm, queues) and moving averages are kept over
            a step. They are moved beside each other in memory, so that this is one copy for all of
            a type. Rings of keys, which may hold a gigabyte, put back what they overwrote.
        optimizer: one that skips a step by `found_inf`, as PyTorch's fused ones and `LARS` do; not
            as Accelerate wrapped it.
        scaled: whether a loss scaler skips these steps by itself, as under fp16.
    """

    def __init__(self, method: nn.Module, optimizer: Optimizer, *, scaled: bool) -> None:
        self._optimizer: Any = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fixed = [p for p in method.parameters() if not p.requires_grad]  # of a moving average
        self._rings = list(rings(method))
        large = {id(buffer) for ring in self._rings for buffer in ring.large}
        small = (buffer for buffer in method.buffers() if id(buffer) not in large)
        self._buffers = _side_by_side([each for each in (*small, *fixed) if each.numel()])
        self._kept = [torch.empty_like(buffer, requires_grad=False) for buffer in self._buffers]
        self._scaled = scaled
        if isinstance(optimizer, SGD):
            _begin_momentum(optimizer)
        device = self._parameters[0].device
        self._bad = torch.zeros((), dtype=torch.bool, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        """Steps so far that changed nothing."""
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        """How many of them are the latest ones."""

    def counts(self) -> tuple[int, int]:
        """Return how many steps were skipped, and how many of them are the latest ones; waits."""
        skipped, in_a_row = torch.stack([self.skipped, self.in_a_row]).tolist()
        return skipped, in_a_row

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on counting."""
        self.skipped.copy_(state["skipped"])
        self.in_a_row.copy_(state["in_a_row"])

    def before(self) -> None:
        """Keep a copy of the buffers, which the forward pass changes."""
        with torch.no_grad():
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                kept.copy_(buffer)

    def step(self, optimizer: Any, norm: Tensor | None) -> None:
        """Update the weights if their gradient is finite.

        Args:
            optimizer: as Accelerate wrapped it.
            norm: of the whole gradient, if it is known already.
        """
        if norm is None:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        bad = self._bad = ~norm.isfinite()
        if self._scaled:
            optimizer.step()
        else:
            self._optimizer.found_inf, self._optimizer.grad_scale = bad.float(), None
            optimizer.step()
        self.skipped += bad
        self.in_a_row.add_(1).mul_(bad)

    def after(self) -> None:
        """After a bad step, put back the buffers and moving averages that it has changed."""
        for ring in self._rings:
            ring.put_back(self._bad)
        _put_back(self._buffers, self._kept, self._bad)


def refuse_bad_weights(parameters: Sequence[Tensor], step: int) -> None:
    """Stop before weights are saved that a finite gradient times its rate has spoilt; waits.

    Raises:
        ValueError: a weight is not finite.
    """
    if not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise ValueError(
            f"weights are not finite after step {step:,}, so they were not saved. Lower "
            "--learning_rate or raise --warmup_epochs, in a new --run."
        )


def _side_by_side(buffers: Sequence[Tensor]) -> list[Tensor]:
    """Move buffers of one type into one tensor each, of which they become views; return those.

    Memory formats stay as they are.
    """
    flats: list[Tensor] = []
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
        same = [buffer for buffer in buffers if buffer.dtype == dtype]
        same.sort(key=lambda buffer: buffer.numel() % 4 > 0)  # so that large ones stay aligned
        # A copy is dense, in the order of its strides.
        copies = [buffer.detach().clone(memory_format=torch.preserve_format) for buffer in same]
        flats.append(torch.cat([each.as_strided((each.numel(),), (1,)) for each in copies]))
        parts = flats[-1].split([buffer.numel() for buffer in same])
        for buffer, each, part in zip(same, copies, parts, strict=True):
            buffer.data = part.as_strided(each.shape, each.stride())
    return flats


def _put_back(tensors: Sequence[Tensor], kept: Sequence[Tensor], bad: Tensor) -> None:
    with torch.no_grad():
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(torch.where(bad, before, tensor))


def _begin_momentum(optimizer: SGD) -> None:
    """Make the buffers that the first step would make: it may be skipped."""
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
