"""A step whose gradient is not finite is as if it had not been, for every optimizer and method."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from training.settings import parse
from training.step import Step

METHODS = {
    "JointEmbedding": [],
    "MoCo": ["--method.queue_size", "32"],
    "SwAV": ["--method.prototypes", "6", "--method.queue_size", "16", "--method.queue_start", "0"],
    "SimSiam": [],
    "BYOL": [],
}


@pytest.fixture(autouse=True)
def accelerate_as_it_was() -> Iterator[None]:
    """Accelerate keeps its first settings for the process, and other tests want others."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def step_of(method: str, optimizer: str = "adamw", *more: str) -> Step:
    words = ["--shards", "x", "--run", "r", "--steps", "5", "--batch_size", "8"]
    words += ["--method", method, "--method.encoder", "SmallResNet"]
    words += ["--method.encoder.width", "4", "--method.hidden_size", "16"]
    words += ["--method.embedding_size", "8", *METHODS[method], "--optimizer", optimizer, *more]
    return Step(parse(words).config, Accelerator(cpu=True))


def batch(number: int, *, spoilt: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    views_BVHWC = torch.randn(8, 2, 16, 16, 3, generator=generator)
    if spoilt:
        views_BVHWC[3, 1, 5, 5, 0] = torch.inf
    return (views_BVHWC.permute(1, 0, 4, 2, 3),)


def state(step: Step) -> dict[str, Any]:
    torch.manual_seed(0)
    tensors = dict(copy.deepcopy(step.method.state_dict()))
    for number, values in enumerate(step.optimizer.state_dict()["state"].values()):
        tensors |= {f"{number}.{name}": torch.as_tensor(v).clone() for name, v in values.items()}
    return tensors


def assert_equal(one: dict[str, Any], other: dict[str, Any], *, rounding: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=rounding, msg=name)


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [(method, "adamw") for method in METHODS]
    + [("JointEmbedding", "sgd"), ("MoCo", "sgd"), ("SwAV", "lars"), ("SimSiam", "lars")],
)
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_bad_step_leaves_no_trace(method: str, optimizer: str, clip: str) -> None:
    with_it, without = (step_of(method, optimizer, "--clip_gradient_norm", clip) for _ in range(2))
    for step in (with_it, without):
        torch.manual_seed(1)
        step(batch(0), learning_rate=0.1, progress=0.1)
    before = state(with_it)
    # SwAV makes its prototypes unit vectors again after every step.
    rounding = 1e-5 if method == "SwAV" else 0.0
    torch.manual_seed(2)
    with_it(batch(1, spoilt=True), learning_rate=0.1, progress=0.2)
    assert_equal(state(with_it), before, rounding=rounding)
    for step in (with_it, without):
        torch.manual_seed(3)
        step(batch(2), learning_rate=0.1, progress=0.3)
    after = state(with_it)
    assert_equal(after, state(without), rounding=rounding)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert with_it.guard.counts() == (1, 0)
    assert without.guard.counts() == (0, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_the_very_first_step_may_be_bad(optimizer: str) -> None:
    step, fresh = step_of("JointEmbedding", optimizer), step_of("JointEmbedding", optimizer)
    for number in range(3):
        step(batch(number, spoilt=True), learning_rate=0.1)
    assert step.guard.counts() == (3, 3)
    for each in (step, fresh):
        each(batch(5), learning_rate=0.1)
    assert_equal(state(step), state(fresh))


def test_counts_go_on_after_a_checkpoint() -> None:
    step = step_of("JointEmbedding")
    step(batch(0, spoilt=True), learning_rate=0.1)
    continued = step_of("JointEmbedding")
    continued.guard.load_state_dict(step.guard.state_dict())
    continued(batch(1, spoilt=True), learning_rate=0.1)
    assert continued.guard.counts() == (2, 2)
