"""What tools.bench reports is consistent, and it leaves nothing else behind."""

import errno
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import RECIPE, finish, texts
from tools import bench
from training import rounds, throughput
from training.command_line import call, run_function

VIEWS, BATCH_SIZE = 4, 8  # of RECIPE


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


@pytest.fixture
def flags(shard_set: ShardSet, tmp_path: Path) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    more = ["--shards", str(shard_set.root), "--device", "cpu", "--tuned", "none"]
    return ["--config", str(recipe), *more]


def check(record: dict[str, Any], kinds: set[str]) -> None:
    """Hold the figures against each other."""
    assert set(record["figures"]) == kinds
    for name, figures in record["figures"].items():
        ms = figures["ms_a_batch"]
        assert 0 < figures["least"] <= ms <= figures["most"]
        assert figures["images_per_second"] * ms == pytest.approx(1000 * BATCH_SIZE)
        assert figures["views_per_second"] == pytest.approx(VIEWS * figures["images_per_second"])
        assert figures["batches"] >= 2 * record["rounds"]
        if name != "step":
            assert 0 < figures["host_ms_a_batch"] <= figures["most"]
            # Without a GPU, waiting is being in the loader.
            assert 0 < figures["data_wait"] <= 1
    assert record["memory_gib"]["host"] > 0.1
    assert record["surroundings"]["cores"] and record["surroundings"]["versions"]["torch"]
    assert record["settings"]["batch_size"] == BATCH_SIZE
    assert record["tuning"]["finish"] == "fused" and "defaults" in record["tuning"]["source"]
    assert not any(text.startswith("/") for text in texts(record)), "an absolute path"


def test_feed_measures_the_parts_and_the_whole(flags: list[str], tmp_path: Path) -> None:
    """As its users start it."""
    files = {name: tmp_path / f"feed.{name}" for name in ("json", "png", "trace")}
    program = [sys.executable, "-m", "tools.bench", "feed", *flags, "--seconds", "0.5"]
    program += ["--rounds", "2", "--json", str(files["json"]), "--chart", str(files["png"])]
    code, out, err = finish([*program, "--trace", str(files["trace"])])
    assert code == 0, err
    record = json.loads(files["json"].read_text())
    check(record, {"loader", "step", "both"})
    assert (record["what"], record["rounds"], record["views"]) == ("feed", 2, VIEWS)
    ratio = record["ratio"]
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    step, both = record["figures"]["step"], record["figures"]["both"]
    assert step["least"] / both["most"] <= ratio["median"] <= step["most"] / both["least"]
    assert record["drift"] >= 0
    assert "loader alone" in out and f"{ratio['median']:.3f}" in out and "perfetto" in out

    width, height = Image.open(files["png"]).size
    assert width > height > 200
    names = [event.get("name") for event in json.loads(files["trace"].read_text())["traceEvents"]]
    assert names.count("loader") >= 5 and names.count("step") >= 5
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"recipe.yaml", *(path.name for path in files.values())}, "no run folder"


@pytest.mark.parametrize(("what", "kind"), [("pipeline", "loader"), ("step", "step")])
def test_a_part_alone(
    what: str,
    kind: str,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "[").mkdir()
    out = tmp_path / "[/x].json"  # a name, and no markup
    more = ["--seconds", "0.2", "--rounds", "1", "--json", str(out)]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    # In this process one thread computes: several wait long for each other on a busy machine.
    monkeypatch.setattr(throughput, "use_threads", lambda: torch.set_num_threads(1))
    monkeypatch.setattr(sys, "argv", ["bench", what, *flags, *more])
    threads = torch.get_num_threads()
    call(bench.main)
    torch.set_num_threads(threads)
    record = json.loads(out.read_text())
    check(record, {kind})
    said = capsys.readouterr().out
    assert "ratio" not in record and "one round" in said and f"figures in {out}" in said


MEASURED = {
    "rounds": 1,
    "figures": {
        "step": {
            "ms_a_batch": 2.0,
            "least": 1.0,
            "most": 3.0,
            "images_per_second": 10.0,
            "views_per_second": 20.0,
        }
    },
    "memory_gib": {"host": 1.0},
    "surroundings": {"gpu": None, "cores": 2},
    "batch_size": 8,
    "views": 2,
}


def test_figures_and_chart_are_written_though_nobody_reads_what_is_printed(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `… | head -5`."""
    monkeypatch.setattr(bench, "bench", lambda *_, **__: MEASURED)
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writes, "w"))
    files = {name: tmp_path / f"step.{name}" for name in ("json", "png")}
    more = ["--json", str(files["json"]), "--chart", str(files["png"])]
    with pytest.raises(SystemExit):
        call(bench.main, ["step", *flags, *more])
    assert json.loads(files["json"].read_text()) == MEASURED
    assert Image.open(files["png"]).size[0] > 400


def test_a_chart_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    chart = tmp_path / "chart.png"
    chart.write_bytes(b"the one before")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space"):
        bench.draw(MEASURED, chart)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the one before"]


def said(least: float, middle: float, most: float, drift: float | None = 0.001) -> str:
    record = {
        "ratio": {"least": least, "median": middle, "most": most},
        "drift": drift,
        "figures": {"both": {"data_wait": 0.01}},
        "surroundings": {"gpu": "some"},
        "memory_gib": {"host": 1.0, "gpu": 2.0},
    }
    return " ".join(bench.conclusions(record))


def test_the_verdict_is_as_certain_as_the_rounds() -> None:
    assert "is reached" in said(0.975, 0.98, 0.99)
    assert "is missed" in said(0.90, 0.91, 0.92)
    assert "neither" in said(0.96, 0.98, 0.99)


@pytest.mark.parametrize(
    ("ratio", "drift", "differs", "verdict"),
    [
        (0.80, 0.10, True, "missed"),
        (0.80, 0.30, False, "neither"),  # a machine that is busy at times
        (0.95, 0.03, True, "neither"),
        (1.00, 0.02, False, "reached"),  # no difference, and surely above the goal
        (0.99, 0.05, False, "neither"),
        (1.20, 0.30, False, "neither"),
    ],
)
def test_measurements_that_drift_by_more_than_they_differ_show_nothing(
    ratio: float, drift: float, differs: bool, verdict: str
) -> None:
    text = said(ratio - 0.001, ratio, ratio + 0.001, drift)
    assert ("no difference found" in text) != differs
    assert (f"drift by {drift:.1%}" in text) != differs
    assert f"is {verdict}" in text


def test_one_round_shows_nothing() -> None:
    text = said(0.5, 0.5, 0.5, None)
    assert "no conclusion" in text and "--rounds 3" in text and "missed" not in text


def test_rounds_go_there_and_back_so_that_a_trend_favours_none() -> None:
    """Work that gets slower with each turn: the same for both kinds, and so is their ratio."""
    clock, order = iter(range(1, 1000)), []

    def measured(turn: Any, *_: Any, **__: Any) -> throughput.Measurement:
        return throughput.Measurement(batches=1, seconds=float(turn()), waited=0.0, host=0.0)

    def say(_: int, name: str) -> None:
        order.append(name)

    loader: Any = SimpleNamespace(device=torch.device("cpu"))
    turns: Any = {name: lambda: next(clock) for name in ("step", "both")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "measure", measured)
        patch.setattr(rounds, "settle", lambda *_: None)
        patch.setattr(rounds, "fill_cache", lambda *_: None)
        found = rounds._take(turns, loader, 1.0, 3, say)
    assert order[2:] == ["step", "both", "both", "step", "step", "both"]
    assert list(found[0]) == ["step", "both"]
    ratios = [each["step"].seconds / each["both"].seconds for each in found]
    assert min(ratios) < 1 < max(ratios)


@pytest.mark.parametrize(
    ("what", "more", "words"),
    [
        ("feed", ["--seconds", "0"], ["seconds=0", "more than 0"]),
        ("feed", ["--rounds", "0"], ["rounds=0", "1 or more"]),
        ("feed", ["--json", "no/such/x.json"], ["no/such is no folder", "--json"]),
        ("feed", ["--shards", "nowhere"], ["nowhere is not a folder of shards"]),
        ("step", ["--batch_size", "64"], ["batch_size=64 exceeds the 42 samples", "42 or lower"]),
        ("food", [], ["food"]),
    ],
)
def test_wrong_input_is_one_line(
    what: str,
    more: list[str],
    words: list[str],
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    refused(["bench", what, *flags, *more], words, monkeypatch, capsys)


def test_a_chart_without_matplotlib_says_how_to_get_it(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    words = ["matplotlib", "not installed", "uv pip install"]
    refused(["bench", "step", *flags, "--chart", "x.png"], words, monkeypatch, capsys)


def test_several_processes_are_refused(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["WORLD_SIZE=2", "one process", "without accelerate launch"]
    refused(["bench", "step", *flags], words, monkeypatch, capsys)


def refused(
    command: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        run_function(bench.main)
    _, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err
