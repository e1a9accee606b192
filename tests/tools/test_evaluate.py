"""Published weights are judged as a run is."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import torchvision
from torch.nn import Conv2d

from evaluation.detection import Detection
from evaluation.protocol import Evaluation, Trial
from model.encoder import SmallResNet
from shards.layout import ShardSet
from shards.writing.write import write
from tests.conftest import MakeShardSet
from tests.evaluation.test_suite import FOUR, Annotated
from tests.program import BIN, ROOT, TWO, finish, kill, start
from tools.evaluate import __main__ as evaluate
from tools.evaluate import chosen_protocols
from tools.evaluate.evaluated_encoder import of_run
from tools.evaluate.kept_on_disk import KeptOnDisk
from training import exported, weights
from training.command_line import call
from training.run import checkpoint, run_folder, state_file
from training.settings import Settings, parse

QUICK_TUNING = ["--fine_tuning.rates", "0.1", "--fine_tuning.least_steps=2"]
QUICK_TUNING += ["--fine_tuning.epochs", "1"]
BY_FEATURES = ("knn_top1", "linear_top1", "linear_l2", "label_map", "label_r1", "label_r5")


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


def begin(run: Path, settings: Settings) -> None:
    """Leave what a run does that is saved before its first step."""
    run_folder.prepare(run, settings, taken=False)
    parts = {checkpoint.METHOD: settings.config.method.state_dict(), checkpoint.OPTIMIZER: {}}
    for name, part in {**parts, checkpoint.rank_file(0): {}}.items():
        checkpoint.write_part(run, 0, name, state_file.pieces(part))
    checkpoint.commit(run, 0, {"seconds": 0.0, "world_size": 1, "machine": "cpu, no"})


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
    begin(run, settings)
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


def test_an_evaluation_is_made_by_one_command_at_a_time(tmp_path: Path) -> None:
    one, other = (KeptOnDisk(tmp_path, "fine_tuning", {"seed": 0}) for _ in range(2))
    different = KeptOnDisk(tmp_path, "fine_tuning", {"seed": 1})
    with one.alone():
        with different.alone():
            pass
        with pytest.raises(ValueError, match="another command makes the same"), other.alone():
            pass
    with other.alone():
        pass


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


def test_weights_that_a_run_was_given_are_what_it_began_with(
    shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file, given = tmp_path / "run", tmp_path / "small.pth", SmallResNet(width=4)
    torch.save(given.network.state_dict(), file)
    words = ["--shards", shard_set.root, "--run", str(run), "--steps", "1", "--weights", str(file)]
    words += ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]
    words += ["--views.size", "24", "--views.count", "2"]
    begin(run, weights.recorded(parse(words)))  # other weights are saved: as if it had trained
    how: dict[str, Any] = {"size": None, "device": "cpu", "mixed_precision": "no"}
    _, step, columns = of_run(run, **how, random=True, beside=False)
    assert (step, list(columns)) == (0, ["first weights"])
    found = columns["first weights"].method.encoder.state_dict()
    assert found.keys() == given.state_dict().keys()
    assert all(torch.equal(found[name], each) for name, each in given.state_dict().items())

    named = ["--encoder", "SmallResNet", "--encoder.width", "4", "--encoder.weights", str(file)]
    more = ["--size", "24", "--protocol", "retrieval", "--beside_random", "true"]
    record = figures(tmp_path, shard_set, str(run), *named, *more)
    assert list(record["beside"].values()) == [record["random_init"]]
    assert record["random_init"]["label_map"] != record["label_map"]
    said = capsys.readouterr().out
    assert "first weights: frozen features" in said and "random init" not in said

    torch.save(SmallResNet(width=4).network.state_dict(), file)
    with pytest.raises(ValueError, match=r"small.pth has the SHA-256 .* it is another file"):
        of_run(run, **how, random=True, beside=False)
    assert list(of_run(run, **how, random=False, beside=False)[2]) == ["step 0"]


def test_a_run_without_checkpoints_says_where_its_encoder_is(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ValueError, match=rf"no checkpoint any more.*{exported.NAME}"):
        figures(tmp_path, shard_set, str(bare))
    (bare / exported.NAME).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint yet; let the run reach"):
        figures(tmp_path, shard_set, str(bare))


def test_an_encoder_beside_its_recipe_is_evaluated_as_its_run_is(
    shard_set: ShardSet, make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    run, train = tmp_path / "run", make_shard_set(43, height=24, width=24)
    words = ["--shards", shard_set.root, "--run", str(run), "--steps", "1", "--device", "cpu"]
    words += ["--evaluation_test", shard_set.root, "--evaluation_train", train.root]
    words += ["--evaluation_neighbours", "3", "--evaluation_temperature", "0.5"]
    words += ["--views.policy", "BYOLViews", "--views.size", "24", "--views.count", "3"]
    settings = parse([*words, "--method.encoder", "SmallResNet", "--method.encoder.width", "4"])
    begin(run, settings)
    encoder = settings.config.method.encoder
    exported.write(run / exported.NAME, encoder, exported.facts(settings, shard_set, step=0))

    def found(*words: str) -> dict[str, Any]:
        out = tmp_path / "figures.json"
        how = ["--device", "cpu", "--mixed_precision", "no", "--json", str(out)]
        call(evaluate.main, [*words, "--protocol", "knn", "spectra", *how])
        return json.loads(out.read_text())

    whole = found(str(run))
    shutil.rmtree(run / "checkpoints")
    assert found(str(run / exported.NAME)) == {**whole, "run": str(run / exported.NAME)}
    away = str(shutil.copy(run / exported.NAME, tmp_path))
    elsewhere = found(away, "--test", shard_set.root, "--train", train.root)
    assert elsewhere["lidar_h"] != whole["lidar_h"], "of two SimCLR views, which nothing says"
    (tmp_path / "config.yaml").write_text("colour: red")
    with pytest.raises(ValueError, match=r"config.yaml, by which .* colour .*In a folder of its"):
        found(away)


def test_what_is_found_out_about_a_checkpoint_is_kept_by_its_run(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    """The checkpoint goes when the run has newer ones."""
    going = shutil.copytree(run, tmp_path / "going")
    (saved,) = (going / "checkpoints").iterdir()
    before = {path.name for path in saved.iterdir()}
    tuning = ["--protocol", "fine_tuning", "--fine_tuning.labels", "1", *QUICK_TUNING]
    of_checkpoint = figures(tmp_path, shard_set, str(saved), *tuning)
    assert {path.name for path in saved.iterdir()} == before
    (path,) = (going / "evaluations").glob("fine_tuning-*/found.json")
    assert json.loads(path.read_text())["figures"].items() <= of_checkpoint.items()


def test_a_run_that_others_may_only_read_has_a_remedy(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    theirs = shutil.copytree(run, tmp_path / "theirs")
    (theirs / "evaluations").touch()  # takes no files; of modes root takes no notice
    with pytest.raises(OSError, match=r"name a folder of your own with --keep DIR"):
        figures(tmp_path, shard_set, str(theirs), "--protocol", "fine_tuning", *QUICK_TUNING)


def test_figures_are_written_though_nobody_reads_what_is_printed(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `… | head -5`."""
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writes, "w"))
    with pytest.raises(SystemExit):
        figures(tmp_path, shard_set, str(run), "--protocol", "retrieval")
    assert "label_map" in json.loads((tmp_path / "figures.json").read_text())


def test_names_are_shown_as_they_are(
    run: Path,
    shard_set: ShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = tmp_path / "[abl]:x:.safetensors"
    shutil.copy(run / exported.NAME, encoder)
    sets = [tmp_path / "[red]", tmp_path / "[/x]"]
    for folder in sets:
        folder.mkdir(parents=True)
        for role in ("train", "test"):
            (folder / role).symlink_to(shard_set.root)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, which shows how far it is
    monkeypatch.setenv("COLUMNS", "400")
    words = [str(encoder), "--sets", *map(str, sets), "--protocol", "retrieval"]
    call(evaluate.main, [*words, "--device", "cpu", "--mixed_precision", "no"])
    said = capsys.readouterr()
    assert said.out.count("[abl]:x:.safetensors") == 3, "the title, a column, its seconds"
    assert "│ [red] │" in said.out and "[/x]/test" in said.err


def test_a_recipe_that_comes_with_viewrank_is_found_wherever_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, flag = "recipes/detection/voc_c4.yaml", "--detection.recipe"
    for words in ([flag, name], [f"{flag}={name}"], [flag, "detection/voc_c4"]):
        words += ["--detection.iterations", "7"]
        (chosen,) = chosen_protocols.chosen(["detection"], {"detection": words}, "evaluate")
        assert isinstance(chosen.protocol, Detection)
        assert (chosen.protocol.kind, chosen.protocol.iterations) == ("c4", 7)
    for words in ([flag, "no.yaml"], [f"{flag}=no.yaml"], [flag]):
        with pytest.raises(ValueError, match=r"detection.recipe=(no.yaml)? is no file; name a"):
            chosen_protocols.chosen(["detection"], {"detection": words}, "evaluate")


def test_the_precision_of_each_category_is_in_the_json(tmp_path: Path) -> None:
    annotated = write(Annotated(24, FOUR), tmp_path / "annotated")
    named = ["--encoder", "SmallResNet", "--size", "16", "--protocol", "multi_label"]
    found = figures(tmp_path, annotated, *named)
    ap = found["details"]["multi_label_knn_ap"]
    assert list(ap) == FOUR and mean(ap.values()) == pytest.approx(found["multi_label_knn_map"])


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
    table, _, seconds = said.rpartition(" random init: ")
    assert table.count("random init") == 1 and table.count("step 0") == 1, "one table"
    assert "frozen features" in seconds and seconds.count("step 0: ") == 1
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


QUICK = ["--protocol", "fine_tuning", "augmented_probe", "--fine_tuning.labels", "0.5", "1"]
QUICK += ["--fine_tuning.draws", "2", *QUICK_TUNING, "--augmented_probe.epochs", "1"]


def test_protocols_that_train_are_named_with_their_settings(
    run: Path, shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = ["--keep", str(tmp_path / "kept")]
    found = figures(tmp_path, shard_set, *QUICK, *keep, str(run), "--beside_random", "true")
    tuned = {f"fine_tuned_{name}" for name in ("50_top1", "50_sd", "50_rate", "100_top1")}
    tuned |= {"fine_tuned_100_rate", "augmented_probe_top1", "augmented_probe_rate"}
    given = {"run", "step", "remarks", "test", "train", "queries", "references"}
    assert found.keys() - given == tuned | {"random_init"}
    assert found["random_init"].keys() == tuned
    assert "fine-tuned on 50 % of the labels, sd of the draws" in capsys.readouterr().out
    left = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert left == {"trial.json", "found.json"}

    for path in (tmp_path / "kept").glob("*/found.json"):  # it is read, not found out again
        path.write_text(json.dumps({"figures": {"fine_tuned_50_top1": 0.125}, "remarks": []}))
    assert figures(tmp_path, shard_set, *QUICK, *keep, str(run))["fine_tuned_50_top1"] == 0.125


def test_networks_that_differ_in_no_weight_have_figures_of_their_own(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: object, trial: Trial) -> Evaluation:
        (stride, _), *_ = [m.stride for m in trial.encoder.modules() if isinstance(m, Conv2d)]
        return Evaluation({"fine_tuned_100_top1": float(stride)})

    monkeypatch.setattr("evaluation.fine_tuning.FineTuning.run", run)
    words = ["--encoder", "SmallResNet", "--encoder.width", "4", "--size", "24"]
    words += ["--protocol", "fine_tuning", "--fine_tuning.labels", "1"]
    words += ["--keep", str(tmp_path / "kept"), "--encoder.stem_stride"]
    for stride in (1, 2):
        assert figures(tmp_path, shard_set, *words, str(stride))["fine_tuned_100_top1"] == stride


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fine_tuning.labels", "2"], r"labels=\[2.0\], but each is a share"),
        (["--fine_tuning.labels", "0.5", "0.01"], r"labels=0.01 of .* are none"),
        (["--fine_tuning.epochs", "1", "2"], r"fine_tuning.epochs=.*must be a number"),
        (["--fine_tuning.layer", "head"], r"The nearest (is|flag is).*layers"),
    ],
)
def test_settings_of_a_protocol_that_are_wrong_are_refused(
    run: Path, shard_set: ShardSet, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        figures(tmp_path, shard_set, str(run), "--protocol", "fine_tuning", *words)
    with pytest.raises(ValueError, match="without its protocol; add --protocol fine_tuning"):
        figures(tmp_path, shard_set, str(run), *words)


def test_a_protocol_that_cannot_take_a_set_is_refused_before_anything_is_evaluated(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("features were evaluated before the protocol saw the sets")

    monkeypatch.setattr("evaluation.suite.Suite.run", refuse)
    words = ["--protocol", "knn", "fine_tuning", "--fine_tuning.labels", "0.01"]
    with pytest.raises(ValueError, match=r"labels=0.01 of .* are none"):
        figures(tmp_path, shard_set, str(run), *words, "--keep", str(tmp_path / "kept"))


def test_a_protocol_that_fails_leaves_what_the_others_found(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("its loss is not finite")

    monkeypatch.setattr("evaluation.fine_tuning.FineTuning.run", fail)
    alone = figures(tmp_path, shard_set, str(run), "--protocol", "knn")
    tuning = ["--fine_tuning.labels", "1", "--keep", str(tmp_path / "kept")]
    words = [str(run), "--protocol", "knn", "fine_tuning", *tuning]
    with pytest.raises(SystemExit):
        figures(tmp_path, shard_set, *words)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found.pop("failed") == ["fine_tuning"]
    assert found == {**alone, "remarks": found["remarks"]}
    more = [remark for remark in found["remarks"] if remark not in alone["remarks"]]
    assert more == ["no fine_tuning: its loss is not finite"]
    with pytest.raises(ValueError, match="its loss is not finite"):
        figures(tmp_path, shard_set, str(run), "--protocol", "fine_tuning", *tuning)


EVERY_STEP = """
from evaluation import resumption
from tools.evaluate.__main__ import main
from training.command_line import run_function

resumption.SAVE_SECONDS = 0.0
run_function(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_protocols_that_are_killed_end_bit_for_bit(
    processes: int, run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "every_step.py").write_text(EVERY_STEP)
    launch = [str(BIN / "accelerate"), *TWO] if processes > 1 else [sys.executable]
    sets = ["--test", shard_set.root, "--train", shard_set.root, "--device", "cpu"]
    command = [*launch, str(tmp_path / "every_step.py"), str(run), *sets, *QUICK, "--keep"]
    here = {"PYTHONPATH": str(ROOT)}
    code, out, err = finish([*command, str(tmp_path / "whole")], **here)
    assert code == 0, out + err
    killed = 0
    for saves in (3, 8, 14):
        process = start([*command, str(tmp_path / "kept")], **here)
        deadline = time.monotonic() + 120
        while not list((tmp_path / "kept").glob(f"*/state.{saves:06d}.*")):
            assert time.monotonic() < deadline
            if process.poll() is not None:
                break
            time.sleep(0.002)
        killed += process.poll() is None
        kill(process)
    code, out, err = finish([*command, str(tmp_path / "kept")], **here)
    assert code == 0, out + err
    assert killed > 1
    whole, kept = (sorted((tmp_path / name).glob("*/found.json")) for name in ("whole", "kept"))
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in kept]


def test_a_class_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(evaluate.main, ["--encoder.help", "Timm"])
    assert ended.value.code == 0
    assert "--encoder.name NAME" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"encoder.help=Tim, .* The nearest is Timm"):
        call(evaluate.main, ["--encoder.help", "Tim"])


def test_a_protocol_that_names_its_sets_needs_no_test_set_and_is_not_repeated(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, out, keep = tmp_path / "truth.csv", tmp_path / "figures.json", tmp_path / "kept"
    truth.write_text("query_id,reference_id\n000003,000003\n000007,000007\n")
    own = dict.fromkeys(("queries", "references", "training"), shard_set.root)
    settings = own | {"ground_truth": str(truth), "dimensions": "12"}
    words = [word for name, value in settings.items() for word in (f"--disc21.{name}", value)]
    how = ["--device", "cpu", "--mixed_precision", "no", "--json", str(out), "--keep", str(keep)]
    command = [str(run / exported.NAME), "--protocol", "disc21", *words, *how]
    call(evaluate.main, command)
    found = json.loads(out.read_text())
    assert found["disc21_raw_r1"] == 1  # each image finds itself
    assert "40 of the 42 queries are not in" in found["remarks"][0] and "knn_top1" not in found

    monkeypatch.setattr("evaluation.disc21.DISC21.run", None)
    call(evaluate.main, command)
    assert json.loads(out.read_text()) == found
    truth.write_text("000003,000003\n")  # another ground truth, so other figures
    with pytest.raises(TypeError):
        call(evaluate.main, command)
    with pytest.raises(ValueError, match=r"no recipe names a test set .*--test DIR"):
        call(evaluate.main, [*command, "--protocol", "disc21", "knn"])
