"""torchvision's detectors on an encoder: Faster R-CNN with a feature pyramid or on C4; RetinaNet.

Ren et al., "Faster R-CNN", NeurIPS 2015, https://arxiv.org/abs/1506.01497; Lin et al., "Feature
Pyramid Networks", CVPR 2017, https://arxiv.org/abs/1612.03144; Lin et al., "Focal Loss for Dense
Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002.

    fpn        maps of 4 stages ─▶ pyramid and a pooled level ─▶ proposals ─▶ 7 × 7 ─▶ two layers
    c4         map of stage 3 ─▶ proposals ─▶ 14 × 14 ─▶ stage 4, batch norm ─▶ mean
    retinanet  maps of stages 2 to 4 ─▶ pyramid and two further levels ─▶ a class for each anchor

C4 with that last batch norm is MoCo's (He et al., CVPR 2020, https://arxiv.org/abs/1911.05722).
Anchors and proposals are sampled with each image's own random numbers, and losses are means over
all ranks' samples: W ranks compute what one process would, unless the encoder drops units or paths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evaluation.detection.detector_modules import (
    InPrecision,
    PooledRegions,
    Prepared,
    Pyramid,
    SeededSampler,
    ThirdStage,
)
from evaluation.features import eval_mode
from model.encoder import Encoder
from model.sync_batch_norm import synchronise
from pipeline.normalisation import Normalisation

Kind = Literal["fpn", "c4", "retinanet"]
_FINEST = {"fpn": 0, "c4": 2, "retinanet": 1}
"""Position of the finest stage whose map is used."""
_WIDE = 256  # channels that torchvision's heads are drawn for
_PROBED = 64  # pixels of the image that shows what maps an encoder gives


def refuse(encoder: Encoder, kind: Kind, *, frozen_stages: int, finest_stage: int | None) -> None:
    """Refuse an encoder that a detector cannot be built on.

    Args:
        encoder: the network.
        kind: of detector.
        frozen_stages: how many stages are to be frozen.
        finest_stage: see `build`.

    Raises:
        ValueError: it gives no such maps; the message says which do.
    """
    stages, first = encoder.stages(), _first(kind, finest_stage)
    others = "Detection takes ResNet, SmallResNet, and of timm ResNets, ConvNeXts, Swins and others"
    if len(stages) < 2:
        raise ValueError(
            f"{encoder.describe()} has no feature maps of several sizes, each half as fine as the "
            f"one before, which a detector is built on. {others} that halve their maps."
        )
    if kind == "c4" and len(stages) < 4:
        raise ValueError(
            f"{encoder.describe()} has {len(stages)} stages, and C4 needs the third and the "
            "fourth. Set --detection.kind fpn."
        )
    if first >= len(stages) or frozen_stages > len(stages):
        raise ValueError(
            f"{encoder.describe()} has {len(stages)} stages, of which the finest that is used is "
            f"number {first + 1}, and {frozen_stages} are frozen; give fewer."
        )
    try:
        _probe(encoder, len(stages))
    except Exception as error:  # each network raises its own
        raise ValueError(
            f"{encoder.describe()} gives no feature maps of an image of {_PROBED} pixels: "
            f"{' '.join(str(error).split())[:200]}. {others}, whatever the image's size."
        ) from None
    if kind == "c4":
        _last_stage(encoder)


def build(
    encoder: Encoder,
    kind: Kind,
    *,
    categories: int,
    normalisation: Normalisation,
    autocast: torch.dtype | None,
    train_batch_norm: bool,
    frozen_stages: int,
    finest_stage: int | None,
    channels: int,
    box_features: int,
    smallest_anchor: int,
    proposals: int,
    regions: int,
    seed: int,
) -> Detector:
    """Return a detector on a copy of an encoder, on its device; the rest of it is random.

    Args:
        encoder: the network.
        kind: of detector.
        categories: how many there are, without background.
        normalisation: of pixels.
        autocast: precision of the convolutions; None is float32.
        train_batch_norm: whether the encoder's batch norms are trained, and others are added.
        frozen_stages: how many of the encoder's stages, the finest first, stay as they are; one or
            more freezes the layers before them too.
        finest_stage: number of the stage, from 1, whose map is the pyramid's finest.
        channels: of the pyramid.
        box_features: size of the two layers above a region of the pyramid.
        smallest_anchor: side in pixels; those of further levels are twice as large each.
        proposals: of an image that are kept in training; half of them in tests.
        regions: of an image that are sampled for the second stage's loss.
        seed: of the random weights.
    """
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):  # made on the CPU: alike on all ranks and machines
        torch.manual_seed(seed)
        encoder = copy.deepcopy(encoder).cpu().float()
        maps = _probe(encoder, len(encoder.stages()))
        _freeze(encoder, frozen_stages)
        frozen = [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
        if train_batch_norm:
            frozen = [m for m in frozen if m.weight is not None and not m.weight.requires_grad]
        for norm in frozen:
            norm.requires_grad_(False)
        norm_layer = nn.BatchNorm2d if train_batch_norm else None
        sizes = [each.shape[1] for each in maps]
        if kind == "c4":
            network = _c4(encoder, sizes, categories, smallest_anchor, proposals, norm_layer)
        else:
            pyramid = Pyramid(
                encoder, sizes, _first(kind, finest_stage), channels, kind, norm_layer
            )
            make = _fpn if kind == "fpn" else _retinanet
            network = make(pyramid, categories, smallest_anchor, proposals, box_features)
    _widen(network)
    network.transform = prepared = Prepared(normalisation)
    if kind != "retinanet":
        network.roi_heads.box_roi_pool = PooledRegions(network.roi_heads.box_roi_pool, prepared)
    for owner, name in _convolutions(network):
        setattr(owner, name, InPrecision(getattr(owner, name), autocast))
    detector = Detector(network, frozen, regions=regions)
    return detector.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class Detector(nn.Module):
    """A detector whose loss is in parts, each a mean over so many samples of its images.

    Args:
        network: torchvision's.
        frozen: batch norms that keep their statistics.
        regions: of an image that are sampled for the second stage's loss.
    """

    def __init__(self, network: Any, frozen: list[Any], *, regions: int) -> None:
        super().__init__()
        self.network: Any = network
        self._frozen = frozen
        self._samplers: list[SeededSampler] = []
        if hasattr(network, "rpn"):
            self._samplers = [SeededSampler(256, 0.5, salt=0), SeededSampler(regions, 0.25, salt=1)]
            network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler = self._samplers
        self.train()

    def train(self, mode: bool = True) -> Detector:
        """Switch to training; frozen batch norms stay as they are."""
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        return self

    def synchronised(self) -> Detector:
        """Have its batch norms be over the images of all ranks."""
        self.network = synchronise(
            self.network, uneven=True
        )  # ranks sample differently many regions
        self._frozen = [
            m
            for m in self.network.modules()
            if isinstance(m, _BatchNorm) and m.weight is not None and not m.weight.requires_grad
        ]
        return self

    def forward(self, images_BCHW: Tensor, targets: list[dict[str, Any]] | None = None) -> Any:
        """Return the loss in K parts, and the samples that each is a mean of; or what is found.

        Args:
            images_BCHW: padded images, uint8 or 0 to 255.
            targets: of each image boxes, labels, its size without padding, and a seed; in training.
        """
        if not self.training or targets is None:
            return self.network(images_BCHW)
        for sampler in self._samplers:
            sampler.seeds = [each["seed"] for each in targets]
        losses = self.network(images_BCHW, targets)
        if not self._samplers:  # RetinaNet's is a mean over images
            loss_K = torch.stack([sum(losses.values(), torch.zeros((), device=images_BCHW.device))])
            return loss_K, loss_K.new_tensor([len(targets)])
        of_proposals = losses["loss_objectness"] + losses["loss_rpn_box_reg"]
        of_boxes = losses["loss_classifier"] + losses["loss_box_reg"]
        counts = torch.stack([sampler.count for sampler in self._samplers])
        return torch.stack([of_proposals, of_boxes]), counts.to(losses["loss_classifier"].dtype)


def _fpn(
    pyramid: Pyramid, categories: int, smallest_anchor: int, proposals: int, box_features: int
) -> Any:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    levels = pyramid.levels
    anchors = tuple((smallest_anchor * 2**level,) for level in range(levels + 1))
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
        **_kept_proposals(proposals, before=1),
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(levels)], 7, 2),
        box_head=TwoMLPHead(pyramid.out_channels * 7 * 7, box_features),
        box_predictor=FastRCNNPredictor(box_features, categories + 1),
    )


def _c4(
    encoder: Encoder,
    sizes: list[int],
    categories: int,
    smallest_anchor: int,
    proposals: int,
    norm_layer: Callable[..., nn.Module] | None,
) -> Any:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    last = _last_stage(encoder)
    above, _, name = encoder.stages()[3].rpartition(".")
    setattr(encoder.get_submodule(above), name, nn.Identity())  # it is in the box head now
    anchors = (tuple(smallest_anchor * 2**octave for octave in range(5)),)
    norm = [norm_layer(sizes[3])] if norm_layer else []
    return FasterRCNN(
        ThirdStage(encoder, sizes[2]),
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),)),
        **_kept_proposals(proposals, before=6),
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=nn.Sequential(last, *norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        box_predictor=FastRCNNPredictor(sizes[3], categories + 1),
    )


def _retinanet(pyramid: Pyramid, categories: int, smallest_anchor: int, *_: int) -> Any:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sides = (smallest_anchor * 2**level for level in range(pyramid.levels + 2))
    anchors = tuple(tuple(int(side * 2 ** (third / 3)) for third in range(3)) for side in sides)
    generator = AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors))
    network = RetinaNet(pyramid, categories + 1, anchor_generator=generator, detections_per_img=100)
    return network


def _kept_proposals(proposals: int, *, before: int) -> dict[str, int]:
    """Return how many proposals are kept after, and how many times as many before, suppression."""
    return {
        "rpn_pre_nms_top_n_train": before * proposals,
        "rpn_post_nms_top_n_train": proposals,
        "rpn_pre_nms_top_n_test": before * proposals // 2,
        "rpn_post_nms_top_n_test": proposals // 2,
    }


@torch.no_grad()
def _widen(network: Any) -> None:
    """Draw narrow heads as if they were wide.

    torchvision's weights of the heads deviate by 0.01 whatever the width, which suits 256 channels.
    With 16 each layer's outputs are a quarter of that, and the four of RetinaNet learn nothing.
    """
    head = network.rpn.head if hasattr(network, "rpn") else network.head
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels < _WIDE:
            module.weight.mul_((_WIDE / module.in_channels) ** 0.5)


def _convolutions(network: Any) -> list[tuple[Any, str]]:
    """Return where the modules are that take most of the time, and may run in half precision."""
    if hasattr(network, "rpn"):
        roi_heads = network.roi_heads
        return [(network, "backbone"), (network.rpn, "head"), (roi_heads, "box_head")]
    head = network.head
    towers = [(head.classification_head, "conv"), (head.regression_head, "conv")]
    return [(network, "backbone"), *towers]


def _first(kind: Kind, finest_stage: int | None) -> int:
    return _FINEST[kind] if finest_stage is None else finest_stage - 1


def _probe(encoder: Encoder, stages: int) -> list[Tensor]:
    """Return the maps of a small image; parameters that none depends on need no gradient."""
    device = next(encoder.parameters()).device
    image = torch.zeros(2, 3, _PROBED, _PROBED, device=device)
    with eval_mode(encoder), torch.enable_grad():
        return encoder.feature_maps(image, stages=stages)


@torch.enable_grad()
def _freeze(encoder: Encoder, stages: int) -> None:
    """Freeze the first stages, all before them, and what no map depends on."""
    parameters = dict(encoder.named_parameters())
    for each in parameters.values():
        each.requires_grad_(True)
    total = sum((each.sum() for each in _probe(encoder, len(encoder.stages()))), torch.zeros(()))
    found = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
    for each, gradient in zip(parameters.values(), found, strict=True):
        each.requires_grad_(gradient is not None)
    if not stages:
        return
    layer, last = encoder.layers(), f"{encoder.stages()[stages - 1]}."
    upto = max(number for name, number in layer.items() if name.startswith(last))
    for name, each in parameters.items():
        if layer[name] <= upto:
            each.requires_grad_(False)


def _last_stage(encoder: Encoder) -> nn.Module:
    """Return the fourth stage, a module from the third one's map to its own.

    Raises:
        ValueError: it is not one.
    """
    last = encoder.get_submodule(encoder.stages()[3])
    maps = _probe(encoder, 4)
    with eval_mode(encoder), torch.no_grad():
        try:
            alike = torch.equal(last(maps[2]), maps[3])
        except Exception:  # it wants another form of map; each network raises its own
            alike = False
    if not alike:
        raise ValueError(
            f"{encoder.describe()}'s fourth stage does more than its module "
            f"{encoder.stages()[3]}, so C4 cannot put it on regions. Set --detection.kind fpn."
        )
    return last
