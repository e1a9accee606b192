"""DINO against its authors' code and against loops written from the paper."""

import math
from typing import Any

import pytest
import torch
from methods import SIZES, Flat, batch
from torch import Tensor, nn

from model.average import MovingAverage
from model.encoder import Encoder
from model.method import DINO
from model.method.dino import Prototypes
from model.optimizer import build_optimizer

# Of facebookresearch/dino, 7c446df: MultiCropWrapper of `Flat` and DINOHead(6, 9,
# norm_last_layer=False, hidden_dim=7, bottleneck_dim=5), DINOLoss(9, 5, 0.04, 0.07, 6, 10),
# cosine_scheduler(0.9, 1, 10, 1), SGD at 0.1 with momentum 0.9; ten epochs of one step, on the
# views of methods.batch. The same in float32 and float64.
LOSSES = (0.604431, 0.501796, 0.310508, 0.185494, 0.153040)
LOSSES += (0.171301, 0.170305, 0.211387, 0.258453, 0.376415)
CENTRE = (-0.237121, -0.178784, 0.565034, -0.352839, 0.002192, 0.341463, -0.435163, 0.161394)
CENTRE += (0.227444,)
# Norms of weight and bias of encoder and layers, of the last layer's directions and lengths.
TEACHER = (2.999550, 0.905791, 2.282450, 0.932088, 2.459139, 0.901334, 2.092203, 0.771129)
TEACHER += (2.390599, 2.995205)
STUDENT = (2.997372, 0.909467, 2.278669, 0.894560, 2.450793, 0.762357, 2.060826, 1.103615)
STUDENT += (2.713556, 2.909923)


def dino(**settings: Any) -> DINO:
    torch.manual_seed(0)
    chosen = {"prototypes": 9, "norm_last_layer": False, "momentum": 0.9, "freeze_last_layer": 0.0}
    return DINO(encoder=Flat(), **{**SIZES, **chosen, **settings})


def test_ten_steps_are_those_of_the_authors_code() -> None:
    method = dino(teacher_warmup=0.5)
    student = list(method.student.parameters())
    with torch.no_grad():
        for number, p in enumerate(student[:-1]):  # lengths are 1
            p.copy_(
                torch.arange(p.numel()).double().add(number).mul(1.7).sin().mul(0.5).view(p.shape)
            )
    for mine, theirs in zip(_teacher(method), student, strict=True):
        mine.data.copy_(theirs)
    optimizer = build_optimizer(
        method, name="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.9
    )
    losses = []
    for step in range(10):
        loss = method(batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step((step + 1) / 10)
        losses.append(loss.item())
    assert losses == pytest.approx(LOSSES, abs=1e-5)
    assert method.centre_K.tolist() == pytest.approx(CENTRE, abs=1e-5)
    assert [p.norm().item() for p in _teacher(method)] == pytest.approx(TEACHER, abs=1e-5)
    assert [p.norm().item() for p in student] == pytest.approx(STUDENT, abs=1e-5)


@pytest.mark.parametrize("counts", [(2,), (2, 3), (1, 4), (3, 1)])
def test_loss_and_gradient_are_those_of_the_paper_s_algorithm(counts: tuple[int, ...]) -> None:
    """Algorithm 1, with multi-crop, written view by view and prototype by prototype."""
    method = dino(norm_last_layer=True, teacher_warmup=0.5)
    method.centre_K.copy_(torch.linspace(-0.2, 0.3, 9))
    method.progress.fill_(0.25)  # half of the warm-up: 0.055
    views = batch(0, counts=counts)

    def scores(parts: Any, view_BCHW: Tensor) -> Tensor:
        encoder, projector, last = parts
        z_BD = projector(encoder(view_BCHW))
        rows = [row / row.norm() for row in last.direction_KD]
        return torch.stack([(z_BD / z_BD.norm(dim=1)[:, None]) @ row for row in rows], dim=1)

    teacher = (method.encoder, method.projector, method.prototypes)
    t = [((scores(teacher, v) - method.centre_K) / 0.055).exp().detach() for v in views[0]]
    s = [(scores(method.student, v) / 0.1).exp() for group in views for v in group]
    terms = []
    for i, t_BK in enumerate(t):
        for j, s_BK in enumerate(s):
            if i != j:
                p_BK, q_BK = t_BK / t_BK.sum(1)[:, None], s_BK / s_BK.sum(1)[:, None]
                terms.append(-(p_BK * q_BK.log()).sum(1).mean())
    expected = torch.stack(terms).mean()
    trained = [p for p in method.parameters() if p.requires_grad]
    output = method(views)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    found = torch.autograd.grad(output.loss, trained)
    torch.testing.assert_close(found, torch.autograd.grad(expected, trained), rtol=1e-3, atol=1e-6)


def test_the_centre_is_the_moving_mean_of_the_teacher_s_scores_before_it_moves() -> None:
    method, expected = dino(centre_momentum=0.7), torch.zeros(9)
    for step in range(3):
        views = batch(step)
        with torch.no_grad():
            scores = [method.prototypes(method.embed(views[0][i : i + 1])) for i in range(2)]
        step_of(method, views, progress=(step + 1) / 3)
        expected = 0.7 * expected + 0.3 * torch.cat(scores).flatten(0, 1).mean(0)
        torch.testing.assert_close(method.centre_K, expected)


def test_the_encoder_is_the_teacher_s() -> None:
    method = dino()
    before = [p.clone() for p in _teacher(method)]
    step_of(method, batch(0), progress=0.5)  # half-way 1 - 0.1 · (cos(π/2) + 1) / 2
    for teacher, old, student in zip(
        _teacher(method), before, method.student.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher, 0.95 * old + 0.05 * student)
        assert not teacher.requires_grad and student.requires_grad
        assert not torch.equal(old, student)
    (view,) = batch(0, counts=(1,))
    torch.testing.assert_close(method.embed(view)[0], method.projector(method.encoder(view[0])))


@pytest.mark.parametrize("norm_last_layer", [False, True])
def test_the_last_layer_is_frozen_to_the_bit_and_then_moves(norm_last_layer: bool) -> None:
    method = dino(freeze_last_layer=0.3, norm_last_layer=norm_last_layer)
    optimizer = adamw(method)
    begun = [p.clone() for p in method.student[-1].parameters()]
    encoder = [p.clone() for p in method.student[0].parameters()]
    for step in range(5):
        step_of(method, batch(step), progress=(step + 1) / 10, optimizer=optimizer)
        for old, mine, teacher in zip(
            begun, method.student[-1].parameters(), method.prototypes.parameters(), strict=True
        ):
            assert torch.equal(old, mine) == torch.equal(old, teacher) == (step < 3)
    assert len(begun) == 2 - norm_last_layer
    assert not any(
        torch.equal(old, new)
        for old, new in zip(encoder, method.student[0].parameters(), strict=True)
    )


def test_unit_rows_stay_unit_rows() -> None:
    method = dino(norm_last_layer=True)
    optimizer = adamw(method)
    for step in range(3):
        step_of(method, batch(step), progress=0.1, optimizer=optimizer)
    last = method.student[-1]
    assert isinstance(last, Prototypes)
    assert last.direction_KD.norm(dim=1).std() > 1e-3
    # An embedding along a row scores 1 with it: the scores are cosines.
    torch.testing.assert_close(last(3 * last.direction_KD).diag(), torch.ones(9))


def test_the_figures_tell_both_collapses() -> None:
    method = dino(teacher_warmup=0.0)
    with torch.no_grad():
        for p in method.prototypes.parameters():
            p.zero_()  # every score is 0: every image gets the same even target
    found = method(batch(0)).metrics
    assert found["prototypes_used"].item() == pytest.approx(9)
    assert found["target_entropy"].item() == pytest.approx(math.log(9))
    method.centre_K[4] = -1000.0  # every target is the same prototype
    found = method(batch(0)).metrics
    assert found["prototypes_used"].item() == pytest.approx(1)
    assert found["target_entropy"].item() == pytest.approx(0)


class DropsFeatures(Encoder):
    """Drops half of the features, after batch norm."""

    feature_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(Flat(), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.network(images_NCHW)


def test_a_moving_average_drops_nothing_and_its_batch_norms_train() -> None:
    torch.manual_seed(0)
    method = DINO(encoder=DropsFeatures(), prototypes=9, **SIZES).train()
    average = MovingAverage(DropsFeatures()).train()
    images_NCHW = batch(0)[0][0]
    for drops, network in (
        (True, method.student[0]),
        (False, method.encoder),
        (False, average),
    ):
        one, two = network(images_NCHW), network(images_NCHW)
        assert torch.equal(one, two) != drops
    for network in (method.encoder, average):
        torch.testing.assert_close(network(images_NCHW).mean(0), torch.zeros(6), atol=1e-6, rtol=0)
        network.eval()
        assert network(images_NCHW).mean(0).norm() > 1e-3  # running statistics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0, expected a number above 0"),
        ({"teacher_temperature": -1.0}, r"teacher_temperature=-1\.0, expected a number above 0"),
        ({"momentum": 1.0}, r"momentum=1\.0, expected 0 or more and below 1"),
        ({"centre_momentum": -0.1}, r"centre_momentum=-0\.1, expected 0 or more and below 1"),
        ({"teacher_warmup": 30.0}, r"teacher_warmup=30\.0, expected a share of the run, 0 to 1"),
        ({"freeze_last_layer": 2.0}, r"freeze_last_layer=2\.0, expected a share of the run"),
        ({"prototypes": 1}, "prototypes=1, expected 2 or more"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dino(**settings)


def _teacher(method: DINO) -> list[nn.Parameter]:
    parts = (method.encoder, method.projector, method.prototypes)
    return [p for part in parts for p in part.parameters()]


def adamw(method: DINO) -> torch.optim.Optimizer:
    return build_optimizer(method, name="adamw", learning_rate=0.05, weight_decay=0.1, momentum=0.9)


def step_of(
    method: DINO,
    views: tuple[Tensor, ...],
    *,
    progress: float,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    optimizer = optimizer or adamw(method)
    method(views).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress)
