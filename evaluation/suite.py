"""All evaluations of a method on a pair of shard sets, for runs and for `tools.evaluate`.

What cannot be computed is left out, with the reason: an evaluation ends no run. What shows before
training that nothing can be computed, `Suite` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from evaluation import (
    category_retrieval,
    copy_detection,
    few_shot,
    geometry,
    knn,
    lidar,
    linear,
    multi_label,
    rank_me,
    retrieval,
)
from evaluation.bare_encoder import BareEncoder
from evaluation.features import Features, ImageBatch, embed, eval_mode, refuse_broken
from evaluation.label_draw import in_classes_of, refuse_other_classes
from evaluation.overlap import shared_images, unknown_classes
from evaluation.protocol import Evaluated, Evaluation, Progressed
from model.gather import gather_rows
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from pipeline.normalisation import IMAGENET, Normalisation
from pipeline.tuning import Tuning
from shards.layout import ShardSet

# Fixed, so that two encoders are asked about the same views, at the same number of processes.
VIEW_SEED = 20_101_007
VIEW_SAMPLES = 1024
"""Held-out samples that are ranked by view retrieval, at most."""


FROZEN = (
    *("views", "spectra", "copies", "retrieval", "knn", "linear", "few_shot"),
    *("multi_label", "multi_label_linear"),
)
"""Protocols of frozen features: views and geometry, the spectra of the views' features, copy
detection, retrieval of the same class, k-NN, the linear probe, few-shot classification; of sets
with categories, retrieval and k-NN, and the linear probe."""
ONLINE = ("views", "copies", "retrieval", "knn", "multi_label")
"""Those that are quick enough to be repeated while a run trains."""

T = TypeVar("T")
EmbedViews = Callable[[Tensor], Tensor]
"""Views [V, B, C, H, W] to embeddings [V, B, D], such as `Method.embed`."""
_FITTED = ("knn", "linear", "few_shot")
_OF_LABELS = ("retrieval", *_FITTED)
_FITTED_WORDS = "k-NN, linear probe, few-shot"
_OF_CATEGORIES = ("multi_label", "multi_label_linear")
_SAME = "what k-NN and linear probe say is not of held-out images"


class _ImageEmbedding(nn.Module):
    """A network from images [B, C, H, W] to embeddings [B, D]: each image is a single view."""

    def __init__(self, embed_views: EmbedViews) -> None:
        super().__init__()
        self._embed_views = embed_views

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self._embed_views(images_BCHW[None])[0]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The shard sets of an evaluation, and its settings.

    Args:
        test: shard set that is classified and ranked.
        train: labelled shard set: k-NN bank and training data of the linear probe, and what
            few-shot classification draws from; None skips all of them.
        group: size of the images; count and policy of the views for view retrieval.
        device: where to compute.
        autocast: precision of the encoder; None is float32.
        normalisation: of the images, as the encoder was trained.
        rank: this process.
        world_size: number of processes; each embeds its part.
        tuning: how the data pipelines run on this machine.
        queries: shard set of edited copies, labelled with ids of references; None skips copy
            detection.
        references: shard set that the queries are searched in; with `queries` or not at all.
        neighbours: votes of k-NN, see `knn.run`.
        temperature: of k-NN's votes.
        progress: is told how far an evaluation is.
    """

    test: ShardSet
    train: ShardSet | None
    group: ViewGroup
    device: torch.device
    autocast: torch.dtype | None = None
    normalisation: Normalisation = IMAGENET
    rank: int = 0
    world_size: int = 1
    tuning: Tuning | None = None
    queries: ShardSet | None = None
    references: ShardSet | None = None
    neighbours: int = 20
    temperature: float = 0.07
    progress: Progressed | None = None

    def __post_init__(self) -> None:
        if self.train is not None:
            refuse_other_classes(self.train, self.test)
        if self.queries is not None and self.queries.manifest.classes:
            raise ValueError(
                f"{self.queries.root} has classes, so its labels are no ids of references: copy "
                "detection needs queries of python -m tools.shard copies."
            )
        for shard_set in (self.test, self.train, self.queries, self.references):
            if shard_set is not None and len(shard_set) < self.world_size:
                raise ValueError(
                    f"{shard_set.root} has {len(shard_set)} samples for {self.world_size} "
                    "processes; evaluation needs one or more for each. Give a larger set."
                )
        if len(self.test) < 2:
            raise ValueError(
                f"{self.test.root} has {len(self.test)} sample, and evaluation ranks its views "
                "among those of others. Give a held-out set of 2 samples or more."
            )

    def remarks(self, protocols: Collection[str] = FROZEN) -> list[str]:
        """Return what the manifests say will be left out, and should be known of the figures.

        Args:
            protocols: some of `FROZEN`. If those of labels and of categories are both asked for, a
                set with the one is not said to lack the other.
        """
        labels, categories = ({*protocols} & {*of} for of in (_OF_LABELS, _OF_CATEGORIES))
        manifest, found = self.test.manifest, []
        if labels and (manifest.classes or not (categories and manifest.categories)):
            found += self._remarks_on_labels()
        if categories and (manifest.categories or not labels):
            found += multi_label.remarks(self.train, self.test)
        return found

    def _remarks_on_labels(self) -> list[str]:
        test, train, found = self.test, self.train, []
        if not test.manifest.classes:
            without = "label retrieval" if train is None else f"label retrieval, {_FITTED_WORDS}"
            found.append(f"no {without}: {test.root} has no labels")
        elif train is not None and not train.manifest.classes:
            found.append(f"no {_FITTED_WORDS}: {train.root} has no labels")
        elif train is not None and len(train.manifest.classes) == 1:
            found.append(f"no {_FITTED_WORDS}: {train.root} has a single class")
        elif train is not None and train.manifest == test.manifest:
            found.append(f"{test.root} is the set that k-NN and probe are fitted on too: {_SAME}")
        elif train is not None and len(train.manifest.classes) > len(test.manifest.classes):
            here, there = len(test.manifest.classes), len(train.manifest.classes)
            found.append(f"{test.root} has {here} of the {there} classes of {train.root}")
        return found

    def run(self, method: Evaluated, protocols: Collection[str] = FROZEN) -> Evaluation:
        """Return every figure that the shard sets allow, and what was left out.

        Without labels these are view retrieval and the geometry of the embeddings; with labels, or
        with categories, also retrieval and, with a training set, k-NN and the linear probe; with
        labels few-shot figures too.

        Args:
            method: whose encoder, and embeddings, are evaluated.
            protocols: some of `FROZEN`; by default, all.
        """
        torch.backends.cudnn.benchmark = False  # a set's last batch has a shape of its own
        found = Evaluation()
        found.remarks += self.remarks(protocols)
        if "views" in protocols:
            if isinstance(method, BareEncoder):
                found.remarks.append(
                    "without a projector there are no embeddings: views and geometry are of "
                    "features"
                )
            with found.leaving_out("view retrieval, geometry"):
                z_VAD = self.embed_views(method)
                found.figures |= retrieval.run_views(z_VAD) | geometry.run(z_VAD)
                with found.leaving_out("RankMe, LiDAR"):
                    found.figures |= rank_me.run(z_VAD) | lidar.run(z_VAD)
        if "spectra" in protocols:
            with found.leaving_out("RankMe, LiDAR of features"):
                h_VAF = self.embed_views(BareEncoder(method.encoder))
                figures = rank_me.run(h_VAF) | lidar.run(h_VAF)
                found.figures |= {f"{name}_h": value for name, value in figures.items()}
        if "copies" in protocols and self.queries is not None and self.references is not None:
            with found.leaving_out("copy detection"):
                found.figures |= self.detect_copies(method, self.queries, self.references)
        if self.test.manifest.classes and {*protocols} & {*_OF_LABELS}:
            with found.leaving_out(f"label retrieval, {_FITTED_WORDS}"):
                test = self.features(method, self.test)
                self._judge_labels(method, test, found, protocols)
        if self.test.manifest.categories and {*protocols} & {*_OF_CATEGORIES}:
            with found.leaving_out("multi-label figures"):
                test = self.features(method, self.test)
                self._judge_categories(method, test, found, protocols)
        if self.train is None and not (found.figures or found.remarks):
            found.remarks.append("no figures: k-NN and probes need a training set too")
        return found

    def _judge_labels(
        self, method: Evaluated, test: Features, found: Evaluation, protocols: Collection[str]
    ) -> None:
        """Add the figures of labels one by one."""
        if "retrieval" in protocols:
            with found.leaving_out("label retrieval"):
                found.figures |= retrieval.run_labels(test)
                if len(test) > retrieval.QUERIES:
                    found.remarks.append(
                        f"label retrieval: {retrieval.QUERIES:,} of the {len(test):,} images of "
                        f"{self.test.root} rank the others"
                    )
        fitted = {*protocols} & {*_FITTED}
        if self.train is None or len(self.train.manifest.classes) < 2 or not fitted:
            return
        with found.leaving_out(_FITTED_WORDS):
            train = self.features(method, self.train)
            label_N = in_classes_of(self.train, self.test, test.label_N)
            test = replace(test, label_N=label_N)
            found.remarks += self._shared
            found.remarks += unknown_classes(train, test, self.train)
            if "knn" in protocols:
                with found.leaving_out("k-NN"):
                    found.figures |= knn.run(
                        train, test, neighbours=self.neighbours, temperature=self.temperature
                    )
            if "linear" in protocols:
                self._tell("linear probe", 0, 1)
                with found.leaving_out("linear probe"):
                    found.figures |= linear.run(train, test)
            if "few_shot" in protocols:
                with found.leaving_out("few-shot"):
                    for number, shots in enumerate(few_shot.SHOTS):
                        self._tell("few-shot", number, len(few_shot.SHOTS))
                        classes = self.train.manifest.classes
                        found.figures |= few_shot.run(train, test, shots=shots, classes=classes)

    def _judge_categories(
        self, method: Evaluated, test: Features, found: Evaluation, protocols: Collection[str]
    ) -> None:
        """Add the figures of a multi-label set one by one."""
        if "multi_label" in protocols:
            with found.leaving_out("retrieval by shared categories"):
                each = multi_label.of_categories(test, self.test, multi_label.names_of(self.test))
                found.figures |= category_retrieval.run(each)
        names = multi_label.common_categories(self.train, self.test) if self.train else []
        if self.train is None or not names:
            return
        with found.leaving_out("multi-label k-NN, probe"):
            train = multi_label.of_categories(self.features(method, self.train), self.train, names)
            test = multi_label.of_categories(test, self.test, names)
            found.remarks += self._shared
            found.remarks += multi_label.unlearnable(train, test, names)
            if "multi_label" in protocols:
                with found.leaving_out("multi-label k-NN"):
                    votes = {"neighbours": self.neighbours, "temperature": self.temperature}
                    found.add(multi_label.run_knn(train, test, categories=names, **votes))
            if "multi_label_linear" in protocols:
                self._tell("multi-label probe", 0, 1)
                with found.leaving_out("multi-label probe"):
                    found.add(multi_label.run(train, test, categories=names))

    @cached_property
    def _shared(self) -> list[str]:
        """A remark on images that are in both labelled sets; by rank 0, which speaks for all."""
        train, test = self.train, self.test
        if self.rank > 0 or train is None or train.manifest == test.manifest:
            return []  # of equal sets `remarks` speaks
        return [f"{line} too: {_SAME}" for line in shared_images([test], train) if line]

    def detect_copies(
        self, method: Evaluated, queries: ShardSet, references: ShardSet
    ) -> dict[str, float]:
        """Return the figures of copy detection, by features and, as copy_z_…, by embeddings."""
        figures = copy_detection.run(
            self.features(method, queries), self.features(method, references)
        )
        if isinstance(method, BareEncoder):
            return figures
        by_z = copy_detection.run(
            self.features(method, queries, embed_views=method.embed),
            self.features(method, references, embed_views=method.embed_reference),
        )
        return figures | {name.replace("copy", "copy_z"): value for name, value in by_z.items()}

    def features(
        self, method: Evaluated, shard_set: ShardSet, *, embed_views: EmbedViews | None = None
    ) -> Features:
        """Return the features of all samples of a shard set, on every rank.

        Args:
            method: its encoder makes the features.
            shard_set: of the samples.
            embed_views: a function of the method that makes embeddings instead.
        """
        own = self.own_features(method, shard_set, embed_views=embed_views)
        return Features(
            h_NF=gather_rows(own.h_NF),
            label_N=gather_rows(own.label_N),
            id_N=gather_rows(own.id_N),
            category_NK=None if own.category_NK is None else gather_rows(own.category_NK),
        )

    def own_features(
        self, method: Evaluated, shard_set: ShardSet, *, embed_views: EmbedViews | None = None
    ) -> Features:
        """Return the features of this rank's part alone; see `features`. Every rank calls this."""
        images = Images(
            shard_set,
            size=self.group.size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            tuning=self.tuning,
            normalisation=self.normalisation,
        )
        network = _ImageEmbedding(embed_views) if embed_views else method.encoder

        def compute() -> Features:
            with eval_mode(method):
                counted = self._counted(f"features of {shard_set.root}", images)
                return embed(network, counted, autocast=self.autocast, samples=len(images))

        return self._on_all_ranks(compute)

    @torch.inference_mode()
    def embed_views(self, method: Evaluated) -> Tensor:
        """Return the embeddings z [V, A, D] of fresh views of held-out samples, on every rank.

        Raises:
            ValueError: one is not finite.
        """
        part = min(VIEW_SAMPLES, len(self.test)) // self.world_size
        batch_size = max(1, min(128, part))
        group = replace(self.group, count=max(2, self.group.count))
        batches = max(1, part // batch_size)

        def compute() -> Tensor:
            parts: list[Tensor] = []
            loader = Loader(
                self.test,
                [group],
                batch_size_per_rank=batch_size,
                rank=self.rank,
                world_size=self.world_size,
                device=self.device,
                seed=VIEW_SEED,
                tuning=(self.tuning or Tuning()).for_one_pass(),
                normalisation=self.normalisation,
            )
            with loader, eval_mode(method):
                for number, batch in zip(range(batches), loader, strict=False):
                    self._tell(f"views of {self.test.root}", number, batches)
                    device = self.device.type
                    with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
                        parts.append(method.embed(batch.views[0]).float())
            return torch.cat(parts, dim=1)

        own_VBD = self._on_all_ranks(compute)
        z_AVD = gather_rows(own_VBD.transpose(0, 1))
        refuse_broken(z_AVD.flatten(0, 1), "views")
        return z_AVD.transpose(0, 1)

    def _counted(self, what: str, images: Images) -> Iterator[ImageBatch]:
        done = 0
        for batch in images:
            self._tell(what, done, len(images))
            yield batch
            done += len(batch.id_B)

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def _on_all_ranks(self, compute: Callable[[], T]) -> T:
        """Return what this rank computes; where one rank cannot, none goes on to wait for it."""
        error: Exception | None = None
        own: T | None = None
        try:
            own = compute()
        except Exception as caught:
            error = caught
        if self.world_size > 1:
            failed = torch.tensor([int(error is not None)], device=self.device)
            ranks = gather_rows(failed).nonzero()[:, 0].tolist()
            if ranks and error is None:
                raise ValueError(f"rank {ranks[0]} could not compute its part; see its messages")
        if error is not None:
            raise error
        return cast(T, own)
