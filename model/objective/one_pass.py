"""Objectives that find their gradient while they find their value, and then forget the scores.

A loss is one scalar, so the backward pass merely scales the gradient that the forward pass took:
[N, D] is all that is stored between the two, and nothing is computed twice.
"""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from model.objective.objective import Objective


class OnePass(Objective):
    """An objective of normalised embeddings, differentiable once.

    Scores are to be float32: leave `set_float32_matmul_precision` of torch at "highest", because
    TF32 rounds a cosine to steps of about 0.0005.
    """

    @abstractmethod
    def value_and_gradient(
        self, z_VAD: Tensor, gallery_views: int, samples: slice, *, grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss and, if `grad`, its gradient [V, A, D]; autograd is off.

        Args:
            z_VAD: contiguous, of unit length; not to be changed.
            gallery_views: see `Objective.forward`.
            samples: see `Objective.forward`; start and stop are set.
            grad: whether the gradient is wanted.
        """

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`; z [V, A, D] need not be normalised."""
        one_pass = _OnePass.apply
        if torch.compiler.is_compiling():
            # Compiled, loops over chunks would be unrolled again for every N. To say so only here
            # spares every other process the compiler's import, four seconds.
            one_pass = torch.compiler.disable(one_pass)
        z_VAD = F.normalize(z_VAD, dim=-1)
        return one_pass(z_VAD, self, gallery_views, samples)  # pyright: ignore[reportCallIssue, reportReturnType]


class _OnePass(Function):
    @staticmethod
    def forward(
        ctx: Any, z_VAD: Tensor, objective: OnePass, gallery_views: int, samples: slice
    ) -> Tensor:
        grad = ctx.needs_input_grad[0]
        loss, dz_VAD = objective.value_and_gradient(
            z_VAD.contiguous(), gallery_views, samples, grad=grad
        )
        if dz_VAD is not None:
            ctx.save_for_backward(dz_VAD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # once_differentiable would let this pass, with a wrong result
            raise RuntimeError(
                "found create_graph=True, but this objective is differentiable once: its gradient "
                "is taken in the forward pass. Leave create_graph out."
            )
        (dz_VAD,) = ctx.saved_tensors
        return dz_VAD * grad_outputs[0], None, None, None
