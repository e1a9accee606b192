"""SwAV, MoCo-v2, SimSiam and BYOL, each against a plain form of its paper or another library."""

import copy

import pytest
import torch
import torch.nn.functional as F
from embeddings import embeddings
from lightly.loss import NegativeCosineSimilarity, SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from methods import MAKE, SIZES, Flat, batch, made

from model.encoder import Encoder
from model.method import BYOL, DINO, JointEmbedding, Method, MoCo, SimSiam, SwAV
from model.method.swav import sinkhorn, swapped_prediction
from model.method.view_prediction import agreement, spread
from model.objective import SmoothAP
from model.optimizer import build_optimizer, set_learning_rate

every_method = pytest.mark.parametrize("name", MAKE)


def train(method: Method, steps: range, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or adamw(method)
    for step in steps:
        method(batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step((step + 1) / 10)


def encoder_of(method: Method) -> Encoder:
    """Return the one that is trained; DINO's other one follows it."""
    encoder = method.student[0] if isinstance(method, DINO) else method.encoder
    assert isinstance(encoder, Encoder)
    return encoder


def adamw(method: Method) -> torch.optim.Optimizer:
    return build_optimizer(method, name="adamw", learning_rate=0.05, weight_decay=0.1, momentum=0.9)


@every_method
@pytest.mark.parametrize("counts", [(2,), (3,), (2, 3), (8,)])
def test_any_number_of_views_is_trained_on(name: str, counts: tuple[int, ...]) -> None:
    method = made(name)
    method.refuse(counts=counts, sizes=(8, 6)[: len(counts)], batch_size=4)
    output = method(batch(0, counts=counts))
    output.loss.backward()
    assert output.loss.shape == ()
    assert output.z_VAD.shape == (sum(counts), 4, 5)
    assert not output.z_VAD.requires_grad
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    trained = list(encoder_of(method).parameters())
    assert all(p.grad is not None and p.grad.norm() > 0 for p in trained)


@pytest.mark.parametrize("make", [SwAV, MoCo])
def test_output_norm_standardises_the_embeddings(make: type[SwAV] | type[MoCo]) -> None:
    method = make(encoder=Flat(), output_norm=True, **SIZES)
    z_ND = method.embed(batch(0, B=64)[0]).flatten(0, 1)
    torch.testing.assert_close(z_ND.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_ND.var(0, correction=0), torch.ones(5), atol=0.1, rtol=0)
    assert make(encoder=Flat(), **SIZES).embed(batch(0, B=64)[0]).mean((0, 1)).norm() > 0.1


@every_method
def test_a_run_continues_exactly_from_its_state(name: str) -> None:
    whole = made(name)
    train(whole, range(6))
    half, continued = made(name), MAKE[name]()  # of other initial weights
    first = adamw(half)
    train(half, range(3), first)
    continued.load_state_dict(half.state_dict())
    second = adamw(continued)
    second.load_state_dict(first.state_dict())
    train(continued, range(3, 6), second)
    for key, value in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[key], value), key


@every_method
def test_bfloat16_networks_give_a_float32_loss(name: str) -> None:
    method = made(name)
    expected = method(batch(0)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = made(name)(batch(0)).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=0.05)


@every_method
def test_a_single_view_or_sample_is_refused(name: str) -> None:
    method = made(name)
    with pytest.raises(ValueError, match="1 view"):
        method.refuse(counts=(1,), sizes=(8,), batch_size=4)
    with pytest.raises(ValueError, match="batch_size=1"):
        method.refuse(counts=(2,), sizes=(8,), batch_size=1)


@every_method
def test_loss_falls_on_a_batch_that_is_repeated(name: str) -> None:
    method = made(name)
    if isinstance(method, MoCo):
        method.queue_LD.copy_(F.normalize(embeddings(10, 5, dtype=torch.float32)))
    optimizer, views = adamw(method), batch(0)
    losses = []
    for _ in range(10):
        loss = method(views).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # without after_step: targets and queues stay
    assert losses[-1] < losses[0]


# ── BYOL and SimSiam ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("V", "T"), [(2, 2), (4, 4), (5, 2), (3, 1)])
def test_agreement_is_the_mean_over_pairs(V: int, T: int) -> None:
    p_VBD, t_TBD = embeddings(V, 6, 5), embeddings(T, 6, 5, seed=1)
    pairs = [
        F.cosine_similarity(p_VBD[v], t_TBD[t]).mean() for v in range(V) for t in range(T) if v != t
    ]
    found = agreement(p_VBD, t_TBD)
    assert found.item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)


def test_spread_is_one_for_isotropic_embeddings_and_zero_for_collapsed_ones() -> None:
    assert spread(embeddings(2, 5000, 16)).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(2, 10, 16)).item() == pytest.approx(0, abs=1e-6)


def test_simsiam_stops_the_gradient_at_its_targets() -> None:
    method = made("SimSiam")
    assert isinstance(method, SimSiam)
    views = batch(0, counts=(2,))
    z = [method.projector(method.encoder(view)) for view in views[0]]
    one, two = (method.predictor(each) for each in z)
    loss = -F.cosine_similarity(one, z[1].detach()).mean() / 2
    loss = loss - F.cosine_similarity(two, z[0].detach()).mean() / 2
    trained = list(method.parameters())
    expected = torch.autograd.grad(loss, trained)
    output = method(views)
    assert output.loss.item() == pytest.approx(loss.item(), abs=1e-6)
    found = torch.autograd.grad(output.loss, trained)
    torch.testing.assert_close(found, expected)


def test_byol_adds_both_directions_as_its_authors_do() -> None:
    """Of their byol_experiment.py; lightly's loss, whose rates the recipes had, is a quarter."""
    method = made("BYOL")
    assert isinstance(method, BYOL)
    views = batch(0, counts=(2,))
    one, two = (method.predictor(method.projector(method.encoder(view))) for view in views[0])
    first, second = (method.target(view).detach() for view in views[0])

    def regression_loss(x_ND: torch.Tensor, y_ND: torch.Tensor) -> torch.Tensor:
        x_ND, y_ND = x_ND / x_ND.norm(dim=1)[:, None], y_ND / y_ND.norm(dim=1)[:, None]
        return (x_ND - y_ND).square().sum(1)

    loss = (regression_loss(one, second) + regression_loss(two, first)).mean()
    quarter = NegativeCosineSimilarity()
    quarter = 0.5 * (quarter(one, second) + quarter(two, first))
    trained = [p for p in method.parameters() if p.requires_grad]
    output = method(views)
    assert output.loss.item() == pytest.approx(loss.item(), abs=1e-6)
    found = torch.autograd.grad(output.loss, trained)
    torch.testing.assert_close(found, torch.autograd.grad(loss, trained, retain_graph=True))
    lightly = torch.autograd.grad(quarter, trained)
    torch.testing.assert_close(found, tuple(4 * each for each in lightly))


def test_only_the_predictor_of_simsiam_keeps_its_rate() -> None:
    method = made("SimSiam")
    assert isinstance(method, SimSiam)
    optimizer = build_optimizer(
        method,
        fixed_rate=method.fixed_rate(),
        name="sgd",
        learning_rate=0.5,
        weight_decay=0.0,
        momentum=0.9,
    )
    set_learning_rate(optimizer, 0.1)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    predictor = {id(p) for p in method.predictor.parameters()}
    assert all(rate[key] == (0.5 if key in predictor else 0.1) for key in rate)
    assert len(rate) == len(list(method.parameters()))


def test_a_twin_is_the_moving_average_of_its_original() -> None:
    method = made("BYOL")
    assert isinstance(method, BYOL)
    before = [p.clone() for p in method.target.parameters()]
    optimizer = adamw(method)
    method(batch(0)).loss.backward()
    optimizer.step()
    originals = [*method.encoder.parameters(), *method.projector.parameters()]
    method.after_step(0.5)  # half-way 1 - 0.1 · (cos(π/2) + 1) / 2
    for twin, old, original in zip(method.target.parameters(), before, originals, strict=True):
        torch.testing.assert_close(twin, 0.95 * old + 0.05 * original)
        assert not twin.requires_grad
    method.after_step(1.0)
    torch.testing.assert_close(
        list(method.target.parameters()),
        [0.95 * old + 0.05 * original for old, original in zip(before, originals, strict=True)],
    )


# ── MoCo ────────────────────────────────────────────────────────────────────────────────────────


def test_moco_is_the_cross_entropy_of_own_key_against_the_queue() -> None:
    method = made("MoCo")
    assert isinstance(method, MoCo)
    views = batch(0, counts=(2,))
    query_BD = F.normalize(method.projector(method.encoder(views[0][1])), dim=1)
    key_BD = F.normalize(method.twin(views[0][0]), dim=1)
    logits = torch.cat(
        [torch.einsum("nc,nc->n", query_BD, key_BD)[:, None], query_BD @ method.queue_LD.T], dim=1
    )
    expected = F.cross_entropy(logits / 0.2, torch.zeros(4, dtype=torch.int64))
    output = method(views)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    parameters = [p for p in method.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, parameters), torch.autograd.grad(expected, parameters)
    )


def test_the_queue_holds_the_newest_keys() -> None:
    method = made("MoCo")
    assert isinstance(method, MoCo)
    random, seen = method.queue_LD.clone(), []
    for step in range(4):
        seen.append(F.normalize(method.twin(batch(step)[0][0]), dim=1))
        method(batch(step))
        method.after_step(0.1)
        keys = torch.cat(seen)
        held = {tuple(row) for row in method.queue_LD.tolist()}
        newest = keys[-10:]
        assert all(min((row - torch.tensor(k)).norm() for k in held) < 1e-6 for row in newest)
        if len(keys) < 10:
            torch.testing.assert_close(method.queue_LD[len(keys) :], random[len(keys) :])


def test_a_queue_shorter_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="queue_size=10 is less than batch_size=11"):
        made("MoCo").refuse(counts=(2,), sizes=(8,), batch_size=11)


@pytest.mark.parametrize("apart", [False, True])
def test_batch_norm_sees_a_view_or_a_group(apart: bool) -> None:
    torch.manual_seed(0)
    method = JointEmbedding(encoder=Flat(), objective=SmoothAP(), views_apart=apart, **SIZES)
    views_VBCHW = batch(0)[1]
    rows = list(views_VBCHW) if apart else [views_VBCHW.flatten(0, 1)]
    expected_NF = torch.cat([method.projector(method.encoder(images)) for images in rows])
    torch.testing.assert_close(method.embed(views_VBCHW).flatten(0, 1), expected_NF)


# ── SwAV ────────────────────────────────────────────────────────────────────────────────────────


def test_sinkhorn_equals_lightly_s() -> None:
    S_NP = embeddings(12, 5, dtype=torch.float32) / 3
    expected = lightly_sinkhorn(S_NP, iterations=3, epsilon=0.05)
    found = sinkhorn(S_NP / 0.05, torch.ones(12), iterations=3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_sinkhorn_uses_all_prototypes_alike_in_the_limit() -> None:
    code_NP = sinkhorn(embeddings(30, 6), torch.ones(30), iterations=200)
    torch.testing.assert_close(code_NP.sum(1), torch.ones(30).double())
    torch.testing.assert_close(code_NP.sum(0), torch.full((6,), 5.0).double())


def test_rows_that_do_not_count_change_nothing() -> None:
    S_NP = embeddings(12, 5)
    counted_N = torch.ones(12, dtype=torch.bool)
    counted_N[[1, 7, 8]] = False
    found = sinkhorn(S_NP, counted_N, iterations=3)
    torch.testing.assert_close(
        found[counted_N], sinkhorn(S_NP[counted_N], torch.ones(9), iterations=3)
    )
    assert (found[~counted_N] == 0).all()


@pytest.mark.parametrize("queue", [0, 8])
@pytest.mark.parametrize("small", [0, 3])
def test_swav_equals_lightly_s_loss(queue: int, small: int) -> None:
    method = made("SwAV")
    assert isinstance(method, SwAV)
    views = batch(0, counts=(2, small) if small else (2,))
    # As in the authors' forward: a pass of all crops through the projector, and its batch norm.
    h_NF = torch.cat([method.encoder(view) for group in views for view in group])
    z_NF = F.normalize(method.projector(h_NF), dim=1)
    scores = list((z_NF @ method.prototype_PD.T).split(4))
    queued = None
    if queue:
        method.queue_TLD.copy_(F.normalize(embeddings(2, 8, 5, dtype=torch.float32), dim=-1))
        method.steps.fill_(5)
        method.pushed.fill_(8)
        queued = [method.queue_TLD[t] @ method.prototype_PD.T for t in range(2)]
    expected = SwaVLoss()(scores[:2], scores[2:], queued)
    assert method(views).loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_swapped_prediction_is_the_mean_over_pairs() -> None:
    logit_VBP, code_TBP = embeddings(4, 3, 5), embeddings(2, 3, 5, seed=1).softmax(-1)
    pairs = [
        F.cross_entropy(logit_VBP[v], code_TBP[t]) for t in range(2) for v in range(4) if v != t
    ]
    found = swapped_prediction(logit_VBP, code_TBP)
    torch.testing.assert_close(found, torch.stack(pairs).mean())


def test_prototypes_are_frozen_and_then_move_on_the_sphere() -> None:
    method = made("SwAV")
    assert isinstance(method, SwAV)
    optimizer, begun = adamw(method), method.prototype_PD.detach().clone()
    for step in range(3):
        train(method, range(step, step + 1), optimizer)
        moved = (method.prototype_PD - begun).norm() > 1e-5
        assert moved == (step >= 2)
        torch.testing.assert_close(method.prototype_PD.norm(dim=1), torch.ones(9))


def test_prototypes_that_were_frozen_begin_with_the_step_of_those_that_never_were() -> None:
    """Of one gradient that is the same in each step; Adam's first one after zeros is another."""
    torch.manual_seed(0)
    free = SwAV(encoder=Flat(), prototypes=9, freeze_prototypes=0, **SIZES)
    frozen = copy.deepcopy(free)
    frozen.freeze_prototypes = 20
    begun, views = free.prototype_PD.detach().clone(), batch(0)
    for method, steps in ((free, 1), (frozen, 21)):
        optimizer = torch.optim.AdamW([method.prototype_PD], lr=0.05)
        for _ in range(steps):
            assert torch.equal(method.prototype_PD, begun)
            method(views).loss.backward()
            optimizer.step()
            method.zero_grad()
            method.after_step(0.1)
    assert (free.prototype_PD - begun).norm() > 0.1
    torch.testing.assert_close(frozen.prototype_PD, free.prototype_PD)


def test_the_queue_of_swav_waits_until_it_is_full() -> None:
    method = made("SwAV")
    assert isinstance(method, SwAV)
    alone = copy.deepcopy(method)
    alone.queue_TLD = alone.queue_TLD[:, :0]
    for step in range(3):
        with torch.no_grad():
            difference = (method(batch(step)).loss - alone(batch(step)).loss).abs()
        assert (difference < 1e-6) == (step < 2)
        for each in (method, alone):
            each.after_step(0.1)
    newest = torch.cat([method(batch(step)).z_VAD[:2] for step in (2, 1)], dim=1)
    torch.testing.assert_close(method.queue_TLD, newest)


def test_more_assigned_views_than_large_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="assigned_views=2, but 1 views have"):
        made("SwAV").refuse(counts=(1, 3), sizes=(8, 6), batch_size=4)
    with pytest.raises(ValueError, match="assigned_views=2, but 1 views have"):
        made("SwAV").refuse(counts=(1, 3, 1), sizes=(8, 6, 8), batch_size=4)  # the second is small


# ── large views ─────────────────────────────────────────────────────────────────────────────────


@every_method
def test_an_asymmetric_pair_is_two_groups_of_large_views(name: str) -> None:
    method = made(name).eval()  # batch norm apart, views are independent
    views = batch(0, counts=(2, 3))
    apart = (views[0][:1], views[0][1:], views[1])
    together, loss = method(views), method(apart).loss
    assert loss.item() == pytest.approx(together.loss.item(), abs=1e-6)


def test_small_views_only_ask_if_the_gallery_is_large() -> None:
    method = JointEmbedding(encoder=Flat(), objective=SmoothAP(), gallery="large", **SIZES)
    output = method.eval()(batch(0))
    expected = SmoothAP()(output.z_VAD, gallery_views=2)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for counts, sizes in (((1, 3), (8, 6)), ((1, 3, 1), (8, 6, 8))):
        with pytest.raises(ValueError, match="gallery=large, but there is 1 view"):
            method.refuse(counts=counts, sizes=sizes, batch_size=4)
