"""Detection: what an encoder is worth to a detector that starts from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from evaluation.detection import box_precision
from evaluation.detection.annotated_images import ShardedImages, in_folder
from evaluation.detection.detection_set import DetectionSet
from evaluation.detection.detector import Detector, Kind, build, refuse
from evaluation.detection.detector_training import DetectorSchedule, detect, train
from evaluation.protocol import Evaluation, EvaluationProtocol, Trial
from evaluation.resumption import Resumption, Task
from shards.layout import ShardSet
from shards.one_line import few


@dataclass(frozen=True, kw_only=True)
class Detection(EvaluationProtocol):
    """A detector on the encoder, trained on boxes and scored by COCO's and VOC's rules.

    The defaults are MoCo's schedule for PASCAL VOC (He et al., "Momentum Contrast for Unsupervised
    Visual Representation Learning", CVPR 2020, https://arxiv.org/abs/1911.05722): 24,000 steps of
    16 images, all layers trained, batch norm too. recipes/detection/ has others.

    Args:
        kind: fpn is Faster R-CNN with a feature pyramid, c4 Faster R-CNN on the third stage,
            retinanet RetinaNet.
        root: folder in the layout of COCO or VOC, instead of the shard sets --train and --test.
        train_splits: of that folder: names such as train2017 or trainval, or VOC2007/trainval of
            several folders in it.
        test_splits: of that folder.
        iterations: steps of training.
        batch_size: images of a step, over all ranks.
        learning_rate: of SGD, for the whole batch.
        drops: steps from which the rate is a tenth; by default at 3/4 and 11/12 of the iterations.
        warmup: first steps, over which the rate rises from a thousandth.
        momentum: of SGD.
        weight_decay: of all weights but those of batch norm.
        shorter_sides: of images in training, in pixels; one is drawn for each image.
        test_side: shorter side of images in tests.
        longest_side: of images, at most.
        batch_norm: trained, over the images of all ranks, with further ones in pyramid or box head;
            or frozen with the encoder's statistics.
        frozen_stages: stages of the encoder, from the images on, that stay as they are.
        finest_stage: number of the stage, from 1, with whose map the pyramid begins; by default 1,
            and 2 of RetinaNet. Half as fine is four times as fast.
        channels: of the pyramid.
        box_features: size of the two layers above each region of the pyramid.
        smallest_anchor: side of the smallest boxes that are looked for, in pixels of the resized
            image.
        proposals: of an image that the second stage chooses from; half of them in tests.
        regions: of an image that its loss is computed on.
        seed: of new weights, order and augmentation.
        workers: processes of each rank that read images; 0 reads them in between.
    """

    kind: Kind = "fpn"
    root: str | None = None
    train_splits: Sequence[str] = ()
    test_splits: Sequence[str] = ()
    iterations: int = 24_000
    batch_size: int = 16
    learning_rate: float = 0.02
    drops: Sequence[int] | None = None
    warmup: int = 100
    momentum: float = 0.9
    weight_decay: float = 0.0001
    shorter_sides: Sequence[int] = tuple(range(480, 801, 32))
    test_side: int = 800
    longest_side: int = 1333
    batch_norm: Literal["trained", "frozen"] = "trained"
    frozen_stages: int = 0
    finest_stage: int | None = None
    channels: int = 256
    box_features: int = 1024
    smallest_anchor: int = 32
    proposals: int = 2000
    regions: int = 512
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        least = {"frozen_stages": 0, "warmup": 0, "seed": 0, "workers": 0, "proposals": 2}
        for name, value in vars(self).items():
            for each in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(each, int) and each < least.get(name, 1):
                    raise ValueError(
                        f"detection.{name}={value}, but it must be {least.get(name, 1)} or more."
                    )
        if not self.shorter_sides:
            raise ValueError("detection.shorter_sides=[], but it must name a size or more.")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"detection.learning_rate={self.learning_rate}, weight_decay={self.weight_decay} "
                f"and momentum={self.momentum}, but the rate must be above 0, the decay 0 or more, "
                "the momentum from 0 to below 1."
            )

    @property
    def own_sets(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `EvaluationProtocol.own_sets`."""
        return self.root is not None

    def facts(self) -> dict[str, Any]:
        """See `EvaluationProtocol.facts`."""
        if self.root is None:
            return {}
        return {"boxes": [each.digest() for each in self._sets(None, None)]}

    def check(self, trial: Trial) -> None:
        """See `EvaluationProtocol.check`."""
        import_module(box_precision.PACKAGE)  # which is needed after hours
        refuse(
            trial.encoder,
            self.kind,
            frozen_stages=self.frozen_stages,
            finest_stage=self.finest_stage,
        )
        if self.batch_size % trial.world_size:
            raise ValueError(
                f"detection.batch_size={self.batch_size} is not divisible by the "
                f"{trial.world_size} processes; give a multiple of them."
            )
        if self.root is None and trial.train is None:
            raise ValueError(
                "a detector needs a set to be trained on: give --train DIR, or --detection.root "
                "with --detection.train_splits and --detection.test_splits."
            )
        images, test = self._sets(trial.train, trial.test)
        if len(images) < self.batch_size:
            raise ValueError(
                f"detection.batch_size={self.batch_size}, but {images.images.location} has "
                f"{len(images):,} images; give that or less."
            )
        learned, asked = images.names(), test.names()
        for each, names in ((images, learned), (test, asked)):
            if not names:
                raise ValueError(
                    f"{each.images.location}: all {len(each.boxes):,} boxes are groups (iscrowd), "
                    "none of which is trained on or to be found. Give a set with boxes of single "
                    "objects."
                )
        if not {*learned} & {*asked}:
            raise ValueError(
                f"{images.images.location} has boxes of {few(learned, 3)}, {test.images.location} "
                f"of {few(asked, 3)}: none is in both. Give two parts of one data set."
            )

    def run(self, trial: Trial) -> Evaluation:
        """See `EvaluationProtocol.run`."""
        images, test = self._sets(trial.train, trial.test)
        found = Resumption(trial).result(
            "detector", lambda task: self._figures(trial, task, images, test)
        )
        return Evaluation(**found)

    def _figures(
        self, trial: Trial, task: Task, images: DetectionSet, test: DetectionSet
    ) -> dict[str, Any]:
        """Return the fields of an `Evaluation`."""
        detector = self._detector(trial, len(images.categories))
        train(trial, task, detector, images, self._schedule)
        found = detect(
            trial,
            detector,
            test,
            shorter=self.test_side,
            longest=self.longest_side,
            workers=self.workers,
        )
        trial.tell("average precision", 0, 1)
        figures = box_precision.coco(found, test.boxes, test.frame_N2)
        by_voc, of_label = box_precision.voc(found, test.boxes)
        best = sorted(of_label, key=lambda label: -of_label[label])
        each = (f"{test.categories[label]} {100 * of_label[label]:.1f}" for label in best)
        remarks = [*images.remarks, *test.remarks, *_unlike(images, test)]
        remarks.append(f"VOC AP50 in % by category: {', '.join(each)}")
        return {"figures": {**figures, **by_voc}, "remarks": remarks}

    @property
    def _schedule(self) -> DetectorSchedule:
        drops = self.drops
        if drops is None:
            drops = (self.iterations * 3 // 4, self.iterations * 11 // 12)
        return DetectorSchedule(
            iterations=self.iterations,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            drops=tuple(drops),
            warmup=self.warmup,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            shorter=tuple(self.shorter_sides),
            longest=self.longest_side,
            seed=self.seed,
            workers=self.workers,
        )

    def _detector(self, trial: Trial, categories: int) -> Detector:
        detector = build(
            trial.encoder,
            self.kind,
            categories=categories,
            normalisation=trial.normalisation,
            autocast=trial.autocast,
            train_batch_norm=self.batch_norm == "trained",
            frozen_stages=self.frozen_stages,
            finest_stage=self.finest_stage,
            channels=self.channels,
            box_features=self.box_features,
            smallest_anchor=self.smallest_anchor,
            proposals=self.proposals,
            regions=self.regions,
            seed=self.seed,
        )
        if trial.world_size > 1 and self.batch_norm == "trained":
            return detector.synchronised()
        return detector

    def _sets(
        self, train: ShardSet | None, test: ShardSet | None
    ) -> tuple[DetectionSet, DetectionSet]:
        """Return what is trained and tested on, read once; test has the labels of train, and more.

        Args:
            train: shard set, unless the settings name a folder.
            test: the same.
        """
        key = "" if self.root else f"{train and train.root} {test and test.root}"
        if key not in self._known:
            if self.root:
                folder = Path(self.root)
                parts = (in_folder(folder, s) for s in (self.train_splits, self.test_splits))
                first, second = parts
            else:
                assert train is not None and test is not None
                first, second = ShardedImages(train), ShardedImages(test)
            images = DetectionSet.read(first, clip=True)
            held_out = DetectionSet.read(second, clip=False, categories=images.categories)
            self._known[key] = images, held_out
        return self._known[key]

    @cached_property
    def _known(self) -> dict[str, tuple[DetectionSet, DetectionSet]]:
        return {}


def _unlike(images: DetectionSet, test: DetectionSet) -> list[str]:
    """Return remarks on categories that are in one of two sets alone."""
    learned, asked, remarks = images.names(), test.names(), []
    if only := [name for name in asked if name not in learned]:
        boxes = sum(asked[name] for name in only)
        remarks.append(
            f"{boxes:,} boxes of {test.images.location} are of categories without a box in "
            f"{images.images.location} ({few(only, 3)}): none is found"
        )
    if only := [name for name in learned if name not in asked]:
        remarks.append(f"{test.images.location} has no box of {few(only, 3)}: in no figure")
    return remarks
