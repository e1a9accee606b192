"""The interface of every training method: views in, loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor, nn

from model.encoder import Encoder
from model.projector import Projector


@dataclass(frozen=True)
class Output:
    """The result of a step."""

    loss: Tensor
    """Scalar. Its mean over ranks is the global loss."""
    z_VAD: Tensor
    """All ranks' embeddings, detached, for the monitor's batch AP; [V, A, D]."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """The method's own figures: detached scalars, read only when they are logged."""


@dataclass(frozen=True)
class MemoryRequest:
    """The views that a method asks the training loop to show it before a step."""

    group: int
    """Which view group, by position; -1 is the last."""
    keys: int
    """How many views, over all ranks; 0 if the method begins a phase without new ones."""
    phase: int
    """Of the run; the same number gets the same views, also after a restart."""


class Method(nn.Module, ABC):
    """One step of training: views in, loss out; with every network and queue that it needs."""

    encoder: Encoder
    """The result of training: evaluation and export take it. It may be another one's average."""
    projector: Projector
    views_apart = False
    """Whether batch norm sees a view at a time, as in the authors' code; else a group's views."""
    trains_part = False
    """Whether a step may leave parameters without gradient, such as those of a frozen side."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int,
        embedding_size: int,
        projector_layers: int,
        norm: bool = True,
        output_norm: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        """Make the encoder and the projector, which every method has.

        Args:
            encoder: it is trained, and kept afterwards.
            hidden_size: width of the projector's hidden layers.
            embedding_size: D.
            projector_layers: number of its linear layers.
            norm: batch norm in its hidden layers.
            output_norm: batch norm without scale and offset on the embeddings.
            activation: of the projector's hidden layers.
        """
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(
            feature_size=encoder.feature_size,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            layers=projector_layers,
            norm=norm,
            output_norm=output_norm,
            activation=activation,
        )

    @abstractmethod
    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """Return the loss of this rank's views.

        Args:
            views: one tensor a view group, [V, B, C, H, W], channels-last in memory with each
                sample's views side by side.
            id_B: stable ids of the samples, for methods that remember them.
        """

    def embed(self, views_VBCHW: Tensor) -> Tensor:
        """Return the embeddings z [V, B, D] of one view group, also for evaluation."""
        how = encode_apart if self.views_apart else encode
        return how(lambda images_NCHW: self.projector(self.encoder(images_NCHW)), views_VBCHW)

    def embed_reference(self, views_VBCHW: Tensor) -> Tensor:
        """Return the embeddings of references, which copy detection searches."""
        return self.embed(views_VBCHW)

    def memory_due(self, step: int) -> MemoryRequest | None:
        """Return what must be remembered before a step, counted from 0; None for most methods."""
        del step

    def remember(self, request: MemoryRequest, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Take as many batches as the request needs; every rank calls this at the same step.

        Args:
            request: of `memory_due`.
            batches: this rank's part: views [V, B, C, H, W], ids [B]; as many as are asked for.
        """
        del request, batches

    def after_step(self, progress: float | Tensor) -> None:
        """Do what follows the optimizer, such as moving averages.

        Args:
            progress: which part of the run is done, above 0 up to 1; a scalar on the device if
                the step is recorded.
        """

    def fixed_rate(self) -> list[nn.Module]:
        """Return the networks whose learning rate stays at its peak throughout."""
        return []

    def refuse(self, *, counts: tuple[int, ...], sizes: tuple[int, ...], batch_size: int) -> None:
        """Refuse views and batches that the method is not defined for.

        By default those of which none can be compared with another.

        Args:
            counts: number of views of each group.
            sizes: height and width of each group's views, in pixels.
            batch_size: samples a step over all ranks.

        Raises:
            ValueError: they do not fit; the message says what is needed.
        """
        for group, size in enumerate(sizes):
            self.encoder.refuse(size, group=group)
        if batch_size < 2:
            raise ValueError(
                f"batch_size={batch_size}, but a view is compared with the views of other "
                "samples: set --batch_size 2 or higher."
            )
        if sum(counts) < 2:
            raise ValueError(
                f"{sum(counts)} view a sample, but this method needs 2 or more: it compares a "
                "sample's views with each other. Set --views.count 2 or higher."
            )


def encode(network: Callable[[Tensor], Tensor], views_VBCHW: Tensor) -> Tensor:
    """Return `network` of every view, [V, B, ...], in one pass.

    All views of a batch, or of some of its samples, are not copied; a choice of views is.
    """
    V, B = views_VBCHW.shape[:2]
    rows_NHWC = views_VBCHW.permute(1, 0, 3, 4, 2).flatten(0, 1)  # as they are in memory
    return network(rows_NHWC.permute(0, 3, 1, 2)).unflatten(0, (B, V)).transpose(0, 1)


def encode_apart(network: Callable[[Tensor], Tensor], views_VBCHW: Tensor) -> Tensor:
    """Return `network` of every view, [V, B, ...], a view at a time, for batch norm of one view."""
    return torch.stack([network(view_BCHW) for view_BCHW in views_VBCHW])


def embed_together(encoder: nn.Module, projector: nn.Module, views: tuple[Tensor, ...]) -> Tensor:
    """Return the embeddings z [V, B, D] of all groups' views.

    They pass the projector together, as in DINO's and SwAV's code: its batch norms notice.
    """
    h_VBF = torch.cat([encode(encoder, group) for group in views])
    return projector(h_VBF.flatten(0, 1)).unflatten(0, h_VBF.shape[:2])


def large(views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the groups of large views: the first, and those after it that have its size.

    An asymmetric pair of views, as BYOL's, is two groups of one size; multi-crop has small ones.
    """
    size = views[0].shape[-2:]
    return tuple(takewhile(lambda group: group.shape[-2:] == size, views))


def large_count(counts: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    """Return how many views the groups of `large` have, by the counts and sizes of all groups."""
    groups = zip(counts, sizes, strict=True)
    return sum(count for count, _ in takewhile(lambda group: group[1] == sizes[0], groups))
