"""DINO: a student tells from any view what its moving average, the teacher, says of a large one.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised
Vision Transformers", ICCV 2021, https://arxiv.org/abs/2104.14294

    large views ─▶ teacher ─▶ (logits - centre) / its temperature ─▶ softmax ─▶ targets ┐
                     ▲ moving average                                     cross-entropy ├─▶ loss
    all views ─────▶ student ─▶ logits / temperature ─▶ log softmax ─▶ predictions ─────┘

Centring alone ends in an even softmax for all images, sharpening alone in one prototype for all;
together they prevent both, without negatives and without a predictor.

`encoder` is the *teacher's*, which the authors evaluate and publish: it is better than the student
throughout their training (Fig. 6), and so evaluations, export and `--weights` of a later run have
it without asking. `student` is what the optimizer trains.

Differs from the authors' code (facebookresearch/dino, 7c446df):
- any number of large views is allowed, theirs are two; the encoder sees each group by itself, which
  its batch norms notice, if it has some;
- the teacher's temperature rises, and the last layer is frozen, for shares of the run, theirs for
  epochs; the temperature rises with every step, theirs with every epoch;
- a frozen last layer is put back after the optimizer, theirs gets no gradient. With a gradient of
  zero, Adam's first steps of it would be several times too long. But so its moments begin at once;
- a step's momentum is that of its end, so the last one's is 1;
- logits are float32 under autocast, too.
Their weight decay rises from 0.04 to 0.4 along a cosine, and each tensor's gradient is clipped by
itself; `training` has a constant one, and clips the whole gradient.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.average import drop_nothing, follow, rising
from model.encoder import Encoder
from model.gather import gather
from model.method.method import Method, Output, embed_together, large
from model.method.swav import swapped_prediction


class DINO(Method):
    """Cross-entropy of the teacher's softmax of a large view and the student's of another view.

    Args:
        encoder: its moving average, the teacher's, is kept afterwards.
        hidden_size: width of the projector's hidden layers.
        embedding_size: D, of the bottleneck before the last layer.
        projector_layers: number of the projector's linear layers.
        norm: batch norm in its hidden layers; the authors have none with vision transformers.
        prototypes: K, outputs of the last layer.
        norm_last_layer: the last layer's rows are unit vectors. Without, each has a length that is
            learned: better for small encoders, but less stable.
        temperature: of the student's softmax.
        first_teacher_temperature: of the teacher's softmax at the start.
        teacher_temperature: of the teacher's softmax after the warm-up; lower is sharper, and above
            0.07 is unstable for most.
        teacher_warmup: share of the run in which that temperature rises; 0 is none. The authors
            have 30 epochs.
        centre_momentum: of the mean of the teacher's logits, which is subtracted from them.
        momentum: of the teacher's weights at the start; it grows to 1 along a cosine. Small batches
            want more: the authors recommend 0.9995 for 256.
        freeze_last_layer: share of the run in which the last layer is not moved; the authors have
            one epoch.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int = 2048,
        embedding_size: int = 256,
        projector_layers: int = 3,
        norm: bool = False,
        prototypes: int = 65_536,
        norm_last_layer: bool = True,
        temperature: float = 0.1,
        first_teacher_temperature: float = 0.04,
        teacher_temperature: float = 0.07,
        teacher_warmup: float = 0.3,
        centre_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer: float = 0.01,
    ) -> None:
        for name, value in (
            ("temperature", temperature),
            ("first_teacher_temperature", first_teacher_temperature),
            ("teacher_temperature", teacher_temperature),
        ):
            if value <= 0:
                raise ValueError(f"{name}={value}, expected a number above 0, such as 0.04.")
        for name, value in (("centre_momentum", centre_momentum), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}, expected 0 or more and below 1, such as 0.9.")
        for name, value in (
            ("teacher_warmup", teacher_warmup),
            ("freeze_last_layer", freeze_last_layer),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}, expected a share of the run, 0 to 1.")
        if prototypes < 2:
            raise ValueError(f"prototypes={prototypes}, expected 2 or more, such as 65536.")
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
            norm=norm,
            activation=nn.GELU,
        )
        for part in self.projector.modules():
            if isinstance(part, nn.Linear):  # as the authors begin it, and timm its ViTs
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        self.prototypes = Prototypes(embedding_size, prototypes, unit=norm_last_layer)
        self.student = nn.ModuleList(copy.deepcopy(part) for part in self._teacher)
        for part in self._teacher:
            part.requires_grad_(False)
        self.temperature = temperature
        self.teacher_temperatures = first_teacher_temperature, teacher_temperature
        self.teacher_warmup, self.freeze_last_layer = teacher_warmup, freeze_last_layer
        self.centre_momentum, self.momentum = centre_momentum, momentum
        self.centre_K: Tensor
        self.progress: Tensor
        self.register_buffer("centre_K", torch.zeros(prototypes))
        self.register_buffer("progress", torch.zeros(()))  # of the run, before a step
        # Alike on all ranks: there is nothing to broadcast in every step.
        self._ddp_params_and_buffers_to_ignore = ["centre_K", "progress"]
        self._mean_K: Tensor | None = None

    @property
    def _teacher(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.projector, self.prototypes

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """See `Method.forward`."""
        del id_B
        student, projector, prototypes = self.student
        z_VBD = embed_together(student, projector, views)
        with torch.no_grad():
            t_TBD = embed_together(self.encoder, self.projector, large(views))
        with torch.autocast(z_VBD.device.type, enabled=False):
            logit_VBK = prototypes(z_VBD.float()) / self.temperature
            target_TBK = self._targets(self.prototypes(t_TBD.float()))
            loss = swapped_prediction(logit_VBK, target_TBK)
        z_VAD = gather(z_VBD.detach().float())
        used_K = target_TBK.mean((0, 1))
        return Output(
            loss=loss,
            z_VAD=z_VAD,
            metrics={
                # On this rank: K if all are used equally, 1 if one is.
                "prototypes_used": torch.special.entr(used_K).sum().exp(),
                # ln K if every image gets the same even target.
                "target_entropy": torch.special.entr(target_TBK).sum(-1).mean(),
            },
        )

    @torch.no_grad()
    def _targets(self, logit_TBK: Tensor) -> Tensor:
        """Return the teacher's centred and sharpened softmax of large views [T, B, K]."""
        # Its mean over all ranks, each with as many views as the others.
        self._mean_K = gather(logit_TBK.mean((0, 1))[None, None]).mean((0, 1))
        first, last = self.teacher_temperatures
        sharpness = 1 / last
        if self.teacher_warmup:
            risen = (self.progress / self.teacher_warmup).clamp(max=1)
            sharpness = 1 / (first + (last - first) * risen)
        return ((logit_TBK - self.centre_K) * sharpness).softmax(-1)

    @torch.no_grad()
    def after_step(self, progress: float | Tensor) -> None:
        """Put back a frozen last layer; move the teacher and the centre."""
        assert self._mean_K is not None, "a step"
        if self.freeze_last_layer:
            # The teacher's is what the student's began with as long as neither moves.
            frozen = self.progress < self.freeze_last_layer
            begun = self.prototypes.parameters()
            for mine, before in zip(self.student[-1].parameters(), begun, strict=True):
                mine.copy_(torch.where(frozen, before, mine))
        follow(self._teacher, self.student, momentum=rising(self.momentum, progress))
        self.centre_K.lerp_(self._mean_K, 1 - self.centre_momentum)
        self.progress.fill_(progress)

    def train(self, mode: bool = True) -> DINO:
        """Set the mode of the student and of the teacher's batch norms."""
        super().train(mode)
        for part in self._teacher:
            drop_nothing(part)
        return self


class Prototypes(nn.Module):
    """A linear layer of unit embeddings whose rows have a direction and a length of their own.

    Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of
    Deep Neural Networks", NeurIPS 2016, https://arxiv.org/abs/1602.07868

    Args:
        embedding_size: D.
        count: K.
        unit: the length stays 1.
    """

    def __init__(self, embedding_size: int, count: int, *, unit: bool) -> None:
        super().__init__()
        bound = embedding_size**-0.5  # nn.Linear's
        self.direction_KD = nn.Parameter(torch.empty(count, embedding_size).uniform_(-bound, bound))
        self.length_K1 = None if unit else nn.Parameter(torch.ones(count, 1))

    def forward(self, z_VBD: Tensor) -> Tensor:
        """Return the scores [..., K] of embeddings [..., D] of any length."""
        row_KD = F.normalize(self.direction_KD, dim=-1)
        if self.length_K1 is not None:
            row_KD = self.length_K1 * row_KD
        return F.normalize(z_VBD, dim=-1) @ row_KD.T
