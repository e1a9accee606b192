"""A step from tensors of its own is the eager step, and none of it waits for the device."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses import FakeTensorMode

from model import objective as objectives
from model.objective import Objective
from tests import small_step
from tests.host_waits import HostWaits
from tests.small_step import METHODS, tensors_of
from training import step_capture
from training.config import Config
from training.settings import parse
from training.step import Step
from training.step_capture import StepCapture

OPTIMIZERS = ("adamw", "sgd", "lars")
OBJECTIVES = [
    name
    for name, each in vars(objectives).items()
    if isinstance(each, type) and issubclass(each, Objective) and not inspect.isabstract(each)
]
RATE = torch.tensor(0.05).item()  # that float32 has exactly

pytestmark = pytest.mark.usefixtures("accelerate_as_it_was")


class OnMeta:
    """As much of Accelerate as a step asks for, on a device that has no values to wait for."""

    device = torch.device("meta")
    num_processes = 1
    scaler = None

    def prepare(self, *each: Any) -> tuple[Any, ...]:
        return each

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, largest)


def config_of(method: str, optimizer: str, *more: str) -> Config:
    """Return a small step's configuration; SwAV's queue is asked from the second step on."""
    queue = ["--method.queue_start", "1"] if method == "SwAV" else []
    return small_step.config_of(method, optimizer, *queue, *more)


def step_of(method: str, optimizer: str, *more: str) -> Step:
    return Step(config_of(method, optimizer, *more), Accelerator(cpu=True))


def captured(step: Step) -> StepCapture:
    return StepCapture(step.guard._optimizer, step.train, step.parameters[0].device)


def batch(number: int, device: str = "cpu", *, spoilt: bool = False) -> tuple[Tensor, ...]:
    """Return two groups of views, as the loader lays them out."""
    random = torch.Generator().manual_seed(number)
    groups = [
        torch.randn(8, count, size, size, 3, generator=random) for count, size in ((2, 16), (1, 12))
    ]
    if spoilt:
        groups[0][3, 1, 5, 5, 0] = torch.inf
    return tuple(group.to(device).permute(1, 0, 4, 2, 3) for group in groups)


@pytest.mark.parametrize(("method", "optimizer"), list(product(METHODS, OPTIMIZERS)))
def test_a_step_from_its_own_tensors_is_the_eager_step(method: str, optimizer: str) -> None:
    more = ["--clip_gradient_norm", "1.0"] if optimizer == "lars" else []
    eager, own = (step_of(method, optimizer, *more) for _ in range(2))
    capture = captured(own)
    for number in range(6):
        views, progress = batch(number, spoilt=number == 3), (number + 1) / 6
        rate = RATE * (1 + number % 2)
        expected = eager(views, learning_rate=rate, progress=progress)
        for group in own.optimizer.param_groups:
            assert not isinstance(group["lr"], Tensor)  # checkpoints hold numbers
        found = capture(views, learning_rate=rate, progress=progress, id_B=None)
        assert torch.equal(found.loss, expected.loss) or number == 3
        assert not found.loss.requires_grad
    assert own.guard.counts() == eager.guard.counts() == (1, 0)
    found, expected = tensors_of(own), tensors_of(eager)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_optimizer_reads_its_rate_from_the_device_too(optimizer: str) -> None:
    other, own = (step_of("JointEmbedding", optimizer) for _ in range(2))
    other(batch(0), learning_rate=RATE)
    capture = captured(own)
    own.optimizer.load_state_dict(other.optimizer.state_dict())  # which makes other groups
    with capture._device_rate(recording=True):
        for group in own.optimizer.param_groups:
            assert isinstance(group["lr"], Tensor) and group.get("capturable", True)
    assert not any(isinstance(group["lr"], Tensor) for group in own.optimizer.param_groups)


@pytest.mark.parametrize(("method", "optimizer"), list(product(METHODS, OPTIMIZERS)))
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_no_method_waits_for_the_device(method: str, optimizer: str, clip: str) -> None:
    step = step_of(method, optimizer, "--clip_gradient_norm", clip)
    capture = captured(step)
    views = batch(0)
    with HostWaits(refuse=True):
        for _ in range(2):  # the first makes the optimizer's state
            capture(views, learning_rate=RATE, progress=0.5, id_B=None)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_waits_for_the_device(objective: str) -> None:
    step = step_of("JointEmbedding", "lars", "--method.objective", objective)
    with HostWaits(refuse=True):
        captured(step)(batch(0), learning_rate=RATE, progress=0.5, id_B=None)


# GroCo asks autograd for a gradient within, which needs a GPU that is there.
@pytest.mark.parametrize("objective", sorted({*OBJECTIVES} - {"GroCo"}))
def test_no_objective_waits_on_the_path_of_a_gpu(objective: str) -> None:
    """Tensors that are said to lie on a GPU take it; they have no values, and launch nothing."""
    method = config_of("JointEmbedding", "lars", "--method.objective", objective).method
    loss: Any = vars(method)["_modules"]["objective"]
    with FakeTensorMode(), HostWaits(refuse=True):
        z_VAD = torch.empty(3, 8, 16, device="cuda", requires_grad=True)
        assert loss(z_VAD).device.type == "cuda"


@pytest.mark.parametrize("method", METHODS)
def test_a_step_needs_no_value(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are none, and nothing can come from the host unseen."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has none there
    accelerator: Any = OnMeta()
    step = Step(config_of(method, "lars"), accelerator)
    output = captured(step)(batch(0, "meta"), learning_rate=RATE, progress=0.5, id_B=None)
    assert output.loss.is_meta and output.z_VAD.is_meta


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.to("meta"),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x + torch.tensor(3.0),
        lambda x: x.unique(),
    ],
)
def test_a_wait_is_found(work: Any) -> None:
    x = torch.randn(5)
    with HostWaits(refuse=True), pytest.raises(AssertionError):
        work(x)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--method", "QKIteration"], "QKIteration trains another part of itself"),
        (["--micro_batch_size", "4"], "gradient caching puts random states back"),
        (["--compile", "true", "--compile_mode", "reduce-overhead"], "a graph of its own"),
    ],
)
def test_what_cannot_be_recorded_is_refused(words: list[str], why: str) -> None:
    base = ["--shards", "x", "--run", "r", "--steps", "5", "--capture_step", "true"]
    base += ["--batch_size", "8"]
    parse(base)
    with pytest.raises(ValueError, match=why) as refused:
        parse([*base, *words])
    assert str(refused.value).startswith("capture_step=true")
    assert "Leave --capture_step out" in str(refused.value) or "Set --" in str(refused.value)


def test_scaled_losses_and_several_ranks_are_refused() -> None:
    config = parse(["--shards", "x", "--run", "r", "--steps", "5"]).config
    asked = {name: getattr(config, name) for name in step_capture.SETTINGS}
    asked |= {"capture_step": True, "mixed_precision": "fp16"}
    with pytest.raises(ValueError, match=r"fp16, .*set --mixed_precision bf16"):
        step_capture.refuse(**asked)
    with pytest.raises(ValueError, match=r"on 2 processes, .*Leave --capture_step out"):
        step_capture.refuse_ranks(2)
    assert set(step_capture.SETTINGS) <= {each.name for each in dataclasses.fields(Config)}


def test_a_mode_without_compilation_is_refused() -> None:
    with pytest.raises(ValueError, match="compile=false: nothing is compiled"):
        parse(["--shards", "x", "--run", "r", "--steps", "5", "--compile_mode", "max-autotune"])


def test_on_the_cpu_the_step_is_the_eager_one_and_the_run_says_so() -> None:
    step = step_of("JointEmbedding", "adamw", "--capture_step", "true")
    assert step._capture is None
    assert "nothing to record" in step_capture.describe(torch.device("cpu"))
    assert "one CUDA graph" in step_capture.describe(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "optimizer"), list(zip(METHODS, 2 * OPTIMIZERS, strict=False)))
def test_a_replayed_step_is_the_eager_step_on_a_gpu(method: str, optimizer: str) -> None:
    words = ["--deterministic", "true", "--mixed_precision", "bf16"]
    steps = [
        Step(config_of(method, optimizer, *words, *more), Accelerator(mixed_precision="bf16"))
        for more in ([], ["--capture_step", "true"])
    ]
    losses: list[list[float]] = [[], []]
    for number in range(8):
        views = batch(number, "cuda", spoilt=number == 5)
        for step, found in zip(steps, losses, strict=True):
            output = step(views, learning_rate=RATE, progress=(number + 1) / 8)
            found.append(output.loss.item())
    assert steps[1].guard.counts() == (1, 0)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4, equal_nan=True)
