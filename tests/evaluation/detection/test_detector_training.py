"""A detector's training: killed, asked to stop, on two processes, and what it finds."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rectangles import coco_folder
from torch.multiprocessing.spawn import spawn
from trials import Saves, detector, rectangles, schedule, trial
from two_detectors import CASES, learned, work

from evaluation.detection import box_precision
from evaluation.detection.annotated_images import in_folder
from evaluation.detection.detection_set import DetectionSet
from evaluation.detection.detector_training import detect, train
from model.encoder import Encoder, SmallResNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("rectangles"), range(14))


@pytest.fixture(scope="module")
def images(folder: Path) -> DetectionSet:
    return rectangles(folder)


@pytest.fixture(scope="module")
def undisturbed(images: DetectionSet) -> dict[str, Any]:
    return trained(images, Saves(every=1000))


class Drops(SmallResNet):
    """Leaves out whole maps of images by chance, as timm's networks do paths."""

    def __init__(self) -> None:
        super().__init__(width=4, stem_stride=2)
        self.dropped = list[torch.Tensor]()

    def feature_maps(self, images_NCHW: torch.Tensor, *, stages: int) -> list[torch.Tensor]:
        maps = super().feature_maps(images_NCHW, stages=stages)
        if self.training:
            self.dropped.append(torch.rand(len(images_NCHW), 1, 1, 1) < 0.5)
            maps = [torch.where(self.dropped[-1], 0, each) for each in maps]
        return maps


def dropping() -> Drops:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Drops()


def trained(
    images: DetectionSet, saves: Saves, encoder: Encoder | None = None, **changed: Any
) -> dict[str, Any]:
    """Return the weights after six steps, from the saved ones on."""
    network = detector("fpn", encoder=encoder)
    train(trial(), saves.task(), network, images, schedule(**changed))
    return network.state_dict()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_killed_training_ends_bit_for_bit_as_an_undisturbed_one(
    every: int, images: DetectionSet, undisturbed: dict[str, Any]
) -> None:
    saves = Saves(every, kills=1)
    with pytest.raises(MemoryError):
        trained(images, saves)
    assert saves.state["steps"] == every
    torch.manual_seed(every)  # no stream is drawn from
    assert_same(trained(images, saves), undisturbed)
    assert_same(trained(images, saves), undisturbed)  # of a task whose training was at its end


def test_an_encoder_that_drops_paths_drops_the_same_ones_after_a_kill(
    images: DetectionSet, undisturbed: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    expected = trained(images, Saves(every=1000), dropping())
    assert torch.equal(torch.get_rng_state(), before), "what comes after is as without a detector"
    assert any(not torch.equal(expected[name], undisturbed[name]) for name in undisturbed)
    saves = Saves(every=2, kills=1)
    with pytest.raises(MemoryError):
        trained(images, saves, dropping())
    torch.manual_seed(2)
    assert_same(trained(images, saves, dropping()), expected)


def test_each_rank_drops_paths_of_its_own_images(images: DetectionSet) -> None:
    def dropped(rank: int, seed: int) -> list[bool]:
        torch.manual_seed(0)
        network = detector("retinanet", encoder=dropping())
        how = trial(rank=rank, world_size=2)  # whose gradients meet no others here
        many = schedule(iterations=1, batch_size=12, seed=seed)
        train(how, Saves(every=1000).task(), network, images, many)
        (encoder,) = (each for each in network.modules() if isinstance(each, Drops))
        return torch.cat(encoder.dropped).flatten().tolist()

    assert len({tuple(dropped(*which)) for which in ((0, 0), (1, 0), (0, 1))}) == 3


def test_workers_change_nothing(images: DetectionSet, undisturbed: dict[str, Any]) -> None:
    assert_same(trained(images, Saves(every=1000), workers=1), undisturbed)


def test_a_training_that_diverges_ends_in_a_line_and_saves_nothing(images: DetectionSet) -> None:
    for saves in (Saves(every=6), Saves(every=1000)):
        with pytest.raises(ValueError, match=r"no number any more.*--detection.learning_rate"):
            trained(images, saves, learning_rate=1e30, warmup=0)
        assert saves.state is None


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    images = rectangles(coco_folder(tmp_path, range(8)))
    expected = trained(images, Saves(every=1000))
    path = tmp_path / "train2017" / "000005.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    saves = Saves(every=1)
    with pytest.raises(ValueError, match=r"000005.png cannot be decoded"):
        trained(images, saves, workers=1)
    path.write_bytes(whole)
    assert_same(trained(images, saves), expected)


def test_the_rate_is_that_of_torch_s_schedulers() -> None:
    from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR

    ours = schedule(iterations=40, drops=(20, 30), warmup=8, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    warm = LinearLR(optimizer, 0.001, total_iters=8)
    theirs = ChainedScheduler([warm, MultiStepLR(optimizer, [20, 30])])
    for step in range(40):
        assert ours.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def by_ranks(folder: Path) -> list[dict[str, Any]]:
    spawn(work, args=(str(folder), free_port()), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return learned(folder)


@pytest.mark.slow  # classifiers hold the same quickly
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does(
    name: str, by_ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    """One case has batch norms of regions, of which the ranks sample differently many."""
    expected, image_D, box_D4 = alone[name]
    for found in by_ranks:
        for key, tensor in found[name][0].items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-9)
        assert torch.equal(found[name][1], image_D)
        torch.testing.assert_close(found[name][2], box_D4)


def test_what_is_found_is_in_the_frame_of_the_annotations(images: DetectionSet) -> None:
    class Finds(torch.nn.Module):
        """Finds the whole image, and its left upper quarter with less certainty."""

        def forward(self, images_BCHW: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            _, _, height, width = images_BCHW.shape
            boxes = torch.tensor([[0, 0, width, height], [0, 0, width / 2, height / 2]])
            return [
                {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.3])}
            ]

    how: Any = {"shorter": 33, "longest": 60, "workers": 0}
    found = detect(trial(), Finds(), images, **how)  # pyright: ignore[reportArgumentType]
    assert found.image_D.tolist() == [i for i in range(14) for _ in range(2)]
    assert found.label_D.tolist() == [0, 1] * 14
    np.testing.assert_allclose(found.box_D4[0::2, 2:], images.frame_N2, rtol=1e-6)
    np.testing.assert_allclose(found.box_D4[1::2, 2:], images.frame_N2 / 2, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "iterations", "rate", "warmup"),
    # RetinaNet found 91 % at this rate, 77 and 87 % at twice and three times as much.
    [("fpn", 400, 0.02, 10), ("c4", 400, 0.02, 10), ("retinanet", 1600, 0.01, 100)],
)
def test_it_learns_to_find_rectangles(
    kind: Any, iterations: int, rate: float, warmup: int, tmp_path: Path
) -> None:
    images = rectangles(coco_folder(tmp_path, range(60)))
    drops = (iterations * 4 // 5,)
    how = schedule(iterations=iterations, batch_size=8, shorter=(64,), drops=drops, warmup=warmup)
    network = detector(kind)
    train(trial(), Saves(every=1000).task(), network, images, replace(how, learning_rate=rate))
    root = coco_folder(tmp_path / "test", range(100, 140))
    test = DetectionSet.read(
        in_folder(root, ["train2017"]), clip=False, categories=images.categories
    )
    found = detect(trial(), network, test, shorter=64, longest=128, workers=0)
    assert box_precision.voc(found, test.boxes)[0]["detection_voc_ap50"] > 0.5
