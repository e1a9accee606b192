"""What tools.tune chooses among known speeds, and that train.py takes what it wrote."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.loader import Loader
from pipeline.tuning import Tuning
from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import RECIPE, finish
from tools.tune import __main__ as tune
from tools.tune import search as tune_search
from training import machine_settings, throughput
from training.command_line import call, run_function
from training.settings import parse
from training.throughput import Measurement, Workload

START = replace(Tuning().filled(batch_size=8), threads=2)
PLAN: list[tuple[str, list[Any]]] = [
    ("finish", ["fused", "dali"]),
    ("threads", [1, 2, 4]),
    ("prefetch", [1, 2, 3, 4]),
]
Speed = Callable[[Tuning], float]


def searched(
    speed: Speed, *, gpu: bool = False, seconds: float = 1000.0
) -> tuple[tune_search.Search, Tuning]:
    """Search where training has a known speed."""

    def measured(tuning: Tuning, groups: object, seconds: float) -> Measurement:
        return Measurement(batches=10, seconds=10 / speed(tuning), waited=0.0, host=0.0)

    search = tune_search.Search(measured, START, seconds=seconds, gpu=gpu)
    search.run(PLAN)
    return search, search.verify()


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tune, tune_search):
        monkeypatch.setattr(module, "default_threads", lambda: 4)
    # In this process one thread computes: several wait long for each other on a busy machine.
    monkeypatch.setattr(throughput, "use_threads", lambda: torch.set_num_threads(1))


def test_the_fastest_of_all_settings_is_found() -> None:
    """Three threads are no power of two: they are found beside the best of those."""
    threads = {1: 0.6, 2: 1.0, 3: 1.3, 4: 1.2, 5: 1.1}
    measured: Counter[str] = Counter()

    def speed(tuning: Tuning) -> float:
        assert tuning.threads and tuning.prefetch and tuning.finish
        measured[tuning.finish] += 1
        ahead = 1.05 if tuning.prefetch == 3 else 1.0
        return threads[tuning.threads] * ahead * (0.8 if tuning.finish == "dali" else 1.0)

    search, found = searched(speed)
    assert found == replace(START, threads=3, prefetch=3)
    assert search.verdict.startswith("threads 3, prefetch 3: ")
    assert f"{1.3 * 1.05:.3f} times as fast" in search.verdict
    assert measured["dali"] == 1, "what is clearly slower is not measured again"
    notes = {each.name: each.note for each in search.candidates}
    assert notes["finish dali"] == "clearly slower"
    assert notes["threads 3"] == notes["prefetch 3"] == "taken"


def test_a_gain_that_does_not_last_changes_nothing() -> None:
    seen: Counter[Tuning] = Counter()

    def speed(tuning: Tuning) -> float:
        seen[tuning] += 1
        return 1.1 if tuning.prefetch == 4 and seen[tuning] <= tune_search.ROUNDS else 1.0

    search, found = searched(speed)
    assert search.best.prefetch == 4 and found == START
    assert "no difference found, nothing is changed" in search.verdict


def test_a_gain_that_is_smaller_than_the_drift_changes_nothing() -> None:
    """Both speeds go up and down together: the settings found win each round, by 10 %."""
    seen: Counter[Tuning] = Counter()

    def speed(tuning: Tuning) -> float:
        seen[tuning] += 1
        busy = 0.5 if steady < seen[tuning] and seen[tuning] % 2 else 1.0
        return busy * (1.1 if tuning.prefetch == 4 else 1.0)

    for steady in (0, 1000):
        seen.clear()
        search, found = searched(speed)
        assert search.best.prefetch == 4
        taken = found != START
        assert taken == (steady == 1000)
        assert ("no difference found" in search.verdict) != taken
        assert ("drift by" in search.verdict) != taken


def test_what_is_slower_in_the_end_is_said_to_be() -> None:
    seen: Counter[Tuning] = Counter()

    def speed(tuning: Tuning) -> float:
        seen[tuning] += 1
        return 1.0 if tuning.prefetch != 4 else 1.1 if seen[tuning] <= tune_search.ROUNDS else 0.9

    search, found = searched(speed)
    assert found == START and "not faster, nothing is changed" in search.verdict


def test_a_gpu_is_fed_by_the_least_that_suffices_and_a_cpu_is_not() -> None:
    def speed(tuning: Tuning) -> float:
        assert tuning.threads and tuning.prefetch
        return 1.0 - 0.004 * (tuning.threads == 1) - 0.05 * (tuning.prefetch == 1)

    search, found = searched(speed, gpu=True)
    assert (found.threads, found.prefetch) == (1, 2)
    assert "as fast, for less of the host" in search.verdict
    search, found = searched(speed)
    assert found == START and "nothing was faster" in search.verdict


def test_a_candidate_that_fails_is_left_out_and_settings_in_use_that_fail_are_an_error() -> None:
    def speed(tuning: Tuning) -> float:
        if tuning.threads == 4:
            raise RuntimeError("out of\nmemory")
        return 1.2 if tuning.prefetch == 3 else 1.0

    search, found = searched(speed)
    assert found == replace(START, prefetch=3)
    notes = {each.name: each.note for each in search.candidates}
    assert notes["threads 4"] == "failed: out of memory"
    with pytest.raises(ZeroDivisionError):
        searched(lambda _: 1 / 0)


def test_without_time_nothing_is_tried_and_nothing_changed() -> None:
    search, found = searched(lambda tuning: 1.0 + (tuning.threads == 1), seconds=1e-9)
    assert found == START
    notes = {each.name: each.note for each in search.candidates}
    assert "no time left" in notes["threads 1"] and "no time left" in notes["prefetch 1"]


def test_a_machine_that_changes_meanwhile_is_reported() -> None:
    calls = iter(range(10**6))
    search, found = searched(lambda _: 1 / (1 + next(calls) / 50))
    assert found == START and "search again" in search.verdict
    assert "no difference found" in search.verdict and "nothing was faster" not in search.verdict


def test_faster_pixels_are_advice_only(make_shard_set: MakeShardSet) -> None:
    def measured(tuning: Tuning, groups: tune_search.Groups | None, seconds: float) -> Measurement:
        warp = groups is not None and groups[0].resampling == "warp"
        return Measurement(batches=10, seconds=5 if warp else 10, waited=0.0, host=0.0)

    search = tune_search.Search(measured, START, seconds=1000, gpu=False)
    group = parse(["--shards", ".", "--run", ".", "--steps", "1"]).config.views
    others = {name: (replace(group, resampling=name),) for name in ("warp", "supersample")}
    (line,) = search.advise(others)
    assert "--views.resampling warp" in line and "2.00 times" in line and "alias" in line
    assert search.verify() == START

    calls = iter(range(10**6))

    def drifting(tuning: Tuning, groups: Any, seconds: float) -> Measurement:
        now = measured(tuning, groups, seconds)
        return replace(now, seconds=now.seconds * (1 + next(calls) / 2))

    assert not tune_search.Search(drifting, START, seconds=1000, gpu=False).advise(others)


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


@pytest.fixture
def flags(shard_set: ShardSet, tmp_path: Path) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    return ["--config", str(recipe), "--shards", str(shard_set.root), "--device", "cpu"]


def test_train_takes_what_was_found(
    flags: list[str], shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = [sys.executable, "-m", "tools.tune", *flags, "--seconds", "1"]
    code, out, err = finish(program, XDG_CACHE_HOME=str(tmp_path))
    assert code == 0, err
    (path,) = (tmp_path / "viewrank").iterdir()
    assert f"written to {path}" in out
    assert re.search(r"# date: 20\d\d-", path.read_text()) and "# training: " in path.read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "viewrank"}, "no run folder"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = parse([*flags, "--run", str(tmp_path / "run"), "--steps", "1"]).config
    tuning, source = machine_settings.resolve(
        config,
        shard_set,
        device=torch.device("cpu"),
        batch_size_per_rank=config.batch_size,
        ranks_per_node=1,
        continued=False,
    )
    assert source == str(path) and tuning == machine_settings.read(path)


def test_a_pipeline_that_cannot_be_built_is_skipped_with_its_reason(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loader = Workload.loader

    def failing(workload: Workload, settings: Tuning, **more: Any) -> Loader:
        if settings.finish == "dali":
            raise RuntimeError("no such operator")
        return loader(workload, settings, **more)

    monkeypatch.setattr(Workload, "loader", failing)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "[").mkdir()
    out = tmp_path / "[/found it].yaml"  # a name, and no markup
    # What is given is no matter of the search.
    more = ["--tuning.threads", "1", "--tuning.prefetch", "1", "--seconds", "4"]
    monkeypatch.setattr(sys, "argv", ["tune", *flags, *more, "--out", str(out)])
    threads = torch.get_num_threads()
    call(tune.main)
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "failed: no such operator" in printed and f"--tuned '{out}'" in printed
    assert f"--out '{out}'" in out.read_text(), "the command, as a shell takes it"
    assert "threads" not in printed and "prefetch" not in printed
    assert (machine_settings.read(out).threads, machine_settings.read(out).prefetch) == (1, 1)


def test_what_is_found_is_written_though_nobody_reads_what_is_printed(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `… | head -5`."""

    def measured(*_: object, **__: object) -> Measurement:
        return Measurement(batches=10, seconds=1.0, waited=0.0, host=0.0)

    monkeypatch.setattr(tune, "measure_fed", measured)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writes, "w"))
    out = tmp_path / "found.yaml"
    with pytest.raises(SystemExit):
        call(tune.main, [*flags, "--out", str(out)])
    assert machine_settings.read(out).finish == "fused"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seconds", "0"], ["seconds=0", "more than 0"]),
        (["--out", "no/such/folder/x.yaml"], ["no/such/folder is no folder", "--out"]),
        (["--shards", "nowhere"], ["nowhere is not a folder of shards"]),
        (["--batch_size", "64"], ["batch_size=64 exceeds the 42 samples", "--batch_size 42"]),
        (["--minutes", "3"], ["unrecognized", "--minutes"]),
    ],
)
def test_wrong_input_is_one_line(
    more: list[str],
    words: list[str],
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["tune", *flags, *more])
    with pytest.raises(SystemExit) as ended:
        run_function(tune.main)
    _, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("free_gib", [1, 100])
def test_on_a_gpu_images_are_kept_only_if_they_fit(
    free_gib: int, make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to say what would be tried there."""
    statistics = replace(make_shard_set(42).manifest.statistics, max_width=4096, max_height=4096)
    manifest = replace(make_shard_set(42).manifest, statistics=statistics, samples=100)  # 4.7 GiB
    workload: Any = SimpleNamespace(
        device=torch.device("cuda"),
        shard_set=SimpleNamespace(manifest=manifest),
        config=SimpleNamespace(batch_size=256),
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gib * 2**30, 0))
    tried = list(tune.coordinates(workload))
    assert tried[0] == ("decode", ["gpu", "cpu"])
    assert (tried[-1] == ("decode", ["cache"])) == (free_gib == 100)
    values = dict(tried)
    assert values["minibatch"] == [256, 64] and 0.9 in values["hw_decoder_load"]
    assert values["threads"] == [1, 2, 4] and values["prefetch"] == [1, 2, 3, 4]
