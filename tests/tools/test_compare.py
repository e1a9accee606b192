"""A comparison is fair, repeatable, and goes on where it was; its arithmetic is the textbook's."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import CPU, RECIPE, losses, texts
from tools.compare import __main__ as compare
from tools.compare import chart, comparison, load
from tools.compare import result_tables as tables
from tools.compare import run as child
from tools.compare.budget import Budget
from tools.compare.difference_columns import difference_columns
from tools.compare.earlier import Earlier
from tools.compare.plan import Plan
from tools.compare.table_row import TableRow
from tools.compare.variants import Variant, check_terms, variants
from tools.evaluate import __main__ as evaluate
from training.command_line import read, run_function
from training.monitor import records
from training.paired_difference import paired_difference

BATCH_SIZE, VIEWS, SAMPLES = 8, 4, 42  # of RECIPE, and of the shard set
TIMES = {"seconds", "images_per_second", "data_wait", "memory_gib", "loader_host"}
TIMES |= {"other_programs"}


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(SAMPLES)


@pytest.fixture
def recipes(tmp_path: Path) -> list[Path]:
    """Two recipes, alike but for their objective."""
    paths = [tmp_path / "tiny_ap.yaml", tmp_path / "tiny_xent.yaml"]
    paths[0].write_text(RECIPE)
    paths[1].write_text(RECIPE.replace("SmoothAP", "NTXent"))
    return paths


@pytest.fixture
def more(shard_set: ShardSet) -> list[str]:
    root = str(shard_set.root)
    return ["--shards", root, "--evaluation_test", root, "--evaluation_train", root]


def start(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the tool in this process, as its users start it, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    for name, value in CPU.items():
        monkeypatch.setenv(name, value)
    try:
        run_function(compare.main)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


@contextmanager
def stopped_at(run: Path, step: int) -> Iterator[None]:
    """Send this process SIGTERM, as Ctrl-C in its terminal would, once a run is at a step."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            with suppress(ValueError):  # of a line that is being written
                if any(at >= step for at, _ in losses(run)):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def without_times(value: Any) -> Any:
    """Leave out what depends on the clock, on the folder, or on the day."""
    if isinstance(value, dict):
        left_out = {*TIMES, "command", "surroundings", "resolved", "made_on"}
        return {k: without_times(v) for k, v in value.items() if k not in left_out}
    return [without_times(each) for each in value] if isinstance(value, list) else value


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_real_run_that_was_stopped_ends_as_one_that_was_not(
    recipes: list[Path], more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both recipes say the same; the run of the first is stopped and continued."""
    recipes[1].write_text(recipes[0].read_text())
    out = tmp_path / "out"
    words = [*map(str, recipes), "--image_views", "400", "--points", "2", "--out", str(out), "--"]
    words += more
    run = out / "runs" / "tiny_ap-seed0"
    with stopped_at(run, 3):
        assert start(words, monkeypatch) == 128 + signal.SIGTERM
    reached = losses(run)[-1][0]
    assert 3 <= reached < 12 and (run / "checkpoints").exists()
    assert start(words, monkeypatch) == 0
    assert f"continuing from step {reached}" in (out / "logs" / "tiny_ap-seed-0.log").read_text()

    record = json.loads((out / "comparison.json").read_text())
    continued, straight = (without_times(entry) for entry in record["runs"])
    assert (continued.pop("variant"), straight.pop("variant")) == ("tiny_ap", "tiny_xent")
    assert continued == straight
    steps = 400 // (BATCH_SIZE * VIEWS)
    assert straight["steps"] == steps and straight["budget_used"] == 1
    assert [point["step"] for point in straight["curve"]] == [steps // 2, steps]
    assert {"knn_top1", "linear_top1", "view_map", "label_map"} <= set(straight["final"])
    for entry in record["runs"]:
        left = {path.name for path in (out / "runs" / f"{entry['variant']}-seed0").iterdir()}
        assert "checkpoints" not in left and "encoder.safetensors" in left
    (floor,) = record["random"]
    assert floor["figures"]["view_map"] != straight["final"]["view_map"]
    assert not any(text.startswith("/") for text in texts(record)), "an absolute path"
    width, height = Image.open(out / "comparison.png").size
    assert width > height > 400
    assert "random encoder" in (out / "comparison.md").read_text()


@pytest.fixture
def pretended(recipes: list[Path], more: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words for a comparison of two recipes with two seeds, by processes that only pretend."""
    settings = {v.recipe.stem: v.resolved for v in variants(recipes, [], more, where_known=False)}
    monkeypatch.setenv("PRETENDED_SETTINGS", json.dumps(settings))
    stub = str(Path(__file__).parent / "pretender.py")
    monkeypatch.setattr(child, "launch", lambda _: [sys.executable, stub])
    monkeypatch.setattr(child, "TICK", 0.02)

    def random_command(self: Plan, variant: Variant, seed: int) -> list[str]:
        figures = json.dumps({"knn_top1": 0.2 + seed / 10, "run": "x"})
        words = ["import sys; open(sys.argv[1], 'w').write(sys.argv[2])"]
        return [sys.executable, "-c", *words, str(self.random(variant, seed)), figures]

    monkeypatch.setattr(Plan, "random_command", random_command)
    return [*map(str, recipes), "--image_views", "480", "--seeds", "0", "1", "--points", "3"]


def of_seed(seed: int, words: list[str]) -> list[str]:
    """Return the words of the same comparison with one seed."""
    at = words.index("--seeds")
    return [*words[:at], "--seeds", str(seed), *words[at + 3 :]]


def test_two_recipes_with_two_seeds_stopped_and_continued(
    pretended: list[str], more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(name: str) -> list[str]:
        return [*pretended, "--out", str(tmp_path / name), "--", *more]

    assert start(words("straight"), monkeypatch) == 0
    stopped = tmp_path / "stopped"
    run = stopped / "runs" / "tiny_ap-seed1"
    monkeypatch.setenv("PRETENDED_SLOWNESS", "tiny_ap-1")
    with stopped_at(run, 5):
        assert start(words("stopped"), monkeypatch) == 128 + signal.SIGTERM
    assert 5 <= losses(run)[-1][0] < 15 and not (stopped / "runs" / "tiny_xent-seed1").exists()
    assert start(words("stopped"), monkeypatch) == 0
    first, second = (
        json.loads((tmp_path / name / "comparison.json").read_text())
        for name in ("straight", "stopped")
    )
    assert without_times(first) == without_times(second)
    assert tables.rows(first) == tables.rows(second)
    for run in (stopped / "runs").iterdir():  # no step was made twice, no finished run again
        assert [at for at, _ in losses(run)] == list(range(1, 16))
    (row,) = [row for row in tables.rows(second) if not row.trained]
    assert row.figures["knn_top1"] == pytest.approx((0.25, np.std([0.2, 0.3], ddof=1)))


def test_a_run_that_fails_stops_no_other_and_is_tried_again(
    pretended: list[str],
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*pretended, "--best_by", "knn_top1", "--out", str(tmp_path / "out"), "--", *more]
    monkeypatch.setenv("PRETENDED_FAILURE", "tiny_xent-0")
    assert start(words, monkeypatch) == 1
    out = capsys.readouterr().out
    assert "FAILED run 2 of 4: tiny_xent, seed 0: exit status 2: error: it was not meant" in out
    assert "| xent (1 of 2) |" in out and "xent, seed 0: exit status 2" in out
    assert "tiny_xent.yaml: no variant has knn_top1 with every seed and the whole budget" in out
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert sum("final" in run for run in record["runs"]) == 3
    here, old = comparison._machine(), [run.get("made_on") for run in record["runs"]]
    assert [made and made["cpu"] for made in old] == [here["cpu"], here["cpu"], None, here["cpu"]]
    assert " of 4 runs: " not in out, "all of one machine"
    monkeypatch.delenv("PRETENDED_FAILURE")
    new = {**here, "date": "2031-02-03T04:05:06", "commit": "89abcde0", "gpu": "Another GPU"}
    monkeypatch.setattr(comparison, "_machine", lambda: new)
    # An older version said for all runs together where they were made.
    (tmp_path / "out" / "machines" / "tiny_ap-seed0.json").unlink()
    del record["runs"][0]["made_on"], record["manifests"]
    (tmp_path / "out" / "comparison.json").write_text(json.dumps(record))
    for _ in range(2):  # what is finished stays where it was made
        assert start(words, monkeypatch) == 0
        out = capsys.readouterr().out
        assert "FAILED" not in out and "(1 of 2)" not in out
        assert f"- 3 of 4 runs: {len(os.sched_getaffinity(0))} core" in out
        assert "- 1 of 4 runs: Another GPU, 2031-02-03, commit 89abcde" in out
        record = json.loads((tmp_path / "out" / "comparison.json").read_text())
        made_on = [run["made_on"] for run in record["runs"]]
        assert made_on[:2] + made_on[3:] == old[:2] + old[3:]
        assert made_on[2] == {name: new[name] for name in made_on[0]}
    # Another budget in the same folder would mix two experiments; so would other settings.
    changed = [word.replace("480", "960") for word in words]
    assert start(changed, monkeypatch) == 2
    assert "holds a comparison with budget" in capsys.readouterr().err
    assert start(["5" if word == "3" else word for word in words], monkeypatch) == 2
    assert "holds a comparison with points 3, this one has 5" in capsys.readouterr().err
    for setting, value, told in (
        ("learning_rate", "0.5", "learning_rate: 0.01 there, 0.5 here"),
        ("evaluation_neighbours", "5", "evaluation_neighbours: 20 there, 5 here"),
        ("evaluation_train", "null", f"evaluation_train: {more[1]} there, None here"),
    ):
        assert start([*words, f"--{setting}", value], monkeypatch) == 2
        err = capsys.readouterr().err
        assert "was trained with other settings" in err and told in err


def test_published_weights_are_the_same_for_all_runs_at_every_start(
    pretended: list[str],
    recipes: list[Path],
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "published.pth"
    torch.save({"weight": torch.ones(1)}, file)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    about = {"weights": str(file), "weights_sha256": digest}  # as train.py writes them
    settings = json.loads(os.environ["PRETENDED_SETTINGS"])
    settings = {name: each | about for name, each in settings.items()}
    monkeypatch.setenv("PRETENDED_SETTINGS", json.dumps(settings))
    words = [*of_seed(0, pretended), "--out", str(tmp_path / "out"), "--", *more]
    words += ["--weights", str(file)]
    for _ in range(2):
        assert start(words, monkeypatch) == 0
    assert len(losses(tmp_path / "out" / "runs" / "tiny_ap-seed0")) == 15, "trained once"
    capsys.readouterr()
    torch.save({"weight": torch.zeros(1)}, file)
    assert start(words, monkeypatch) == 2
    assert f"weights_sha256: {digest} there" in capsys.readouterr().err

    file.write_bytes(content)
    recipes[1].write_text(f"{recipes[1].read_text()}weights: {file}\n")
    compared = variants(recipes, [], more, where_known=False)
    with pytest.raises(ValueError, match=f"weights: None in tiny_ap, {digest} in tiny_xent"):
        check_terms(compared, [])
    assert list(check_terms(compared, ["weights"])) == ["weights"]


def test_a_comparison_in_two_parts_is_that_in_one(
    pretended: list[str],
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def words(name: str, *flags: str) -> list[str]:
        return [*pretended, *flags, "--out", str(tmp_path / name), "--", *more]

    def record(name: str) -> dict[str, Any]:
        return json.loads((tmp_path / name / "comparison.json").read_text())

    part = str(tmp_path / "part" / "comparison.json")
    assert start(words("whole"), monkeypatch) == 0
    assert start(of_seed(1, words("part")), monkeypatch) == 0
    elsewhere = record("part")
    for run in elsewhere["runs"]:
        run["made_on"]["cpu"] = "another CPU"
    Path(part).write_text(json.dumps(elsewhere))
    capsys.readouterr()
    assert start(words("rest", "--add", part), monkeypatch) == 0
    trained = {run.name for run in (tmp_path / "rest" / "runs").iterdir()}
    assert trained == {"tiny_ap-seed0", "tiny_xent-seed0"}, "the others were finished"
    found = record("rest")
    made_on, mine = [run["made_on"] for run in found["runs"]], found["surroundings"]["cpu"]
    cpus = [each["cpu"] for each in made_on]
    assert cpus == [mine, "another CPU", mine, "another CPU"]
    assert without_times(found) == without_times(record("whole"))
    out = capsys.readouterr().out
    assert all(re.search(f"2 of 4 runs: .* of {re.escape(cpu)}, 20", out) for cpu in cpus)
    # Its runs go on being taken from a result that took them.
    again = str(tmp_path / "rest" / "comparison.json")
    assert start(words("again", "--add", again), monkeypatch) == 0
    assert not (tmp_path / "again" / "runs").exists()
    assert record("again")["runs"][1]["made_on"] == made_on[1]
    # One of an older version lacks settings that are new, and had what is their default.
    older = record("part")
    for each in older["variants"]:
        del each["resolved"]["encoder_rate"]
        del each["resolved"]["method"]["init_args"]["gallery"]
    for run in older["runs"]:  # … and said where for all runs
        del run["made_on"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    flags = ("--add", str(tmp_path / "older.json"))
    assert start(of_seed(1, words("newer", *flags)), monkeypatch) == 0
    assert not (tmp_path / "newer" / "runs").exists()
    assert [run["made_on"]["cpu"] for run in record("newer")["runs"]] == [mine, mine]
    capsys.readouterr()

    def refused(flags: list[str], file: str = part) -> str:
        words = [*pretended, "--add", file, "--out", str(tmp_path / "no"), *flags]
        assert start(words, monkeypatch) == 2
        return capsys.readouterr().err

    assert "tiny_ap with other settings: learning_rate: 0.01, not 0.5" in refused(
        ["--", *more, "--learning_rate", "0.5"]
    )
    assert "has points 3, this comparison 2" in refused(["--points", "2", "--", *more])
    assert "no comparison.json of tools.compare" in refused(["--", *more], str(recipe_of(more)))
    assert "cannot be read: No such file" in refused(["--", *more], str(tmp_path / "none.json"))


def recipe_of(more: list[str]) -> Path:
    """Return a JSON file that is no comparison's: a shard set's manifest."""
    return next(Path(more[1]).glob("*.json"))


EVALUATED = """
import json, pathlib, sys
calls = pathlib.Path(sys.argv[2])
calls.write_text((calls.read_text() if calls.exists() else "") + sys.argv[1] + "\\n")
if calls.with_name("broken").exists():
    sys.exit("error: no such thing")
if calls.with_name("empty").exists():  # as tools.evaluate does where every figure fails
    nothing = {"run": "x", "step": 9, "remarks": ["no k-NN"], "sets": {"pets": {"test": "p"}}}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(nothing))
    sys.exit("error: no figures")
seed = 0.1 if "seed1" in sys.argv[1] else 0.0
of = {"few_shot_1_top1": 0.3 + seed + 0.2 * ("ap" in sys.argv[1]), "few_shot_1_ci": 0.01}
record = {"run": "x", "step": 9, **of, "sets": {"pets": {"knn_top1": 0.7 + seed, "test": "p"}}}
pathlib.Path(sys.argv[1]).write_text(json.dumps(record))
"""


def test_each_run_is_evaluated_besides_once_and_its_figures_are_in_the_tables(
    pretended: list[str],
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = tmp_path / "calls"

    def command(self: Plan, variant: Variant, seed: int, *, random: bool = False) -> list[str]:
        assert list(self.evaluate) == ["--protocol", "few_shot"]
        assert random or (self.run(variant, seed) / "checkpoints").exists()
        out = str(self.evaluation(variant, seed, random=random))
        return [sys.executable, "-c", EVALUATED, out, str(calls)]

    monkeypatch.setattr(Plan, "evaluate_command", command)
    out = tmp_path / "out"
    words = [*pretended, "--evaluate", "--protocol few_shot", "--best_by", "few_shot_1_top1"]
    words += ["--out", str(out), "--", *more]
    (tmp_path / "broken").touch()
    assert start(words, monkeypatch) == 1
    said = capsys.readouterr().out
    assert "FAILED run 1 of 4: evaluation of tiny_ap, seed 0: exit status 1: error: no such" in said
    assert "- ap, seed 0: its evaluation: exit status 1" in said
    (tmp_path / "broken").rename(tmp_path / "empty")
    assert start(words, monkeypatch) == 1
    assert "evaluation of tiny_ap, seed 0: exit status 1: error: no fig" in capsys.readouterr().out
    assert len(list((out / "runs").glob("*/checkpoints"))) == 4, "kept for the next try"
    (tmp_path / "empty").unlink()
    calls.unlink()
    assert start(words, monkeypatch) == 0
    assert len(calls.read_text().splitlines()) == 2 + 4
    assert start(words, monkeypatch) == 0
    assert len(calls.read_text().splitlines()) == 2 + 4, "done is done"
    assert not list((out / "runs").glob("*/checkpoints"))
    said = capsys.readouterr().out
    assert "few-shot, 1 image a class % | k-NN % on pets |" in said
    # What two have alike is nobody's best.
    assert "| **55.0 ± 7.1** | 75.0 ± 7.1 |" in said and "interval %" not in said
    assert "tiny_ap.yaml  # few_shot_1_top1 0.5500, the best of 1" in said
    record = json.loads((out / "comparison.json").read_text())
    assert record["runs"][0]["evaluated"]["knn_top1 on pets"] == 0.7
    assert record["random"][1]["evaluated"]["few_shot_1_top1"] == pytest.approx(0.6)
    assert "which figures without labels predict" in said, "four runs"
    assert "| view mAP | " in said and "| loss | " not in said, "all losses are equal"
    # A run that was removed is another one afterwards: what was found out about it goes, too.
    shutil.rmtree(out / "runs" / "tiny_ap-seed0")
    by_other_flags = [out / "evaluations" / f"tiny_ap-seed{seed}-0123abcd.json" for seed in (0, 1)]
    for path in by_other_flags:
        path.write_text("{}")
    assert start(words, monkeypatch) == 0
    again = calls.read_text().splitlines()[2 + 4 :]
    assert [Path(call).name.rpartition("-")[0] for call in again] == ["tiny_ap-seed0"]
    assert [path.exists() for path in by_other_flags] == [False, True]
    assert len(json.loads((out / "loads" / "tiny_ap-seed0.json").read_text())) == 1
    assert len(losses(out / "runs" / "tiny_ap-seed0")) == 15


def test_a_random_encoder_without_figures_is_evaluated_again(
    pretended: list[str], more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds = Plan.random_command  # a pretended one

    def finds_nothing(self: Plan, variant: Variant, seed: int) -> list[str]:
        code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); sys.exit('error: none')"
        return [sys.executable, "-c", code, str(self.random(variant, seed)), '{"step": 0}']

    def floor() -> dict[str, Any]:
        return json.loads((tmp_path / "out" / "comparison.json").read_text())["random"][0]

    words = [*of_seed(0, pretended[1:]), "--out", str(tmp_path / "out"), "--", *more]
    monkeypatch.setattr(Plan, "random_command", finds_nothing)
    assert start(words, monkeypatch) == 1
    assert "error" in floor()
    monkeypatch.setattr(Plan, "random_command", succeeds)
    assert start(words, monkeypatch) == 0
    assert floor()["figures"] == {"knn_top1": 0.2}


def plan_of(out: Path, recipes: list[Path], more: list[str], budget: Budget) -> Plan:
    """Return the plan of a comparison with seed 0."""
    compared = variants(recipes, [], more, where_known=False)
    fixed: dict[str, Any] = {"seeds": [0], "points": 3, "processes": 1, "more": more}
    return compare._planned(compared, None, [], out=out, budget=budget, evaluate=[], **fixed)


@pytest.mark.parametrize("other", ["cpu", "gpu"])
def test_seconds_of_another_machine_are_no_part_of_a_comparison(
    other: str, recipes: list[Path], more: list[str], tmp_path: Path
) -> None:
    here = {"date": "2026-01-02", "commit": "1234567", "cpu": "one", "cores": 2, "gpu": None}
    there = here | {other: "another"}
    plans = {
        name: plan_of(tmp_path / name, recipes[:1], more, budget)
        for name, budget in {"views": Budget(image_views=480), "time": Budget(seconds=9)}.items()
    }
    for plan in plans.values():
        (variant,) = plan.compared
        folder = plan.run(variant, 0)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(comparison.with_values(variant, seed=0).yaml())
        comparison.check(plan, here)  # an older version said nowhere where it trained a run
        file = plan.made_on(variant, 0)
        file.parent.mkdir()
        file.write_text(json.dumps(there))
        comparison.check(plan, there | {"date": "2026-03-04", "commit": "89abcde", "cores": 1})
    comparison.check(plans["views"], here)
    with pytest.raises(ValueError) as error:
        comparison.check(plans["time"], here)
    assert f"({other}: another there, {here[other]} here)" in str(error.value)
    assert f"another --out with --add {tmp_path / 'time' / 'comparison.json'}" in str(error.value)


def test_a_shard_set_that_was_made_again_is_another_one(
    recipes: list[Path], shard_set: ShardSet, tmp_path: Path
) -> None:
    copies = {name: tmp_path / name for name in ("train", "test")}
    for copy in copies.values():
        shutil.copytree(shard_set.root, copy)
    more = ["--shards", str(copies["train"]), "--evaluation_test", str(copies["test"])]
    out, budget = tmp_path / "out", Budget(image_views=480)

    def begin(*numbers: int, of: list[str] = more) -> dict[str, Any]:
        plan = plan_of(out, [recipes[number] for number in numbers], of, budget)
        return comparison.Comparison(plan, Console(), Earlier([], plan)).write()

    record = begin(0, 1)
    assert not any(text.startswith("/") for text in texts(record)), "an absolute path"
    assert begin(0)["manifests"] == record["manifests"], "of the variant that was left out, too"
    begin(0, of=[*more, "--evaluation_test", str(shard_set.root)])  # nothing was trained yet
    begin(0)
    manifest = shard_set.manifest
    text = replace(manifest, command=f"{manifest.command} again").to_json()
    (copies["test"] / "manifest.json").write_text(text)
    plan = plan_of(out, recipes[1:2], more, budget)
    (variant,) = plan.compared
    folder = plan.run(variant, 0)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(comparison.with_values(variant, seed=0).yaml())
    with pytest.raises(ValueError, match=f"on {copies['test']} before it was made again"):
        begin(1)
    shutil.rmtree(folder)  # what was trained on it
    begin(1)
    begin(0, of=[*more, "--evaluation_test", str(shard_set.root)])
    del record["manifests"]  # as of an older version
    (out / "comparison.json").write_text(json.dumps(record))
    assert begin(1)["manifests"].keys() == {"tiny_xent"}


def test_a_run_without_checkpoints_is_evaluated_by_its_encoder(
    recipes: list[Path], more: list[str], tmp_path: Path
) -> None:
    """The recipe beside it has its sets and settings; flags come first."""
    (variant,) = variants(recipes[:1], [], more, where_known=False)
    plan = Plan(
        out=tmp_path,
        compared=[variant],
        samples={},
        digests={},
        seeds=[0],
        budget=Budget(seconds=1),
        points=1,
        processes=1,
        more=more,
        allowed={},
        command="",
        evaluate=["--protocol", "few_shot", "--test=data/other"],
    )
    run = plan.run(variant, 0)
    (run / "checkpoints").mkdir(parents=True)
    words = plan.evaluate_command(variant, 0)
    with_checkpoints = read(evaluate.main, words[3:])[1]
    assert (with_checkpoints["run"], with_checkpoints["test"]) == (run, "data/other")
    (run / "checkpoints").rmdir()
    without = read(evaluate.main, plan.evaluate_command(variant, 0)[3:])[1]
    assert without == {**with_checkpoints, "run": run / "encoder.safetensors"}
    assert "--random_init" in plan.evaluate_command(variant, 0, random=True)
    assert plan.evaluation(variant, 0) != plan.evaluation(variant, 0, random=True)


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────


def test_means_and_deviations_are_numpys() -> None:
    values = [0.503, 0.511, 0.498, 0.52]
    middle, deviation = tables.spread(values)
    assert middle == pytest.approx(np.mean(values))
    assert deviation == pytest.approx(np.std(values, ddof=1))
    assert tables.spread([0.5]) == (0.5, None)


def test_a_budget_of_image_views_counts_every_view() -> None:
    assert Budget(image_views=10_000).steps(64 * 4) == 39
    assert Budget(seconds=9).steps(64 * 4) is None
    with pytest.raises(ValueError, match="a step takes 256 image views"):
        Budget(image_views=255).steps(64 * 4)
    with pytest.raises(ValueError, match="exactly one"):
        Budget()
    with pytest.raises(ValueError, match="exactly one"):
        Budget(seconds=1, image_views=1)
    with pytest.raises(ValueError, match="seconds=-1, but the budget must be above 0"):
        Budget(seconds=-1)


def test_the_figure_that_counts_is_of_what_is_sought() -> None:
    assert tables.main_of({"view_map", "copy_map"}) == "copy_map"
    assert tables.main_of({"view_map", "copy_map", "knn_top1"}) == "knn_top1"
    assert tables.main_of({"view_map"}) == "view_map"


def test_the_figures_of_a_run_leave_its_start_out(tmp_path: Path) -> None:
    facts = {"loss": 1.0, "memory_gib": 1.0}
    lines = [
        {"step": 5, "evaluation": "online", "knn_top1": 0.2},
        {"step": 10, "seconds": 9.0, "data_wait": 0.9, **facts},
        {"step": 15, "evaluation": "online", "knn_top1": 0.3},
        {"step": 20, "seconds": 13.0, "data_wait": 0.5, **facts},
        {"step": 25, "seconds": 14.0, "data_wait": 0.0, **facts, "memory_gib": 2.0},
        {"step": 25, "evaluation": "final", "knn_top1": 0.4},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert records(tmp_path) == lines
    found = child.result(tmp_path, batch_size=8, views=2)
    assert found["images_per_second"] == pytest.approx(15 * 8 / 5)
    assert found["data_wait"] == pytest.approx((0.5 * 4 + 0.0 * 1) / 5)
    assert (found["seconds"], found["memory_gib"], found["image_views"]) == (14.0, 2.0, 25 * 16)
    assert [(p["step"], p["seconds"]) for p in found["curve"]] == [(5, 4.5), (15, 11.0), (25, 14.0)]


def test_where_a_run_is_stands_at_the_end_of_its_records(tmp_path: Path) -> None:
    assert comparison._progress(tmp_path) == " …"
    step, evaluation = {"step": 1234, "loss": 1.0, "seconds": 56.4}, {"step": 1234, "knn_top1": 0.5}
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.write(b"\xff" * 2**17 + b"\n")  # no text, and so much that nobody should read it
        file.write(f"{json.dumps(step)}\n{json.dumps(evaluation)}\n".encode())
        file.write(b'{"step": 1235, "lo')
    assert comparison._progress(tmp_path) == ", step 1,234, 56 s of training"


def test_a_line_of_the_chart_is_the_mean_where_every_seed_was_evaluated() -> None:
    def run(final_step: int, *values: float) -> dict[str, Any]:
        steps = [*(10, 20, 30)[: len(values) - 1], final_step]
        return {
            "curve": [
                {"step": s, "seconds": s / 2, "knn_top1": v}
                for s, v in zip(steps, values, strict=True)
            ]
        }

    line = chart.curve([run(40, 0.1, 0.2, 0.3, 0.5), run(24, 0.3, 0.4, 0.7)], "knn_top1", "seconds")
    assert line == [
        (5.0, pytest.approx(0.2), 0.1, 0.3),
        (10.0, pytest.approx(0.3), 0.2, 0.4),
        (16.0, pytest.approx(0.6), 0.5, 0.7),
    ]
    line = chart.curve([chart.with_images(run(40, 0.1, 0.5), 64)], "knn_top1", "images")
    assert line == [(640, 0.1, 0.1, 0.1), (2560, 0.5, 0.5, 0.5)]


def test_runs_of_equal_seconds_have_a_line_though_their_steps_differ() -> None:
    def run(*points: tuple[int, float]) -> dict[str, Any]:
        return {
            "curve": [
                {"step": step, "seconds": 10.0 * number, "knn_top1": value}
                for number, (step, value) in enumerate(points, start=1)
            ]
        }

    runs = [run((9, 0.1), (21, 0.3), (30, 0.5)), run((11, 0.3), (19, 0.5), (29, 0.7))]
    line = chart.curve(runs, "knn_top1", "seconds")
    assert [(x, pytest.approx(y)) for x, y, _, _ in line] == [(10, 0.2), (20, 0.4), (30, 0.6)]


def test_the_name_of_the_folder_is_said_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "[/x]"
    out.mkdir(parents=True)
    (out / "comparison.json").write_text(json.dumps(made_up(steps={"m-a": 100, "m-b": 100})))
    monkeypatch.setattr(chart, "available", lambda: False)
    assert start(["--out", str(out), "--redraw", "true"], monkeypatch) == 0
    assert f"in {out}: comparison.json, comparison.md" in capsys.readouterr().out


def test_the_best_is_marked_among_those_that_had_their_budget() -> None:
    record = made_up(steps={"m-a": 96, "m-b": 100}, busy=0.04)
    best, other, floor = tables.rows(record)
    assert (best.label, other.label, floor.label) == ("b", "a", "random encoder")
    assert best.marks == other.marks == "" and not best.notes and not other.notes
    text = tables.markdown(record)
    assert "| b | **60.0 ± 14.1** |" in text and "| a | 50.0 ± 14.1 |" in text
    assert "| random encoder | 30.0 ± 0.0 |" in text
    (line,) = compare.best(record, "knn_top1")
    assert line == "--config m.yaml --learning_rate 2  # knn_top1 0.6000, the best of 2"


def test_nobody_is_best_within_the_interval_of_a_difference() -> None:
    record = made_up(steps={"m-a": 100, "m-b": 100})
    assert "| b | **60.0" in tables.markdown(record)
    assert "| a | -10.0 ± 0.0 |" in tables.markdown(record)
    record["runs"][3]["final"]["knn_top1"] -= 0.05  # of b; a difference is 0.1, the other 0.05
    text = tables.markdown(record, against="a")
    # t = 12.7062 with one degree of freedom: 12.7062 · 0.0354 / √2 = 0.318
    assert "| b | 57.5 ± 10.6 |" in text and "| b | +7.5 ± 31.8 |" in text
    alone = record | {"seeds": [0], "runs": [run for run in record["runs"] if run["seed"] == 0]}
    assert "| b | 50.0 |" in tables.markdown(alone), "one seed makes nobody the best"
    assert "differences to" not in tables.markdown(alone)
    assert "| b | +10.0 |" in tables.markdown(alone, against="a")


def test_a_figure_that_lacks_a_seed_is_not_the_best() -> None:
    """Of the easiest seeds alone, a mean is the highest."""
    of = {
        "lucky": {1: 0.7, 2: 0.9},
        "whole": {0: 0.1, 1: 0.6, 2: 0.8},
        "worse": {0: 0.0, 1: 0.5, 2: 0.7},
    }
    rows = [
        TableRow(name, {"knn_top1": tables.spread([*seeds.values()])}, True, {"knn_top1": seeds})
        for name, seeds in of.items()
    ]
    (column,) = tables.columns(rows, {"knn_top1": "k-NN %"})
    assert column.cells[0].startswith("80.0 ±") and column.best == 1


def test_what_evaluate_found_has_columns_but_replaces_no_figure_of_embeddings() -> None:
    """It may have seen an encoder without its projector."""
    record = made_up(steps={"m-a": 100, "m-b": 100})
    later = {"view_map": 0.1, "lidar": 7.0, "label_map": 0.35, "view_map on pets": 0.2}
    for run in record["runs"]:
        run["final"]["view_map"] = 0.9
        run["evaluated"] = {**later, "few_shot_1_top1 on pets": 0.5, "few_shot_1_ci on pets": 0.01}
    for row in tables.rows(record)[:2]:
        found = {name: middle for name, (middle, _) in row.figures.items()}
        for name, value in {**later, "view_map": 0.9}.items():
            assert found[name] == pytest.approx(value), name
    headings = tables.learned(record)
    assert "few_shot_1_top1 on pets" in headings and "few_shot_1_ci on pets" not in headings


def test_differences_are_to_a_variant_that_had_every_seed() -> None:
    of = {"lucky": {0: 0.9}, "better": {0: 0.5, 1: 0.6}, "worse": {0: 0.4, 1: 0.5}}
    rows = [
        TableRow(name, {"knn": (0.5, None)}, fair=len(values) == 2, by_seed={"knn": values})
        for name, values in of.items()
    ]
    found = difference_columns(rows, {"knn": "k-NN"})
    assert found is not None
    title, names, (column,) = found
    assert title.startswith("differences to better,") and names == ["lucky", "worse"]
    assert column.heading == "k-NN" and "-10.0 ± 0.0" in column.cells


@pytest.mark.parametrize("seeds", [2, 3, 7, 31, 200])
def test_a_difference_has_scipys_interval_of_paired_values(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    one = dict(enumerate(random.normal(0.5, 0.1, seeds).tolist()))
    other = dict(enumerate(random.normal(0.4, 0.1, seeds).tolist()))
    found = paired_difference(one | {999: 0.0}, other)
    assert found is not None and found.half is not None and found.pairs == seeds
    of = stats.ttest_rel(list(one.values()), list(other.values()))
    low, high = of.confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2)
    # Beyond 31 pairs the interval is that of 31, at most 4 % too wide.
    rel = 1e-4 if seeds <= 31 else 0.045
    assert found.half == pytest.approx((high - low) / 2, rel=rel)
    assert found.above_zero == (found.mean > found.half)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({0: 1.0}, {0: 0.5})
    assert single is not None and single.half is None and not single.above_zero


def test_whatever_had_less_than_its_budget_is_marked_and_crowned_by_nobody() -> None:
    record = made_up(steps={"m-a": 100, "m-b": 35})
    first, second, _ = tables.rows(record)
    assert (first.label, first.marks, second.marks) == ("b", " †", "")
    assert "used 35% (seed 0), 35% (seed 1) of the budget" in first.notes[0]
    text = tables.markdown(record)
    assert "| b † | 60.0 ± 14.1 |" in text and "| a | 50.0 ± 14.1 |" in text  # no bold face
    (line,) = compare.best(record, "knn_top1")
    assert line.startswith("--config m.yaml --learning_rate 1 ") and "best of 1" in line


def test_runs_beside_other_programs_are_marked_where_seconds_are_compared() -> None:
    record = made_up(steps={"m-a": 100, "m-b": 100}, busy=0.31)
    first, second, _ = tables.rows(record)
    assert first.marks == second.marks == " ‡"
    assert "other programs took 31% (seed 1) of the processor meanwhile" in first.notes[0]
    assert not [line for line in tables.markdown(record).splitlines() if "| **" in line]
    record["budget"] = {"image_views": 100}  # of which a busy machine gives as many
    assert all(row.marks == "" for row in tables.rows(record))


def test_what_other_programs_take_is_what_no_child_does(tmp_path: Path) -> None:
    """One core's worth of work by a child, then by a program that is none."""
    spin = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    cores = len(os.sched_getaffinity(0))
    with load.measured(tmp_path / "child.json"):
        subprocess.run([sys.executable, "-c", spin], check=True)
    other = subprocess.Popen([sys.executable, "-c", spin.replace("1.5", "60")])
    try:
        with load.measured(tmp_path / "other.json"):
            time.sleep(1.5)
    finally:
        other.kill()
        other.wait()
    alone, beside = (load.others(tmp_path / f"{name}.json") for name in ("child", "other"))
    assert alone is not None and beside is not None
    assert beside > 0.5 / cores  # other tests may run beside this one: they only add
    with load.measured(tmp_path / "child.json"):
        pass
    assert len(json.loads((tmp_path / "child.json").read_text())) == 2
    assert load.others(tmp_path / "none.json") is None


@pytest.mark.slow
def test_equal_seconds_are_equal_on_a_machine_that_is_busy_for_half_of_them(
    recipes: list[Path], more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each uses its budget to the end of its schedule, though the second has fewer steps."""
    out = tmp_path / "out"
    words = [*map(str, recipes), "--seconds", "8", "--points", "2", "--out", str(out), "--"]
    busy: list[subprocess.Popen[bytes]] = []

    def disturb() -> None:
        while not (out / "runs" / "tiny_xent-seed0").exists():
            if over.wait(0.05):
                return
        spin = [sys.executable, "-c", "while True: pass"]
        busy.extend(subprocess.Popen(spin) for _ in os.sched_getaffinity(0))

    over = threading.Event()
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert start([*words, *more, "--warmup_epochs", "0"], monkeypatch) == 0
    finally:
        over.set()
        thread.join()
        for each in busy:
            each.kill()
            each.wait()
    record = json.loads((out / "comparison.json").read_text())
    for run in record["runs"]:
        assert run["budget_used"] >= 1 and run["seconds"] < 12
        folder = out / "runs" / f"{run['variant']}-seed0"
        *_, last = [found["learning_rate"] for found in records(folder) if "loss" in found]
        assert last < 0.001  # of 0.01: the schedule ended too
    assert record["runs"][1]["other_programs"] > 0.2
    assert "| xent ‡ |" in (out / "comparison.md").read_text()


@pytest.mark.parametrize("width", [100, 160])
def test_the_table_is_cut_nowhere(width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, record=True)
    tables.show(made_up(steps={"m-a": 90, "m-b": 100}), console)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines()[:20])) <= width
    for words in ("50.0 ± 14.1", "label mAP %", "image views", "waiting %", "rate", "alike: "):
        assert words in text


def made_up(*, steps: dict[str, int], busy: float = 0.0) -> dict[str, Any]:
    """Return a record of two variants with two seeds, of 100 steps each.

    Args:
        steps: how many of them were made.
        busy: share of the processor that other programs took beside the second seed.
    """

    def settings(rate: float) -> dict[str, Any]:
        known: dict[str, Any] = dict.fromkeys(tables.SETTINGS, "")
        return known | {"learning_rate": rate, "batch_size": 8}

    def run(name: str, seed: int) -> dict[str, Any]:
        final = {"knn_top1": (0.4 if name == "m-a" else 0.5) + 0.2 * seed, "label_map": 0.25}
        cost = dict.fromkeys(tables.COST, 1.0)
        own = {"variant": name, "seed": seed, "steps": steps[name]}
        own |= {"budget_used": steps[name] / 100, "other_programs": busy if seed else 0.01}
        return cost | own | {"final": final}

    both = list(enumerate(("m-a", "m-b")))
    return {
        "command": "python -m tools.compare",
        "budget": {"seconds": 5.0},
        "seeds": [0, 1],
        "agreed": {"encoder": {"class_path": "model.encoder.ResNet"}},
        "allowed": {},
        "surroundings": {"cores": 2},
        "variants": [
            {
                "name": name,
                "recipe_name": "m",
                "recipe": "m.yaml",
                "flags": ["--learning_rate", str(i + 1)],
                "settings": settings(i + 1.0),
                "views_of_first_group": 2,
            }
            for i, name in both
        ],
        "random": [{"variant": "m-a", "seed": s, "figures": {"knn_top1": 0.3}} for s in (0, 1)],
        "runs": [run(name, seed) for _, name in both for seed in (0, 1)],
    }


# ── fairness, and what varies ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new", "name", "words"),
    [
        ("{width: 4}", "{width: 8}", "encoder", ["width 4 in tiny_ap", "width 8 in tiny_xent"]),
        (
            "SmallResNet, init_args: {width: 4}",
            "ResNet",
            "encoder",
            ["SmallResNet in", "ResNet in"],
        ),
        ("count: 2, size: 24", "count: 2, size: 32", "policy", ["24 in", "32 in"]),
        (
            "{class_path: SimCLRViews}",
            "{class_path: BYOLViews}",
            "policy",
            ["SimCLRViews in", "BYOLViews in"],
        ),
        ("batch_size", "mixed_precision: fp32\nbatch_size", "", ["mixed_precision"]),
        ("batch_size", "mixed_precision: bf16\nbatch_size", "precision", ["auto", "bf16"]),
        (
            "batch_size",
            "evaluation_neighbours: 200\nevaluation_temperature: 0.1\nbatch_size",
            "evaluation",
            ["neighbours 20, temperature 0.07 in tiny_ap", "200, temperature 0.1 in tiny_xent"],
        ),
    ],
)
def test_what_a_comparison_holds_fixed_is_refused_unless_allowed(
    old: str, new: str, name: str, words: list[str], recipes: list[Path], more: list[str]
) -> None:
    text = recipes[1].read_text()
    assert old in text
    recipes[1].write_text(text.replace(old, new))
    with pytest.raises(ValueError) as error:
        check_terms(variants(recipes, [], more, where_known=False), [])
    for word in words:
        assert word in str(error.value)
    if name:
        assert f"--allow_differences {name}" in str(error.value)
        allowed = check_terms(variants(recipes, [], more, where_known=False), [name])
        assert list(allowed) == [name]


def test_a_difference_is_told_once_for_all_recipes_that_have_it(
    recipes: list[Path], more: list[str], tmp_path: Path
) -> None:
    text = recipes[1].read_text().replace("count: 2, size: 24", "count: 2, size: 32")
    recipes[1].write_text(text)
    third = tmp_path / "third.yaml"
    third.write_text(text)
    compared = variants([*recipes, third], [], more, where_known=False)
    (told,) = check_terms(compared, ["policy"])["policy"]
    first, second, last = (variant.name for variant in compared)
    assert told.count(f"in {first}, ") == 1 and told.endswith(f"in {second} and {last}")


def test_views_batch_method_and_optimizer_may_differ(recipes: list[Path], more: list[str]) -> None:
    text = recipes[1].read_text().replace("count: 2, size: 24", "count: 6, size: 24")
    recipes[1].write_text(text.replace("batch_size: 8", "batch_size: 4\noptimizer: sgd"))
    a, b = variants(recipes, [], more, where_known=False)
    assert check_terms([a, b], []) == {}
    assert (a.image_views, b.image_views) == (8 * 4, 4 * 8)


def test_what_varies_is_every_combination_under_names_of_its_own(
    recipes: list[Path], more: list[str]
) -> None:
    vary = [
        "learning_rate=1e-3,2e-3",
        "method.init_args.objective.init_args.temperature=0.05,0.1",
    ]
    found = variants(recipes, vary, more, where_known=False)
    assert len(found) == len({v.name for v in found}) == 8
    assert found[1].name == "tiny_ap-learning_rate=1e-3-temperature=0.1"
    for variant in found:
        rate, temperature = variant.flags[1], variant.flags[3]
        assert variant.flags[2] == "--method.objective.temperature"
        assert variant.resolved["learning_rate"] == float(rate)
        objective = variant.resolved["method"]["init_args"]["objective"]
        assert objective["init_args"]["temperature"] == float(temperature)


def test_a_setting_that_one_recipe_lacks_varies_where_it_is_known(
    recipes: list[Path], more: list[str]
) -> None:
    other = RECIPE.replace("{class_path: SmallResNet, init_args: {width: 4}}", "ResNet")
    recipes[1].write_text(other)
    vary = ["method.encoder.width=4,8"]
    with pytest.raises(ValueError, match=r"tiny_xent\.yaml has no setting method\.encoder\.width"):
        variants(recipes, vary, more, where_known=False)
    names = [variant.name for variant in variants(recipes, vary, more, where_known=True)]
    assert names == ["tiny_ap-width=4", "tiny_ap-width=8", "tiny_xent"]


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--image_views", "700", "--seconds", "3"], ["exactly one of them"]),
        (["--seconds", "0"], ["seconds=0", "above 0"]),
        (["--seconds", "9", "--seeds", "1", "1"], ["seeds=[1, 1]", "different"]),
        (["--seconds", "9", "--vary", "learning_rate"], ["KEY=VALUE,VALUE"]),
        (["--seconds", "9", "--vary", "nothing=1"], ["no setting nothing", "vary_where_known"]),
        (["--seconds", "9", "--vary", "seed=1,2"], ["--seed", "--seeds instead"]),
        (["--seconds", "9", "--best_by", "loss"], ["best_by", "knn_top1"]),
        (["--seconds", "9", "--best_by", "fine_tuned_1_sd"], ["best_by", "fine_tuned_10_top1"]),
        (["--seconds", "9", "--evaluate", "few_shot"], ["--evaluate: few_shot is no flag"]),
        (["--seconds", "9", "--evaluate", "--protocol fewshot"], ["--evaluate: ", "few_shot"]),
        (["--seconds", "9", "--evaluate", "--json x.json"], ["--json is what the comparison sets"]),
        (["--seconds", "9", "--evaluate", "--sets no"], ["--evaluate: --sets no", "train"]),
        (["--seconds", "9", "--evaluate", "--test no"], ["--evaluate: no is not a folder of sh"]),
        (["--image_views", "31"], ["tiny_ap", "32 image views", "image_views=31"]),
        (["--image_views", "64"], ["tiny_ap", "warm-up takes 2 steps", "only 2 fit"]),
        (["--seconds", "9", "--", "--steps", "5"], ["--steps", "--seconds or --image_views"]),
        (["--seconds", "9", "--", "--nothing", "5"], ["tiny_ap.yaml", "--nothing"]),
        (["--seconds", "9", "--", "--shards", "nowhere"], ["nowhere is not a folder of shards"]),
        (["--seconds", "9", "--", "--batch_size", "64"], ["batch_size=64", "42 samples"]),
        (
            ["--seconds", "9", "--", "--evaluation_train", "null", "--evaluation_test", "null"],
            ["names no evaluation_test", "-- --evaluation_test DIR"],
        ),
    ],
)
def test_wrong_input_is_one_line_and_trains_nothing(
    words: list[str],
    pieces: list[str],
    recipes: list[Path],
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = words.index("--") if "--" in words else len(words)
    out = tmp_path / "out"
    before = [str(recipes[0]), *words[:cut], "--out", str(out), "--", *more, *words[cut + 1 :]]
    assert start(before, monkeypatch) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    for piece in pieces:
        assert piece in err
    assert not (out / "runs").exists() and not (out / "random").exists()
