"""Embeddings to test objectives with, and what an objective makes of them."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from model import objective
from model.objective import Objective

# The import list is the registry: a new objective is tested without a line here.
OBJECTIVES = [
    each
    for each in vars(objective).values()
    if inspect.isclass(each) and issubclass(each, Objective) and not inspect.isabstract(each)
]


def embeddings(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def aligned(V: int, A: int, D: int, noise: float = 0.5) -> Tensor:
    return embeddings(1, A, D) + noise * embeddings(V, A, D, seed=1)


def value_and_gradient(
    objective: Callable[[Tensor], Tensor], z_VAD: Tensor
) -> tuple[Tensor, Tensor]:
    z_VAD = z_VAD.detach().clone().requires_grad_()
    loss = objective(z_VAD)
    loss.backward()
    assert z_VAD.grad is not None
    return loss.detach(), z_VAD.grad


def golden_VAD(dtype: torch.dtype = torch.float32) -> Tensor:
    """Return three samples with four views, by the formula of methods.md, section 8."""
    i = torch.arange(12, dtype=torch.float64)[:, None]
    k = torch.arange(8, dtype=torch.float64)
    E_ND = 0.45 * torch.sin(0.9 * (i // 4) * (k + 1) + 0.3 * k)
    E_ND += 0.6 * torch.cos(1.7 * i * (k + 1) + 0.5)
    # Row i is view i % 4 of image i // 4.
    return E_ND.unflatten(0, (3, 4)).transpose(0, 1).to(dtype).contiguous()
