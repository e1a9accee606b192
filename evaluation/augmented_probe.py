"""The linear probe on random crops of the training images, as the papers train it.

He et al., "MoCo", 2020, https://arxiv.org/abs/1911.05722 (`facebookresearch/moco`,
main_lincls.py: SGD, momentum 0.9, rate 30 at batches of 256, 100 epochs, no weight decay); Chen,
He, "SimSiam", 2021, https://arxiv.org/abs/2011.10566 (main_lincls.py: LARS, rate 0.1 · batch / 256,
90 epochs, cosine); Caron et al., "SwAV", 2020, https://arxiv.org/abs/2006.09882 (eval_linear.py:
SGD, rate 0.3, 100 epochs, cosine). All: the encoder in eval mode, random resized crops of 8 % of
the area or more, flips; centre crops for the test.

Differs: all rates are tried at once, by a layer each on the same features, and a held-out part of
the training labels chooses; SwAV decays weights by 1e-6, MoCo's rate falls in two steps.
`evaluation.linear` is quicker: it has the features of one centre crop and its exact minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evaluation.label_draw import read_pair, trained_on_too
from evaluation.protocol import Evaluation, EvaluationProtocol, Trial
from evaluation.rate_sweep import RateSweep
from evaluation.resumption import Resumption
from evaluation.supervised import (
    MANY_CLASSES,
    Supervised,
    at_the_end,
    check_samples,
    check_size,
)

_RATES = {
    "sgd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "lars": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}


@dataclass(frozen=True, kw_only=True)
class AugmentedProbe(EvaluationProtocol):
    """Train a linear layer on the frozen encoder's features of random crops.

    Args:
        optimizer: sgd with momentum 0.9, as MoCo and SwAV; or lars, as SimSiam.
        rates: peak learning rates to choose from, at batches of 256, all tried in one pass over the
            images; those of other batches are proportional. By default 0.001 to 30 for sgd (SwAV
            has 0.3, MoCo 30), 0.03 to 30 for lars (SimSiam has 0.1).
        batch_norm: standardise features over the batch before the layer, as MAE.
        batch_size: samples a step over all processes, at most all that there are.
        epochs: passes over the samples; the papers have 90 to 100 over ImageNet.
        smallest_crop: smallest part of an image's area that a crop shows.
        validation: share of the training labels that chooses the rate; the figure is of a training
            on all of them.
        seed: of the held-out part, the order of the samples and the crops.
    """

    optimizer: Literal["sgd", "lars"] = "sgd"
    rates: Sequence[float] | None = None
    batch_norm: bool = False
    batch_size: int = 256
    epochs: float = 30.0
    smallest_crop: float = 0.08
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}, but it must be 0 or more.")
        assert self._how  # refuses its own settings

    @cached_property
    def _how(self) -> Supervised:
        return Supervised(
            rates=tuple(self.rates or _RATES[self.optimizer]),
            trains_encoder=False,
            optimizer=self.optimizer,
            batch_norm=self.batch_norm,
            batch_size=self.batch_size,
            epochs=self.epochs,
            smallest_crop=self.smallest_crop,
            validation=self.validation,
        )

    def check(self, trial: Trial) -> None:
        """See `EvaluationProtocol.check`: the sets, the size of the images."""
        known = read_pair(trial.train, trial.test, "the augmented probe")
        check_size(trial)
        drawn_N = known.class_N >= 0
        what = f"{known.shard_set.root} has {int(drawn_N.sum())} images with a label"
        check_samples(known, drawn_N, self._how, trial.world_size, what)

    def run(self, trial: Trial) -> Evaluation:
        """See `EvaluationProtocol.run`."""
        known = read_pair(trial.train, trial.test, "the augmented probe")
        sweep = RateSweep(trial=trial, known=known, how=self._how, resumption=Resumption(trial))
        outcome = sweep.run(known.class_N >= 0, name="linear probe on random crops", seed=self.seed)
        sweep.clean()
        figures = {"augmented_probe_top1": outcome.top1, "augmented_probe_rate": outcome.rate}
        if known.classes > MANY_CLASSES:
            figures["augmented_probe_top5"] = outcome.top5
        remarks = at_the_end(
            outcome.rate, self._how.rates, "probe on random crops", "--augmented_probe.rates"
        )
        remarks += trained_on_too(
            known.shard_set, trial.test, "what the probe on random crops says"
        )
        return Evaluation(figures, remarks)
