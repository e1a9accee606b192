"""A step whose gradient is not finite is as if it had not been, for every optimizer and method."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.objective import Objective
from tests.small_step import METHODS, step_of, tensors_of
from training.guard import Guard, refuse_bad_weights
from training.settings import concrete, parse

pytestmark = pytest.mark.usefixtures("accelerate_as_it_was")
OURS = [each for each in concrete(Objective) if each.__module__.startswith("model.")]
OBJECTIVES = sorted(each.__name__ for each in OURS)


def batch(number: int, *, spoilt: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    views_BVHWC = torch.randn(8, 2, 16, 16, 3, generator=generator)
    if spoilt:
        views_BVHWC[3, 1, 5, 5, 0] = torch.inf
    return (views_BVHWC.permute(1, 0, 4, 2, 3),)


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
    before = tensors_of(with_it)
    # SwAV makes its prototypes unit vectors again after every step.
    rounding = 1e-5 if method == "SwAV" else 0.0
    torch.manual_seed(2)
    with_it(batch(1, spoilt=True), learning_rate=0.1, progress=0.2)
    assert_equal(tensors_of(with_it), before, rounding=rounding)
    for step in (with_it, without):
        torch.manual_seed(3)
        step(batch(2), learning_rate=0.1, progress=0.3)
    after = tensors_of(with_it)
    assert_equal(after, tensors_of(without), rounding=rounding)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert with_it.guard.counts() == (1, 0)
    assert without.guard.counts() == (0, 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_bad_step_leaves_no_trace_under_any_objective(objective: str) -> None:
    step = step_of("JointEmbedding", "adamw", "--method.objective", objective)
    step(batch(0), learning_rate=0.1)
    before = tensors_of(step)
    step(batch(1, spoilt=True), learning_rate=0.1)
    assert_equal(tensors_of(step), before)
    assert step.guard.counts() == (1, 1)


def test_a_bad_step_in_parts_leaves_no_trace() -> None:
    more = ["--micro_batch_size", "2", "--clip_gradient_norm", "1.0"]
    step = step_of("JointEmbedding", "adamw", *more)
    step(batch(0), learning_rate=0.1)
    before = tensors_of(step)
    step(batch(1, spoilt=True), learning_rate=0.1)
    assert_equal(tensors_of(step), before)
    step(batch(2), learning_rate=0.1)
    assert any(not torch.equal(value, before[name]) for name, value in tensors_of(step).items())
    assert step.guard.counts() == (1, 0)


def test_moving_averages_keep_their_values_and_their_memory_format() -> None:
    words = ["--shards", "x", "--run", "r", "--steps", "5", "--method", "MoCo"]
    method: Any = parse(words).config.method
    method = method.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad])
    before = {name: (each.clone(), each.stride()) for name, each in method.state_dict().items()}
    guard = Guard(method, optimizer, scaled=False)
    for name, each in method.state_dict().items():
        assert torch.equal(each, before[name][0])
        assert each.stride() == before[name][1]
    places = {each.untyped_storage().data_ptr() for each in method.twin.state_dict().values()}
    assert len(places) == 2  # numbers, and batch norm's counts: two copies a step, not hundreds
    guard.before()


def test_weights_that_are_not_finite_are_refused() -> None:
    refuse_bad_weights([torch.ones(2), torch.zeros(3)], 7)
    with pytest.raises(ValueError, match="weights are not finite after step 7"):
        refuse_bad_weights([torch.ones(2), torch.tensor([1.0, torch.inf])], 7)


def test_a_bad_step_leaves_no_trace_in_a_ring_of_keys() -> None:
    flags = ["--views.count", "2", "--method.keys", "20", "--method.step_keys", "true"]
    with_it, without = (step_of("QKIteration", "adamw", *flags) for _ in range(2))

    def train(step: Any, number: int, *, spoilt: bool = False) -> None:
        ids = torch.arange(8) + 10 * number
        step(batch(number, spoilt=spoilt), learning_rate=0.1, progress=0.1, id_B=ids)

    for step in (with_it, without):
        for number in range(2):
            train(step, number)
    before = tensors_of(with_it)
    train(with_it, 5, spoilt=True)  # would overwrite the ring's end and beginning
    assert_equal(tensors_of(with_it), before)
    for step in (with_it, without):
        train(step, 2)
    assert_equal(tensors_of(with_it), tensors_of(without))
    assert with_it.method.state_dict()["key_ring.pushed"] == 24
    assert with_it.method.state_dict()["query_ring.id_N"].tolist()[:4] == [24, 25, 26, 27]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_the_very_first_step_may_be_bad(optimizer: str) -> None:
    step, fresh = step_of("JointEmbedding", optimizer), step_of("JointEmbedding", optimizer)
    for number in range(3):
        step(batch(number, spoilt=True), learning_rate=0.1)
    assert step.guard.counts() == (3, 3)
    for each in (step, fresh):
        each(batch(5), learning_rate=0.1)
    assert_equal(tensors_of(step), tensors_of(fresh))


def test_counts_go_on_after_a_checkpoint() -> None:
    step = step_of("JointEmbedding")
    step(batch(0, spoilt=True), learning_rate=0.1)
    continued = step_of("JointEmbedding")
    continued.guard.load_state_dict(step.guard.state_dict())
    continued(batch(1, spoilt=True), learning_rate=0.1)
    assert continued.guard.counts() == (2, 2)
