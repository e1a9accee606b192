"""The DISC21 protocol: on pictures with the challenge's names, against a plain evaluation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from evaluation.bare_encoder import BareEncoder
from evaluation.disc21 import DESCRIPTORS, DISC21, PREDICTIONS
from evaluation.features import embed
from evaluation.protocol import Trial
from evaluation.suite import Suite
from model.encoder import SmallResNet
from model.method import QKIteration
from pipeline.images import Images
from pipeline.normalisation import IMAGENET
from shards.layout import ShardSet, open_shards
from shards.source.source import Sample
from shards.survey import rows_of
from shards.writing.write import write
from tests.conftest import Pictures
from tools.evaluate.kept_on_disk import KeptOnDisk

Q, G, T = 12, 20, 60
COPIES = {2: 7, 3: 0, 5: 19, 8: 4, 11: 11}  # query: reference


class NamedPictures(Pictures):
    """Pictures that have the challenge's names, in an order that is not that of their ids."""

    def __init__(self, letter: str, seeds: list[int], *, noise: float = 0.0) -> None:
        super().__init__(len(seeds))
        self.letter, self.seeds, self.noise, self.classes = letter, seeds, noise, []

    def __getitem__(self, index: int) -> Sample:
        pixels = self.pixels(self.seeds[index]).astype(np.float64)
        pixels += self.noise * np.random.default_rng(9000 + index).normal(size=pixels.shape)
        image = np.clip(pixels, 0, 255).astype(np.uint8)
        key = f"{self.letter}{index:05d}"
        return Sample(key=key, image=image, label=-1, id=1000 - index, metadata={})


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("disc")
    seeds = {
        "queries": [COPIES.get(q, 500 + q) for q in range(Q)],
        "references": list(range(G)),
        "training": list(range(700, 700 + T)),
    }
    for name, letter in (("queries", "Q"), ("references", "R"), ("training", "T")):
        noise = 90.0 * (name == "queries")
        write(NamedPictures(letter, seeds[name], noise=noise), root / name, samples_per_shard=7)
    truth = [f"Q{q:05d},{f'R{COPIES[q]:05d}' if q in COPIES else ''}" for q in range(Q)]
    (root / "truth.csv").write_text("\n".join(["query_id,reference_id", *truth]))
    paths = {name: str(root / name) for name in seeds}
    return {**paths, "ground_truth": str(root / "truth.csv")}


def trial(protocol: DISC21, folder: Path, **changed: Any) -> Trial:
    torch.manual_seed(0)
    method = QKIteration(encoder=SmallResNet(width=4), hidden_size=16, embedding_size=8, keys=10)
    with torch.no_grad():  # the sides differ, as after training
        for parameter in method.key_projector.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    sets = protocol.sets()
    settings: dict[str, Any] = {
        "encoder": method.encoder,
        "method": method,
        "size": 24,
        "normalisation": IMAGENET,
        "device": torch.device("cpu"),
        "train": sets.pop("train"),
        "test": sets.pop("test"),
        "kept": KeptOnDisk(folder, "disc21", {}),
        "more": sets,
    }
    return Trial(**settings | changed)


def in_order(shard_set: ShardSet, network: torch.nn.Module) -> np.ndarray:
    """Features by the names of the images."""
    features = embed(network, Images(shard_set, size=24))
    rows = [row for shard in shard_set.manifest.shards for row in rows_of(shard_set, shard)]
    place = {row.id: int(row.key[1:]) for row in rows}
    found = np.empty(features.h_NF.shape, dtype=np.float64)
    found[[place[id] for id in features.id_N.tolist()]] = features.h_NF.numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class SideNetwork(torch.nn.Module):
    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.embed(images[None])[0]


@pytest.mark.parametrize("descriptor", ["features", "embeddings"])
@pytest.mark.parametrize("reduction", ["whitening", "none"])
def test_figures_are_those_of_a_plain_evaluation(
    descriptor: Any, reduction: Any, layout: dict[str, Any], tmp_path: Path
) -> None:
    """scikit-learn's PCA and average precision, all scores in one matrix of float64."""
    protocol = DISC21(
        **layout, descriptor=descriptor, reduction=reduction, weight=1.0, dimensions=40,
        first_neighbour=2, last_neighbour=4,
    )  # fmt: skip
    asked = trial(protocol, tmp_path)
    protocol.check(asked)
    found = protocol.run(asked)
    method: Any = asked.method.eval()
    sides = (asked.encoder, asked.encoder)
    if descriptor == "embeddings":
        sides = SideNetwork(method.embed), SideNetwork(method.embed_reference)
    query, reference, training = (
        in_order(open_shards(layout[name]), sides[number])
        for number, name in ((0, "queries"), (1, "references"), (1, "training"))
    )
    if reduction == "whitening":
        oracle = PCA(min(38, query.shape[1]), whiten=True, svd_solver="full").fit(training)
        query, reference, training = (
            F.normalize(torch.from_numpy(oracle.transform(rows)), dim=1).numpy()
            for rows in (query, reference, training)
        )
    true_QG = np.array([[COPIES.get(q) == g for g in range(G)] for q in range(Q)])
    common_Q = np.sort(query @ training.T, axis=1)[:, ::-1][:, 1:4].mean(1)
    for name, scores in (
        ("disc21_raw", query @ reference.T),
        ("disc21", query @ reference.T - common_Q[:, None]),
    ):
        expected = average_precision_score(true_QG.ravel(), scores.ravel())
        assert found.figures[f"{name}_map"] == pytest.approx(expected, abs=1e-6)
        first = [scores[q].argmax() == COPIES[q] for q in COPIES]
        assert found.figures[f"{name}_r1"] == pytest.approx(np.mean(first))
    assert found.figures["disc21_raw_map"] != found.figures["disc21_map"]
    assert not found.remarks


def test_without_weight_there_is_no_normalisation(layout: dict[str, Any], tmp_path: Path) -> None:
    protocol = DISC21(**layout, weight=0)
    figures = protocol.run(trial(protocol, tmp_path)).figures
    assert figures and all(name.startswith("disc21_raw_") for name in figures)


def test_a_command_that_was_stopped_embeds_no_set_again(
    layout: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, own_features = DISC21(**layout), Suite.own_features
    expected = protocol.run(trial(protocol, tmp_path / "whole"))
    embedded: list[str] = []

    def counted(suite: Suite, method: Any, shard_set: ShardSet, **how: Any) -> Any:
        embedded.append(Path(shard_set.root).name)
        if embedded[1:] == ["references"]:
            raise KeyboardInterrupt
        return own_features(suite, method, shard_set, **how)

    monkeypatch.setattr(Suite, "own_features", counted)
    with pytest.raises(KeyboardInterrupt):
        protocol.run(trial(protocol, tmp_path))
    assert protocol.run(trial(protocol, tmp_path)) == expected
    assert embedded == ["training", "references", "references", "queries"]


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_submission_has_the_figures_that_are_reported(
    weight: float, layout: dict[str, Any], tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    protocol = DISC21(**layout, weight=weight, submission=True)
    asked = trial(protocol, tmp_path)
    protocol.check(asked)
    found = protocol.run(asked)
    folder, kept = asked.kept.results, asked.kept
    assert folder is not None and isinstance(kept, KeptOnDisk)
    kept.finish(found)
    assert {DESCRIPTORS, PREDICTIONS} <= {path.name for path in folder.iterdir()}
    assert str(folder) in found.remarks[-1]
    name = "disc21_map" if weight else "disc21_raw_map"
    true = {(f"Q{q:05d}", f"R{g:05d}") for q, g in COPIES.items()}
    with (folder / PREDICTIONS).open(newline="") as file:
        rows = [(row["query_id"], row["reference_id"]) for row in csv.DictReader(file)]
    places = [n for n, row in enumerate(rows, start=1) if row in true]
    precision = [hits / n for hits, n in enumerate(places, start=1)]
    assert found.figures[name] == pytest.approx(sum(precision) / len(COPIES))
    # Track 2 compares by distance.
    with h5py.File(folder / DESCRIPTORS, "r") as file:
        query, reference = (
            np.asarray(file[side][:], dtype=np.float64) for side in ("query", "reference")
        )
        ids = [file[f"{side}_ids"][:].astype(str).tolist() for side in ("query", "reference")]
    distance = ((query[:, None] - reference) ** 2).sum(-1)
    true_QG = np.array([[(q, r) in true for r in ids[1]] for q in ids[0]])
    expected = average_precision_score(true_QG.ravel(), -distance.ravel())
    assert found.figures[name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["Q00099,R00001"], r"names 1 queries that .*queries does not have \(Q00099 first\)"),
        (["Q00001,R00099"], r"names 1 references that .*references does not have \(R00099"),
        (["Q00001,"], r"names no query that is a copy"),
    ],
)
def test_a_ground_truth_of_other_images_is_refused(
    lines: list[str], words: str, layout: dict[str, Any], tmp_path: Path
) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("\n".join(lines))
    protocol = DISC21(**{**layout, "ground_truth": str(truth)})
    with pytest.raises(ValueError, match=words):
        protocol.check(trial(protocol, tmp_path))


def test_what_counts_for_nothing_or_twice_is_said(layout: dict[str, Any], tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("Q00002,R00007\nQ00003,R00000\n")
    changed = {"ground_truth": str(truth), "training": layout["references"]}
    protocol = DISC21(**{**layout, **changed}, dimensions=10)
    found = protocol.run(trial(protocol, tmp_path))
    assert found.remarks[0].startswith("10 of the 12 queries are not in")
    assert found.remarks[1].startswith("20 of the 20 images of")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": -1.0}, "weight=-1.0, expected 0 or more"),
        ({"dimensions": 257}, "dimensions=257, expected up to 256"),
        ({"dimensions": 2}, "dimensions=2, expected up to 256, the challenge's limit, and 3"),
        ({"first_neighbour": 5, "last_neighbour": 4}, "first_neighbour=5 and last_neighbour=4"),
    ],
)
def test_impossible_settings_are_refused(
    settings: dict[str, Any], words: str, layout: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=words):
        DISC21(**layout, **settings)


def test_what_the_encoder_or_the_sets_do_not_allow_is_refused(
    layout: dict[str, Any], tmp_path: Path
) -> None:
    def refused(words: str, changed: dict[str, Any] | None = None, **settings: Any) -> None:
        protocol = DISC21(**layout, **settings)
        with pytest.raises(ValueError, match=words):
            protocol.check(trial(protocol, tmp_path, **changed or {}))

    bare = BareEncoder(SmallResNet(width=4))
    refused("has no projector", {"method": bare}, descriptor="embeddings")
    refused("features have 32 numbers, and 8 is the most", reduction="none", dimensions=10)
    refused("60 training images, but these .* need 61", last_neighbour=61)
    refused("12 samples for 13 processes", {"world_size": 13})
    pytest.importorskip("h5py")
    refused("--keep DIR", {"kept": KeptOnDisk(None, "disc21", {})}, submission=True)


def test_names_that_do_not_tell_images_apart_are_refused(
    layout: dict[str, Any], tmp_path: Path
) -> None:
    class InFolders(NamedPictures):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index), key=f"{index}/R00000")

    write(InFolders("R", list(range(9))), tmp_path / "references")
    protocol = DISC21(**{**layout, "references": str(tmp_path / "references")})
    with pytest.raises(ValueError, match="R00000 occurs more than once"):
        protocol.check(trial(protocol, tmp_path))
