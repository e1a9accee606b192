"""Which parameters decay, and that each optimizer learns."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from model.encoder import Encoder, ResNet, SmallResNet, Timm
from model.method import DINO
from model.optimizer import build_optimizer, layer_scales, set_learning_rate, undecayed
from tests.host_waits import HostWaits
from training.settings import parse
from training.step import Step


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_norms_and_biases_do_not_decay(name) -> None:
    module = nn.Sequential(SmallResNet(width=4), nn.Linear(32, 3))
    optimizer = build_optimizer(
        module, name=name, learning_rate=0.1, weight_decay=0.5, momentum=0.9
    )
    decaying = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    for layer in module.modules():
        for kind, parameter in layer.named_parameters(recurse=False):
            weight = isinstance(layer, nn.Conv2d | nn.Linear) and kind == "weight"
            assert (id(parameter) in decaying) == weight
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.parameters())


@pytest.mark.parametrize(("name", "rate"), [("sgd", 0.1), ("adamw", 0.05), ("lars", 0.1)])
def test_every_optimizer_descends(name, rate: float) -> None:
    torch.manual_seed(0)
    module, x, y = nn.Linear(5, 1), torch.randn(64, 5), torch.randn(64, 1)
    optimizer = build_optimizer(
        module, name=name, learning_rate=rate, weight_decay=0.0, momentum=0.9
    )
    losses = []
    for _ in range(40):
        loss = (module(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
def test_lars_takes_the_steps_of_timms(weight_decay: float) -> None:
    from timm.optim.lars import Lars

    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 4))
    theirs = copy.deepcopy(ours)
    optimizer = build_optimizer(
        ours, name="lars", learning_rate=0.4, weight_decay=weight_decay, momentum=0.9
    )
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim <= 1]
    settings: Any = {"lr": 0.4, "momentum": 0.9}
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "always_adapt": True},
        {"params": vectors, "weight_decay": 0.0},
    ]
    reference = Lars(groups, **settings)
    for _ in range(5):
        x, y = torch.randn(16, 3, 5, 5), torch.randint(4, (16,))
        for module, each in ((ours, optimizer), (theirs, reference)):
            each.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            each.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_scaler_of_fp16_does_not_wait_for_lars() -> None:
    weights = []
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        module, x = nn.Linear(5, 3), torch.randn(64, 5)
        optimizer = build_optimizer(
            module, name="lars", learning_rate=0.3, weight_decay=0.1, momentum=0.9
        )
        loss = module(x).square().mean()
        if scale is None:
            loss.backward()
            optimizer.step()
        else:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            scaler.scale(loss).backward()
            with HostWaits(refuse=True):
                scaler.step(optimizer)
            scaler.update()
        weights.append(module.weight.detach().clone())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-6, 0.1])
def test_lars_adapts_the_rate_of_matrices_with_and_without_decay(weight_decay: float) -> None:
    """The paper's update, written out: rate · 0.001 · |w| / (|g| + decay |w|) · (g + decay w)."""
    torch.manual_seed(0)
    module, x = nn.Linear(5, 3), torch.randn(64, 5)
    optimizer = build_optimizer(
        module, name="lars", learning_rate=0.3, weight_decay=weight_decay, momentum=0.9
    )
    module(x).square().mean().backward()
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    assert module.weight.grad is not None and module.bias.grad is not None
    g, w = module.weight.grad.clone(), weight
    local = 0.001 * w.norm() / (g.norm() + weight_decay * w.norm())
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), w - 0.3 * local * (g + weight_decay * w))
    torch.testing.assert_close(module.bias.detach(), bias - 0.3 * module.bias.grad)


def test_layers_learn_at_the_rates_of_timms_layer_decay() -> None:
    from timm.optim._param_groups import param_groups_layer_decay

    encoder = Timm(name="vit_tiny_patch16_224", image_size=32)
    groups: Any = param_groups_layer_decay(
        encoder.network,
        weight_decay=0.1,
        layer_decay=0.7,
        no_weight_decay_list=encoder.network.no_weight_decay(),
    )
    theirs = {p: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    projector = nn.Linear(192, 8)
    optimizer = build_optimizer(
        nn.ModuleList([encoder, projector]),
        name="adamw",
        learning_rate=1.0,
        weight_decay=0.1,
        momentum=0.9,
        scales=layer_scales(encoder, rate=0.5, layer_decay=0.7),
        undecayed=undecayed(encoder),
    )
    set_learning_rate(optimizer, 3.0)
    ours = {
        p: (g["lr"] / 3.0, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    for parameter, (scale, decay) in theirs.items():
        assert ours.pop(parameter) == (pytest.approx(0.5 * scale), decay)
    assert ours == {projector.weight: (1.0, 0.1), projector.bias: (1.0, 0.0)}


@pytest.mark.parametrize(
    ("encoder", "layers"),
    [(ResNet(depth=18), 9), (ResNet(depth=50), 17), (SmallResNet(width=4), 5)],
)
def test_each_block_of_a_resnet_is_a_layer(encoder: Encoder, layers: int) -> None:
    by_layer = encoder.layers()
    assert by_layer.keys() == dict(encoder.named_parameters()).keys()
    assert sorted(set(by_layer.values())) == list(range(layers))
    order = [by_layer[name] for name, _ in encoder.named_parameters()]
    assert order == sorted(order), "parameters are named from the images on"


@pytest.mark.usefixtures("accelerate_as_it_was")
def test_an_encoder_that_is_trained_has_its_decay_and_rates_whoever_holds_it() -> None:
    """DINO trains a student, and keeps the teacher's encoder."""
    words = ["--shards", "x", "--run", "r", "--steps", "5", "--optimizer", "adamw"]
    words += ["--weight_decay", "0.1", "--layer_decay", "0.5", "--views.size", "32"]
    words += ["--method", "DINO", "--method.prototypes", "12", "--method.encoder", "Timm"]
    words += ["--method.encoder.name", "vit_tiny_patch16_224", "--method.encoder.image_size", "32"]
    step = Step(parse(words).config, Accelerator(cpu=True))
    assert isinstance(step.method, DINO)
    found = {
        id(p): (group["scale"], group["weight_decay"])
        for group in step.optimizer.param_groups
        for p in group["params"]
    }
    student: Any = step.method.student[0]
    network = student.network
    assert found[id(network.cls_token)] == found[id(network.pos_embed)] == (0.5**12, 0.0)
    assert found[id(network.blocks[10].mlp.fc1.weight)] == (0.5, 0.1)
    assert not {id(p) for p in step.method.encoder.parameters()} & found.keys()
