"""What an evaluation is given and finds out; and protocols with settings of their own.

    Suite                frozen features: k-NN, probe, …   seconds, in a run and afterwards
    EvaluationProtocol   such as fine-tuning, detection    minutes to hours, afterwards alone

Such a protocol is a file here with a subclass of `EvaluationProtocol`: its fields are its settings,
its `run` returns figures. `tools.evaluate` names it, reads its settings and keeps its state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from evaluation.bare_encoder import BareEncoder
from evaluation.left_out import leaving_out
from model.encoder import Encoder
from model.method import Method
from pipeline.normalisation import Normalisation
from pipeline.tuning import Tuning
from shards.layout import ShardSet

Evaluated = Method | BareEncoder
Progressed = Callable[[str, int, int], object]
"""Is told what is being done, how much of it is done, and how much there is."""


@dataclass
class Evaluation:
    """What was found out about an encoder."""

    figures: dict[str, float] = field(default_factory=dict)
    """The same on every rank."""
    remarks: list[str] = field(default_factory=list)
    """What was left out, or should be known of the figures, each in a line."""
    details: dict[str, dict[str, float]] = field(default_factory=dict)
    """Figures of parts, such as each category's: {figure: {part: its value}}."""

    def add(self, other: Evaluation) -> None:
        """Add all that another evaluation of the same encoder found out."""
        self.figures |= other.figures
        self.remarks += other.remarks
        self.details |= other.details

    def leaving_out(self, what: str) -> AbstractContextManager[None]:
        """Go on after an error inside, with a remark that these figures are left out, and why.

        Args:
            what: the figures in words. On all ranks they fail alike, or wait for no other.
        """
        return leaving_out(what, self.remarks)


class Kept(Protocol):
    """Keeps the state of a protocol, so that it goes on after a kill."""

    @property
    def folder(self) -> Path:
        """A folder for files of this rank alone, such as indexes of a part of a set."""
        ...

    @property
    def results(self) -> Path | None:
        """A folder for files that rank 0 hands out beside the figures; None if nothing lasts."""
        ...

    def load(self, name: str) -> Any:
        """Return the state that this rank saved last under a name; None if there is none.

        With several ranks it is of the newest save that all of them completed.
        """
        ...

    def save(self, name: str, state: Any) -> None:
        """Save nested state of tensors and plain values; every rank calls this at the same step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An encoder, its data, and where to compute.

    Args:
        encoder: a protocol trains a copy of it, never itself.
        method: which it belongs to; a `BareEncoder` if there are no embeddings.
        size: height and width of the images that it was trained on, in pixels.
        normalisation: of the images' pixels.
        device: where to compute.
        autocast: precision of the networks; None is float32.
        tuning: how the data pipelines run on this machine.
        train: what is trained on; None if no set is given.
        test: what is reported on; it chooses nothing. A protocol with `own_sets` may be without.
        kept: keeps the state.
        rank: this process.
        world_size: number of processes.
        progress: is told how far it is.
        more: shard sets besides these two, of a protocol that names its own.
    """

    encoder: Encoder
    method: Evaluated
    size: int
    normalisation: Normalisation
    device: torch.device
    train: ShardSet | None
    test: ShardSet
    kept: Kept
    autocast: torch.dtype | None = None
    tuning: Tuning | None = None
    rank: int = 0
    world_size: int = 1
    progress: Progressed | None = None
    more: Mapping[str, ShardSet] = field(default_factory=dict)

    def tell(self, what: str, done: int, total: int) -> None:
        """Tell how far it is."""
        if self.progress is not None:
            self.progress(what, done, total)


class EvaluationProtocol(ABC):
    """A way to evaluate an encoder. Subclasses are frozen dataclasses; fields are settings."""

    # Not annotated: where a dataclass has a ClassVar, jsonargparse checks no types.
    own_sets = False
    """Whether its settings name its shard sets, so that it needs none of the command's."""

    def sets(self) -> dict[str, ShardSet]:
        """Open the sets that settings name: train and test, instead of the command's, and more."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what else its figures depend on, such as digests of files, as JSON has it."""
        return {}

    @abstractmethod
    def check(self, trial: Trial) -> None:
        """Refuse what shows before any training.

        Raises:
            ValueError: the encoder or the sets do not allow the protocol.
        """

    @abstractmethod
    def run(self, trial: Trial) -> Evaluation:
        """Train and report; go on where the kept state is.

        The same trial gives the same figures, whether it was interrupted or not.
        """
