"""A classifier's training against plain loops in torch, its heads against one another."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from classifier_ranks import HEADS, WHOLE, WORLD_SIZE, batches, encoder, trained, work
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from evaluation.classifier import Classifier, ClassifierStep, Rates
from model.encoder import Timm
from model.lars import LARS
from tests.host_waits import HostWaits


def cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def first_head() -> tuple[Tensor, Tensor]:
    weight_KF = 0.01 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return weight_KF, torch.zeros(3)


def test_the_whole_is_trained_as_by_a_plain_loop_with_pytorchs_sgd() -> None:
    network: Any = nn.Sequential(encoder(), nn.Linear(32, 3))
    network[1].weight.data, network[1].bias.data = first_head()
    groups = [
        {"params": [p for p in part.parameters() if (p.ndim > 1) == decays], "peak": peak}
        | {"weight_decay": 0.01 * decays}
        for part, peak in zip(network, (0.1, 0.3), strict=True)
        for decays in (True, False)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for step, (image_BCHW, class_B) in enumerate(batches(4)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * cosine(step, 4)
        optimizer.zero_grad()
        F.cross_entropy(network(image_BCHW), class_B).backward()
        optimizer.step()

    found = trained(WHOLE, trains_encoder=True)
    expected = network[0].state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[f"encoder.{name}"], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected["network.0.weight"], encoder().state_dict()["network.0.weight"])
    assert int(expected["network.1.num_batches_tracked"]) == 4
    torch.testing.assert_close(found["weights.0"], network[1].weight.data, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["biases.0"], network[1].bias.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_heads_at_once_are_heads_one_after_another(optimizer: Any, batch_norm: bool) -> None:
    rates = (0.1, 3.0, 30.0)
    together = trained(
        Rates(heads=rates, steps=5, optimizer=optimizer),
        trains_encoder=False,
        batch_norm=batch_norm,
    )
    for number, rate in enumerate(rates):
        alone = trained(
            Rates(heads=(rate,), steps=5, optimizer=optimizer),
            trains_encoder=False,
            batch_norm=batch_norm,
        )
        for kind in ("weights", "biases"):
            expected, found = alone[f"{kind}.0"], together[f"{kind}.{number}"]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together["weights.0"], together["weights.1"], rtol=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_head_is_trained_as_by_a_plain_loop_on_the_frozen_features(optimizer: Any) -> None:
    """As MoCo's and SimSiam's main_lincls.py do; apex' LARC adapts weight and bias."""
    frozen: Any = encoder().eval()
    weight_KF, bias_K = (each.requires_grad_() for each in first_head())
    if optimizer == "sgd":
        plain: Any = torch.optim.SGD([weight_KF, bias_K], lr=1.0, momentum=0.9)
    else:
        plain = LARS([{"params": [weight_KF, bias_K]}], lr=1.0, momentum=0.9, weight_decay=0.0)
    for step, (image_BCHW, class_B) in enumerate(batches(4)):
        plain.param_groups[0]["lr"] = 3.0 * cosine(step, 4)
        with torch.no_grad():
            h_BF = frozen(image_BCHW)
        plain.zero_grad()
        F.cross_entropy(h_BF @ weight_KF.T + bias_K, class_B).backward()
        plain.step()
    found = trained(Rates(heads=(3.0,), steps=4, optimizer=optimizer), trains_encoder=False)
    torch.testing.assert_close(found["weights.0"], weight_KF.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["biases.0"], bias_K.detach(), rtol=1e-4, atol=1e-6)


def test_a_frozen_encoder_stays_as_it_is_and_the_given_one_always() -> None:
    before = encoder().state_dict()
    found = trained(HEADS, trains_encoder=False)
    assert all(torch.equal(found[f"encoder.{name}"], value) for name, value in before.items())
    given = encoder().requires_grad_(False)  # such as a teacher's
    classifier = Classifier(given, classes=3, trains_encoder=True)
    image_BCHW, class_B = batches(1)[0]
    ClassifierStep(classifier, WHOLE)(image_BCHW, class_B, step=0)
    assert all(torch.equal(given.state_dict()[name], value) for name, value in before.items())
    moved = classifier.encoder.state_dict()
    assert not any(torch.equal(moved[name], before[name]) for name in before if "weight" in name)


def test_layers_of_a_vit_have_rates_that_fall_with_their_depth() -> None:
    vit = Timm(name="vit_tiny_patch16_224", image_size=32)
    classifier = Classifier(vit, classes=3, trains_encoder=True)
    rates = Rates(heads=(2.0,), encoder=1.0, steps=4, optimizer="adamw", layer_decay=0.5)
    step = ClassifierStep(classifier, rates)
    rate_of = {p: group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
    blocks: Any = classifier.encoder.network.blocks  # pyright: ignore[reportAttributeAccessIssue]
    first, last = blocks[0].attn.qkv.weight, blocks[-1].attn.qkv.weight
    assert rate_of[classifier.weights[0]] == 2
    assert rate_of[first] / rate_of[last] == pytest.approx(0.5 ** (len(blocks) - 1))


def test_a_step_never_waits_for_the_device() -> None:
    for rates, trains_encoder in ((WHOLE, True), (HEADS, False)):
        classifier = Classifier(
            encoder(), classes=3, heads=len(rates.heads), trains_encoder=trains_encoder
        )
        step = ClassifierStep(classifier, rates, autocast=torch.bfloat16)
        image_BCHW, class_B = batches(1)[0]
        step(image_BCHW, class_B, step=0)
        with HostWaits(refuse=True) as waits:
            step(image_BCHW, class_B, step=1)
        assert len(waits.operators) > 20


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("classifier_ranks")
    spawn(work, args=(str(folder),), nprocs=WORLD_SIZE)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(WORLD_SIZE)]


def test_two_processes_train_as_one_with_their_batches(
    ranks: list[dict[str, dict[str, Tensor]]],
) -> None:
    alone = {
        "whole": trained(WHOLE, trains_encoder=True),
        "heads": trained(HEADS, trains_encoder=False, batch_norm=True),
    }
    for name, expected in alone.items():
        for key, value in expected.items():
            torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-4, atol=1e-5)
            assert torch.equal(ranks[0][name][key], ranks[1][name][key])
