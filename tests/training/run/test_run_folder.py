"""The run's folder: whose it is, and what may continue in it."""

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MakeShardSet
from tests.program import arguments, start, wait_for_step
from training import exported
from training.monitor import METRICS
from training.run import run_folder
from training.run.checkpoint import Checkpoint, write_part
from training.run.failure import Gone, Phase, reported
from training.run.watchdog import Watchdog
from training.settings import parse

LEAST = ["--shards", "x", "--run", "r", "--steps", "5"]


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ValueError, match=r"no config.yaml.*new or empty folder"):
        run_folder.check(tmp_path, parse(LEAST))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_configuration_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / run_folder.CONFIG).write_text("model: theirs\n")
    with pytest.raises(ValueError, match=r"no configuration of viewrank.*new or empty folder"):
        run_folder.check(tmp_path, parse(LEAST))


def test_a_finished_run_without_its_checkpoints_is_not_begun_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_folder.prepare(run, parse(LEAST), taken=False)
    (run / exported.NAME).write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"is finished, and its checkpoints are gone"):
        run_folder.check(run, parse(LEAST))


def test_a_file_in_the_runs_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run_folder.check(tmp_path / "run", parse(LEAST))


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_folder.prepare(run, parse(LEAST), taken=run_folder.take(run))
    with pytest.raises(ValueError, match=r"another process is training in .*run"):
        run_folder.take(run)


def test_of_two_that_begin_a_run_at_once_one_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = run_folder.take(run), run_folder.take(run)
    run_folder.prepare(run, parse(LEAST), taken=first)
    with pytest.raises(ValueError, match=r"another process is training in .*run"):
        run_folder.prepare(run, parse(LEAST), taken=second)


def test_a_run_that_began_and_ended_meanwhile_is_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    taken = run_folder.take(run)
    save(run)
    with pytest.raises(ValueError, match=r"has trained in .* since this one began"):
        run_folder.prepare(run, parse(LEAST), taken=taken)


def save(run: Path) -> None:
    saved = run / "checkpoints" / "00000001"
    saved.mkdir(parents=True)
    (saved / "checkpoint.json").write_text(
        '{"step": 1, "seconds": 1, "world_size": 1, "machine": "cpu, no", "sha256": {}}'
    )


def test_a_configuration_may_change_until_something_is_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_folder.prepare(run, parse(LEAST), taken=False)
    run_folder.check(run, parse([*LEAST, "--learning_rate", "0.5"]))
    save(run)
    with pytest.raises(ValueError, match=r"learning_rate: 0.001 there, 0.5 here"):
        run_folder.check(run, parse([*LEAST, "--learning_rate", "0.5"]))
    run_folder.check(run, parse([*LEAST, "--log_every", "3"]))


def test_a_finished_run_is_not_judged_otherwise(tmp_path: Path) -> None:
    run, words = tmp_path / "run", [*LEAST, "--evaluation_test", "a"]
    run_folder.prepare(run, parse(words), taken=False)
    save(run)
    others = {
        "evaluation_test: a there, b here": parse([*words, "--evaluation_test", "b"]),
        "evaluation_neighbours: 20 there, 5 here": parse([*words, "--evaluation_neighbours", "5"]),
    }
    evaluation = {"step": 1, "evaluation": "online", "view_map": 0.5}
    (run / METRICS).write_text(json.dumps(evaluation) + "\n")
    for other in others.values():  # its evaluations to come are of other sets
        run_folder.check(run, other)
    with (run / METRICS).open("a") as file:
        file.write(json.dumps(evaluation | {"evaluation": "final"}) + "\n")
    for told, other in others.items():
        with pytest.raises(ValueError, match=rf"finished.*{told}.*tools\.evaluate {run}"):
            run_folder.check(run, other)
    run_folder.check(run, parse([*words, "--log_every", "3"]))


@pytest.mark.parametrize(
    ("world_size", "machine", "words"),
    [
        (2, "cpu, bf16", "saved by 1 processes, this run has 2"),
        (1, "cpu, no", "saved on cpu, bf16, this run has cpu, no"),
        (1, "cuda, bf16", "saved on cpu, bf16, this run has cuda, bf16"),
    ],
)
def test_other_processes_and_other_arithmetic_do_not_continue(
    world_size: int, machine: str, words: str
) -> None:
    saved = Checkpoint(root=Path("c"), step=1, seconds=1, world_size=1, machine="cpu, bf16")
    run_folder.check_continues(saved, world_size=1, machine="cpu, bf16")
    with pytest.raises(ValueError, match=words):
        run_folder.check_continues(saved, world_size=world_size, machine=machine)


@pytest.mark.parametrize("name", [run_folder.CONFIG, exported.NAME])
def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((ValueError, OSError)):
        run_folder.read_config(tmp_path) if name == run_folder.CONFIG else exported.read(
            tmp_path / name
        )


def test_a_configuration_nested_without_end_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / run_folder.CONFIG).write_text("views: " + "[" * 5000)
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        run_folder.read_config(tmp_path)


def begun(run: Path) -> Path:
    run_folder.prepare(run, parse(LEAST), taken=run_folder.take(run))
    run_folder.check_there(run)
    return run


def test_a_folder_that_is_there_no_more_ends_the_run(tmp_path: Path) -> None:
    deleted, renamed = begun(tmp_path / "deleted"), begun(tmp_path / "renamed")
    shutil.rmtree(deleted)
    renamed.rename(tmp_path / "elsewhere")
    for gone in (deleted, renamed):
        with pytest.raises(Gone, match="has gone while this process trained"):
            run_folder.check_there(gone)


def test_another_run_in_its_place_is_not_written_to(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    shutil.rmtree(run)
    run.mkdir()  # often with the same number
    (run / run_folder.CONFIG).write_text("another's")
    with pytest.raises(Gone):
        run_folder.check_there(run)


def test_a_folder_that_is_half_deleted_has_gone(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / run_folder.CONFIG).unlink()
    with pytest.raises(Gone):
        run_folder.check_there(run)


def test_a_disk_that_fails_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    run = begun(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stale)
        run_folder.check_there(run)


def test_nobody_makes_the_folder_of_a_run_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_part(tmp_path / "run", 5, "method.safetensors", [b"x"])
    phase = Phase(prepared=True)
    with Watchdog(tmp_path / "run", phase, rank=0, world_size=1, limit=0.2):
        time.sleep(0.3)
    with pytest.raises(Gone), reported(tmp_path / "run", rank=0) as found:
        found.prepared = True
        run_folder.check_there(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_whose_folder_has_gone_ends_at_its_next_record_with_one_line(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    process = start([sys.executable, *arguments(make_shard_set(42), run, "--steps", "100000")])
    wait_for_step(process, run, 3)
    shutil.rmtree(run.rename(elsewhere))  # at once: the run writes while it is deleted
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith(f"error: {run} has gone while this process trained")
    # A record that was being written just then is a warning; all else is that one line.
    others = [line for line in err.splitlines()[:-1] if "run" in line]
    assert all(line.startswith(f"warning: {run}/metrics.jsonl: ") for line in others)
    assert not run.exists()
