"""The command that indexes foreign tars: what people type, and what they are told."""

from pathlib import Path

import pytest

from shards.health.verification import verify
from shards.layout import open_shards
from tests.shards.test_indexing import SAMPLES, foreign
from tools import index
from training.command_line import call


def test_a_folder_of_tars_becomes_a_set_inside_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = foreign(tmp_path / "tars")
    with pytest.raises(FileNotFoundError, match=rf"python -m tools\.index {tars};"):
        open_shards(tars)
    words = [str(tars), "--label", "json:parity", "--keys", "last_dot", "--workers", "2"]
    call(index.main, words)
    said = capsys.readouterr().out
    assert f"{SAMPLES} of {SAMPLES} found = {SAMPLES} written" in said
    assert str(tars / "index") in said and "--drop_duplicates" not in said
    shard_set = open_shards(tars / "index")
    assert shard_set.manifest.classes == ["0", "1"] and shard_set.manifest.indexed
    assert not verify(shard_set.root, deep=True).problems
    with pytest.raises(FileExistsError, match="already holds a shard set"):
        call(index.main, words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere is no folder, in which the index could be; give --out"),
        (["tars/odd name 0.tar"], "give --out"),
        (["s3://bucket/tars"], "is in a store, where there are no links"),
        (["tars", "--out", "s3://bucket/index"], "is in a store, where there are no links"),
        (["tars", "--out", "tars"], "is not empty: it holds odd name 0.tar"),
        (["tars", "--label", "png"], "is not the text expected there"),
        (["tars", "--max_missing", "2"], "expected a share from 0 to 1"),
    ],
)
def test_wrong_words_are_answered_and_leave_nothing(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign(tmp_path / "tars")
    with pytest.raises((ValueError, OSError), match=says):
        call(index.main, words)
    assert {path.name for path in tmp_path.iterdir()} == {"tars"}
    assert not [path for path in (tmp_path / "tars").iterdir() if path.suffix != ".tar"]
