"""Settings of a supervised training on some labelled images, and what does not allow it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evaluation.classifier import OptimizerName, Rates
from evaluation.label_draw import LabelledSet
from evaluation.linear import split
from evaluation.protocol import Trial

RATES_AT = 256  # samples a step; other batches get proportional rates, as Goyal et al. 2017
MANY_CLASSES = 10  # of more, top 5 is reported too


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """How a classifier is trained, whatever it is trained on.

    Args:
        rates: peak learning rates to choose from, at batches of 256.
        trains_encoder: whether the encoder is trained too. If not, all rates are tried at once.
        head_rate: the head's rate, as a multiple of the encoder's.
        optimizer: sgd, lars or adamw.
        weight_decay: of matrices and filters.
        layer_decay: each layer learns so much slower than the one above it.
        warmup: share of the updates in which the rates rise.
        batch_norm: standardise features before the head.
        batch_size: samples a step over all ranks, at most.
        epochs: passes over the samples.
        least_steps: number of updates at least, however few samples there are.
        smallest_crop: smallest part of an image's area that a crop shows.
        validation: share of the labels that chooses the rate.
    """

    rates: tuple[float, ...]
    trains_encoder: bool
    head_rate: float = 1.0
    optimizer: OptimizerName = "sgd"
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    warmup: float = 0.0
    batch_norm: bool = False
    batch_size: int
    epochs: float
    least_steps: int = 1
    smallest_crop: float = 0.08
    validation: float = 0.2

    def __post_init__(self) -> None:
        rates, most = self.rates, math.inf
        for name, allowed, expected in (
            ("rates", rates and all(0 < r < most for r in rates), "one or more, all above 0"),
            ("head_rate", 0 < self.head_rate < most, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < most, "0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, up to 1"),
            ("warmup", 0 <= self.warmup < 1, "0 or more, below 1"),
            ("batch_size", self.batch_size >= 2, "2 or more"),
            ("epochs", 0 < self.epochs < most, "above 0"),
            ("least_steps", self.least_steps >= 1, "1 or more"),
            ("smallest_crop", 0 < self.smallest_crop <= 1, "above 0, up to 1"),
            ("validation", 0 < self.validation < 1, "above 0, below 1"),
        ):
            if not allowed:
                raise ValueError(f"{name}={getattr(self, name)}, but it must be {expected}.")

    def batch(self, samples: int, world_size: int) -> int:
        """Return the samples of a step over all ranks, of so many that there are."""
        return max(1, min(self.batch_size, samples) // world_size) * world_size

    def steps(self, samples: int, world_size: int) -> int:
        """Return the number of updates on so many samples."""
        batch = self.batch(samples, world_size)
        return max(self.least_steps, round(self.epochs * samples / batch))

    def of(self, rates: Sequence[float], samples: int, world_size: int) -> Rates:
        """Return the rates of a training.

        Args:
            rates: of its heads, at batches of 256; one if the encoder is trained.
            samples: number of samples.
            world_size: number of processes.
        """
        scale = self.batch(samples, world_size) / RATES_AT
        steps = self.steps(samples, world_size)
        encoder = 0.0
        if self.trains_encoder:
            (encoder,) = rates
        return Rates(
            heads=tuple(scale * self.head_rate * rate for rate in rates),
            encoder=scale * encoder,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            steps=steps,
            warmup_steps=round(self.warmup * steps),
        )


def check_size(trial: Trial) -> None:
    """Refuse images that the encoder cannot take.

    Raises:
        ValueError: it cannot take their size.
    """
    try:
        trial.encoder.refuse(trial.size)
    except ValueError as error:  # in the words of this command line
        text = str(error).replace("--views.size", "--size")
        raise ValueError(text.replace("--method.encoder", "--encoder")) from None


def check_samples(
    known: LabelledSet, drawn_N: Tensor, how: Supervised, world_size: int, what: str
) -> None:
    """Refuse so few samples that no step can be made of them, or no rate be chosen.

    Args:
        known: whose samples they are.
        drawn_N: mask of those that are trained on.
        how: settings of the training.
        world_size: number of processes.
        what: names them, in words.

    Raises:
        ValueError: they are too few.
    """
    count_K = known.class_N[drawn_N].bincount()
    if len(how.rates) > 1 and int(count_K.max()) < 2:
        raise ValueError(
            f"{what}, one of each class: none is left to choose from {len(how.rates)} rates. Give "
            "one rate, or more images."
        )
    held = 0
    if len(how.rates) > 1:
        held = int(
            split(
                known.class_N[drawn_N], known.id_N[drawn_N], fraction=how.validation, seed=0
            ).sum()
        )
    fitted, needed = int(drawn_N.sum()) - held, max(2, world_size)
    if fitted < needed:
        raise ValueError(
            f"{what}, of which {fitted} would be trained on; expected {needed} or more (processes: "
            f"{world_size}). Give more images."
        )


def at_the_end(rate: float, rates: Sequence[float], of: str, flag: str) -> list[str]:
    """Return a remark if the chosen rate is the first or last of several.

    Args:
        rate: the chosen one.
        rates: all that were tried.
        of: what was trained, in words.
        flag: sets the rates.
    """
    if len(rates) < 2 or min(rates) < rate < max(rates):
        return []
    end = "smallest" if rate == min(rates) else "largest"
    return [f"{of}: the best rate, {rate:g}, is the {end} that was tried; try others with {flag}"]
