"""The log-sum-exp over a memory: against all scores at once, in value, gradient and size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.memory_bank import KeyRing, Memory

Q, N, D = 7, 40, 5


def unit(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, D, dtype=dtype, generator=generator), dim=1)


ID_Q, ID_N = torch.arange(Q), torch.arange(N) % 11  # four keys of most samples


def plainly(z_QD: Tensor, key_ND: Tensor, temperature: float) -> Tensor:
    """The definition, a query and a key at a time."""
    return torch.stack(
        [
            torch.stack(
                [z_QD[q] @ key_ND[n] / temperature for n in range(N) if ID_N[n] != ID_Q[q]]
            ).logsumexp(0)
            for q in range(Q)
        ]
    )


@pytest.mark.parametrize("rows", [1, 6, 40, None])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_value_and_gradient_are_those_of_all_scores_at_once(
    rows: int | None, temperature: float
) -> None:
    z_QD, key_ND = unit(Q, 1).requires_grad_(), unit(N, 2)
    weight_Q = torch.linspace(-1, 2, Q, dtype=torch.float64)
    found = Memory(key_ND, ID_N).logsumexp(z_QD, ID_Q, temperature=temperature, rows=rows)
    expected = plainly(z_QD, key_ND, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad((found * weight_Q).sum(), z_QD)
    (exact,) = torch.autograd.grad((expected * weight_Q).sum(), z_QD)
    torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-11)


def test_gradcheck() -> None:
    memory, z_QD = Memory(unit(N, 2), ID_N), unit(Q, 1).requires_grad_()

    def of(z_QD: Tensor) -> Tensor:
        return memory.logsumexp(z_QD, ID_Q, temperature=0.2, rows=9)

    assert torch.autograd.gradcheck(of, z_QD)


def test_a_second_derivative_is_refused() -> None:
    z_QD = unit(Q, 1).requires_grad_()
    found = Memory(unit(N, 2), ID_N).logsumexp(z_QD, ID_Q, temperature=0.2)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(found.sum(), z_QD, create_graph=True)


def test_a_query_without_keys_of_others_has_no_say() -> None:
    z_QD = unit(2, 1).requires_grad_()
    memory = Memory(unit(3, 2), torch.tensor([4, 4, 4]))
    found = memory.logsumexp(z_QD, torch.tensor([4, 5]), temperature=0.1, rows=2)
    assert found[0] == -torch.inf and found[1].isfinite()
    (gradient,) = torch.autograd.grad(F.softplus(found).sum(), z_QD)
    assert (gradient[0] == 0).all() and gradient[1].abs().sum() > 0


def test_bfloat16_keys_are_scored_in_float32_also_under_autocast() -> None:
    z_QD, key_ND = unit(Q, 1, torch.float32), unit(N, 2, torch.float32).bfloat16()
    exact = plainly(z_QD.double(), key_ND.double(), 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        found = Memory(key_ND, ID_N).logsumexp(z_QD, ID_Q, temperature=0.07)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_ring_holds_the_newest_keys_and_no_empty_row_counts() -> None:
    """A loop that drops the oldest of a list, in parts of all sizes, beyond the end and around."""
    ring = KeyRing(N, D, dtype=torch.float64)
    held: list[tuple[Tensor, int]] = []
    z_QD = unit(Q, 1)
    for push, size in enumerate((3, 1, 20, 16, 40, 7, 39)):
        key_MD = unit(size, 10 + push)
        id_M = (torch.arange(size) + push) % 11
        ring.push(key_MD, id_M)
        held = [*held, *zip(key_MD, id_M.tolist(), strict=True)][-N:]
        found = ring.memory().logsumexp(z_QD, ID_Q, temperature=0.1, rows=9)
        whole = Memory(ring.key_ND, ring.id_N, ring.pushed).logsumexp(z_QD, ID_Q, temperature=0.1)
        for q in range(Q):
            scores = [z_QD[q] @ key / 0.1 for key, id in held if id != q]
            expected = torch.stack(scores).logsumexp(0) if scores else torch.tensor(-torch.inf)
            assert found[q].item() == pytest.approx(expected.item(), abs=1e-12)
        torch.testing.assert_close(found, whole)  # as on a GPU, where empty rows are masked


@pytest.mark.parametrize("bad", [True, False])
def test_a_push_is_undone_where_it_was_bad(bad: bool) -> None:
    ring = KeyRing(N, D, dtype=torch.float16)
    ring.push(unit(35, 1), torch.arange(35))
    before = {name: value.clone() for name, value in ring.state_dict().items()}
    ring.push(unit(9, 2), torch.arange(9), undoable=True)  # around the end
    after = {name: value.clone() for name, value in ring.state_dict().items()}
    for _ in range(2):  # there is no more than one to undo
        ring.put_back(torch.tensor(bad))
        for name in ("key_ND", "id_N"):
            assert not torch.equal(before[name], after[name])
            assert torch.equal(ring.state_dict()[name], before[name] if bad else after[name])


class Largest(TorchDispatchMode):
    """Notes the most bytes that any tensor has, and the most that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def test_neither_pass_holds_all_scores_nor_all_keys_in_float32() -> None:
    B, keys, rows = 64, 20_000, 500
    memory = Memory(F.normalize(torch.randn(keys, 16), dim=1).bfloat16(), torch.arange(keys) // 2)
    z_QD = F.normalize(torch.randn(B, 16), dim=1).requires_grad_()
    with Largest() as seen:
        found = memory.logsumexp(z_QD, torch.arange(B), temperature=0.1, rows=rows)
        found.sum().backward()
    own = memory.key_ND.untyped_storage().nbytes()  # its chunks are views of it
    assert seen.largest <= max(4 * B * rows, own) < 4 * B * keys / 7
    with Largest() as plain:
        (z_QD @ memory.key_ND.float().T).logsumexp(1).sum().backward()
    assert plain.largest == 4 * B * keys
