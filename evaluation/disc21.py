"""DISC21: copy detection on the files of the 2021 Image Similarity Challenge.

Douze, Tolias, Pizzi et al., "The 2021 Image Similarity Dataset and Challenge", 2021,
https://arxiv.org/abs/2106.09672; code: `facebookresearch/isc2021`. Most queries are copies of
nothing, and one threshold must do for all: so scores must be comparable between queries.

    training images ─▶ features ─▶ principal components ─┐         ┌─▶ score normalisation ─┐
    queries, references ─▶ features ─────────────────────┴─▶ unit vectors ──────────────────┴─▶ µAP

Features of queries and references are reduced as they come: of a million images a gigabyte is held.
Those of the training images wait, on the rank that made them, for the components. Descriptors of a
set are kept until the figures are there, so that a command that was stopped embeds no set again.
Searching is exact and in blocks; figures are counted (`evaluation.copy_detection`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from evaluation import challenge_files, copy_detection
from evaluation.bare_encoder import BareEncoder
from evaluation.best_pairs import best_pairs
from evaluation.challenge_files import LARGEST
from evaluation.copy_search import CopySearch, NamedImages
from evaluation.features import Features
from evaluation.principal_components import Projection, principal_components
from evaluation.protocol import Evaluated, Evaluation, EvaluationProtocol, Trial
from evaluation.score_normalisation import TAKEN, normalised
from evaluation.suite import Suite
from model.gather import gather_rows
from model.method.method import encode
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from shards import durable
from shards.layout import ShardSet, open_shards

DESCRIPTORS, PREDICTIONS = "descriptors.hdf5", "predictions.csv"
_ROWS = 16_384  # of features that are reduced at once


@dataclass(frozen=True, kw_only=True)
class DISC21(EvaluationProtocol):
    """Copy detection on the benchmark's own files, or on others of its layout.

    Shard each folder of images by python -m tools.shard folder; the names of the files are the ids.

    Args:
        queries: shard set of the queries, such as Q00000 to Q49999.
        references: shard set that they are searched in, such as R000000 to R999999.
        training: shard set of images that are in neither, such as T000000 to T999999: for principal
            components and score normalisation.
        ground_truth: the challenge's CSV, such as dev_ground_truth.csv. Queries that it does not
            name count as copies of nothing, as in the challenge's script.
        descriptor: features of the encoder, or embeddings of the whole method.
        dimensions: of a descriptor, up to 256, two numbers for score normalisation included.
        reduction: pca centres features and keeps their main axes; whitening gives these equal
            variance, too; none takes features as they are.
        weight: of score normalisation, 0 for none. It and the next two are those of SSCD; the
            challenge's baseline has 2, 10 and 10.
        first_neighbour: the mean cosine of training images is taken from this one on, the nearest
            being 1.
        last_neighbour: up to this one.
        submission: write descriptors.hdf5 and predictions.csv in the challenge's form, beside the
            figures in --keep or the run's folder; needs h5py.
    """

    own_sets = True

    queries: str
    references: str
    training: str
    ground_truth: str
    descriptor: Literal["features", "embeddings"] = "features"
    dimensions: int = LARGEST
    reduction: Literal["pca", "whitening", "none"] = "pca"
    weight: float = 1.0
    first_neighbour: int = 1
    last_neighbour: int = 3
    submission: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight={self.weight}, expected 0 or more, such as 1.0.")
        if not 1 <= self._image_dimensions <= LARGEST - (self.dimensions - self._image_dimensions):
            raise ValueError(
                f"dimensions={self.dimensions}, expected up to {LARGEST}, the challenge's limit, "
                f"and {1 + self.dimensions - self._image_dimensions} or more."
            )
        if not 1 <= self.first_neighbour <= self.last_neighbour:
            raise ValueError(
                f"first_neighbour={self.first_neighbour} and last_neighbour={self.last_neighbour}, "
                "expected 1 or more, the first no larger than the last."
            )

    @property
    def _image_dimensions(self) -> int:
        """Numbers of a descriptor that are the image's."""
        return self.dimensions - TAKEN * (self.weight > 0)

    def sets(self) -> dict[str, ShardSet]:
        """See `EvaluationProtocol.sets`; what is reported on are the queries."""
        named = {"train": self.training, "test": self.queries, "references": self.references}
        return {name: open_shards(root) for name, root in named.items()}

    def facts(self) -> dict[str, Any]:
        """See `EvaluationProtocol.facts`."""
        text = durable.read(Path(self.ground_truth))
        return {"ground_truth": hashlib.sha256(text).hexdigest()}

    def check(self, trial: Trial) -> None:
        """See `EvaluationProtocol.check`."""
        assert trial.train is not None
        if self.submission:
            import_module("h5py")  # its absence is answered in a line
            if trial.kept.results is None:
                raise ValueError(
                    "submission=true, but without a run there is no folder for it; name one with "
                    "--keep DIR."
                )
        of_features = self.descriptor == "features"
        if not of_features and isinstance(trial.method, BareEncoder):
            raise ValueError(
                "descriptor=embeddings, but this encoder has no projector that would make them; "
                "leave it at features."
            )
        if of_features:
            self._check_size(trial.encoder.feature_size)
        for shard_set in (trial.test, trial.more["references"], trial.train):
            if len(shard_set) < trial.world_size:
                raise ValueError(
                    f"{shard_set.root} has {len(shard_set)} samples for {trial.world_size} "
                    "processes; evaluation needs one or more for each. Give a larger set."
                )
        least = self.last_neighbour if self.weight else 1
        if of_features and self.reduction != "none":
            least = max(least, min(trial.encoder.feature_size, self._image_dimensions) + 1)
        if len(trial.train) < least:
            raise ValueError(
                f"{trial.train.root} has {len(trial.train):,} training images, but these "
                f"dimensions and neighbours need {least:,}. Give a larger set, or lower dimensions "
                "or last_neighbour."
            )
        _ = self._search  # refuses names that do not fit

    def run(self, trial: Trial) -> Evaluation:
        """See `EvaluationProtocol.run`."""
        train = trial.train
        assert train is not None
        search, method, suite = self._search, trial.method, _suite(trial)

        def training() -> dict[str, Tensor | None]:
            embed_views = partial(self._embed, method, True, None)
            own = suite.own_features(method, train, embed_views=embed_views)
            reduce = self._reduction(own)
            reduced = [reduce(h_NF) for h_NF in own.h_NF.split(_ROWS)]
            z_ND = _finite(gather_rows(torch.cat(reduced)), train)
            return {"z_ND": z_ND, "mean_F": reduce.mean_F, "axis_FD": reduce.axis_FD}

        def searched(images: NamedImages, shard_set: ShardSet) -> dict[str, Tensor | None]:
            embed_views = partial(self._embed, method, images is search.references, reduce)
            features = suite.features(method, shard_set, embed_views=embed_views)
            return {"z_ND": _finite(images.ordered(features), shard_set)}

        fitted = _once(trial, "training", training)
        training_ND, reduce = fitted["z_ND"], Projection(fitted["mean_F"], fitted["axis_FD"])
        reference_GD, query_QD = (
            _once(trial, name, partial(searched, images, shard_set))["z_ND"]
            for name, images, shard_set in (
                ("references", search.references, trial.more["references"]),
                ("queries", search.queries, trial.test),
            )
        )

        found = Evaluation(remarks=[*search.remarks])
        original_Q = search.original_Q.to(query_QD.device)
        steps = 1 + (self.weight > 0) + self.submission
        trial.tell("search", 0, steps)
        figures = copy_detection.judge(query_QD, reference_GD, original_Q)
        found.figures |= {name.replace("copy", "disc21_raw"): v for name, v in figures.items()}
        if self.weight:
            query_QD, reference_GD = normalised(
                query_QD,
                reference_GD,
                training_ND,
                weight=self.weight,
                first=self.first_neighbour,
                last=self.last_neighbour,
            )
            trial.tell("search with score normalisation", 1, steps)
            figures = copy_detection.judge(query_QD, reference_GD, original_Q)
            found.figures |= {name.replace("copy", "disc21"): v for name, v in figures.items()}
        folder = trial.kept.results
        if self.submission and trial.rank == 0 and folder is not None:
            trial.tell("submission", steps - 1, steps)
            self._submit(folder, query_QD, reference_GD)
            found.remarks.append(f"{DESCRIPTORS} and {PREDICTIONS} are in {folder}")
        return found

    @cached_property
    def _search(self) -> CopySearch:
        sets = self.sets()
        return CopySearch.of(
            sets["test"], sets["references"], sets["train"], Path(self.ground_truth)
        )

    def _embed(
        self,
        method: Evaluated,
        reference: bool,
        reduce: Projection | None,
        views_VBCHW: Tensor,
    ) -> Tensor:
        """Return descriptors of views; without a reduction, what they are made from."""
        if self.descriptor == "features":
            z_VBD = encode(method.encoder, views_VBCHW)
        else:
            z_VBD = (method.embed_reference if reference else method.embed)(views_VBCHW)
        return z_VBD if reduce is None else reduce(z_VBD)

    def _reduction(self, own: Features) -> Projection:
        """Return what makes descriptors of features."""
        self._check_size(own.h_NF.shape[1])
        if self.reduction == "none":
            return Projection()
        return principal_components(
            own.h_NF, dimensions=self._image_dimensions, whitening=self.reduction == "whitening"
        )

    def _check_size(self, size: int) -> None:
        if self.reduction == "none" and size > self._image_dimensions:
            raise ValueError(
                f"reduction=none, but {self.descriptor} have {size} numbers, and "
                f"{self._image_dimensions} is the most. Leave reduction at pca."
            )

    def _submit(self, folder: Path, query_QD: Tensor, reference_GD: Tensor) -> None:
        """Write both tracks' files, and hold them to the challenge's rules."""
        names = self._search.queries.names, self._search.references.names
        descriptors, predictions = folder / DESCRIPTORS, folder / PREDICTIONS
        challenge_files.write_descriptors(descriptors, query_QD, reference_GD, *names)
        challenge_files.check_descriptors(descriptors, *names)
        pairs = best_pairs(query_QD, reference_GD, limit=copy_detection.LIMIT)
        challenge_files.write_predictions(predictions, pairs, *names)
        challenge_files.check_predictions(predictions, *names)


def _suite(trial: Trial) -> Suite:
    """Return what embeds images; it makes no views."""
    return Suite(
        test=trial.test,
        train=None,
        group=ViewGroup(policy=SimCLRViews(), size=trial.size),
        device=trial.device,
        autocast=trial.autocast,
        normalisation=trial.normalisation,
        rank=trial.rank,
        world_size=trial.world_size,
        tuning=trial.tuning,
        progress=trial.progress,
    )


def _once(trial: Trial, name: str, embed: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a pass over a set has made, now or before this command was stopped."""
    state = trial.kept.load(name)
    if state is None:
        state = embed()
        trial.kept.save(name, state)
    return {key: value if value is None else value.to(trial.device) for key, value in state.items()}


def _finite(z_ND: Tensor, shard_set: ShardSet) -> Tensor:
    """Refuse descriptors that are not finite, on all ranks alike: they hold the same."""
    if broken := int((~z_ND.isfinite().all(dim=1)).sum()):
        raise ValueError(
            f"{broken} of {len(z_ND)} images of {shard_set.root} have descriptors that are not "
            "finite: training has diverged, or the encoder overflows in float16."
        )
    return z_ND
