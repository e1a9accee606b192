"""Batch norm over ranks, by its arithmetic; test_gather.py runs it on two processes."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from two_processes import norms

from model import sync_batch_norm
from model.sync_batch_norm import SyncBatchNorm, synchronise


def test_the_synchronised_module_holds_the_same_tensors() -> None:
    network = norms()
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    mode = network.train(False)
    replaced = synchronise(mode)
    after = dict(replaced.named_parameters()) | dict(replaced.named_buffers())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    kinds = [type(m) for m in replaced.modules() if hasattr(m, "running_mean")]
    assert kinds == [SyncBatchNorm] * 3 and not any(m.training for m in replaced.modules())
    assert isinstance(synchronise(nn.BatchNorm2d(3)), SyncBatchNorm)


def test_in_evaluation_it_is_batch_norm() -> None:
    plain = norms().eval()
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    expected = plain(images)
    torch.testing.assert_close(synchronise(plain)(images), expected)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=None)]
)
def test_what_is_not_synchronised_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="set --sync_batch_norm false"):
        synchronise(nn.Sequential(layer))


def test_what_timm_does_inside_its_batch_norm_is_still_done() -> None:
    from timm.layers.norm_act import BatchNormAct2d

    torch.manual_seed(0)
    plain: Any = BatchNormAct2d(3, act_layer=nn.PReLU).eval()  # whose activation has a weight
    nn.init.uniform_(plain.running_mean)
    images = torch.randn(4, 3, 6, 6)
    expected, names = plain(images), list(plain.state_dict())
    replaced = synchronise(plain)
    assert isinstance(replaced, SyncBatchNorm) and list(replaced.state_dict()) == names
    torch.testing.assert_close(replaced(images), expected)

    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(ValueError, match="Own is a batch norm that is not known"):
        synchronise(Own(3))


def by_ranks(x: Tensor, dy: Tensor, layer: nn.BatchNorm2d, *, first: int = 4) -> list[Tensor]:
    """Let two ranks normalise a part of the rows each, their collectives written out."""
    mean_C, var_C = layer.running_mean, layer.running_var
    assert mean_C is not None and var_C is not None
    sizes, eps = [first, len(x) - first], layer.eps
    parts, dparts = x.split(sizes), dy.split(sizes)
    all_R2C = torch.stack([torch.stack(sync_batch_norm.statistics(p, eps)) for p in parts])
    count_R = all_R2C.new_tensor([part.numel() // x.shape[1] for part in parts])
    shared = sync_batch_norm.combined(
        parts[0], all_R2C, count_R, mean_C, var_C, 0.1, eps, uneven=first != 4
    )
    y = [sync_batch_norm.normalised(p, layer.weight, layer.bias, *shared, eps) for p in parts]
    sums = [
        sync_batch_norm.gradient_sums(d, p, layer.weight, *shared)
        for d, p in zip(dparts, parts, strict=True)
    ]
    sums_2C = sums[0][0] + sums[1][0]
    dx = [
        sync_batch_norm.input_gradient(d, p, layer.weight, *shared, sums_2C, count_R)
        for d, p in zip(dparts, parts, strict=True)
    ]
    weight_gradients = [one + other for one, other in zip(sums[0][1:], sums[1][1:], strict=True)]
    return [torch.cat(y), torch.cat(dx), *weight_gradients, mean_C, var_C]


def expected_of(x: Tensor, dy: Tensor, layer: nn.BatchNorm2d) -> list[Tensor]:
    wide = x.float().requires_grad_()
    y = layer(wide)
    y.backward(dy.float())
    assert wide.grad is not None and layer.running_mean is not None
    assert layer.running_var is not None
    found = [y, wide.grad, layer.weight.grad, layer.bias.grad]
    return [t.detach() for t in found if t is not None] + [layer.running_mean, layer.running_var]


@pytest.mark.parametrize("first", [4, 1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_arithmetic_is_that_of_batch_norm(device: str, dtype: torch.dtype, first: int) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(6).to(device)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    x, dy = (torch.randn(8, 6, 5, 5, device=device).mul_(3).to(dtype) for _ in range(2))
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    expected = expected_of(x, dy, copy.deepcopy(layer))
    with torch.no_grad():
        found = by_ranks(x, dy, layer, first=first)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=bound, atol=10 * bound)
    assert found[0].dtype == found[1].dtype == dtype
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_counts_have_the_type_that_pytorchs_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counts have the type of the running statistics, and without those of the input."""
    asked: list[Any] = []
    monkeypatch.setattr(
        torch, "batch_norm_gather_stats_with_counts", lambda *each: asked.append(each)
    )

    class OnGpu:
        is_cuda = True

    statistics_R2C = torch.zeros(2, 2, 6)
    count_R = statistics_R2C.new_full((2,), 8.0)
    x: Any = OnGpu()
    sync_batch_norm.combined(x, statistics_R2C, count_R, None, None, 0.1, 1e-5)
    ((first, *_, counts),) = asked
    assert first.dtype == counts.dtype == torch.float32


def test_shapes_alone_run_no_kernel() -> None:
    with FakeTensorMode():
        x = torch.empty(8, 6, 5, 5, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        mean_C, inverse_C = sync_batch_norm.statistics(x, 1e-5)
        shared = sync_batch_norm.combined(
            x, torch.stack([mean_C, inverse_C])[None], mean_C[:1], None, None, 0.1, 1e-5
        )
        y = sync_batch_norm.normalised(x, None, None, *shared, 1e-5)
        sums_2C, *weights = sync_batch_norm.gradient_sums(y, x, None, *shared)
        dx = sync_batch_norm.input_gradient(y, x, None, *shared, sums_2C, mean_C[:1])
    assert y.shape == dx.shape == x.shape and y.dtype == dx.dtype == torch.bfloat16
    assert sums_2C.shape == (2, 6) and [w.shape for w in weights] == [(6,), (6,)]


def test_the_definition_is_the_one_of_pytorchs_functional() -> None:
    x = torch.randn(8, 6, dtype=torch.float64)
    mean_C, inverse_C = sync_batch_norm.statistics(x, 1e-5)
    one, zero = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    y = sync_batch_norm.normalised(x, one, zero, mean_C, inverse_C, 1e-5)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True, eps=1e-5))
