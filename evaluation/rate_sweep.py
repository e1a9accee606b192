"""Supervised training with a learning rate that a held-out part of the training labels chooses.

    drawn labels ─┬▶ 80 % ─▶ train with every rate ─▶ 20 % choose the rate ─┐
                  └────────────▶ all of them ─▶ train with that rate ◀──────┘ ─▶ test set, once

Images are random resized crops, half of them mirrored, by the pipeline that pretraining uses; for
validation and test they are centre crops. All that is random depends on the seed and the samples'
ids, not on the encoder: two encoders are trained on the same samples, crops and batches.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.classifier import Classifier, ClassifierStep
from evaluation.features import eval_mode
from evaluation.label_draw import LabelledSet, in_classes_of
from evaluation.linear import split
from evaluation.protocol import Trial
from evaluation.resumption import Resumption, Task
from evaluation.supervised import Supervised
from model.gather import gather_rows
from model.random_numbers import random_state, set_random_state
from pipeline.augment import Crop, Policy
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from pipeline.tuning import float_type
from shards.layout import ShardSet
from shards.subset.masked import masked

_TOP = 5
_FITTED, _HELD = "trained-on", "held-out"  # folders of indexes


@dataclass(frozen=True)
class SweepResult:
    """What a training with the chosen rate is worth on the test set."""

    top1: float
    """Share of the samples that are classified rightly."""
    top5: float
    """Share of those whose class is among the five most probable."""
    rate: float
    """The chosen one, at batches of 256."""


@dataclass(frozen=True, kw_only=True)
class RateSweep:
    """Trains and tests an encoder of a trial.

    Args:
        trial: the encoder, its data, and where to compute.
        known: the samples to draw from.
        how: settings of the training.
        resumption: of the trial's protocol.
    """

    trial: Trial
    known: LabelledSet
    how: Supervised
    resumption: Resumption

    def run(self, drawn_N: Tensor, *, name: str, seed: int) -> SweepResult:
        """Choose a rate, train with it on all samples that were drawn, and test once.

        Args:
            drawn_N: mask of the samples to train on; all have a label.
            name: of the draw, in words.
            seed: of the held-out part, the heads, the order of the samples and the crops.

        Raises:
            ValueError: no rate, or not the chosen one, ends with a finite loss.
        """
        rate = self._chosen(drawn_N, name=name, seed=seed)
        (top1,), (top5,), (loss,) = self._trained(
            (rate,), drawn_N, self.trial.test, name=f"{name}, all labels, rate {rate:g}", seed=seed
        )
        if not math.isfinite(loss):
            raise ValueError(
                f"training diverged with rate {rate:g}, on all labels of {name}. Give lower ones."
            )
        return SweepResult(top1, top5, rate)

    def clean(self) -> None:
        """Remove the indexes of the samples that were drawn; the figures do not need them."""
        for name in (_FITTED, _HELD):
            shutil.rmtree(self.trial.kept.folder / name, ignore_errors=True)

    def _chosen(self, drawn_N: Tensor, *, name: str, seed: int) -> float:
        """Return the rate of the best accuracy on held-out samples; of equals, of the least loss.

        Raises:
            ValueError: none ends with a finite loss.
        """
        rates = self.how.rates
        if len(rates) == 1:
            return rates[0]
        held_N = torch.zeros_like(drawn_N)
        held_N[drawn_N] = split(
            self.known.class_N[drawn_N],
            self.known.id_N[drawn_N],
            fraction=self.how.validation,
            seed=seed,
        )
        held = self._some(held_N, _HELD)
        together = [(rate,) for rate in rates] if self.how.trains_encoder else [rates]
        scores: list[tuple[float, float, float]] = []
        for some in together:
            text = " ".join(f"{rate:g}" for rate in some)
            found = self._trained(
                some, drawn_N & ~held_N, held, name=f"{name}, rate {text}", seed=seed
            )
            top1_R, _, loss_R = found
            scores += [
                (top1, -loss, rate) for top1, loss, rate in zip(top1_R, loss_R, some, strict=True)
            ]
        finite = [score for score in scores if math.isfinite(score[1])]
        if not finite:
            raise ValueError(
                f"training diverged with every rate of {', '.join(f'{r:g}' for r in rates)}. Give "
                "lower ones."
            )
        return max(finite)[2]

    def _trained(
        self, rates: Sequence[float], fitted_N: Tensor, asked: ShardSet, *, name: str, seed: int
    ) -> list[list[float]]:
        """Return top 1, top 5 and loss on a set after training with each of some rates."""

        def compute(task: Task) -> list[list[float]]:
            classifier: Classifier = Classifier(
                self.trial.encoder,
                classes=self.known.classes,
                heads=len(rates),
                trains_encoder=self.how.trains_encoder,
                batch_norm=self.how.batch_norm,
                seed=seed,
            ).to(self.trial.device)
            fitted = self._some(fitted_N, _FITTED)
            self._fit(classifier, rates, fitted, task, name=name, seed=seed)
            return self._score(classifier, asked, name=f"{name}: {asked.root}")

        return self.resumption.result(name, compute)

    def _some(self, kept_N: Tensor, name: str) -> ShardSet:
        return masked(self.known.shard_set, kept_N.numpy(), self.trial.kept.folder / name)

    def _fit(
        self,
        classifier: Classifier,
        rates: Sequence[float],
        fitted: ShardSet,
        task: Task,
        *,
        name: str,
        seed: int,
    ) -> None:
        """Train a classifier, from where an earlier process saved it."""
        trial, samples = self.trial, len(fitted)
        settings = self.how.of(rates, samples, trial.world_size)
        step = ClassifierStep(
            classifier, settings, autocast=trial.autocast, world_size=trial.world_size
        )
        policy = Policy(crop=Crop(area=(self.how.smallest_crop, 1.0)))
        loader = Loader(
            fitted,
            [ViewGroup(policy=policy, count=1, size=trial.size)],
            batch_size_per_rank=self.how.batch(samples, trial.world_size) // trial.world_size,
            rank=trial.rank,
            world_size=trial.world_size,
            device=trial.device,
            seed=seed,
            dtype=float_type(trial.device, trial.autocast),
            tuning=trial.tuning,
            normalisation=trial.normalisation,
        )
        number_of = self.known.numbers().to(trial.device)
        done = 0
        before = random_state()
        torch.manual_seed(seed + 1_000_003 * trial.rank)  # of units and paths that are dropped
        if task.state is not None:
            done = task.state["done"]
            step.load_state_dict(task.state["step"])
            loader.load_state_dict(task.state["loader"])
            set_random_state(task.state["random"])

        def state() -> dict[str, object]:
            return {
                "done": done,
                "step": step.state_dict(),
                "loader": loader.state_dict(),
                "random": random_state(),
            }

        with loader:
            while done < settings.steps:
                for _, batch in zip(range(settings.steps - done), loader, strict=False):
                    step(batch.views[0][0], number_of[batch.label_B], step=done)
                    done += 1
                    trial.tell(name, done, settings.steps)
                    task.after_step(state)
        set_random_state(before)

    @torch.inference_mode()
    def _score(self, classifier: Classifier, asked: ShardSet, *, name: str) -> list[list[float]]:
        """Return top 1, top 5 and the mean loss of every head; ranks share the work.

        Samples without a label are left out. One of a class that was not learned counts as wrong.
        """
        trial, R = self.trial, len(classifier.weights)
        number_of = self.known.numbers().to(trial.device)
        images = Images(
            asked,
            size=trial.size,
            rank=trial.rank,
            world_size=trial.world_size,
            device=trial.device,
            tuning=trial.tuning,
            normalisation=trial.normalisation,
        )
        sums_R4 = torch.zeros(R, 4, dtype=torch.float64, device=trial.device)
        done = 0
        with eval_mode(classifier):
            for batch in images:
                trial.tell(name, done, len(images))
                device, autocast = trial.device.type, trial.autocast
                with torch.autocast(device, autocast, enabled=autocast is not None):
                    logits_RBK = classifier(batch.image_BCHW)
                class_B = number_of[in_classes_of(self.known.shard_set, asked, batch.label_B)]
                best_RBK = logits_RBK.topk(min(_TOP, logits_RBK.shape[2]), dim=2).indices
                right_RBK = best_RBK == class_B[:, None]
                loss_RB = F.cross_entropy(
                    logits_RBK.movedim(2, 1),
                    class_B.expand(R, -1),
                    ignore_index=-1,
                    reduction="none",
                )
                labelled_B = (batch.label_B >= 0).expand(R, -1)
                counts = (right_RBK[..., 0], right_RBK.any(2), loss_RB, labelled_B)
                sums_R4 += torch.stack([each.double().sum(1) for each in counts], dim=1)
                done += len(batch.id_B)
        top1_R, top5_R, loss_R, count_R = gather_rows(sums_R4[None]).sum(0).unbind(1)
        return [(each / count_R).tolist() for each in (top1_R, top5_R, loss_R)]
