from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from embeddings import aligned, embeddings, golden_VAD, value_and_gradient
from torch import Tensor

from model.objective import SmoothAP


def test_the_golden_input_is_the_documented_one():
    first_D = F.normalize(golden_VAD(), dim=-1)[0, 0]
    expected = [0.220380, 0.276038, 0.326725, 0.367912, 0.395921, 0.408249, 0.403795, 0.382957]
    assert first_D.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "loss", "gradient_norm"), [(0.01, 0.199207, 0.4348), (0.05, 0.219930, 0.3359)]
)
def test_golden_values_of_the_authors_code(temperature: float, loss: float, gradient_norm: float):
    found, gradient_VAD = value_and_gradient(SmoothAP(temperature=temperature), golden_VAD())
    assert found.item() == pytest.approx(loss, abs=1e-5)
    assert gradient_VAD.norm().item() == pytest.approx(gradient_norm, rel=1e-3)


def smooth_ap_by_definition(
    z_VAD: Tensor, temperature: float, *, with_self: bool = False
) -> Tensor:
    """Three nested loops. `with_self`: a query is its own positive, as in the authors' code."""
    V, A, _ = z_VAD.shape
    S = F.normalize(z_VAD, dim=-1).flatten(0, 1)
    S = S @ S.T

    def step(q: int, j: int, k: int) -> Tensor:
        return torch.sigmoid((S[q, j] - S[q, k]) / temperature)

    losses = []
    for q in range(V * A):
        gallery = [g for g in range(V * A) if with_self or g != q]
        positives = [g for g in gallery if g % A == q % A]
        precisions = []
        for k in positives:
            position = 1 + sum(step(q, g, k) for g in gallery if g != k)
            among_positives = 1 + sum(step(q, p, k) for p in positives if p != k)
            precisions.append(among_positives / position)
        losses.append(1 - torch.stack(precisions).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 5, 4), (4, 3, 5), (7, 2, 3)])
@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_loss_and_gradient_equal_the_definition(shape: tuple[int, int, int], temperature: float):
    z_VAD = embeddings(*shape).requires_grad_()
    expected = smooth_ap_by_definition(z_VAD, temperature)
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(SmoothAP(temperature=temperature), z_VAD)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(found_VAD, gradient_VAD, rtol=1e-9, atol=1e-12)


def plain_smooth_ap(z_VAD: Tensor, temperature: float) -> Tensor:
    """The definition in whole tensors, differentiated by autograd."""
    V, A, _ = z_VAD.shape
    Q, K = V * A, V - 1
    z_QD = F.normalize(z_VAD, dim=-1).flatten(0, 1)
    S_QG = z_QD @ z_QD.T
    sample_Q = torch.arange(A).repeat(V)
    other_QG = ~torch.eye(Q, dtype=torch.bool)  # False: the query itself
    positive_QG = (sample_Q[:, None] == sample_Q) & other_QG
    S_QK = S_QG[positive_QG].unflatten(0, (Q, K))
    above_QKG = torch.sigmoid((S_QG[:, None] - S_QK[..., None]) / temperature)
    position_QK = 0.5 + (above_QKG * other_QG[:, None]).sum(-1)
    among_positives_QK = 0.5 + (above_QKG * positive_QG[:, None]).sum(-1)
    return 1 - (among_positives_QK / position_QK).mean()


@pytest.mark.parametrize(("V", "A"), [(2, 64), (8, 24), (32, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_views_equal_the_plain_form(V: int, A: int, dtype: torch.dtype):
    z_VAD = aligned(V, A, 16).to(dtype).requires_grad_()
    expected = plain_smooth_ap(z_VAD, 0.05)
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(SmoothAP(temperature=0.05), z_VAD)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert loss.item() == pytest.approx(expected.item(), abs=tolerance)
    torch.testing.assert_close(found_VAD, gradient_VAD, rtol=0, atol=tolerance)


def test_the_definition_equals_pytorch_metric_learning_if_a_query_is_its_own_positive():
    from pytorch_metric_learning.losses import SmoothAPLoss

    # Theirs takes A for V when it collects the positives, so it is right at V = A only (2.9.0).
    V = A = 4
    z_VAD = aligned(V, A, 8, noise=1.0).float()
    class_contiguous_ND = z_VAD.transpose(0, 1).flatten(0, 1)
    theirs = SmoothAPLoss(temperature=0.05)(
        class_contiguous_ND, torch.arange(A).repeat_interleave(V)
    )
    with_self = smooth_ap_by_definition(z_VAD, 0.05, with_self=True)
    assert theirs.item() == pytest.approx(with_self.item(), abs=1e-5)
    ours = SmoothAP(temperature=0.05)(z_VAD)
    assert ours.item() == pytest.approx(smooth_ap_by_definition(z_VAD, 0.05).item(), abs=1e-6)
    assert ours > theirs  # the query itself, always on top, flatters AP


def average_precision(relevant: list[bool]) -> float:
    """Exact AP of a ranking, best first."""
    positions = [position for position, right in enumerate(relevant, start=1) if right]
    return mean(hits / position for hits, position in enumerate(positions, start=1))


def exact_mean_ap(z_VAD: Tensor) -> float:
    V, A, _ = z_VAD.shape
    z_QD = z_VAD.flatten(0, 1)
    exact = []
    for q in range(V * A):
        cosine_G = F.cosine_similarity(z_QD[q], z_QD, dim=-1)
        ranking = [g for g in cosine_G.argsort(descending=True).tolist() if g != q]
        exact.append(average_precision([g % A == q % A for g in ranking]))
    return mean(exact)


@pytest.mark.parametrize(("V", "A"), [(2, 6), (3, 4), (6, 3)])
def test_ap_becomes_exact_ap_as_temperature_falls(V: int, A: int):
    z_VAD = embeddings(V, A, 8)
    loss = SmoothAP(temperature=1e-6)(z_VAD).item()
    assert 1 - loss == pytest.approx(exact_mean_ap(z_VAD), abs=1e-9)


def test_exact_ap_of_the_golden_input_is_the_documented_one():
    assert exact_mean_ap(golden_VAD(torch.float64)) == pytest.approx(0.797553, abs=1e-6)
    loss = SmoothAP(temperature=1e-6)(golden_VAD(torch.float64))
    assert 1 - loss.item() == pytest.approx(0.797553, abs=1e-6)


def test_perfect_order_costs_nothing():
    # Views of a sample coincide; samples are at right angles.
    z_VAD = torch.eye(5, dtype=torch.float64).expand(3, 5, 5)
    assert SmoothAP(temperature=0.01)(z_VAD).item() == pytest.approx(0, abs=1e-9)


def test_reversed_order_has_its_known_value():
    # Each view of sample a points elsewhere; views with the same number coincide. So for every
    # query the A - 1 negatives with its number are above all else, and at τ → 0 the K positives
    # tie with the K(A - 1) negatives of other numbers: each tie counts one half.
    V, A = 4, 3
    z_VAD = torch.eye(V, dtype=torch.float64)[:, None].expand(V, A, V)
    K = V - 1
    position = 1 + (A - 1) + 0.5 * (K - 1) + 0.5 * K * (A - 1)
    expected = 1 - (1 + 0.5 * (K - 1)) / position
    assert SmoothAP(temperature=1e-3)(z_VAD).item() == pytest.approx(expected, abs=1e-12)


def test_ties_count_one_half():
    V, A = 3, 4
    z_VAD = torch.ones(V, A, 5, dtype=torch.float64)  # all scores equal: a collapsed encoder
    expected = 1 - (1 + 0.5 * (V - 2)) / (1 + 0.5 * (V * A - 2))
    loss, gradient_VAD = value_and_gradient(SmoothAP(), z_VAD)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert gradient_VAD.isfinite().all()


def test_with_two_views_the_loss_is_one_minus_the_inverse_position():
    z_VAD = embeddings(2, 5, 4)
    z_ND = F.normalize(z_VAD, dim=-1).flatten(0, 1)
    S = z_ND @ z_ND.T
    positions = [
        1
        + sum(
            torch.sigmoid((S[q, g] - S[q, (q + 5) % 10]) / 0.1) for g in range(10) if g % 5 != q % 5
        )
        for q in range(10)
    ]
    expected = 1 - mean(1 / float(position) for position in positions)
    assert SmoothAP(temperature=0.1)(z_VAD).item() == pytest.approx(expected, abs=1e-12)
