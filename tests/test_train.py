"""The program as its users start it: launched, killed, continued, misused."""

import json
import shutil
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import train as program
from shards.layout import ShardSet, open_shards
from shards.tar import components, index_lines
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures
from tests.program import (
    BIN,
    TWO,
    arguments,
    finish,
    kill,
    losses,
    start,
    train,
    wait_for_step,
    weights,
)
from training.command import run_command
from training.monitor import records
from training.run import checkpoint, run_folder


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)  # five steps an epoch of 8, and two samples left out


@pytest.fixture(scope="module")
def straight(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 14 steps, nearly three epochs, that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight") / "run"
    asked = ["--check_memory", "true", "--profile_seconds", "0.1"]  # which other tests leave out
    code, out, err = train(shard_set, run, "--steps", "14", *asked)
    assert code == 0, out + err
    for words in ("resize (the fastest on a CPU)", "finish fused", "activations", "ms a batch"):
        assert words in out
    return run


def test_a_run_leaves_what_the_readme_promises(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names == {
        *("config.yaml", "tuning.yaml", "metrics.jsonl", "checkpoints", "encoder.safetensors"),
        *("ranks", ".lock"),
    }
    assert [step for step, _ in losses(straight)] == list(range(1, 15))
    encoder = safetensors.torch.load_file(straight / "encoder.safetensors")
    inside = {k: v for k, v in weights(straight).items() if k.startswith("encoder.network.")}
    assert len(encoder) == len(inside)
    for name, value in inside.items():
        assert torch.equal(encoder[name.removeprefix("encoder.network.")], value)


def test_a_killed_run_continues_bit_for_bit(
    shard_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    """Killed in the second epoch, continued into the third."""
    run = tmp_path / "run"
    command = [sys.executable, *arguments(shard_set, run, "--steps", "14")]
    process = start([*command, "--checkpoint_every", "4"])
    wait_for_step(process, run, 6)
    kill(process)
    assert losses(run)[-1][0] < 14, "the run ended before it could be killed"
    code, out, err = finish(command)
    assert code == 0, out + err
    assert "continuing from step" in out
    assert losses(run) == losses(straight)
    expected = weights(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


def test_a_run_from_published_weights_goes_on_without_them(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    """A ViT, each of whose layers has a rate of its own, and leaves blocks out at random."""
    donor: Any = timm.create_model("test_vit", num_classes=3)
    file = tmp_path / "published.safetensors"
    safetensors.torch.save_file(donor.state_dict(), file)
    words = ["--weights", str(file), "--layer_decay", "0.7", "--encoder_rate", "0.5"]
    words += ["--method.encoder", "Timm", "--method.encoder.name", "test_vit"]
    words += ["--method.encoder.image_size", "32", "--method.encoder.drop_path", "0.2"]
    words += ["--views.size", "32", "--steps", "24", "--checkpoint_every", "3"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    code, out, err = train(shard_set, straight, *words)
    assert code == 0, out + err
    assert f"tensors from {file}" in out and "not used of it: head.bias, head.weight" in out
    command = [sys.executable, *arguments(shard_set, killed, *words)]
    process = start(command)
    wait_for_step(process, killed, 4)
    while not checkpoint.exists(killed):  # it is written beside the next steps
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill(process)
    assert losses(killed)[-1][0] < 24, "the run ended before it could be killed"
    digest = sha256(file.read_bytes()).hexdigest()
    assert run_folder.read_config(killed)["weights_sha256"] == digest
    file.unlink()
    code, out, err = finish(command)
    assert code == 0, out + err
    assert "continuing from step" in out
    assert losses(killed) == losses(straight)
    expected = weights(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights(killed).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves(
    number: signal.Signals, shard_set: ShardSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start([sys.executable, *arguments(shard_set, run, "--steps", "100000")])
    wait_for_step(process, run, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{number.name}: saved step" in out and "Traceback" not in err
    saved = checkpoint.newest(run)
    assert saved is not None and saved.step == losses(run)[-1][0]


def test_another_configuration_is_refused_by_field(shard_set: ShardSet, straight: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    code, out, err = train(shard_set, straight, "--steps", "14", "--learning_rate", "0.5")
    assert (code, out) == (2, "")
    assert "another configuration (learning_rate: 0.01 there, 0.5 here)" in err
    assert err.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in straight.rglob("*")}


def test_another_number_of_processes_is_refused(shard_set: ShardSet, straight: Path) -> None:
    program = [str(BIN / "accelerate"), *TWO, *arguments(shard_set, straight, "--steps", "14")]
    code, _, err = finish(program)
    assert code != 0
    assert "was saved by 1 processes, this run has 2" in err


def test_other_batches_are_refused_or_begin_the_epoch_anew(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run, more = tmp_path / "run", ["--epochs", "3", "--checkpoint_every", "7"]
    more += ["--keep_checkpoints", "9"]
    code, out, err = train(shard_set, run, *more)
    assert code == 0, out + err
    shutil.rmtree(run / "checkpoints" / "00000014")
    shutil.rmtree(run / "checkpoints" / "00000015")
    code, _, err = train(shard_set, run, *more, "--batch_size", "14")
    assert code == 2 and "batch_size: 8 there, 14 here" in err
    before = losses(run)[:7]
    # Two of the second epoch's five steps were done; it begins again with three of 14 samples.
    command = arguments(shard_set, run, *more, "--batch_size", "14", "--reshape_data", "true")
    code, out, err = finish([str(BIN / "accelerate"), *TWO, *command])
    assert code == 0, out + err
    assert "epoch 1 begins again, of 3 steps of 14 samples" in out
    assert losses(run)[:7] == before and losses(run)[-1][0] == 7 + 2 * 3
    assert [r["epoch"] for r in records(run) if "loss" in r][7:] == pytest.approx(
        [1 + step / 3 for step in range(1, 7)], abs=1e-3
    )
    saved = checkpoint.newest(run)
    assert saved is not None and (saved.world_size, saved.since.step) == (2, 7)


def test_a_sample_that_cannot_be_read_is_left_out_and_the_run_goes_on(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shard_set.root, damaged)
    key = spoil(damaged, "00003", 2)
    run, more = tmp_path / "run", ["--epochs", "3", "--checkpoint_every", "1"]
    code, _, err = train(open_shards(damaged), run, *more)
    assert code == 2 and f"00003.tar, sample {key} has other bytes" in err
    assert "--max_bad_samples" in err and err.count("Traceback") == 0
    # All 42 samples were five steps of 8, and so are the 41 that are left.
    code, out, err = train(open_shards(damaged), run, *more, "--max_bad_samples", "1")
    assert code == 0, out + err
    assert f"left out from now on: 00003.tar, sample {key} has other bytes" in err
    assert "without the 1 samples in" in out and "begins again" in out
    assert records(run)[-1]["step"] >= 15
    code, out, err = train(open_shards(damaged), run, *more)
    assert code == 0 and "finished" in out, out + err
    # Another set, with the same keys, does not pass for this one with a sample less.
    images = Pictures(42, height=20, width=20)
    shutil.rmtree(damaged)
    code, _, err = train(write(images, damaged, samples_per_shard=8), run, *more)
    assert code == 2 and "is not the shard set that the run was trained on so far" in err


def test_a_run_is_continued_on_a_disk_that_is_full_its_output_there_too(
    shard_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = arguments(shard_set, run, "--steps", "14", "--checkpoint_every", "4")
    process = start([sys.executable, *words])
    wait_for_step(process, run, 6)
    kill(process)
    reached = losses(run)[-1][0]
    assert reached < 14, "the run ended before it could be killed"
    # No file gets larger than a KiB; without that, Python would find no folder for temporary ones.
    full = ["bash", "-c", f'ulimit -f 1; exec "$0" -B "$@" > {log}', sys.executable]
    code, _, err = finish([*full, *words])
    assert code == 2 and "step 14 could not be saved" in err and "Traceback" not in err
    assert log.stat().st_size <= 1024 and losses(run)[-1][0] <= reached
    code, out, err = train(shard_set, run, "--steps", "14", "--checkpoint_every", "4")
    assert code == 0, out + err
    assert losses(run) == losses(straight)


def test_a_run_goes_on_when_nobody_reads_what_it_says(shard_set: ShardSet, tmp_path: Path) -> None:
    process = start([sys.executable, *arguments(shard_set, tmp_path / "run", "--steps", "4")])
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert process.wait(timeout=120) == 0
    assert losses(tmp_path / "run")[-1][0] == 4


def spoil(root: Path, shard: str, position: int) -> str:
    """Write zeros over an image in a tar, and return its sample's key."""
    line = index_lines((root / f"{shard}.idx").read_bytes())[position]
    ((offset, size, name),) = [(at, n, m) for e, at, n, m in components(line) if e == "png"]
    with (root / f"{shard}.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    return name.partition(".")[0]


def test_a_finished_run_has_nothing_to_do(shard_set: ShardSet, straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_text()
    code, out, _ = train(shard_set, straight, "--steps", "14")
    assert code == 0 and "finished" in out
    assert "shards were checked" not in out  # it read none
    assert (straight / "metrics.jsonl").read_text() == before


def test_a_final_evaluation_is_made_once_and_again_if_it_is_missing(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run, path = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    more = ["--steps", "5", "--evaluation_test", str(shard_set.root)]

    def final() -> dict[str, Any]:
        code, out, err = train(shard_set, run, *more)
        assert code == 0, out + err
        (found,) = (each for each in records(run) if each.get("evaluation") == "final")
        return found

    first, text = final(), path.read_text()
    assert final() == first and path.read_text() == text
    lines = [line for line in text.splitlines(keepends=True) if '"final"' not in line]
    path.write_text("".join(lines))  # as if it had been killed before
    assert final() == first


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--shards", "no/such/folder"],
            ["no/such/folder is not a folder of shards", "tools.shard"],
        ),
        (["--device", "gpu"], ["finds no GPU", "--device auto"]),
        (["--view.count", "4"], ["unrecognized", "--view.count"]),
        (["--evaluation_test", "nowhere"], ["nowhere is not a folder of shards"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    more: list[str],
    words: list[str],
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, to save the seconds of starting one: no device is touched before."""
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", arguments(shard_set, run, "--steps", "3", *more))
    with pytest.raises(SystemExit) as ended:
        run_command(program.main)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err
    assert not run.exists()


def test_a_batch_larger_than_the_shard_set_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    code, out, err = train(shard_set, tmp_path / "run", "--steps", "3", "--batch_size", "64")
    assert (code, out) == (2, "")
    assert "batch_size=64 exceeds the 42 samples" in err and "--batch_size 42" in err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_never_saved(shard_set: ShardSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--steps", "60", "--learning_rate", "1e38", "--clip_gradient_norm", "null"]
    more += ["--warmup_epochs", "0", "--optimizer", "sgd", "--checkpoint_every", "1"]
    code, _, err = train(shard_set, run, *more)
    assert code == 2 and "not finite" in err and "--learning_rate" in err
    saved = checkpoint.newest(run)
    assert saved is None or all(v.isfinite().all() for v in saved.method().values())
    found = json.loads((run / "failure.json").read_text())
    assert "not finite" in found["what"] and found["rank"] == 0 and found["step"] > 0


def test_bad_steps_in_a_row_end_the_run_with_a_dump_that_repeats_the_last(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # Finite weights, and products of two of them that no float32 holds.
    more = ["--steps", "60", "--learning_rate", "1e25", "--clip_gradient_norm", "1"]
    more += ["--warmup_epochs", "0", "--max_skipped_steps", "4"]
    code, _, err = train(shard_set, run, *more)
    assert code == 2 and "not finite in the last 4 steps" in err, err
    assert [r["skipped_steps"] for r in records(run) if "skipped_steps" in r] == [1, 2, 3]
    (dumped,) = (run / "dumps").iterdir()
    assert str(dumped) in err
    code, out, err = finish([sys.executable, "-m", "tools.replay", str(dumped)])
    assert code == 0, err
    assert "reproduced: this step's gradient is not finite" in out


def test_the_evaluate_tool_measures_trained_and_first_weights(
    shard_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    def evaluate(name: str, *more: str) -> dict[str, float]:
        out = tmp_path / name
        tool = [sys.executable, "-m", "tools.evaluate", str(straight), "--json", str(out), *more]
        sets = ["--train", str(shard_set.root), "--test", str(shard_set.root)]
        code, _, err = finish([*tool, *sets])
        assert code == 0, err
        return json.loads(out.read_text())

    trained, first = evaluate("a.json"), evaluate("b.json", "--random_init", "true")
    for name in ("knn_top1", "view_map", "label_map", "alignment", "effective_dimension"):
        assert trained[name] != first[name]
    # A probe may fit these 42 samples without an error, whatever the encoder.
    assert all(0.1 < figures["linear_top1"] <= 1 for figures in (trained, first))
    assert (trained["step"], first["step"]) == (14, 0)


def test_damage_that_opening_cannot_see_is_reported_while_training(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shard_set.root, damaged)
    tar = damaged / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"y.i64") + 512] ^= 1  # a label, which training does not even read
    tar.write_bytes(data)
    code, out, err = train(open_shards(damaged), tmp_path / "run", "--steps", "6")
    assert code == 0, err
    assert f"warning: {tar} is not what was written: its sha256 differs" in err
    assert f"python -m tools.verify {damaged} --repair true" in err
    assert records(tmp_path / "run")[-1].get("damaged_files", 0) == 1 or "DAMAGED" in out


def test_a_cpu_has_no_step_to_record_and_the_header_says_so(
    shard_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    more = ["--steps", "14", "--check_memory", "true", "--capture_step", "true"]
    code, out, err = train(shard_set, tmp_path / "run", *more)
    assert code == 0, out + err
    assert "on the CPU there is nothing to record" in " ".join(out.split())
    assert losses(tmp_path / "run") == losses(straight)


@pytest.mark.slow  # compiling takes a minute
def test_a_compiled_run_has_the_losses_of_one_that_is_not(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    root = str(shard_set.root)
    more = ["--steps", "5", "--evaluation_test", root, "--evaluation_train", root]
    more += ["--evaluate_every", "0.4", "--mixed_precision", "no"]
    found = []
    for name in ("false", "true"):
        code, out, err = train(shard_set, tmp_path / name, *more, "--compile", name)
        assert code == 0, out + err
        found.append([loss for _, loss in losses(tmp_path / name)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[0][0] != found[0][-1]


@pytest.mark.slow
def test_a_shard_that_is_cut_off_while_it_is_mapped_is_named_by_the_next_start(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(shard_set.root, copy)
    more = ["--steps", "5000", "--checkpoint_every", "4", "--check_shards", "false"]
    command = [sys.executable, *arguments(open_shards(copy), run, *more)]
    process = start(command)
    wait_for_step(process, run, 6)
    with (copy / "00002.tar").open("r+b") as tar:
        tar.truncate(3000)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGBUS
    assert "Bus error" in (run / "ranks" / "rank-0.log").read_text()
    code, _, err = finish(command)
    assert code == 2 and "00002.tar has 3,000 bytes" in err and "tools.verify" in err
