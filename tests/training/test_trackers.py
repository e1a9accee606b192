"""A run that continues is the same run to its trackers, and no step is there twice."""

import errno
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args

import accelerate.tracking
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from training.config import Tracker
from training.processes import Processes
from training.run.failure import Phase
from training.run.watchdog import TRACKERS
from training.settings import parse
from training.trackers import Trackers


class Rank:
    """A process that has met no other."""

    def __init__(self, *, first: bool) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.first = first


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)


def begin(
    run: Path,
    names: str,
    *more: str,
    step: int = 0,
    first: bool = True,
    phase: Phase | None = None,
) -> Trackers:
    run.mkdir(exist_ok=True)
    least = ["--shards", "x", "--run", str(run), "--steps", "5", "--trackers", f"[{names}]"]
    rank = cast(Processes, Rank(first=first))
    return Trackers(parse([*least, *more]), rank, phase or Phase(), step=step)


def test_a_continued_run_has_every_step_once_in_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step, last, loss in ((0, 7, 1.0), (4, 9, 2.0)):  # killed after step 7, continued from 4
        trackers = begin(tmp_path / "run", "tensorboard", step=step)
        for at in range(step + 1, last + 1):
            trackers.log({"step": at, "loss": loss})
        trackers.finish()
    found = events.EventAccumulator(str(tmp_path / "run" / "viewrank"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [
        *((step, 1.0) for step in (1, 2, 3, 4)),
        *((step, 2.0) for step in (5, 6, 7, 8, 9)),
    ]
    assert len(list((tmp_path / "run" / "viewrank").glob("*/hparams.yml"))) == 1


class Dashboard:
    """What Weights & Biases is told, by any process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.summary: dict[str, Any] = {}
        self.config: Any = self
        self.broken = False
        self.finished = 0
        self.during: Callable[[], None] = lambda: None
        module = ModuleType("wandb")
        module.__spec__ = ModuleSpec("wandb", None)
        vars(module).update(init=self.init, config=self)
        monkeypatch.setitem(sys.modules, "wandb", module)
        available = [*accelerate.tracking._available_trackers, accelerate.tracking.LoggerType.WANDB]
        monkeypatch.setattr(accelerate.tracking, "_available_trackers", available)

    def init(self, **settings: Any) -> "Dashboard":
        if self.broken:
            raise ConnectionError("no network\nat all")
        self.begun.append(settings)
        return self

    def update(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.logged.append((values, step))
        self.during()

    def finish(self) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.finished += 1


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    return Dashboard(monkeypatch)


def test_a_continued_run_is_the_same_at_weights_and_biases(tmp_path: Path, told: Dashboard) -> None:
    run = tmp_path / "my_run"
    begin(run, "wandb").log({"step": 3, "loss": 0.5})
    identity = json.loads((run / "wandb.json").read_text())["id"]
    begin(run, "wandb", "--tracker_project", "mine", "--tracker_name", "second", step=3)
    same = {"id": identity, "resume": "allow", "dir": str(run)}
    assert told.begun == [
        {"project": "viewrank", "name": "my_run", **same},
        {"project": "mine", "name": "second", **same},
    ]
    assert told.logged == [({"loss": 0.5}, 3)]
    begin(tmp_path / "other", "wandb")
    assert told.begun[-1]["id"] != identity and told.begun[-1]["dir"] == str(tmp_path / "other")


def test_final_figures_are_in_the_summary_whatever_the_last_step_was(
    tmp_path: Path, told: Dashboard
) -> None:
    trackers = begin(tmp_path / "run", "wandb")
    trackers.log({"step": 3, "evaluation": "online", "knn_top1": 0.25})
    assert told.summary == {}
    trackers.log({"step": 3, "evaluation": "final", "knn_top1": 0.5})
    assert told.summary == {"knn_top1": 0.5}
    assert told.logged == [({"knn_top1": 0.25}, 3), ({"knn_top1": 0.5}, 3)]


def test_only_the_first_rank_speaks(tmp_path: Path, told: Dashboard) -> None:
    begin(tmp_path / "run", "wandb", first=False).log({"step": 3, "loss": 0.5})
    assert not told.begun and not told.logged and not list((tmp_path / "run").iterdir())


def test_a_tracker_that_fails_is_named_once_and_ends_nothing(
    tmp_path: Path, told: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = begin(tmp_path / "run", "wandb")
    told.broken = True
    for step in (1, 2):
        trackers.log({"step": step, "loss": 0.5})
    assert capsys.readouterr().err == "warning: wandb gets no more records: no network\n"
    trackers.finish()  # which ends the run as it is, not in an error
    assert capsys.readouterr().err == "warning: wandb may lack records: no network\n"
    told.broken = False
    trackers.finish()
    assert told.finished == 1


def test_a_disk_that_fills_up_under_tensorboard_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writing = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    trackers = begin(tmp_path / "run", "tensorboard")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.RecordWriter, "flush", full)
    for step in (1, 2):
        trackers.log({"step": step, "loss": 0.5})
    trackers.finish()
    more, less = capsys.readouterr().err.splitlines()
    assert more.startswith("warning: tensorboard gets no more records: [Errno 28]")
    assert less.startswith("warning: tensorboard may lack records: [Errno 28]")


@pytest.mark.parametrize(("patience", "waits"), [(1, 10), (math.inf, math.inf)])
def test_while_a_tracker_waits_the_run_says_so(
    patience: float, waits: float, tmp_path: Path, told: Dashboard
) -> None:
    phase = Phase()
    trackers = begin(tmp_path / "run", "wandb", phase=phase)
    phase.enter("step", step=3, patience=patience)
    before, seen = phase.since, []
    told.during = lambda: seen.append((phase.name, phase.patience, phase.step))
    trackers.log({"step": 3, "loss": 0.5})
    assert seen == [(TRACKERS, waits, 3)]
    assert (phase.name, phase.patience) == ("step", patience) and phase.since > before


def test_a_tracker_that_does_not_begin_is_refused_in_one_line(
    tmp_path: Path, told: Dashboard
) -> None:
    told.broken = True
    with pytest.raises(ValueError, match=r"cannot begin \(no network at all\).*WANDB_MODE=offline"):
        begin(tmp_path / "run", "wandb")


def test_a_run_goes_on_without_a_tracker_that_does_not_begin_again(
    tmp_path: Path, told: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    begin(run, "wandb")
    told.broken = True
    trackers = begin(run, "wandb, tensorboard", step=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the run goes on, and wandb cannot begin (no network at all).")
    trackers.log({"step": 4, "loss": 0.5})
    trackers.finish()
    assert not told.logged and list((run / "viewrank").glob("events.*"))
    assert capsys.readouterr().err == ""


def test_a_run_that_begins_anew_is_another_run(tmp_path: Path, told: Dashboard) -> None:
    """Nothing was saved, so that its settings may be others, and its steps come again."""
    for _ in range(2):
        begin(tmp_path / "run", "wandb", step=0).log({"step": 3, "loss": 0.5})
    begin(tmp_path / "run", "wandb", step=2)
    first, second, continued = (settings["id"] for settings in told.begun)
    assert first != second == continued


@pytest.mark.parametrize("text", ["", "[]", '{"id": 7}', '{"id": "../../x"}', "[" * 9999])
def test_a_damaged_identity_is_not_used(
    tmp_path: Path, told: Dashboard, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb.json").write_text(text)
    begin(tmp_path / "run", "wandb", step=2)
    assert "wandb.json is not what was written" in capsys.readouterr().err
    assert not told.begun
    begin(tmp_path / "run", "wandb")  # which overwrites it
    assert len(told.begun) == 1


@pytest.mark.parametrize("name", ["", "..", "a/b", "a#b", "x" * 129])
def test_a_project_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="tracker_project"):
        parse(["--shards", "x", "--run", str(tmp_path), "--steps", "5", "--tracker_project", name])


def of_mlflow(folder: Path, _: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        (run,) = store.execute("SELECT name FROM runs").fetchall()
        assert run == ("my_run",)
        assert store.execute("SELECT count(*) FROM params WHERE key = 'batch_size'").fetchone()[0]
        return store.execute("SELECT step, value FROM metrics WHERE key = 'loss'").fetchall()


def of_trackio(folder: Path, run: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "trackio" / "viewrank.db") as store:
        found = store.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    identity = json.loads((run / "trackio.json").read_text())["id"]
    assert {name for name, _, _ in found} == {f"my_run-{identity}"}
    return [(step, json.loads(metrics)["loss"]) for _, step, metrics in found]


def of_dvclive(_: Path, run: Path) -> list[tuple[int, float]]:
    head, *lines = (run / "dvclive" / "plots" / "metrics" / "loss.tsv").read_text().splitlines()
    assert head == "step\tloss" and "batch_size" in (run / "dvclive" / "params.yaml").read_text()
    return [(int(step), float(loss)) for step, loss in (line.split("\t") for line in lines)]


PROGRAM = """
import json, sys
from pathlib import Path
from tests.training.test_trackers import begin
name, run, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
trackers = begin(run, name, step=step)
for at in (step + 1, step + 2):
    trackers.log({"step": at, "loss": 1 / at, "evaluation": "online"})
trackers.finish()
"""


@pytest.mark.slow  # and not installed by make test
@pytest.mark.parametrize(
    ("name", "read"), [("mlflow", of_mlflow), ("trackio", of_trackio), ("dvclive", of_dvclive)]
)
def test_a_continued_run_is_one_run_to_a_tracker_of_files(
    name: str, read: Callable[[Path, Path], list[tuple[int, float]]], tmp_path: Path
) -> None:
    pytest.importorskip(name)
    run = tmp_path / "my_run"
    for step in (0, 2):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, name, str(run), str(step)],
            check=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "HOME": str(tmp_path),
                "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
                "TRACKIO_DIR": str(tmp_path / "trackio"),
            },
        )
    assert sorted(read(tmp_path, run)) == [(at, pytest.approx(1 / at)) for at in (1, 2, 3, 4)]


def test_every_tracker_of_accelerate_is_offered() -> None:
    assert {str(each) for each in accelerate.tracking.LOGGER_TYPE_TO_CLASS} == {*get_args(Tracker)}


@pytest.mark.parametrize("name", get_args(Tracker))
def test_a_tracker_that_is_not_installed_is_refused_by_its_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match=r"uv pip install '(.*)', or leave it out") as refused:
        parse(["--shards", "x", "--run", str(tmp_path), "--steps", "5", "--trackers", f"[{name}]"])
    package = str(refused.value).split("'")[1].partition("<")[0]
    assert package.replace("-", "_") == name
