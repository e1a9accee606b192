"""Images of one's own in DISC21's layout: all training images come along, whatever their format."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import disc21_layout
from tests.conftest import MakeShardSet


def test_training_images_of_any_format_come_along_and_a_folder_without_any_is_refused(
    make_shard_set: MakeShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, training, out = make_shard_set(samples=12).root, tmp_path / "t", tmp_path / "out"
    words = ["--held_out", str(held_out), "--training", str(training), "--out", str(out)]
    words += ["--queries", "4", "--distractors", "2", "--backgrounds", "2"]
    monkeypatch.setattr(sys, "argv", ["disc21_layout", *words])
    (training / "deep").mkdir(parents=True)
    (training / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"t holds no images \(jpg, .*Give a folder"):
        disc21_layout.main()
    assert not out.exists()

    names = ("1.jpg", "2.JPG", "3.jpeg", "deep/4.png", "deep/5.PNG")
    for number, name in enumerate(names):
        image = Image.new("RGB", (40, 30), (40 * number, 9, 9))
        image.save(training / name, "PNG" if name[-3:].lower() == "png" else "JPEG")
    disc21_layout.main()
    found = {path.name: path.read_bytes() for path in (out / "training").iterdir()}
    assert sorted(found.values()) == sorted((training / name).read_bytes() for name in names)
    assert {Path(name).suffix for name in found} == {".jpg", ".jpeg", ".png"}
