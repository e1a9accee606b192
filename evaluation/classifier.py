"""Linear classifiers of an encoder's features, several at once, and their training step.

    images ─▶ encoder ─▶ h [B, F] (─▶ batch norm) ─▶ R heads ─▶ logits [R, B, K] ─▶ R losses

Heads differ in their learning rate alone. If the encoder is not trained, they do not influence each
other: one pass over the images trains as many as one likes, each as if it were alone. Oquab et al.,
"DINOv2", 2023, https://arxiv.org/abs/2304.07193, sweep rates so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder
from model.gather import average_gradients
from model.learning_rate import learning_rate
from model.optimizer import (
    build_optimizer,
    layer_scales,
    load_optimizer,
    set_learning_rate,
    undecayed,
)
from model.sync_batch_norm import synchronise

OptimizerName = Literal["sgd", "lars", "adamw"]
_HEAD_STD = 0.01  # of weights at first, as MoCo's, SwAV's and DINO's linear classifiers


class Classifier(nn.Module):
    """R linear heads on a copy of an encoder.

    Args:
        encoder: its weights are where training begins.
        classes: K.
        heads: R; all begin with the same weights.
        trains_encoder: whether the encoder is trained too. If not, it has no gradient, and its
            batch norms use and keep the statistics that they have.
        batch_norm: standardise features over the batch before the heads, without scale and offset,
            as He et al., "Masked Autoencoders", 2022, https://arxiv.org/abs/2111.06377, do.
        seed: of the heads' weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        heads: int = 1,
        trains_encoder: bool,
        batch_norm: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size = encoder.feature_size
        self.encoder = copy.deepcopy(encoder).requires_grad_(trains_encoder)
        self.trains_encoder = trains_encoder
        self.norm = nn.BatchNorm1d(size, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        generator = torch.Generator().manual_seed(seed)
        weight_KF = _HEAD_STD * torch.randn(classes, size, generator=generator)
        self.weights = nn.ParameterList(weight_KF.clone() for _ in range(heads))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(heads))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the logits [R, B, K] of normalised images, float32."""
        with torch.set_grad_enabled(self.trains_encoder and torch.is_grad_enabled()):
            h_BF = self.encoder(image_BCHW)
        # In float32 whatever the encoder computes in: heads cost little, and rates are compared.
        with torch.autocast(h_BF.device.type, enabled=False):
            weight_NF, bias_N = torch.cat([*self.weights]), torch.cat([*self.biases])
            logits_BN = F.linear(self.norm(h_BF.float()), weight_NF, bias_N)
        return logits_BN.unflatten(1, (len(self.weights), -1)).transpose(0, 1)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; an encoder that is not trained stays in eval mode."""
        super().train(mode)
        if not self.trains_encoder:
            self.encoder.eval()
        return self


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a classifier learns, and for how long.

    Args:
        heads: peak rate of each head.
        encoder: peak rate of the encoder.
        optimizer: sgd, lars or adamw.
        momentum: of sgd and lars; the first beta of adamw.
        weight_decay: of matrices and filters.
        layer_decay: each layer of the encoder learns so much slower than the one above it.
        steps: number of updates; the rates fall to zero by a cosine.
        warmup_steps: how many of them the rates rise in before.
    """

    heads: tuple[float, ...]
    encoder: float = 0.0
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    steps: int
    warmup_steps: int = 0


class ClassifierStep:
    """A classifier on its device with its optimizer.

    Args:
        classifier: is trained, in place.
        rates: of its parts.
        autocast: precision of the encoder; None is float32.
        world_size: number of processes; each has a part of every batch, equally large.
    """

    def __init__(
        self,
        classifier: Classifier,
        rates: Rates,
        *,
        autocast: torch.dtype | None = None,
        world_size: int = 1,
    ) -> None:
        if world_size > 1:
            synchronise(classifier)  # what stays in eval mode computes as before
        self.classifier, self._rates, self._autocast = classifier, rates, autocast
        scales = dict[Tensor, float]()
        if classifier.trains_encoder:
            scales = dict.fromkeys(classifier.encoder.parameters(), rates.encoder)
            layers = layer_scales(classifier.encoder, rate=1.0, layer_decay=rates.layer_decay)
            scales |= {parameter: rates.encoder * scale for parameter, scale in layers.items()}
        for weight, bias, rate in zip(
            classifier.weights, classifier.biases, rates.heads, strict=True
        ):
            scales |= {weight: rate, bias: rate}
        self.optimizer = build_optimizer(
            classifier,
            scales=scales,
            undecayed=undecayed(classifier),
            name=rates.optimizer,
            learning_rate=1.0,
            weight_decay=rates.weight_decay,
            momentum=rates.momentum,
        )
        if rates.optimizer == "lars":
            for group in self.optimizer.param_groups:
                group["adapts"] = True  # biases too, as in SimSiam's code (apex' LARC)
        self._parameters = [p for p in classifier.parameters() if p.requires_grad]
        device = self._parameters[0].device.type
        # Heads compute in float32, so without an encoder there is nothing to scale.
        scaled = autocast == torch.float16 and device == "cuda" and classifier.trains_encoder
        self._scaler = torch.amp.GradScaler(device, enabled=scaled)
        classifier.train()

    def __call__(self, image_BCHW: Tensor, class_B: Tensor, *, step: int) -> None:
        """Train on this rank's part of a batch; the host never waits for the device.

        Args:
            image_BCHW: normalised images, channels-last.
            class_B: their class numbers.
            step: number of updates before.
        """
        warmup_steps, steps = self._rates.warmup_steps, self._rates.steps
        factor = learning_rate(step, peak=1.0, warmup_steps=warmup_steps, total_steps=steps)
        set_learning_rate(self.optimizer, factor)
        with torch.autocast(
            image_BCHW.device.type, self._autocast, enabled=self._autocast is not None
        ):
            logits_RBK = self.classifier(image_BCHW)
        # The sum of the heads' losses: each gets the gradient of its own.
        R = len(logits_RBK)
        loss = R * F.cross_entropy(logits_RBK.flatten(0, 1), class_B.repeat(R))
        self._scaler.scale(loss).backward()
        average_gradients(self._parameters)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which training continues."""
        return {
            "classifier": self._trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        missing = self.classifier.load_state_dict(state["classifier"], strict=False).missing_keys
        assert not {*missing} & self._trained_state().keys()
        load_optimizer(self.optimizer, state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _trained_state(self) -> dict[str, Tensor]:
        """Return what training changes; an encoder that it does not change is in the trial."""
        whole = self.classifier.state_dict()
        if self.classifier.trains_encoder:
            return whole
        return {name: value for name, value in whole.items() if not name.startswith("encoder.")}
