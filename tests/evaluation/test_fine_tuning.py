"""Fine-tuning and the probe on random crops, on a set whose classes are colours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_resumption import InMemory, Killed
from torch import Tensor

from evaluation import resumption
from evaluation.augmented_probe import AugmentedProbe
from evaluation.bare_encoder import BareEncoder
from evaluation.figures import ordered
from evaluation.fine_tuning import FineTuning
from evaluation.protocol import Evaluation, EvaluationProtocol, Trial
from model.encoder import Encoder, SmallResNet, Timm
from pipeline.normalisation import IMAGENET
from shards.layout import ShardSet
from shards.source.source import Sample
from shards.writing.write import write
from tests.conftest import Pictures

QUICK: dict[str, Any] = {"batch_size": 8, "epochs": 2, "rates": (0.01, 1.0)}
TUNING = FineTuning(labels=(0.5, 1.0), draws=2, least_steps=3, **QUICK)
HEAD = replace(TUNING, layers="head")
PROBE = AugmentedProbe(**QUICK)
every_protocol = pytest.mark.parametrize(
    "protocol", [TUNING, HEAD, PROBE], ids=["all", "head", "probe"]
)


class Tinted(Pictures):
    """Noisy pictures of ten classes, each of a colour of its own."""

    def __init__(self, samples: int, *, first: int = 0) -> None:
        super().__init__(samples, height=20, width=20)
        self.first = first

    def pixels(self, index: int) -> NDArray[np.uint8]:
        noise = super().pixels(self.first + index).astype(int) // 4
        colour = np.random.default_rng(index % 10).integers(0, 192, 3)
        return (noise + colour).astype(np.uint8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    folder = tmp_path_factory.mktemp("tinted")
    train = write(Tinted(60), folder / "train", samples_per_shard=16)
    return train, write(Tinted(40, first=500), folder / "test", samples_per_shard=16)


def encoder(seed: int = 0) -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(width=4)


def trial(sets: tuple[ShardSet, ShardSet], kept: Any, of: Encoder | None = None) -> Trial:
    of = of or encoder()
    return Trial(
        encoder=of,
        method=BareEncoder(of),
        size=16,
        normalisation=IMAGENET,
        device=torch.device("cpu"),
        train=sets[0],
        test=sets[1],
        kept=kept,
    )


def run(protocol: EvaluationProtocol, of: Trial) -> tuple[Evaluation, dict[str, Any]]:
    """Return what is found, and every accuracy and loss on the way to it."""
    protocol.check(of)
    found = protocol.run(of)
    return found, of.kept.load("state")["done"]


@every_protocol
def test_it_goes_on_bit_for_bit_wherever_it_was_killed(
    protocol: Any,
    sets: tuple[ShardSet, ShardSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if protocol is not PROBE:
        protocol = replace(protocol, labels=(0.5,), draws=1)
    whole, expected = run(protocol, trial(sets, InMemory(tmp_path)))
    assert len({str(value) for value in expected.values()}) > 1
    monkeypatch.setattr(resumption, "SAVE_SECONDS", 0.0)  # after every step
    kept, random = InMemory(tmp_path), torch.get_rng_state()
    for saves in (4, 7, 1, 3):
        kept.left = saves
        with pytest.raises(Killed):
            run(protocol, trial(sets, kept))
    kept.left = None
    assert run(protocol, trial(sets, kept)) == (whole, expected)
    assert torch.equal(torch.get_rng_state(), random), "others' random numbers are not touched"


@pytest.mark.parametrize(
    ("protocol", "figures"),
    [
        (TUNING, ["50_top1", "50_sd", "50_rate", "100_top1", "100_rate"]),
        (HEAD, ["50_top1", "50_sd", "50_rate", "100_top1", "100_rate"]),
        (PROBE, ["top1", "rate"]),
    ],
)
def test_the_rate_is_the_best_on_held_out_labels_and_the_test_set_chooses_nothing(
    protocol: Any, figures: list[str], sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    prefix = {TUNING: "fine_tuned", HEAD: "head_tuned", PROBE: "augmented_probe"}[protocol]
    found, done = run(protocol, trial(sets, InMemory(tmp_path)))
    assert list(found.figures) == [f"{prefix}_{name}" for name in figures]
    for draw in {name.partition(", rate")[0] for name in done if "all labels" not in name}:
        # Top 1, minus the loss and the rate of each; one task of several rates, or several of one.
        tried = [
            (top1, -loss, float(rate))
            for name, (top1_R, _, loss_R) in done.items()
            if name.startswith(f"{draw}, rate")
            for top1, loss, rate in zip(
                top1_R, loss_R, name.rpartition("rate ")[2].split(), strict=True
            )
        ]
        assert len(tried) == 2
        (final,) = (name for name in done if name.startswith(f"{draw}, all labels"))
        assert float(final.rpartition(" ")[2]) == max(tried)[2]

    other = (sets[0], replace(sets[1], manifest=sets[0].manifest, folder=sets[0].folder))
    again, redone = run(protocol, trial(other, InMemory(tmp_path)))
    assert {*redone} == {*done}, "the same rates are chosen"
    changed = {name for name in done if done[name] != redone[name]}
    assert changed == {name for name in done if "all labels" in name}
    assert any("is trained on too" in remark for remark in again.remarks)


class NotThree(Tinted):
    """Those of nine of the classes, numbered without the fourth, or as among all."""

    def __init__(self, samples: int, *, renumbered: bool) -> None:
        super().__init__(samples, first=500)
        self.shown = [index for index in range(samples) if index % 10 != 3]
        self.renumbered = renumbered
        if renumbered:
            del self.classes[3]

    def __len__(self) -> int:
        return len(self.shown)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(self.shown[index])
        return replace(sample, label=sample.label - (self.renumbered and sample.label > 3))


@pytest.mark.parametrize("protocol", [replace(HEAD, labels=(1.0,)), PROBE])
def test_a_test_set_that_lacks_a_class_is_matched_by_names(
    protocol: Any, sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    found = []
    for renumbered in (False, True):
        folder = tmp_path / str(renumbered)
        test = write(NotThree(40, renumbered=renumbered), folder / "test")
        found.append(run(protocol, trial((sets[0], test), InMemory(folder)))[0].figures)
    assert found[0] == found[1]


def test_means_and_deviations_are_those_of_the_draws(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    found, done = run(replace(TUNING, draws=3, rates=(0.1,)), trial(sets, InMemory(tmp_path)))
    top1 = [value[0][0] for name, value in done.items() if name.startswith("fine-tuning on 50 %")]
    assert len(top1) == 3
    assert found.figures["fine_tuned_50_top1"] == pytest.approx(np.mean(top1))
    assert found.figures["fine_tuned_50_sd"] == pytest.approx(np.std(top1, ddof=1))
    assert found.figures["fine_tuned_50_rate"] == 0.1


class Watched(SmallResNet):
    """Notes the images that it and its copies see."""

    seen: list[float]

    def forward(self, images_NCHW: Tensor) -> Tensor:
        self.seen.append(images_NCHW.double().sum().item())
        return super().forward(images_NCHW)

    def __deepcopy__(self, memo: Any) -> "Watched":
        copy = Watched(width=4)
        copy.load_state_dict(self.state_dict())
        copy.seen = self.seen
        return copy


@every_protocol
def test_two_encoders_see_the_same_samples_crops_and_batches(
    protocol: Any, sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    more = {} if protocol is PROBE else {"labels": (0.5,), "draws": 1}
    protocol, seen = replace(protocol, rates=(0.1,), **more), []
    for seed in range(2):
        torch.manual_seed(seed)
        watched = Watched(width=4)
        watched.seen = []
        run(protocol, trial(sets, InMemory(tmp_path), watched))
        seen.append(watched.seen)
    assert seen[0] == seen[1] and len(set(seen[0])) > 6


@every_protocol
def test_colours_are_learned(
    protocol: Any, sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    rate = 2.0 if protocol is TUNING else 100.0 if protocol is HEAD else 1000.0
    longer = {"labels": (1.0,)} if protocol is not PROBE else {}
    found, _ = run(
        replace(protocol, epochs=15, rates=(rate,), **longer), trial(sets, InMemory(tmp_path))
    )
    (top1,) = (value for name, value in found.figures.items() if "top1" in name)
    assert top1 > 0.4  # by chance 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": (0.1, 1.5)}, r"labels=\[0.1, 1.5\], but each is a share"),
        ({"labels": (0.0,)}, "but each is a share of the labels, above 0"),
        ({"draws": 0}, "draws=0"),
        ({"rates": (0.1, -1.0)}, r"rates=\(0.1, -1.0\), but it must be one or more, all above 0"),
        ({"epochs": float("nan")}, "epochs=nan, but it must be above 0"),
        ({"validation": 1.0}, "validation=1.0, but it must be above 0, below 1"),
        ({"batch_size": 1}, "batch_size=1, but it must be 2 or more"),
    ],
)
def test_settings_that_make_no_training_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"labels": (1.0, 0.05)},
            r"labels=0.05 of the 6 images of class 'class \d'",
        ),
        ({"labels": (0.17,)}, r"labels=0.17 are 10 images, one of each class: none is left"),
        ({"labels": (0.17,), "rates": (0.1,)}, ""),
    ],
)
def test_too_few_images_are_refused_before_training(
    settings: Any, message: str, sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    protocol = replace(TUNING, **settings)
    if not message:
        return protocol.check(trial(sets, InMemory(tmp_path)))
    with pytest.raises(ValueError, match=message):
        protocol.check(trial(sets, InMemory(tmp_path)))


def test_a_size_that_the_encoder_does_not_take_is_refused(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    vit = Timm(name="mixer_s32_224")
    for protocol in (TUNING, PROBE):
        with pytest.raises(ValueError, match=r"cannot take views of 16 pixels.*--size"):
            protocol.check(trial(sets, InMemory(tmp_path), vit))


def test_a_training_that_diverges_with_every_rate_says_so(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"diverged with every rate of 1e\+20, 1e\+30"):
        run(replace(TUNING, rates=(1e20, 1e30)), trial(sets, InMemory(tmp_path)))
    with pytest.raises(ValueError, match=r"diverged with rate 1e\+30, on all labels"):
        run(replace(TUNING, rates=(1e30,)), trial(sets, InMemory(tmp_path / "one")))


def test_figures_of_any_share_have_names_and_an_order() -> None:
    figures = {"fine_tuned_10_top1": 0.5, "fine_tuned_0.5_sd": 0.01, "fine_tuned_0.5_top1": 0.25}
    figures |= {"fine_tuned_10_rate": 0.05, "knn_top1": 1.0, "head_tuned_1_top1": 0.125}
    assert list(ordered(figures)) == [
        ("knn_top1", "k-NN", "100.0 %"),
        ("fine_tuned_0.5_top1", "fine-tuned on 0.5 % of the labels", "25.0 %"),
        ("fine_tuned_0.5_sd", "fine-tuned on 0.5 % of the labels, sd of the draws", "1.0 %"),
        ("fine_tuned_10_top1", "fine-tuned on 10 % of the labels", "50.0 %"),
        ("fine_tuned_10_rate", "fine-tuned on 10 % of the labels, learning rate", "0.05"),
        ("head_tuned_1_top1", "linear layer on 1 % of the labels", "12.5 %"),
    ]
