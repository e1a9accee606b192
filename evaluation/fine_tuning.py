"""Fine-tuning, with all labels or few of them: semi-supervised learning.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, https://arxiv.org/abs/2002.05709, section B.5; Caron et al., "SwAV",
2020, https://arxiv.org/abs/2006.09882 (`facebookresearch/swav`, eval_semisup.py); Grill et al.,
"BYOL", 2020, https://arxiv.org/abs/2006.07733, section C.2: 1 % and 10 % of ImageNet's labels,
class-balanced, random resized crops and flips, SGD with momentum 0.9 and without weight decay.

Differs: rates fall by a cosine (SwAV's in two steps), the rate is chosen on a part of the labels of
each draw (BYOL's on a validation set beside them, SwAV's is published); there are several draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evaluation.label_draw import LabelledSet, read_pair, trained_on_too
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

_RATES = {"sgd": (0.01, 0.05, 0.25), "adamw": (1e-4, 3e-4, 1e-3)}


@dataclass(frozen=True, kw_only=True)
class FineTuning(EvaluationProtocol):
    """Train the encoder with a new linear layer on a share of the labels.

    Args:
        labels: shares of the labels of every class, each trained on for itself; 0.01 is 1 %.
        layers: all, or head: the linear layer alone, on the frozen encoder.
        draws: how many times a share below 1 is drawn; figures are means, with their deviation.
        rates: peak learning rates of the encoder to choose from, at batches of 256; those of other
            batches are proportional. By default 0.01 0.05 0.25 for sgd, 1e-4 3e-4 1e-3 for adamw.
        head_rate: the linear layer's rate, as a multiple of the encoder's. SimCLR has 1, SwAV 20
            for 10 % and 250 for 1 %.
        optimizer: sgd with momentum 0.9, as the papers; or adamw, as is customary for ViTs.
        weight_decay: of matrices and filters; the papers have none.
        layer_decay: each layer of the encoder learns so much slower than the one above it; 0.65 to
            0.75 are customary for ViTs.
        warmup: share of the updates in which the rates rise.
        batch_size: samples a step over all processes, at most all that there are.
        epochs: passes over the samples; SwAV's 20.
        least_steps: number of updates at least, for few labels; SimCLR's 1 % of ImageNet takes 190.
        smallest_crop: smallest part of an image's area that a crop shows.
        validation: share of the labels of a draw that chooses the rate; the figure is of a training
            on all of them.
        seed: of the draws, the order of the samples and the crops.
    """

    labels: Sequence[float] = (0.01, 0.1)
    layers: Literal["all", "head"] = "all"
    draws: int = 3
    rates: Sequence[float] | None = None
    head_rate: float = 10.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    warmup: float = 0.0
    batch_size: int = 64
    epochs: float = 20.0
    least_steps: int = 200
    smallest_crop: float = 0.08
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [share for share in self.labels if not 0 < share <= 1]
        if wrong or not self.labels:
            raise ValueError(
                f"labels={list(self.labels)}, but each is a share of the labels, above 0 and up to "
                "1: 0.01 is 1 %."
            )
        if self.draws < 1 or self.seed < 0:
            raise ValueError(
                f"draws={self.draws} and seed={self.seed}, but they must be 1 or more and 0 or "
                "more."
            )
        assert self._how  # refuses its own settings

    @cached_property
    def _how(self) -> Supervised:
        return Supervised(
            rates=tuple(self.rates or _RATES[self.optimizer]),
            trains_encoder=self.layers == "all",
            head_rate=self.head_rate,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            warmup=self.warmup,
            batch_size=self.batch_size,
            epochs=self.epochs,
            least_steps=self.least_steps,
            smallest_crop=self.smallest_crop,
            validation=self.validation,
        )

    def check(self, trial: Trial) -> None:
        """See `EvaluationProtocol.check`: the sets, every share, the size of the images."""
        known = read_pair(trial.train, trial.test, "fine-tuning")
        check_size(trial)
        for share in self.labels:
            drawn_N = known.draw(share, seed=self.seed)
            what = f"labels={share:g} are {int(drawn_N.sum())} images"
            check_samples(known, drawn_N, self._how, trial.world_size, what)

    def run(self, trial: Trial) -> Evaluation:
        """See `EvaluationProtocol.run`."""
        known = read_pair(trial.train, trial.test, "fine-tuning")
        sweep = RateSweep(trial=trial, known=known, how=self._how, resumption=Resumption(trial))
        found = Evaluation()
        for share in dict.fromkeys(self.labels):
            self._add(found, share, sweep, known)
        sweep.clean()
        found.remarks += trained_on_too(known.shard_set, trial.test, "what fine-tuning says")
        return found

    def _add(self, found: Evaluation, share: float, sweep: RateSweep, known: LabelledSet) -> None:
        """Add the figures of a share of the labels."""
        percent = f"{100 * share:g}"
        draws = self.draws if share < 1 else 1
        outcomes = [
            sweep.run(
                known.draw(share, seed=self.seed + draw),
                name=f"fine-tuning on {percent} % of the labels, draw {draw + 1} of {draws}",
                seed=self.seed + draw,
            )
            for draw in range(draws)
        ]
        name = f"{'fine' if self.layers == 'all' else 'head'}_tuned_{percent}"
        top1 = [outcome.top1 for outcome in outcomes]
        figures = {"top1": statistics.fmean(top1)}
        if draws > 1:
            figures["sd"] = statistics.stdev(top1)
        if known.classes > MANY_CLASSES:
            figures["top5"] = statistics.fmean(outcome.top5 for outcome in outcomes)
        figures["rate"] = rate = statistics.median_low(outcome.rate for outcome in outcomes)
        found.figures |= {f"{name}_{kind}": value for kind, value in figures.items()}
        of = f"{percent} % of the labels"
        found.remarks += at_the_end(rate, self._how.rates, of, "--fine_tuning.rates")
