"""The command for a GPU, rehearsed: its time boxes, what a cut-off leaves, and every stage."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

import benchmarks.gpu.__main__ as program
from benchmarks.gpu import charts, material, tables
from benchmarks.gpu.__main__ import SPARE, STAGES
from benchmarks.gpu.box import BoxedMeasurement, Clock, Row, Sizes, fill, needed

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
    assert needed(files) <= 60 * float(minutes) - SPARE - imports
    assert {"sound", "feeding", "ranking", "learning"} == {
        stage.name for stage in STAGES if any(each.first for each in stage.measurements(place))
    }


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
