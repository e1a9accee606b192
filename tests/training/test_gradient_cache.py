"""Gradient caching against the whole batch, and against its own definition where they differ."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.encoder import Encoder, SmallResNet
from model.method import JointEmbedding
from model.objective import NTXent, Objective, SmoothAP
from model.sync_batch_norm import synchronise
from training.gradient_cache import backward_in_parts, kept_statistics


class OneProcess:
    """As much of `accelerate.Accelerator` as is asked for."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def autocast(self) -> Any:
        return torch.autocast("cpu", self.dtype, enabled=self.dtype is not None)

    def no_sync(self, model: Any) -> Any:
        del model
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Dropping(Encoder):
    feature_size = 8

    def __init__(self, share: float) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.Dropout(share), nn.Tanh()
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.network(images_NCHW)


def joint(encoder: Encoder, objective: Objective, **settings: Any) -> JointEmbedding:
    torch.manual_seed(0)
    return JointEmbedding(
        encoder=encoder, objective=objective, hidden_size=7, embedding_size=5, **settings
    ).train()


def views() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(6, count, size, size, 3, generator=generator).permute(1, 0, 4, 2, 3)
        for count, size in ((2, 12), (3, 8))
    )


def gradients(method: nn.Module) -> list[Tensor]:
    return [p.grad for p in method.parameters() if p.grad is not None]


def whole(method: JointEmbedding, accelerator: OneProcess) -> Tensor:
    with accelerator.autocast():
        loss = method(views()).loss
    loss.backward()
    return loss


@pytest.mark.parametrize("samples", [1, 2, 3, 6])
@pytest.mark.parametrize("objective", [SmoothAP(), NTXent()])
@pytest.mark.parametrize("gallery", ["all", "large"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_parts_add_up_to_the_gradient_of_the_whole_batch(
    samples: int, objective: Objective, gallery: Any, dtype: torch.dtype | None
) -> None:
    accelerator = OneProcess(dtype)
    method = joint(Dropping(0.0), objective, gallery=gallery, projector_layers=1)
    other = copy.deepcopy(method)
    expected = whole(method, accelerator)
    output = backward_in_parts(other, other, accelerator, views(), samples=samples)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    # In bfloat16 the sum over parts is rounded once more often.
    tolerance = 1e-5 if dtype is None else 2e-2 * max(g.abs().max() for g in gradients(method))
    for found, grad in zip(gradients(other), gradients(method), strict=True):
        torch.testing.assert_close(found, grad, rtol=0, atol=float(tolerance))


@pytest.mark.parametrize("encoder", [Dropping(0.5), SmallResNet(width=4)])
def test_batch_norm_and_dropout_are_those_of_the_parts(encoder: Encoder) -> None:
    method = joint(encoder, SmoothAP())
    other = copy.deepcopy(method)
    torch.manual_seed(5)
    chunks = [tuple(group[:, start : start + 2] for group in views()) for start in (0, 2, 4)]
    z_VBD = torch.cat(
        [torch.cat([method.embed(group) for group in chunk]) for chunk in chunks], dim=1
    )
    method.compare(z_VBD, large_views=2).loss.backward()
    torch.manual_seed(5)
    backward_in_parts(other, other, OneProcess(), views(), samples=2)
    for found, grad in zip(gradients(other), gradients(method), strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-6)
    # Running statistics moved once a part and view group, not twice; random numbers as well.
    for buffer, expected in zip(other.buffers(), method.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)
    after = torch.rand(1)
    torch.manual_seed(5)
    for chunk in chunks:
        for group in chunk:
            method.embed(group)
    assert after == torch.rand(1)


def test_synchronised_statistics_are_left_alone_too() -> None:
    store: Any = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain, x = nn.BatchNorm1d(3), torch.randn(8, 3)
        layer = synchronise(copy.deepcopy(plain))
        with kept_statistics(layer):
            found = layer(x)
        for name, buffer in plain.named_buffers():
            assert torch.equal(layer.get_buffer(name), buffer), name
        torch.testing.assert_close(found, plain(x))
        layer(x)
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(layer.get_buffer(name), buffer)
    finally:
        dist.destroy_process_group()
