"""Detectors beside torchvision's own, and what of an encoder is trained in them."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign

from evaluation.detection.detector import Detector, Kind, build, refuse
from evaluation.detection.detector_modules import SeededSampler
from model.encoder import Encoder, ResNet, SmallResNet, Timm
from pipeline.normalisation import IMAGENET

KINDS: list[Kind] = ["fpn", "c4", "retinanet"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(encoder: Encoder, kind: Kind, **changed: Any) -> Detector:
    settings: dict[str, Any] = {
        "categories": 2,
        "normalisation": IMAGENET,
        "autocast": None,
        "train_batch_norm": True,
        "frozen_stages": 0,
        "finest_stage": None,
        "channels": 16,
        "box_features": 32,
        "smallest_anchor": 8,
        "proposals": 60,
        "regions": 16,
        "seed": 0,
    }
    return build(encoder, kind, **{**settings, **changed})


def batch(seed: int = 0) -> tuple[Tensor, list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator)
    boxes = [torch.tensor([[4.0, 6, 40, 50], [50, 10, 90, 60]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
    sizes = [(64, 96), (60, 80)]
    return images, [
        {"boxes": b, "labels": c, "size": s, "seed": seed + number}
        for number, (b, c, s) in enumerate(zip(boxes, labels, sizes, strict=True))
    ]


def test_it_finds_what_torchvision_s_own_detector_finds() -> None:
    torch.manual_seed(0)
    encoder = ResNet()
    ours = made(encoder, "fpn", categories=4, train_batch_norm=False, proposals=200).eval()
    layers = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    body = torchvision.models.resnet18()
    anchors = AnchorGenerator(tuple((8 * 2**n,) for n in range(5)), ((0.5, 1.0, 2.0),) * 5)
    theirs: Any = FasterRCNN(
        BackboneWithFPN(body, layers, [64, 128, 256, 512], 16),
        num_classes=5,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=100,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_score_thresh=0.05,
    ).eval()
    theirs.roi_heads.box_head = ours.network.roi_heads.box_head.module
    theirs.roi_heads.box_predictor = ours.network.roi_heads.box_predictor
    names = {"encoder.network": "body", "pyramid": "fpn"}
    weights = {}
    for name, tensor in ours.network.backbone.module.state_dict().items():
        for mine, other in names.items():
            name = name.replace(f"{mine}.", f"{other}.", 1)
        weights[name] = tensor
    missing, strange = theirs.backbone.load_state_dict(weights, strict=False)
    assert not missing and all(name.startswith("body.fc") for name in strange)
    theirs.rpn.head.load_state_dict(ours.network.rpn.head.module.state_dict())
    images, _ = batch()
    with torch.no_grad():
        (expected,) = theirs([images[0] / 255])
        (found,) = ours(images[:1])
    assert len(expected["boxes"]) > 10
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: ResNet(),
        lambda: SmallResNet(width=4),
        lambda: Timm(name="resnet10t"),
    ],
)
def test_regions_are_of_the_maps_whose_mean_is_the_encoder_s_feature(encoder: Any) -> None:
    network = encoder().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h_NF = network(images)
        maps = network.feature_maps(images, stages=4)
        torch.testing.assert_close(maps[-1].mean((2, 3)), h_NF)
        c4 = made(network, "c4", train_batch_norm=False).eval().network
        third = c4.backbone.module(images)
        torch.testing.assert_close(third, maps[2])
        torch.testing.assert_close(c4.roi_heads.box_head(third), h_NF)
    sides = [each.shape[-1] for each in maps]
    assert all(fine == 2 * coarse for fine, coarse in pairwise(sides))


@every_kind
@pytest.mark.parametrize("name", ["SmallResNet", "convnext_atto"])
def test_all_that_is_trained_has_a_gradient_and_the_encoder_itself_stays(
    kind: Kind, name: str
) -> None:
    encoder = SmallResNet(width=4) if name == "SmallResNet" else Timm(name=name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    detector = made(encoder, kind).train()
    loss_K, count_K = detector(*batch())
    loss_K.sum().backward()
    lacking = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    assert any("encoder" in n and p.requires_grad for n, p in detector.named_parameters())
    assert len(loss_K) == len(count_K) and loss_K.isfinite().all()
    after = encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_kind
def test_frozen_stages_and_batch_norms_do_not_move(kind: Kind) -> None:
    encoder = SmallResNet(width=4)
    parts = {
        2: made(encoder, kind, frozen_stages=2),
        4: made(encoder, kind, train_batch_norm=False),
    }
    for stages, detector in parts.items():
        before = {n: t.clone() for n, t in detector.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
        detector.train()
        detector(*batch())[0].sum().backward()
        optimizer.step()
        after = detector.state_dict()
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        numbers = range(3 + stages)
        frozen = [f"encoder.network.{number}." for number in numbers]
        in_encoder = {n for n in moved if "encoder.network" in n}
        if stages == 2:
            assert in_encoder and not [n for n in moved if any(f in n for f in frozen)]
            assert kind == "c4" or any("running_mean" in n for n in in_encoder)
        else:
            assert in_encoder and not [n for n in moved if "running" in n]


@every_kind
def test_half_precision_is_of_convolutions_alone(kind: Kind) -> None:
    torch.manual_seed(0)
    encoder = SmallResNet(width=4)
    wide, half = (made(encoder, kind, autocast=dtype).train() for dtype in (None, torch.bfloat16))
    losses = [detector(*batch())[0] for detector in (wide, half)]
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.05)
    x_BCHW = torch.randn(1, 3, 64, 64)
    maps = [
        [*found.values()] if isinstance(found, dict) else [found]
        for found in (detector.network.backbone(x_BCHW) for detector in (wide, half))
    ]
    assert all(x.dtype == y.dtype == torch.float32 for x, y in zip(*maps, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(*maps, strict=True))


def test_padding_and_flips_of_other_images_change_no_sample() -> None:
    labels = [
        torch.randint(-1, 3, (500,), generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    ]
    both, alone = (SeededSampler(40, 0.5, salt=1) for _ in range(2))
    both.seeds, alone.seeds = [11, 12], [12]
    positive, negative = both(labels)
    (positive_N,), (negative_N,) = alone(labels[1:])
    assert torch.equal(positive[1], positive_N) and torch.equal(negative[1], negative_N)
    other = SeededSampler(40, 0.5, salt=0)
    other.seeds = [12]
    assert not torch.equal(other(labels[1:])[1][0], negative_N)


@pytest.mark.parametrize(
    ("positives", "negatives"), [(100, 400), (5, 400), (100, 3), (0, 7), (9, 0)]
)
def test_as_many_are_sampled_as_torchvision_samples(positives: int, negatives: int) -> None:
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    label_N = torch.cat([torch.ones(positives), torch.zeros(negatives), -torch.ones(30)])[
        torch.randperm(positives + negatives + 30)
    ]
    ours = SeededSampler(64, 0.25, salt=0)
    ours.seeds = [5]
    (positive_N,), (negative_N,) = ours([label_N])
    (expected,), (others,) = BalancedPositiveNegativeSampler(64, 0.25)([label_N])
    assert positive_N.sum() == expected.sum() and negative_N.sum() == others.sum()
    assert (label_N[positive_N] >= 1).all() and (label_N[negative_N] == 0).all()
    assert ours.count == positive_N.sum() + negative_N.sum()


def test_every_candidate_is_sampled_equally_often() -> None:
    sampler, label_N = SeededSampler(20, 0.25, salt=0), torch.tensor([1] * 10 + [0] * 40)
    taken_N = torch.zeros(50)
    for seed in range(2000):
        sampler.seeds = [seed]
        (positive_N,), (negative_N,) = sampler([label_N])
        taken_N += positive_N.float() + negative_N.float()
    # Binomial: 2,000 draws of 5 from 10 and of 15 from 40; five standard deviations.
    for part, share in ((taken_N[:10], 0.5), (taken_N[10:], 0.375)):
        assert ((part - 2000 * share).abs() < 5 * (2000 * share * (1 - share)) ** 0.5).all()


@pytest.mark.parametrize(
    ("encoder", "kind", "more", "message"),
    [
        ("vit_tiny_patch16_224", "fpn", {}, r"vit_tiny_patch16_224 has no feature maps of several"),
        ("efficientnet_b0", "c4", {}, r"fourth stage does more .*--detection.kind fpn"),
        ("resnet10t", "fpn", {"frozen_stages": 5}, r"has 4 stages.* and 5 are frozen"),
        ("resnet10t", "fpn", {"finest_stage": 5}, r"has 4 stages.* number 5"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    encoder: str, kind: Kind, more: dict[str, int], message: str
) -> None:
    how: dict[str, Any] = {"frozen_stages": 0, "finest_stage": None, **more}
    with pytest.raises(ValueError, match=message):
        refuse(Timm(name=encoder), kind, **how)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_tiny_patch4_window7_224", "regnety_002"])
def test_other_networks_of_timm_give_maps(name: str) -> None:
    encoder = Timm(name=name)
    assert len(encoder.stages()) == 4
    refuse(encoder, "fpn", frozen_stages=1, finest_stage=None)


def test_new_weights_are_alike_for_a_seed_and_draw_from_no_other_stream() -> None:
    encoder = SmallResNet(width=4)
    torch.manual_seed(1)
    first = made(encoder, "fpn").state_dict()
    state = torch.get_rng_state()
    second = made(encoder, "fpn").state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = made(encoder, "fpn", seed=1).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)
