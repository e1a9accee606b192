import inspect
import math
import re
import subprocess
import sys
from collections.abc import Callable
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import objective
from model.objective import MeanOverQueries, NTXent, Objective, SmoothAP, queries

# The import list is the registry: a new objective is tested without a line here.
OBJECTIVES = [
    each
    for each in vars(objective).values()
    if inspect.isclass(each) and issubclass(each, Objective) and not inspect.isabstract(each)
]
every_objective = pytest.mark.parametrize("Each", OBJECTIVES)


def embeddings(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def aligned(V: int, A: int, D: int, noise: float = 0.5) -> Tensor:
    return embeddings(1, A, D) + noise * embeddings(V, A, D, seed=1)


def value_and_gradient(objective: Objective, z_VAD: Tensor) -> tuple[Tensor, Tensor]:
    z_VAD = z_VAD.detach().clone().requires_grad_()
    loss = objective(z_VAD)
    loss.backward()
    assert z_VAD.grad is not None
    return loss.detach(), z_VAD.grad


# --- Golden values: the authors' code, run on an input that a formula gives (methods.md, 8) ------


def golden_VAD(dtype: torch.dtype = torch.float32) -> Tensor:
    i = torch.arange(12, dtype=torch.float64)[:, None]
    k = torch.arange(8, dtype=torch.float64)
    E_ND = 0.45 * torch.sin(0.9 * (i // 4) * (k + 1) + 0.3 * k)
    E_ND += 0.6 * torch.cos(1.7 * i * (k + 1) + 0.5)
    # Row i is view i % 4 of image i // 4.
    return E_ND.unflatten(0, (3, 4)).transpose(0, 1).to(dtype).contiguous()


def test_the_golden_input_is_the_documented_one():
    first_D = F.normalize(golden_VAD(), dim=-1)[0, 0]
    expected = [0.220380, 0.276038, 0.326725, 0.367912, 0.395921, 0.408249, 0.403795, 0.382957]
    assert first_D.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "views", "loss", "gradient_norm"),
    [
        (SmoothAP(temperature=0.01), 4, 0.199207, 0.4348),
        (SmoothAP(temperature=0.05), 4, 0.219930, 0.3359),
        (NTXent(temperature=0.5), 2, 0.794889, 0.6469),
    ],
)
def test_golden_values(objective: Objective, views: int, loss: float, gradient_norm: float):
    found, gradient_VAD = value_and_gradient(objective, golden_VAD()[:views])
    assert found.item() == pytest.approx(loss, abs=1e-5)
    assert gradient_VAD.norm().item() == pytest.approx(gradient_norm, rel=1e-3)


# --- The definitions, as plainly as they can be written ------------------------------------------


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


def nt_xent_by_definition(z_VAD: Tensor, temperature: float) -> Tensor:
    V, A, _ = z_VAD.shape
    z_ND = F.normalize(z_VAD, dim=-1).flatten(0, 1)
    S = z_ND @ z_ND.T / temperature
    losses = []
    for q in range(V * A):
        negatives = [g for g in range(V * A) if g % A != q % A]
        for k in range(q % A, V * A, A):
            if k != q:
                logits = S[q, [k, *negatives]]
                losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 5, 4), (4, 3, 5), (7, 2, 3)])
@pytest.mark.parametrize("temperature", [0.01, 0.3])
@pytest.mark.parametrize(
    ("Each", "definition"),
    [(SmoothAP, smooth_ap_by_definition), (NTXent, nt_xent_by_definition)],
)
def test_loss_and_gradient_equal_the_definition(
    shape: tuple[int, int, int],
    temperature: float,
    Each: type[SmoothAP | NTXent],
    definition: Callable[[Tensor, float], Tensor],
):
    z_VAD = embeddings(*shape).requires_grad_()
    expected = definition(z_VAD, temperature)
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(Each(temperature=temperature), z_VAD)
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
def test_smooth_ap_of_many_views_equals_the_plain_form(V: int, A: int, dtype: torch.dtype):
    z_VAD = aligned(V, A, 16).to(dtype).requires_grad_()
    expected = plain_smooth_ap(z_VAD, 0.05)
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(SmoothAP(temperature=0.05), z_VAD)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert loss.item() == pytest.approx(expected.item(), abs=tolerance)
    torch.testing.assert_close(found_VAD, gradient_VAD, rtol=0, atol=tolerance)


# --- Published libraries -------------------------------------------------------------------------


@pytest.mark.parametrize("V", [2, 4])
def test_nt_xent_equals_pytorch_metric_learning(V: int):
    from pytorch_metric_learning.losses import NTXentLoss

    A = 6
    z_VAD = aligned(V, A, 8).requires_grad_()
    # Every positive pair against the negatives of its first member: our form, for any V.
    expected = NTXentLoss(temperature=0.2)(z_VAD.flatten(0, 1), torch.arange(A).repeat(V))
    (gradient_VAD,) = torch.autograd.grad(expected, z_VAD)
    loss, found_VAD = value_and_gradient(NTXent(temperature=0.2), z_VAD)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(found_VAD, gradient_VAD, rtol=1e-6, atol=1e-9)


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


# --- What ranking means --------------------------------------------------------------------------


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
def test_smooth_ap_becomes_exact_ap_as_temperature_falls(V: int, A: int):
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
    assert NTXent()(z_VAD).item() == pytest.approx(math.log(1 + V * (A - 1)), abs=1e-12)


def test_with_two_views_smooth_ap_is_one_minus_the_inverse_position():
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


# --- Every objective -----------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize(("V", "A"), [(2, 2), (2, 9), (5, 3), (32, 2)])
def test_a_finite_float32_scalar_with_finite_gradient(Each: type[Objective], V: int, A: int):
    loss, gradient_VAD = value_and_gradient(Each(), embeddings(V, A, 8, dtype=torch.float32))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient_VAD.isfinite().all()
    assert gradient_VAD.norm() > 0


@every_objective
def test_gradient_equals_finite_differences(Each: type[Objective]):
    z_VAD = aligned(3, 4, 5).requires_grad_()
    assert Each()(z_VAD).dtype == torch.float64
    assert torch.autograd.gradcheck(Each(), z_VAD)


@every_objective
def test_order_of_samples_and_of_views_does_not_matter(Each: type[Objective]):
    z_VAD = aligned(4, 6, 8)
    loss, gradient_VAD = value_and_gradient(Each(), z_VAD)
    view_V, sample_A = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 2, 0, 1, 4, 3])
    mixed_loss, mixed_VAD = value_and_gradient(Each(), z_VAD[view_V][:, sample_A])
    torch.testing.assert_close(mixed_loss, loss)
    torch.testing.assert_close(mixed_VAD, gradient_VAD[view_V][:, sample_A])


@every_objective
def test_aligned_views_cost_less_than_shuffled_ones(Each: type[Objective]):
    z_VAD = aligned(3, 16, 32, noise=0.1)
    shuffled_VAD = torch.stack([z_VAD[v].roll(v, 0) for v in range(3)])
    assert Each()(z_VAD) < Each()(shuffled_VAD)


@pytest.mark.parametrize("Each", [SmoothAP, NTXent])
def test_length_of_embeddings_does_not_matter(Each: type[Objective]):
    z_VAD = aligned(3, 5, 8)
    length_VA1 = torch.rand(3, 5, 1, generator=torch.Generator().manual_seed(0)).double() + 0.1
    torch.testing.assert_close(Each()(z_VAD * length_VA1), Each()(z_VAD))


@every_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scored_in_float32(Each: type[Objective], dtype: torch.dtype):
    z_VAD = aligned(3, 5, 8).to(dtype)
    expected, gradient_VAD = value_and_gradient(Each(), z_VAD.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found_VAD = value_and_gradient(Each(), z_VAD)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    assert torch.equal(found_VAD, gradient_VAD.to(dtype))


@every_objective
def test_autocast_does_not_reach_the_scores(Each: type[Objective]):
    z_VAD = aligned(3, 5, 8).float()
    expected, gradient_VAD = value_and_gradient(Each(), z_VAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found_VAD = value_and_gradient(Each(), z_VAD)
    assert loss.item() == expected.item()
    assert torch.equal(found_VAD, gradient_VAD)


@every_objective
def test_without_gradient_the_value_is_the_same(Each: type[Objective]):
    z_VAD = aligned(3, 5, 8).requires_grad_()
    with torch.no_grad():
        loss = Each()(z_VAD)
    assert not loss.requires_grad
    assert loss.item() == Each()(z_VAD).item()


@every_objective
def test_embeddings_need_not_be_contiguous_and_are_left_alone(Each: type[Objective]):
    z_AVD = aligned(3, 5, 8).transpose(0, 1).contiguous()
    before = z_AVD.clone()
    found = value_and_gradient(Each(), z_AVD.transpose(0, 1))
    expected = value_and_gradient(Each(), z_AVD.transpose(0, 1).contiguous())
    torch.testing.assert_close(found, expected)
    assert torch.equal(z_AVD, before)


@every_objective
def test_a_compiled_model_gives_the_same_gradient(Each: type[Objective]):
    layer = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = torch.nn.Sequential(layer, Each())
    x_VAD = aligned(3, 4, 6)
    model(x_VAD).backward()
    expected = layer.weight.grad
    layer.weight.grad = None
    torch.compile(model, backend="aot_eager")(x_VAD).backward()
    torch.testing.assert_close(layer.weight.grad, expected)


@every_objective
@pytest.mark.parametrize(
    ("shape", "found"),
    [((1, 4, 8), "1 views of 4 samples"), ((4, 1, 8), "4 views of 1 samples"), ((4, 8), "[4, 8]")],
)
def test_too_few_views_or_samples_are_refused(
    Each: type[Objective], shape: tuple[int, ...], found: str
):
    with pytest.raises(ValueError, match=re.escape(found)):
        Each()(torch.ones(shape))


@pytest.mark.parametrize("Each", [SmoothAP, NTXent])
def test_a_temperature_of_zero_is_refused(Each: type[SmoothAP | NTXent]):
    with pytest.raises(ValueError, match="temperature=0"):
        Each(temperature=0)


# --- Chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("Each", [SmoothAP, NTXent])
@pytest.mark.parametrize("rows", [1, 7, 30, 1000])
def test_the_size_of_a_chunk_changes_nothing(
    Each: type[Objective], rows: int, monkeypatch: pytest.MonkeyPatch
):
    z_VAD = aligned(3, 10, 8)
    expected, expected_VAD = value_and_gradient(Each(), z_VAD)
    monkeypatch.setattr(queries, "CPU_CHUNK", rows * 30)
    monkeypatch.setattr(queries, "MIN_ROWS", 1)
    loss, gradient_VAD = value_and_gradient(Each(), z_VAD)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient_VAD, expected_VAD, rtol=0, atol=1e-13)


PEAK = """
import re, torch
from model import objective

torch.set_num_threads(1)

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def peak(Each, A):
    z_VAD = torch.randn(4, A, 128, requires_grad=True)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    Each()(z_VAD).backward()
    return status("VmHWM") - before

for name in {names}:
    Each = getattr(objective, name)
    peak(Each, 64)
    print(peak(Each, 1024))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads the high-water mark of /proc/self/status"
)
def test_objectives_over_queries_need_less_memory_than_one_matrix_of_all_scores():
    names = [each.__name__ for each in OBJECTIVES if issubclass(each, MeanOverQueries)]
    command = [sys.executable, "-c", PEAK.format(names=names)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak_KiB = dict(zip(names, map(int, output.split()), strict=True))
    assert max(peak_KiB.values()) * 1024 < 4096 * 4096 * 4, peak_KiB  # N×N in float32: 64 MiB
