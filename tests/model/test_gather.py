from pathlib import Path
from typing import Any

import pytest
import torch
from embeddings import OBJECTIVES
from methods import MAKE
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from two_processes import (
    WORLD_SIZE,
    encoder,
    method_step,
    norm_steps,
    norms,
    own_queries,
    rows_of,
    views_VAC,
    work,
)

from model.gather import gather, gather_rows
from model.objective import Objective
from tests.host_waits import HostWaits

every_objective = pytest.mark.parametrize("Each", OBJECTIVES)
every_rank = pytest.mark.parametrize("rank", range(WORLD_SIZE))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found, with different rows on each."""
    folder = tmp_path_factory.mktemp("two_processes")
    spawn(work, args=(str(folder), OBJECTIVES), nprocs=WORLD_SIZE)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(WORLD_SIZE)]


def one_process(loss_of: Any) -> tuple[float, Tensor | None, Tensor | None]:
    model = encoder()
    loss = loss_of(model(views_VAC()))
    loss.backward()
    return loss.item(), model.weight.grad, model.bias.grad


def assert_same(one: Any, two: Any) -> None:
    assert two[0] == pytest.approx(one[0], abs=1e-6)
    torch.testing.assert_close(two[1:], one[1:], rtol=1e-6, atol=1e-9)


@every_objective
@every_rank
def test_two_processes_have_the_loss_and_gradient_of_one(
    Each: type[Objective], rank: int, found: list[dict[str, Any]]
):
    assert_same(one_process(Each()), found[rank][Each.__name__])


@every_objective
@every_rank
def test_the_common_idiom_would_divide_the_gradient_by_the_number_of_processes(
    Each: type[Objective], rank: int, found: list[dict[str, Any]]
):
    one, idiom = one_process(Each()), found[rank][f"{Each.__name__}, idiom"]
    assert idiom[0] == pytest.approx(one[0], abs=1e-12)  # the loss alone would not show it
    torch.testing.assert_close(idiom[1] * WORLD_SIZE, one[1])
    with pytest.raises(AssertionError):
        assert_same(one, idiom)


@every_objective
def test_each_process_may_take_its_own_samples_part_of_an_objective(
    Each: type[Objective], found: list[dict[str, Any]]
):
    loss, *gradients = one_process(lambda z_VAD: Each()(z_VAD, gallery_views=2))
    ranks = [each[f"{Each.__name__}, own"] for each in found]
    assert sum(each[0] for each in ranks) / WORLD_SIZE == pytest.approx(loss, abs=1e-12)
    for each in ranks:
        torch.testing.assert_close(list(each[1:]), gradients)


def test_each_process_may_take_only_its_own_queries(found: list[dict[str, Any]]):
    loss, *gradients = one_process(lambda z_VAD: own_queries(z_VAD, z_VAD))
    ranks = [each["own queries"] for each in found]
    assert sum(each[0] for each in ranks) / WORLD_SIZE == pytest.approx(loss, abs=1e-12)
    for each in ranks:
        torch.testing.assert_close(list(each[1:]), gradients)


@every_rank
@pytest.mark.parametrize("name", MAKE)
def test_two_processes_take_the_step_of_one(name: str, rank: int, found: list[dict[str, Any]]):
    loss, gradients, state = method_step(name, None)
    other_loss, other_gradients, other_state = found[rank][f"method {name}"]
    assert other_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other_state, state, rtol=1e-5, atol=1e-6)  # queues, averages


@every_rank
@pytest.mark.parametrize("form", ["batch norm", "compiled batch norm"])
def test_two_processes_have_the_batch_norm_of_one(
    form: str, rank: int, found: list[dict[str, Any]]
) -> None:
    output, gradient, gradients, state = norm_steps(None, norms())
    other = found[rank][form]
    own = slice(4 * rank, 4 * rank + 4)
    torch.testing.assert_close(other[0], output[own])
    torch.testing.assert_close(other[1], gradient[own])
    torch.testing.assert_close(other[2], gradients)
    torch.testing.assert_close(other[3], state)


@every_rank
def test_no_host_waits_for_batch_norm(rank: int, found: list[dict[str, Any]]) -> None:
    """PyTorch's own indexes by a mask in every layer; it does not run on a CPU."""
    operators, waits = found[rank]["host waits"]
    assert len(operators) > 100 and waits == []
    assert not any("index.Tensor" in name for name in operators)
    counts = torch.tensor([4, 4])
    with HostWaits() as theirs:
        counts[counts >= 1]
    assert theirs.found


@every_rank
@pytest.mark.parametrize("name", MAKE)
def test_two_processes_take_the_step_of_one_through_batch_norm(
    name: str, rank: int, found: list[dict[str, Any]]
) -> None:
    loss, gradients, state = method_step(name, None, batch_norm=True)
    other_loss, other_gradients, other_state = found[rank][f"method {name}, batch norm"]
    assert other_loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(other_state, state, rtol=1e-4, atol=1e-5)


@every_rank
def test_parts_on_two_processes_add_up_to_the_step_of_one(rank: int, found: list[dict[str, Any]]):
    loss, gradients, _ = method_step("S2R2", None)
    other_loss, other_gradients = found[rank]["cached"]
    assert other_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-4, atol=1e-6)


@every_rank
def test_half_precision_is_widened_before_gradients_are_added(
    rank: int, found: list[dict[str, Any]]
):
    z_VAD, gradient_VBD = found[rank]["half precision"]
    assert z_VAD.dtype == torch.float32
    assert z_VAD[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2]  # in the order of ranks
    assert gradient_VBD.dtype == torch.bfloat16
    assert (gradient_VBD == 2).all()


@every_rank
def test_rows_come_in_the_order_of_ranks_whatever_their_number(
    rank: int, found: list[dict[str, Any]]
):
    for dtype in (torch.float32, torch.int64, torch.bool):
        expected = torch.cat([rows_of(0, dtype), rows_of(1, dtype)])
        assert torch.equal(found[rank][f"rows {dtype}"], expected)
        assert found[rank][f"rows {dtype}"].dtype == dtype
    labels_N = torch.cat([rows_of(0, torch.int64), rows_of(1, torch.int64)])[:, 0]
    assert torch.equal(found[rank]["labels"], labels_N)
    assert found[rank]["equal rows"].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert torch.equal(found[rank]["none on rank 0"], rows_of(1, torch.float32))


def test_one_process_gathers_nothing():
    z_VBD = torch.randn(2, 3, 4, requires_grad=True)
    assert gather(z_VBD) is z_VBD
    rows_NF = gather_rows(z_VBD[0])
    assert torch.equal(rows_NF, z_VBD[0])
    assert not rows_NF.requires_grad
