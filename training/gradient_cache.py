"""Gradient caching: a batch larger than memory, with the gradient of the whole batch.

    all micro-batches, without graph ─▶ z [V, B, D] ─▶ objective ─▶ dL/dz
    each micro-batch again, with graph ─▶ its z · dL/dz ─▶ its part of the weights' gradient

Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021, https://arxiv.org/abs/2101.06983. The encoder runs forward twice, which costs about a
third more time; only one micro-batch's activations exist at once.

Average precision, like every objective that compares samples with each other, does not decompose
over parts of a batch: accumulating the gradients of small batches would rank each view among fewer
others. This does not: gradients equal those of the whole batch, but for batch norm, whose
statistics are those of a micro-batch (as they are of a rank without synchronised batch norm).
Running statistics are updated by the first passage alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.method import JointEmbedding, Output
from model.method.method import large
from model.random_numbers import random_state, set_random_state


def backward_in_parts(
    method: JointEmbedding,
    model: Any,
    accelerator: Any,
    views: Sequence[Tensor],
    *,
    samples: int,
) -> Output:
    """Add the gradient of the whole batch to the weights, `samples` of this rank at a time.

    Args:
        method: what is trained.
        model: the same as `accelerator` prepared it.
        accelerator: `accelerate.Accelerator`, for precision and several ranks.
        views: one tensor a view group, [V, B, C, H, W].
        samples: of a micro-batch on this rank; B is a multiple of it.
    """
    B = views[0].shape[1]
    parts = [slice(start, start + samples) for start in range(0, B, samples)]
    chunks = [tuple(group[:, part] for group in views) for part in parts]
    embeddings: list[Tensor] = []
    randoms: list[dict[str, Tensor]] = []
    with torch.no_grad(), accelerator.autocast():
        for chunk in chunks:
            randoms.append(random_state())
            embeddings.append(torch.cat([method.embed(group) for group in chunk]).float())
    z_VBD = torch.cat(embeddings, dim=1).requires_grad_()
    output = method.compare(z_VBD, large_views=sum(map(len, large(tuple(views)))))
    (gradient_VBD,) = torch.autograd.grad(output.loss, z_VBD)

    after = random_state()
    with kept_statistics(method):
        for part, chunk, random in zip(parts, chunks, randoms, strict=True):
            set_random_state(random)  # the same units are dropped, if any
            last = part is parts[-1]
            with nullcontext() if last else accelerator.no_sync(model):
                accelerator.backward(model(chunk, None, gradient_VBD[:, part]).loss)
    set_random_state(after)
    return Output(loss=output.loss.detach(), z_VAD=output.z_VAD, metrics=output.metrics)


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms alone; they normalise in training as ever."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
