import pytest
import torch
from by_definition import (
    assert_equal_to_definition,
    average_precision,
    every_shape,
    mean_over_queries,
    scores,
)
from embeddings import embeddings, value_and_gradient
from torch import Tensor

from model.objective import LogAP, NTXent


def log_ap(temperature: float):
    def query_loss(positive_K: Tensor, negative_M: Tensor) -> Tensor:
        costs = []
        for s_k in positive_K:
            among = 1 + sum(bool(s_p > s_k) for s_p in positive_K)
            above = torch.stack([torch.exp((s_n - s_k) / temperature) for s_n in negative_M])
            costs.append(torch.log((among + above.sum()) / among))
        return torch.stack(costs).mean()

    return mean_over_queries(query_loss)


@every_shape
@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.5])
def test_loss_and_gradient_equal_the_definition(
    shape: tuple[int, int, int, int], temperature: float
):
    assert_equal_to_definition(LogAP(temperature=temperature), log_ap(temperature), shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_it_is_no_less_than_minus_the_logarithm_of_ap(seed: int, temperature: float):
    z_VAD = embeddings(4, 8, 6, seed=seed)
    for positive_K, negative_M in scores(z_VAD, 4):
        S_QG = torch.cat([positive_K, negative_M, torch.full((1,), -torch.inf)])[None]
        columns = torch.arange(len(positive_K))[None]
        bound = LogAP(temperature=temperature).per_query(
            S_QG, positive_K[None].clone(), columns, grad=False
        )
        ap = torch.tensor(average_precision(positive_K, negative_M), dtype=z_VAD.dtype)
        assert bound.loss_Q.item() >= -ap.log()


def test_with_two_views_it_is_nt_xent_and_with_more_it_is_less():
    for V in (2, 4):
        z_VAD = embeddings(V, 8, 6)
        loss, gradient_VAD = value_and_gradient(LogAP(), z_VAD)
        expected, expected_VAD = value_and_gradient(NTXent(), z_VAD)
        if V == 2:
            assert loss == expected and torch.equal(gradient_VAD, expected_VAD)
        else:
            assert loss < expected


def test_a_lone_positive_at_place_two_is_worth_two():
    """Scores 0.9, 0.6 among one negative at 0.6, by hand at temperature 0.1."""
    S_QG = torch.tensor([[-torch.inf, 0.9, 0.6, 0.6]], dtype=torch.float64)
    columns = torch.tensor([[1, 2]])
    found = LogAP(temperature=0.1).per_query(S_QG, S_QG.gather(1, columns), columns, grad=False)
    first, second = torch.tensor(-3.0).exp().log1p(), torch.tensor(0.5).log1p()
    assert found.loss_Q.item() == pytest.approx(((first + second) / 2).item(), abs=1e-7)
