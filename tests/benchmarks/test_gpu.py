"""The command for a GPU, rehearsed: its time boxes, what a cut-off leaves, and every stage."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.gpu.__main__ as program
from benchmarks.gpu import captured, charts, feeding, host_side, learning, loading, material, tables
from benchmarks.gpu.__main__ import SPARE, STAGES, Stage
from benchmarks.gpu.box import BoxedMeasurement, Clock, Row, Sizes, fill, needed
from pipeline.loader import Batch
from pipeline.tuning import Tuning
from training.throughput import Measurement

ROOT = Path(__file__).parent.parent.parent
HEAD = {"stage": "try", "gpu": None, "surroundings": {"commit": "c0ffee"}}


def silent(_: str) -> None:
    pass


def filled(
    path: Path, measurements: list[BoxedMeasurement], seconds: float = 60.0, *, first: bool = False
) -> Row:
    clock = Clock(time.monotonic() + seconds)
    return fill(path, HEAD, measurements, clock, first=first, say=silent)


def crash() -> Row:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def refuse() -> Row:
    raise ValueError("no such GPU")


def test_what_is_there_is_not_made_again_and_what_failed_is(tmp_path: Path) -> None:
    path, made = tmp_path / "try.json", tmp_path / "made"

    def work(name: str) -> Row:
        with made.open("a") as file:
            file.write(f"{name} ")
        if name == "b" and len(made.read_text().split()) < 3:
            raise ValueError("not yet")
        return {"value": name}

    jobs = [BoxedMeasurement(name, lambda name=name: work(name), 1.0) for name in "ab"]
    jobs.append(BoxedMeasurement("data", lambda: work("data"), 1.0, kept=False))
    first = filled(path, jobs)
    assert first["rows"]["b"]["failed"] == "ValueError: not yet" and not first["complete"]
    second = filled(path, jobs)
    assert second["complete"] and second["rows"]["b"]["value"] == "b"
    assert {row["commit"] for row in second["rows"].values()} == {"c0ffee"}
    assert made.read_text().split() == ["a", "b", "data", "b", "data"]
    assert json.loads(path.read_text()) == second


@pytest.mark.parametrize(
    ("work", "why"), [(crash, "its process ended with -9"), (refuse, "ValueError: no such GPU")]
)
def test_what_crashes_takes_nothing_along(
    tmp_path: Path, work: Callable[[], Row], why: str
) -> None:
    jobs = [BoxedMeasurement("bad", work, 1.0), BoxedMeasurement("good", lambda: {"value": 1}, 1.0)]
    rows = filled(tmp_path / "try.json", jobs)["rows"]
    assert why in rows["bad"]["failed"] and rows["good"]["value"] == 1


def test_what_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    told = tmp_path / "process"

    def hang() -> Row:
        child = subprocess.Popen(["sleep", "60"])
        told.write_text(str(child.pid))
        child.wait()
        return {}

    begin = time.monotonic()
    row = filled(tmp_path / "try.json", [BoxedMeasurement("hang", hang, 0.5)], 1.5)["rows"]["hang"]
    assert time.monotonic() - begin < 10 and "not done after" in row["failed"]
    deadline = time.monotonic() + 5
    while Path(f"/proc/{told.read_text()}").exists():
        state = Path(f"/proc/{told.read_text()}/stat").read_text().split()[2]
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_being_made_ends_with_the_command(tmp_path: Path) -> None:
    told = tmp_path / "process"

    def hang() -> Row:
        told.write_text(str(os.getpid()))
        time.sleep(60)
        return {}

    command = os.fork()
    if command == 0:
        filled(tmp_path / "try.json", [BoxedMeasurement("hang", hang, 30.0)])
        os._exit(0)
    deadline = time.monotonic() + 10
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(command, signal.SIGKILL)
    os.waitpid(command, 0)
    status = Path(f"/proc/{told.read_text()}/stat")
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_with_too_little_time_shorter_ones_are_made(tmp_path: Path) -> None:
    jobs = [BoxedMeasurement("long", lambda: {}, 100.0), BoxedMeasurement("short", lambda: {}, 1.0)]
    record = filled(tmp_path / "try.json", jobs, 30.0)
    assert list(record["rows"]) == ["short"] and not record["complete"]


def test_what_comes_first_is_made_alone_and_then_not_again(tmp_path: Path) -> None:
    path = tmp_path / "try.json"
    jobs = [
        BoxedMeasurement("a", lambda: {"n": 1}, 1.0),
        BoxedMeasurement("b", lambda: {"n": 1}, 1.0),
    ]
    jobs.append(BoxedMeasurement("c", lambda: {"n": time.time()}, 1.0, first=True))
    record = filled(path, jobs, first=True)
    assert list(record["rows"]) == ["c"] and not record["complete"]
    after = filled(path, jobs)
    assert after["complete"] and after["rows"]["c"] == record["rows"]["c"]


def test_what_comes_first_fits_into_the_minutes_that_are_named(tmp_path: Path) -> None:
    place = Sizes(data=tmp_path, coco=None, cifar10=None, out=tmp_path, rehearsal=False)
    files = [(tmp_path / stage.name, stage.measurements(place)) for stage in STAGES]
    (minutes,) = re.findall(r"--minutes (\S+) --out results  ", str(program.__doc__))
    imports = 20.0
    left = 60 * float(minutes) - SPARE - imports
    assert needed(files[:-1]) <= 300  # five minutes, as the text says
    assert 360 - imports <= needed(files[-1:]) <= left  # and six more, of one learning
    assert {"sound", "feeding", "host_side", "ranking", "learning"} == {
        stage.name for stage in STAGES if any(each.first for each in stage.measurements(place))
    }


def test_what_fits_into_no_command_keeps_no_time_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(name: str, seconds: float) -> Stage:
        job = BoxedMeasurement(name, lambda: {}, seconds, first=True)
        return Stage(name, lambda _: [job], 0.5)

    boxes: list[float] = []

    def recorded(*given: Any, first: bool, **_: object) -> Row:
        boxes.extend([given[-1].left] if first else [])
        return {}

    monkeypatch.setattr(program, "fill", recorded)
    monkeypatch.setattr(program, "around", lambda _: {"gpu": None})
    monkeypatch.setattr(program, "driver_begun", lambda: False)
    monkeypatch.setattr(program, "_age", lambda: 10.0)
    words = f"--minutes 10 --spent 70 --out {tmp_path} --data {tmp_path} --rehearse"
    monkeypatch.setattr(sys, "argv", ["gpu", *words.split()])
    left = 600 - 70 - 10 - SPARE

    monkeypatch.setattr(program, "STAGES", [stage("a", 100), stage("b", 300)])
    program.main()
    assert boxes == pytest.approx([left - 301, left], abs=5)  # a leaves b its time
    boxes.clear()
    monkeypatch.setattr(program, "STAGES", [stage("a", 100), stage("b", 450)])
    program.main()
    assert boxes == pytest.approx([left, left], abs=5)


def test_figures_of_another_gpu_are_not_mixed_in(tmp_path: Path) -> None:
    record = {"stage": "sound", "gpu": "NVIDIA X, 1.0, 80 GiB", "rows": {}}
    (tmp_path / "sound.json").write_text(json.dumps(record))
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "1", "--out", str(tmp_path)]
    command += ["--rehearse", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "sound.json has figures of NVIDIA X, this is " in done.stderr
    assert json.loads((tmp_path / "sound.json").read_text()) == record


def pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(count)
    for number in range(count):
        pixels = random.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(size)
        image.save(folder / f"{number}.jpg")


def rehearsed(tmp_path: Path, *only: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run the command on the CPU, all its stages or some, and return what it said and left."""
    pictures(tmp_path / "coco", 6, (160, 120))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / "cifar10" / split / name, 48, (32, 32))
            pictures(tmp_path / "stl10" / split / name, 24, (96, 96))
    pictures(tmp_path / "coco2014" / "train2014", 24, (256, 256))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "6", "--rehearse"]
    command += ["--out", str(out), "--data", str(tmp_path / "data")]
    for data in ("coco", "cifar10", "stl10", "coco2014"):
        command += [f"--{data}", str(tmp_path / data)]
    command += ["--only", *only] if only else []
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300), out


def test_most_stages_run(tmp_path: Path) -> None:
    only = ("feeding", "host_side", "ranking", "loading")
    done, out = rehearsed(tmp_path, *only)
    assert done.returncode == 0 and done.stdout.endswith(" complete\n"), done.stdout + done.stderr
    stages = tables.read(out)
    assert set(stages) == set(only) and all(stage["complete"] for stage in stages.values())
    assert "Failed" not in tables.markdown(out)


@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path) -> None:
    done, out = rehearsed(tmp_path)
    logs = (out / "log.txt").read_text(errors="replace")[-3000:]
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" complete\n") and "not complete" not in done.stdout, (
        done.stdout + logs
    )
    # What tells most of the last stage is there before the rest of the first one.
    lines = done.stdout.splitlines()
    learned, buffers = (
        next(i for i, line in enumerate(lines) if text in line) for text in ("SimCLR:", "buffers,")
    )
    assert learned < buffers
    stages = tables.read(out)
    assert set(stages) == {stage.name for stage in STAGES}
    assert all(stage["complete"] and stage["gpu"] is None for stage in stages.values())
    sound = stages["sound"]["rows"]
    for kind in ("default", "deterministic"):
        continued = sound[f"a continued run, {kind} kernels"]
        assert continued["continued_differs_by"] == 0 == continued["repeated_differs_by"]
        assert 0 < continued["continued_from"] <= continued["steps"]
    assert sound["buffers, finish fused"]["wrong_batches"] == 0
    pixels = sound["decoded pixels, 90% asked of the decoding engine"]
    assert pixels["mean_levels"] == 0 == pixels["images_that_a_run_would_refuse"]
    text = tables.markdown(out)
    headings = ("Sound", "Fed by the pipeline", "What a step waits for", "Exact Smooth-AP")
    headings += ("The step as one CUDA graph", "The loader alone", "Learned in equal seconds")
    for heading in headings:
        assert f"**{heading}" in text
    for data in ("CIFAR-10", "5,000 labelled images of STL-10, without their labels", "COCO's"):
        assert f"| {data}" in text or f"5,000 images of {data}" in text
    for method, row in stages["captured"]["rows"].items():  # the eager step, on the CPU
        if method.startswith("recorded "):
            assert row["recorded_differs_by"] == 0 == row["losses_differ_by"], method
    assert "Failed" not in text
    drawn = charts.draw(out, tmp_path)
    assert all(path.stat().st_size > 5_000 for path in drawn) and len(drawn) == 3


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "--rehearse runs without one" in done.stderr
    assert not list(tmp_path.iterdir())


def test_goals_are_reached_or_missed_by_the_figures(tmp_path: Path) -> None:
    assert tables.markdown(tmp_path) == tables.NOTHING
    kernel = {"ms_median": 15.0, "extra_bytes": 2**29, "tflops": 50.0}
    rows = {"a": {"N": 32_768, "V": 4, "forms": {"kernel float32": kernel}}}
    (goal,) = tables.goals({"ranking": {"rows": rows}})
    assert "kernel float32: **15.0 ms, 512 MiB**, reached" in goal
    kernel["ms_median"] = 25.0
    assert "25.0 ms, 512 MiB**, missed" in tables.goals({"ranking": {"rows": rows}})[0]


def test_what_is_known_of_a_late_measurement_is_kept(tmp_path: Path) -> None:
    def late() -> Row:
        time.sleep(60)
        return {}

    job = BoxedMeasurement("late", late, 0.2, rescue=lambda: {"steps": 7})
    row = filled(tmp_path / "try.json", [job], 1.0)["rows"]["late"]
    assert row["steps"] == 7 and "not done after" in row["cut_off"] and "failed" not in row
    record = filled(tmp_path / "try.json", [job], 1.0)
    assert record["complete"] and record["rows"]["late"] == row, "it will do"
    job = replace(job, whole=True, rescue=lambda: {"steps": 8})
    record = filled(tmp_path / "try.json", [job], 1.0)
    assert record["rows"]["late"]["steps"] == 8 and not record["complete"], "it was made again"


def test_what_has_to_be_whole_is_begun_only_with_all_of_its_time(tmp_path: Path) -> None:
    job = BoxedMeasurement("a", lambda: {"n": 1}, 100.0, rescue=lambda: {"n": 0})
    assert filled(tmp_path / "most.json", [job], 90.0)["rows"]
    assert not filled(tmp_path / "all.json", [replace(job, whole=True)], 90.0)["rows"]


def test_a_crash_stays_one_whatever_was_known_before(tmp_path: Path) -> None:
    job = BoxedMeasurement("refused", refuse, 0.2, rescue=lambda: {"steps": 7})
    record = filled(tmp_path / "try.json", [job])
    row = record["rows"]["refused"]
    assert row["steps"] == 7 and "no such GPU" in row["failed"] and not record["complete"]


def test_images_are_taken_from_a_folder_or_from_zips(tmp_path: Path) -> None:
    pictures(tmp_path / "stl10" / "train" / "cat", 2, (96, 96))
    for name in ("a", "b"):
        with ZipFile(tmp_path / f"{name}.zip", "w") as file:
            file.write(tmp_path / "stl10/train/cat/0.jpg", f"stl10/train/{name}/0.jpg")
    zips = (tmp_path / "a.zip", tmp_path / "b.zip")
    for _ in range(2):  # what is unpacked is not unpacked again
        root = material._unzipped(zips, tmp_path / "unpacked", "stl10")
        assert sorted(path.name for path in (root / "train").iterdir()) == ["a", "b"]
    folder = (tmp_path / "stl10",)
    assert material._unzipped(folder, tmp_path / "other", "stl10") == folder[0]
    with pytest.raises(SystemExit, match="give a folder, or all of its zips"):
        program._given([tmp_path / "c.zip"], "usual.zip")


def test_each_learned_table_names_its_data_and_only_cifar_has_the_goal() -> None:
    final = {"knn_top1": 0.9, "linear_top1": 0.9}
    row = {"final": final, "views_per_second": 1.0, "seconds": 180.0, "seconds_to_84.8%": 60.0}
    text = "5,000 labelled images of STL-10, without their labels"
    rows = {"a": row, "b": {**row, "data": text}}
    found = tables.learning(rows)
    assert f"| {text}, ResNet-18 | k-NN |" in found and found.count("to 84.8 %") == 1
    assert tables.goals({"learning": {"rows": {"b": rows["b"]}}}) == []


def place_of(tmp_path: Path, *, rehearsal: bool) -> Sizes:
    return Sizes(data=tmp_path, coco=None, cifar10=None, out=tmp_path, rehearsal=rehearsal)


def leave_unparsed(monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    """Let a stage take any words for a batch of 8: parsing them imports every method."""
    config = SimpleNamespace(batch_size=8, tuning=Tuning())
    monkeypatch.setattr(stage, "parse", lambda _: SimpleNamespace(config=config))


class FakeLoader:
    """Two groups of views a batch; says what is asked of it, and which views are still held."""

    def __init__(self, device: str = "cpu", events: list[str] | None = None) -> None:
        self.device = torch.device(device)
        self.tuning = Tuning().filled(batch_size=4)
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.events = [] if events is None else events

    def __enter__(self) -> "FakeLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append("closed")

    def endless(self) -> Iterator[Batch]:
        while True:
            yield self.batch()

    def batch(self) -> Batch:
        views = tuple(torch.ones(2, 4, 3, size, size) for size in (8, 4))
        self.held = [weakref.ref(each) for each in views]
        return Batch(views=views, id_B=torch.arange(4), label_B=torch.zeros(4))


@pytest.mark.parametrize("copied", [False, True])
def test_a_copied_batch_of_dali_s_is_let_go_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    place, loader, alive = place_of(tmp_path, rehearsal=True), FakeLoader(), []
    finishes: list[str | None] = []

    def step(views: tuple[torch.Tensor, ...], **_: float) -> None:
        assert [each.sum().item() for each in views] == [2 * 4 * 3 * 64, 2 * 4 * 3 * 16]
        alive.append(sum(each() is not None for each in loader.held))

    def made(tuning: Tuning) -> FakeLoader:
        finishes.append(tuning.finish)
        return loader

    def measured(turn: Callable[[], object], *_: object, **__: object) -> Measurement:
        turn()
        return Measurement(batches=1, seconds=1.0, waited=0.0, host=0.0)

    workload = SimpleNamespace(device=loader.device, loader=made, step=step)
    monkeypatch.setattr(feeding, "Workload", lambda _: workload)
    monkeypatch.setattr(feeding, "measure", measured)
    leave_unparsed(monkeypatch, feeding)
    assert feeding.fed_from_batches(place, [], copied=copied)["copied"] is copied
    assert finishes == ["dali"], "else the pass of the training stream has copied it already"
    assert alive == ([0, 0] if copied else [2, 2])


def counted(events: list[str]) -> Callable[..., Measurement]:
    """Return a `measure` whose first turn includes a start of 9 s."""

    def measure(*_: object, **__: object) -> Measurement:
        events.append("measured")
        seconds = 9.0 if len(events) == 1 else 0.2
        return Measurement(batches=2, seconds=seconds, waited=0.0, host=0.1)

    return measure


def test_a_loader_s_start_is_not_in_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(loading, "measure", counted(events))
    monkeypatch.setattr(loading, "open_shards", lambda _: None)
    monkeypatch.setattr(loading, "Loader", lambda *_, **__: FakeLoader())
    place = place_of(tmp_path, rehearsal=True)
    row = loading.throughput(place, tmp_path, Tuning(), V=2, size=32)
    assert row["most"] == row["ms_a_batch"] == 100.0
    assert len(events) == 1 + row["repeats"]


def test_the_decoding_engine_is_asked_while_the_loader_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def use() -> float:
        events.append("asked")
        return 0.4

    loader = FakeLoader("cuda", events)
    workload = SimpleNamespace(loader=lambda _: loader)
    monkeypatch.setattr(host_side, "Workload", lambda _: workload)
    monkeypatch.setattr(loading, "measure", counted(events))
    monkeypatch.setattr(loading, "decoding_engine_use", use)
    leave_unparsed(monkeypatch, host_side)
    row = host_side.loader(place_of(tmp_path, rehearsal=True), [], 0.9, 4)
    assert events == ["measured", "measured", "asked", "closed"]
    assert row["decoding_engine_use"] == 0.4 and row["ms"] == 100.0
    assert row["samples_per_second"] == 80.0 and row["host_ms_a_batch"] == 50.0


def test_an_idle_decoding_engine_is_asked_for_no_other_share(tmp_path: Path) -> None:
    place = place_of(tmp_path, rehearsal=False)

    def asked() -> list[str]:
        jobs = [*feeding.measurements(place), *host_side.measurements(place)]
        jobs += loading.measurements(place)
        return [job.name for job in jobs if "decoding engine" in job.name]

    def note(**row: float | None) -> str:
        found = {"loader": {"ms": 1.0, "samples_per_second": 1.0, **row}}
        (tmp_path / "host_side.json").write_text(json.dumps({"rows": found}))
        return tables.host_side(found)

    everything = asked()
    first = next(job for job in host_side.measurements(place) if "loader" in job.name)
    assert first.first and "0.9 of the decoding engine" in first.name
    for known in ({}, {"decoding_engine_use": None}, {"decoding_engine_use": 0.4}):
        assert "decoded nothing" not in note(**known) and asked() == everything
    assert "| 0% |\n\nThe GPU's JPEG engine decoded nothing" in note(decoding_engine_use=0.0)
    assert asked() == [name for name in everything if ", 0.9 of the decoding engine" in name]
    assert len(everything) > len(asked()) > 0


@pytest.mark.parametrize("stage", [feeding, captured])
def test_the_peak_of_memory_leaves_out_the_round_that_tries_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    events: list[object] = []

    def bench(*_: object, say: Callable[[int, str], None] = lambda *_: None, **__: object) -> Row:
        for number in range(3):
            say(number, "step")
            events.append(number)
        kept = ("ratio", "batch_size", "views", "precision", "memory_gib", "tuning")
        return {"figures": {"step": {}}, **dict.fromkeys(kept)}

    monkeypatch.setattr(stage, "bench", bench)
    monkeypatch.setattr(stage, "memory", lambda _: {})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: events.append("anew"))
    leave_unparsed(monkeypatch, stage)
    measured = feeding.fed if stage is feeding else captured.alone
    measured(place_of(tmp_path, rehearsal=False), [])
    assert events[events.index(0) :] == [0, "anew", 1, 2]


def test_waiting_is_that_of_all_laps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lap = {"images_per_second": 2.0, "views_per_second": 4.0, "memory_gib": 1.0}
    found: list[Row] = [
        {**lap, "step": step, "loss": 1.0, "seconds": 1.0, "epoch": 1.0, "data_wait": wait}
        for step, wait in ((20, 0.01), (40, 0.03), (41, 0.9))  # the last is one step
    ]
    found.append({"step": 41, "evaluation": "online", "knn_top1": 0.5})
    monkeypatch.setattr(learning, "records", lambda _: found)
    of = learning.Learned("CIFAR-10", tmp_path, tmp_path, tmp_path)
    assert learning.known(tmp_path, of)["data_wait"] == 0.03


def test_the_first_that_learns_is_made_whole(tmp_path: Path) -> None:
    jobs = learning.measurements(place_of(tmp_path, rehearsal=False))
    (job,) = (job for job in jobs if job.first and "shards" not in job.name)
    assert job.whole and job.seconds >= 340, "a new machine compiles for a minute"
