import pytest
import torch
from by_definition import assert_equal_to_definition, every_shape, mean_over_queries
from embeddings import aligned, golden_VAD, value_and_gradient
from torch import Tensor

from model.objective import FastAP


def test_golden_value_of_the_authors_code():
    assert FastAP()(golden_VAD()).item() == pytest.approx(0.269453, abs=1e-5)


def fast_ap(L: int):
    """Histograms of squared distances; sums over the intervals' limits, nearest first."""

    def histogram(score_G: Tensor) -> Tensor:
        squared_G = 2 - 2 * score_G
        limits_L = torch.arange(L + 1, dtype=torch.float64) * 4 / L
        return torch.relu(1 - (squared_G[:, None] - limits_L).abs() * L / 4).sum(0)

    def query_loss(positive_K: Tensor, negative_M: Tensor) -> Tensor:
        right_L = histogram(positive_K)
        all_L = right_L + histogram(negative_M)
        ap = [
            right_L[limit] * right_L[: limit + 1].sum() / all_L[: limit + 1].sum()
            for limit in range(L + 1)
            if right_L[limit] > 0
        ]
        return 1 - sum(ap, torch.tensor(0.0)) / len(positive_K)

    return mean_over_queries(query_loss)


@every_shape
@pytest.mark.parametrize("L", [1, 10, 33])
def test_loss_and_gradient_equal_the_definition(shape: tuple[int, int, int, int], L: int):
    assert_equal_to_definition(FastAP(intervals=L), fast_ap(L), shape)


def test_loss_and_gradient_equal_pytorch_metric_learning():
    from pytorch_metric_learning.losses import FastAPLoss

    V, A = 4, 6
    z_VAD = aligned(V, A, 8).requires_grad_()
    expected = FastAPLoss(num_bins=10)(z_VAD.flatten(0, 1), torch.arange(A).repeat(V))
    (expected_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, gradient_VAD = value_and_gradient(FastAP(intervals=10), z_VAD)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=1e-6, atol=1e-9)
