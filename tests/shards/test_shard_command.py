"""The command as a person meets it: help, summary, errors, Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from shards.layout import open_shards
from tools.shard import SOURCES, main
from training.command import run_command

ROOT = Path(__file__).parents[2]


def shard(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.shard", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_a_folder_is_sharded_and_summed_up(class_folders, tmp_path: Path):
    root, out = class_folders(), tmp_path / "out"
    ran = shard("folder", "--root", root, "--out", out, "--limit", 10, "--samples_per_shard", 4)
    assert ran.returncode == 0, ran.stderr
    for piece in (
        "10 of 12 found = 10 written (of these 0 repaired) + 0 quarantined + 0 copies dropped",
        "3 of 3 to 4 samples",
        "images/s",
        "median",
    ):
        assert piece in ran.stdout
    assert ran.stdout.endswith(f"{out}\n  next          python -m tools.preview {out}\n")
    manifest = open_shards(out).manifest
    assert (manifest.samples, manifest.seed) == (10, 0)
    assert manifest.command.startswith(f"python -m tools.shard folder --root {root}")


def test_what_may_be_missing_and_sizes_are_flags(class_folders, tmp_path: Path):
    root, out = class_folders(classes=2, per_class=6), tmp_path / "out"
    for name in ("0000.jpg", "0001.jpg", "0002.jpg", "0003.jpg"):
        (root / "class_01" / name).write_bytes(b"<html>")
    Image.new("RGB", (100, 20)).save(root / "class_00" / "long.png")
    command = ["folder", "--root", root, "--out", out, "--max_aspect", "4", "--min_side", "5"]
    refused = shard(*command, "--max_missing", "0.4")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "4 of 6 of class 'class_01' cannot be read or decoded" in refused.stderr
    done = shard(*command, "--max_missing", "0.7")
    assert done.returncode == 0, done.stderr
    where = f"{out}/quarantine/reasons.jsonl"
    assert f"quarantine    4 not an image, 1 too elongated; listed in {where}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["folder", "--root", "NOWHERE", "--out", "OUT"], ["NOWHERE is not a folder", "--root"]),
        (["coco", "--root", "IN", "--out", "OUT"], ["'train2017'", "it holds class_00, class_01"]),
        (["voc", "--root", "IN", "--out", "OUT"], ["has no JPEGImages/", "it holds class_00"]),
        (["stl10", "--root", "IN", "--out", "OUT"], ["train_X.bin is missing", "--download"]),
        (["folder", "--root", "IN", "--out", "IN"], ["IN is not empty: it holds class_00"]),
        (["folder", "--root", "IN", "--out", "OUT", "--limit", "0"], ["limit=0; expected 1"]),
        (["folder", "--root", "IN", "--out", "OUT", "--limit", "few"], ["limit", "few"]),
        (
            ["folder", "--root", "IN", "--out", "OUT", "--lim", "3"],
            ["unrecognized", "nearest flag is --limit"],
        ),
        (["folder", "--root", "IN"], ["required: --out"]),
        (["folder"], ["required: --root, --out"]),
        (
            ["folder", "--root", "IN", "--out", "OUT", "--encoding", "gif"],
            ["encoding='gif'; expected original, png, raw, or jpeg:QUALITY"],
        ),
        (["folder", "--root", "IN", "--out", "OUT", "--workers", "0"], ["workers=0; expected 1"]),
        (
            ["folder", "--root", "IN", "--out", "OUT", "--ray_address", "auto"],
            ["ray_address=auto, but the engine is local; give --engine ray"],
        ),
        (
            ["stl10", "--root", "IN", "--out", "OUT", "--split", "val"],
            ["split=val", "one of train, test"],
        ),
        (["imagenet"], ["imagenet", *SOURCES]),
        (["foldr"], ["The nearest is folder."]),
        ([], ["the first word names the source", *SOURCES]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    class_folders, tmp_path, arguments, pieces, monkeypatch, capsys
):
    root = class_folders(name="IN")
    places = {"IN": root, "OUT": tmp_path / "OUT", "NOWHERE": tmp_path / "NOWHERE"}
    words = ["tools.shard", *[str(places.get(argument, argument)) for argument in arguments]]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        run_command(main)
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    for piece in pieces:
        assert piece in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["IN"]


def test_ctrl_c_says_that_the_same_command_goes_on(class_folders, tmp_path: Path):
    root = class_folders(classes=1, per_class=1)
    image = root / "class_00" / "0000.jpg"
    for number in range(1, 6000):
        (root / "class_00" / f"{number:04d}.jpg").hardlink_to(image)
    writer = subprocess.Popen(
        [sys.executable, "-m", "tools.shard", "folder", "--root", root, "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    partial, out = tmp_path / "out.partial", tmp_path / "out"
    while writer.poll() is None and not (partial / "00000.jsonl").exists():
        time.sleep(0.01)
    writer.send_signal(signal.SIGINT)
    stdout, stderr = writer.communicate(timeout=30)
    assert (writer.returncode, stdout) == (130, ""), stderr
    assert stderr.endswith(  # a slow machine tells of its progress first
        f"what is complete stays in {partial}; the same command goes on there\ninterrupted\n"
    )
    assert not out.exists()
    assert not list(partial.glob(".*[0-9]")), "no half-written files"
    again = shard("folder", "--root", root, "--out", out)
    assert again.returncode == 0, again.stderr
    assert len(open_shards(out)) == 6000


def test_help_comes_from_the_constructors():
    listed = shard("--help").stdout
    assert set(SOURCES) >= {"stl10", "coco", "voc", "folder"}
    assert all(name in listed for name in SOURCES)
    shown = shard("stl10", "--help").stdout
    for flag in ("--root", "--split", "--download", "--out", "--limit", "--seed"):
        assert flag in shown
    assert "Folder that holds the .bin files" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("a=1; expected 2."), 2, "error: a=1; expected 2.\n"),
        (FileNotFoundError("x is missing. Make it."), 2, "error: x is missing. Make it.\n"),
        (FileNotFoundError(2, "No such file", "y"), 2, "error: y: No such file\n"),
        (ValueError("a\nb\x1b[31m \udce9"), 2, "error: a\\nb\\x1b[31m \\udce9\n"),
        (OSError(28, "no space left for z"), 2, "error: no space left for z\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(error, code: int, says: str, capsys):
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(fail)
    assert left.value.code == code
    assert capsys.readouterr().err == says


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)  # pyright: ignore[reportArgumentType]
