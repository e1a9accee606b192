"""All evaluations of a method on a pair of shard sets, for runs and for `tools.evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evaluation import copy_detection, geometry, knn, linear, retrieval
from evaluation.features import Features, embed, eval_mode
from model.gather import gather_rows
from model.method import Method
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from pipeline.tuning import Tuning
from shards.layout import ShardSet

# Fixed, so that two encoders are asked about the same views, at the same number of processes.
VIEW_SEED = 20_101_007


EmbedViews = Callable[[Tensor], Tensor]
"""Views [V, B, C, H, W] to embeddings [V, B, D], such as `Method.embed`."""


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
        train: labelled shard set: k-NN bank and training data of the linear probe; None skips both.
        group: size of the images; count and policy of the views for view retrieval.
        device: where to compute.
        autocast: precision of the encoder; None is float32.
        rank: this process.
        world_size: number of processes; each embeds its part.
        tuning: how the data pipelines run on this machine.
        view_samples: how many held-out samples are ranked by view retrieval, at most.
        queries: shard set of edited copies, labelled with ids of references; None skips copy
            detection.
        references: shard set that the queries are searched in; with `queries` or not at all.
        neighbours: votes of k-NN, see `knn.run`.
        temperature: of k-NN's votes.
    """

    test: ShardSet
    train: ShardSet | None
    group: ViewGroup
    device: torch.device
    autocast: torch.dtype | None = None
    rank: int = 0
    world_size: int = 1
    tuning: Tuning | None = None
    view_samples: int = 1024
    queries: ShardSet | None = None
    references: ShardSet | None = None
    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        classes = [s.manifest.classes for s in (self.test, self.train) if s is not None]
        if len(classes) == 2 and all(classes) and classes[0] != classes[1]:
            here, there = (set(names) for names in classes)
            raise ValueError(
                f"{self.test.root} has {len(classes[0])} classes, {self.train and self.train.root} "
                f"has {len(classes[1])}, and their names differ ({sorted(here ^ there)[:3]}): "
                "labels would mean different things. Shard two splits of one data set."
            )
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

    def run(self, method: Method, *, probe: bool) -> dict[str, float]:
        """Return every figure that the shard sets allow; the same on every rank.

        Without labels these are view retrieval and the geometry of the embeddings; with labels also
        label retrieval and, with a training set, k-NN and the linear probe.

        Args:
            method: whose encoder, and embeddings, are evaluated.
            probe: also fit the linear probe, which takes the longest.
        """
        z_VAD = self.embed_views(method)
        figures = retrieval.run_views(z_VAD) | geometry.run(z_VAD)
        if self.queries is not None and self.references is not None:
            figures |= self.detect_copies(method, self.queries, self.references)
        if not self.test.manifest.classes:
            return figures
        test = self.features(method, self.test)
        figures |= retrieval.run_labels(test)
        if self.train is not None and self.train.manifest.classes:
            train = self.features(method, self.train)
            figures |= knn.run(
                train, test, neighbours=self.neighbours, temperature=self.temperature
            )
            if probe:
                figures |= linear.run(train, test)
        return figures

    def detect_copies(
        self, method: Method, queries: ShardSet, references: ShardSet
    ) -> dict[str, float]:
        """Return the figures of copy detection, by features and, as copy_z_…, by embeddings."""
        figures = copy_detection.run(
            self.features(method, queries), self.features(method, references)
        )
        by_z = copy_detection.run(
            self.features(method, queries, embed_views=method.embed),
            self.features(method, references, embed_views=method.embed_reference),
        )
        return figures | {name.replace("copy", "copy_z"): value for name, value in by_z.items()}

    def features(
        self, method: Method, shard_set: ShardSet, *, embed_views: EmbedViews | None = None
    ) -> Features:
        """Return the features of all samples of a shard set, on every rank.

        Args:
            method: its encoder makes the features.
            shard_set: of the samples.
            embed_views: a function of the method that makes embeddings instead.
        """
        images = Images(
            shard_set,
            size=self.group.size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            tuning=self.tuning,
        )
        with eval_mode(method):
            network = _ImageEmbedding(embed_views) if embed_views else method.encoder
            own = embed(network, images, autocast=self.autocast)
        return Features(
            h_NF=gather_rows(own.h_NF),
            label_N=gather_rows(own.label_N),
            id_N=gather_rows(own.id_N),
        )

    @torch.inference_mode()
    def embed_views(self, method: Method) -> Tensor:
        """Return the embeddings z [V, A, D] of fresh views of held-out samples, on every rank."""
        part = min(self.view_samples, len(self.test)) // self.world_size
        batch_size = max(1, min(128, part))
        group = replace(self.group, count=max(2, self.group.count))
        loader = Loader(
            self.test,
            [group],
            batch_size_per_rank=batch_size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            seed=VIEW_SEED,
            tuning=(self.tuning or Tuning()).for_one_pass(),
        )
        parts: list[Tensor] = []
        with loader, eval_mode(method):
            for _, batch in zip(range(max(1, part // batch_size)), loader, strict=False):
                device = self.device.type
                with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
                    parts.append(method.embed(batch.views[0]).float())
        return gather_rows(torch.cat(parts, dim=1).transpose(0, 1)).transpose(0, 1)
