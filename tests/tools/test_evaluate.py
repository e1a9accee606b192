"""Published weights are judged as a run is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tools.evaluate import __main__ as evaluate
from training import exported
from training.command_line import call
from training.run import checkpoint, run_folder, state_file
from training.settings import parse

BY_FEATURES = ("knn_top1", "linear_top1", "linear_l2", "label_map", "label_r1", "label_r5")


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that is saved before its first step, and its encoder as torchvision has it.

    The classifier, which no encoder has, is there too.
    """
    run = tmp_path_factory.mktemp("evaluated") / "run"
    words = ["--shards", shard_set.root, "--run", str(run), "--steps", "1"]
    words += ["--method.encoder", "ResNet", "--views.size", "24", "--views.count", "2"]
    settings = parse(words)
    method: Any = settings.config.method
    run_folder.prepare(run, settings, taken=False)
    parts = {checkpoint.METHOD: method.state_dict(), checkpoint.OPTIMIZER: {}}
    for name, part in {**parts, checkpoint.rank_file(0): {}}.items():
        checkpoint.write_part(run, 0, name, state_file.pieces(part))
    checkpoint.commit(run, 0, {"seconds": 0.0, "world_size": 1, "machine": "cpu, no"})
    exported.write(run / exported.NAME, method.encoder, exported.facts(settings, shard_set, step=7))
    network = torchvision.models.resnet18()
    assert not network.load_state_dict(method.encoder.network.state_dict(), strict=False)[1]
    torch.save(network.state_dict(), run.parent / "resnet18.pth")
    return run


def figures(tmp_path: Path, shard_set: ShardSet, *words: str) -> dict[str, Any]:
    out = tmp_path / "figures.json"
    sets = ["--test", shard_set.root, "--train", shard_set.root]
    how = ["--device", "cpu", "--mixed_precision", "no", "--json", str(out)]
    call(evaluate.main, [*words, *sets, *how])
    return json.loads(out.read_text())


def test_a_file_of_weights_has_the_figures_of_the_run_with_these_weights(
    run: Path, shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.parent / "resnet18.pth"
    named = ["--encoder", "ResNet", "--encoder.weights", str(file), "--size", "24"]
    found = figures(tmp_path, shard_set, str(run), *named)
    (beside,) = found["beside"].values()
    assert {name: beside[name] for name in BY_FEATURES} == {n: found[n] for n in BY_FEATURES}
    assert beside.keys() == found.keys() & beside.keys()
    assert beside["effective_dimension"] != found["effective_dimension"], "of h, and of z"
    said = capsys.readouterr()
    assert "step 0" in said.out and "ResNet, " in said.out
    assert "views and geometry are of features" in said.out
    assert "not used of it: fc.bias, fc.weight" in said.err

    alone = figures(tmp_path, shard_set, str(run / exported.NAME))
    assert alone["step"] == 7 and "beside" not in alone
    assert {name: alone[name] for name in BY_FEATURES} == {n: found[n] for n in BY_FEATURES}


def test_several_sets_are_one_table_and_those_that_were_trained_on_are_named(
    run: Path,
    shard_set: ShardSet,
    make_shard_set: MakeShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_shard_set(43, height=24, width=24)  # other pixels, of another size
    for name, sets in {"own": (other, shard_set), "strange": (other, other)}.items():
        for role, each in zip(("train", "test"), sets, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / role).symlink_to(each.root)
    out = tmp_path / "figures.json"
    words = [str(run), "--sets", str(tmp_path / "own"), str(tmp_path / "strange")]
    words += ["--protocol", "knn", "few_shot", "--device", "cpu", "--mixed_precision", "no"]
    call(evaluate.main, [*words, "--beside_random", "true", "--json", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("random init") == 1 and said.count("step 0") == 1, "one table"
    assert f"own: 42 of the 42 images of {tmp_path}/own/test are in {shard_set.root}" in said
    assert "strange: 4" not in said
    found = json.loads(out.read_text())["sets"]
    assert list(found) == ["own", "strange"]
    for name, each in found.items():
        assert each["random_init"]["knn_top1"] == each["knn_top1"], "saved before its first step"
        assert f"{100 * each['few_shot_1_top1']:.1f} ± " in said, name
    assert found["own"]["knn_top1"] != found["strange"]["knn_top1"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a set was evaluated before the last one was opened")

    manifest = tmp_path / "strange" / "train"
    manifest.unlink()
    manifest.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(FileNotFoundError, match="strange"):
        patch.setattr("evaluation.suite.Suite.run", refuse)
        call(evaluate.main, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"named either by RUN.*or by --encoder CLASS"),
        (["--encoder", "SmallResNet", "--size", "24"], r"no recipe names a test set .*--test DIR"),
        (["--encoder", "ResNet", "--beside_random", "true"], r"name a run's folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(evaluate.main, ["--device", "cpu", *words])


def test_a_class_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(evaluate.main, ["--encoder.help", "Timm"])
    assert ended.value.code == 0
    assert "--encoder.name NAME" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"encoder.help=Tim, .* The nearest is Timm"):
        call(evaluate.main, ["--encoder.help", "Tim"])
