from typing import Any

import pytest
import torch
from by_definition import assert_equal_to_definition, every_shape, mean_over_queries, scores
from embeddings import aligned, embeddings, value_and_gradient
from torch import Tensor

from model.objective import BlackboxAP, SupAP


def sup_ap(temperature: float, margin: float, slope: float, step: float, calibration: float):
    def H(difference: Tensor) -> Tensor:
        if difference > margin:
            return slope * (difference - margin) + step
        return torch.sigmoid(difference / temperature) + (0.5 if difference > 0 else 0)

    def mean_of_wrong(excesses: list[Tensor]) -> Tensor:
        wrong = [excess for excess in excesses if excess > 0]
        return torch.stack(wrong).mean() if wrong else torch.tensor(0.0)

    def query_loss(positive_K: Tensor, negative_M: Tensor) -> Tensor:
        precisions = []
        for s_k in positive_K:
            among = sum(bool(s_p >= s_k) for s_p in positive_K)
            precisions.append(among / (among + sum(H(s_n - s_k) for s_n in negative_M)))
        wrong = mean_of_wrong([0.9 - s for s in positive_K])
        wrong = wrong + mean_of_wrong([s - 0.6 for s in negative_M])
        return 1 - torch.stack(precisions).mean() + calibration * wrong

    return mean_over_queries(query_loss)


@every_shape
@pytest.mark.parametrize(
    ("temperature", "margin", "slope", "step", "calibration"),
    [(0.01, 0.05, 100.0, 1.44, 1.0), (0.2, 0.3, 5.0, 1.44, 0.0), (0.1, 0.0, 1.0, 1.0, 0.3)],
)
def test_loss_and_gradient_equal_the_definition(
    shape: tuple[int, int, int, int],
    temperature: float,
    margin: float,
    slope: float,
    step: float,
    calibration: float,
):
    objective = SupAP(
        temperature=temperature, margin=margin, slope=slope, step=step, calibration=calibration
    )
    assert_equal_to_definition(
        objective, sup_ap(temperature, margin, slope, step, calibration), shape
    )


@pytest.mark.parametrize("seed", range(4))
def test_it_is_no_less_than_one_minus_exact_ap(seed: int):
    z_VAD = embeddings(4, 8, 6, seed=seed)
    exact = BlackboxAP(margin=0)(z_VAD)
    assert SupAP(calibration=0)(z_VAD) > exact
    # The flatter H is beyond the margin, the closer: with no slope only the steps are too high.
    assert SupAP(calibration=0)(z_VAD) > SupAP(calibration=0, slope=0, step=1)(z_VAD) > exact


def test_a_negative_far_above_a_positive_keeps_its_gradient():
    # One query whose negative is above its positive by 1.4: a sigmoid of width 0.01 is flat there.
    S_QG = torch.tensor([[-torch.inf, -0.5, 0.9]], dtype=torch.float64)
    positive_QK = torch.tensor([[1]])
    found = SupAP(calibration=0).per_query(S_QG, S_QG[:, 1:2].clone(), positive_QK, grad=True)
    position = 1 + 100 * (1.4 - 0.05) + 1.44
    assert found.loss_Q.item() == pytest.approx(1 - 1 / position, abs=1e-12)
    assert found.dS_QG is not None and found.dS_QK is not None
    assert found.dS_QG[0].tolist() == pytest.approx([0, 0, 100 / position**2], abs=1e-12)
    assert found.dS_QK.item() == pytest.approx(-100 / position**2, abs=1e-12)


def test_calibration_is_the_contrastive_loss_of_pytorch_metric_learning():
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import ContrastiveLoss

    cosine = DotProductSimilarity(normalize_embeddings=False)
    margins: Any = {"pos_margin": 0.9, "neg_margin": 0.6}  # typed as whole numbers
    theirs = ContrastiveLoss(distance=cosine, **margins)
    z_VAD = aligned(3, 5, 4, noise=0.8)
    expected = []
    for positive_K, negative_M in scores(z_VAD, 3):  # as one-dimensional embeddings: s · 1
        label_G = torch.tensor([0] * len(positive_K) + [1] * len(negative_M))
        score_G1 = torch.cat([positive_K, negative_M])[:, None]
        one_11 = torch.ones(1, 1, dtype=torch.float64)
        expected.append(theirs(one_11, torch.tensor([0]), None, score_G1, label_G))
    assert any((negative_M > 0.6).any() for _, negative_M in scores(z_VAD, 3))
    found = SupAP()(z_VAD) - SupAP(calibration=0)(z_VAD)
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-12)


def test_a_collapsed_encoder_has_a_finite_gradient():
    loss, gradient_VAD = value_and_gradient(SupAP(), torch.ones(3, 4, 5))
    assert loss.isfinite() and gradient_VAD.isfinite().all()
