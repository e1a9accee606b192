"""The detection protocol: its settings and recipes, what it refuses, and what it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rectangles import coco_folder, voc_folder
from trials import small_encoder, trial

from evaluation.detection import Detection
from evaluation.figures import NAMES
from model.encoder import Timm
from shards.layout import ShardSet
from shards.source.coco import COCO
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet
from tools.evaluate import __main__ as evaluate
from tools.evaluate.chosen_protocols import chosen
from tools.evaluate.kept_on_disk import KeptOnDisk
from training.command_line import call, described

RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "detection").glob("*.yaml"))
SMALL = {
    "iterations": 2,
    "batch_size": 4,
    "shorter_sides": [64],
    "test_side": 64,
    "longest_side": 128,
    "finest_stage": 2,
    "channels": 16,
    "box_features": 32,
    "smallest_anchor": 8,
    "proposals": 60,
    "regions": 16,
    "workers": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rectangles") / "set"
    coco_folder(root, range(10))
    return coco_folder(root, range(10, 16), "val2017")


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[str, ShardSet]:
    how = Preparation(encoding="png")
    return {
        name: write(COCO(root=folder, split=split), folder.parent / name, preparation=how)
        for name, split in (("train", "train2017"), ("test", "val2017"))
    }


def small(root: Path | None = None, **changed: Any) -> Detection:
    splits = {"train_splits": ["train2017"], "test_splits": ["val2017"]}
    return Detection(**{**SMALL, "root": root and str(root), **splits, **changed})


def read(*words: str) -> Any:
    (found,) = chosen(["detection"], {"detection": words}, "python -m tools.evaluate")
    return found.protocol


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_and_flags_change_it(recipe: Path) -> None:
    protocol = read("--detection.recipe", str(recipe))
    assert protocol == read(f"--detection.recipe={recipe}")
    assert protocol != Detection() and protocol.iterations >= 500
    assert all(drop < protocol.iterations for drop in protocol._schedule.drops)
    changed = read("--detection.recipe", str(recipe), "--detection.channels", "7")
    assert changed == replace(protocol, channels=7)


def test_the_defaults_are_those_of_the_paper_s_recipe() -> None:
    (recipe,) = (path for path in RECIPES if path.stem == "voc_c4")
    protocol = read("--detection.recipe", str(recipe))
    assert protocol._schedule == Detection()._schedule
    assert protocol.kind == "c4" and Detection().kind == "fpn"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--detection.recipe", "nothing.yaml"], r"recipe=nothing.yaml is no file"),
        (["--detection.recipe", "pyproject.toml"], r"pyproject.toml"),
        (["--detection.iterations", "0"], r"iterations=0, but it must be 1 or more"),
        (["--detection.shorter_sides", "[]"], r"shorter_sides=\[\], but"),
        (["--detection.learning_rate", "-1"], r"learning_rate=-1"),
        (["--detection.kind", "yolo"], r"kind=yolo, but it must be one of fpn, c4, retinanet"),
        (["--detection.iteration", "3"], r"--detection.iterations"),
    ],
)
def test_a_wrong_setting_ends_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(*words)
    assert "\n" not in str(error.value)


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--detection.help")
    shown = " ".join(capsys.readouterr().out.split())
    _, texts = described(Detection)
    assert texts.keys() == Detection.__dataclass_fields__.keys()
    for name, text in texts.items():
        assert f"--detection.{name}" in shown and text[1:60] in shown, name


def test_shards_and_folders_are_trained_and_tested_on(
    folder: Path, sets: dict[str, ShardSet]
) -> None:
    data: Any
    for protocol, data in ((small(), sets), (small(folder), {"train": None, "test": None})):
        how = trial(kept=KeptOnDisk(None, "detection", {}), **data)
        assert protocol.own_sets == (protocol.root is not None)
        protocol.check(how)
        found = protocol.run(how)
        assert found.figures.keys() == {name for name in NAMES if name.startswith("detection_")}
        assert all(0 <= value <= 1 for value in found.figures.values())
        said = "\n".join(found.remarks)
        assert "3 of 10 images have no box" in said and "VOC AP50 in % by category: " in said


def test_categories_that_one_set_lacks_are_named(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, range(1, 9))
    path = coco_folder(root, range(9, 14), "val2017") / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "green"
    path.write_text(json.dumps(content))
    how = trial(kept=KeptOnDisk(None, "detection", {}))
    small(root).check(how)
    said = "\n".join(small(root).run(how).remarks)
    assert "are of categories without a box in" in said and "(green): none is found" in said
    assert "val2017 has no box of red: in no figure" in said
    content["categories"][1]["name"] = "yellow"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has boxes of .*: none is in both"):
        small(root).check(how)


def test_what_cannot_be_trained_is_refused_before_it(
    folder: Path, sets: dict[str, ShardSet], make_shard_set: MakeShardSet
) -> None:
    without = make_shard_set(42)
    groups = coco_folder(folder.parent / "groups", range(10), iscrowd=1)
    coco_folder(groups, range(10, 16), "val2017")
    vit = Timm(name="vit_tiny_patch16_224")
    how: Any
    for protocol, how, message in (
        (small(), {"train": None, "test": sets["test"]}, r"--train DIR, or --detection.root"),
        (small(), {"train": without, "test": sets["test"]}, r"none of its 42 images has a box"),
        (small(), {**sets, "test": without}, r"none of its 42 images has a box"),
        (small(folder, batch_size=11), {}, r"batch_size=11, but .* has 10 images; give that"),
        (small(folder), {"world_size": 3}, r"batch_size=4 is not divisible by the 3 processes"),
        (small(folder), {"encoder": vit}, r"vit_tiny_patch16_224 has no feature maps"),
        (small(folder, test_splits=["test2017"]), {}, r"no folder for split 'test2017'"),
        (small(folder, train_splits=[]), {}, r"no split is named"),
        (small(folder.parent), {}, r"has neither annotations/"),
        (small(groups), {}, r"train2017: all 13 boxes are groups .iscrowd., none of which"),
        (
            small(groups, train_splits=["val2017"], test_splits=["train2017"]),
            {},
            r"train2017: all 13 boxes are groups .iscrowd., none of which",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            protocol.check(trial(**how))
        assert "\n" not in str(error.value)


def test_the_command_keeps_what_it_found_until_the_boxes_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = voc_folder(tmp_path / "voc", range(1, 9)), tmp_path / "figures.json"
    voc_folder(root, range(9, 13), "test")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**SMALL, "train_splits": ["trainval"], "test_splits": ["test"]}))
    words = ["--encoder", "SmallResNet", "--encoder.width", "4", "--size", "64"]
    words += ["--device", "cpu", "--mixed_precision", "no", "--json", str(out)]
    words += ["--keep", str(tmp_path / "keep"), "--protocol", "detection"]
    words += ["--detection.recipe", str(recipe), "--detection.root", str(root)]
    torch.manual_seed(0)
    call(evaluate.main, words)
    first, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert "detection, VOC's AP50" in shown and "VOC AP50 in % by category" in shown
    folders = set((tmp_path / "keep").iterdir())
    assert len(folders) == 1 and first["detection_ap"] >= 0
    torch.manual_seed(0)
    call(evaluate.main, words)
    assert json.loads(out.read_text()) == first and set((tmp_path / "keep").iterdir()) == folders
    voc_folder(root, range(9, 12), "test")  # an image less
    torch.manual_seed(0)
    call(evaluate.main, words)
    assert len([*(tmp_path / "keep").iterdir()]) == 2


def test_the_trial_s_encoder_stays_as_it_is(folder: Path) -> None:
    encoder = small_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    how = trial(encoder, kept=KeptOnDisk(None, "detection", {}))
    small(folder).run(how)
    assert all(torch.equal(tensor, before[n]) for n, tensor in encoder.state_dict().items())
