"""Links in tars, names that recur in them, and what systems leave there, against GNU tar."""

import io
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.source import WebDataset
from shards.source.tar_members import entries
from tests.shards.test_webdataset_source import everything, jpeg, write


def linked(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """Write a tar of files, hard links (text after "=") and symbolic links (after "@")."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type = tarfile.LNKTYPE if content[0] == "=" else tarfile.SYMTYPE
                entry.linkname = content[1:]
                content = b""
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_links_and_names_that_recur_have_the_content_that_tar_unpacks(tmp_path: Path, seed: int):
    random = np.random.default_rng(seed)
    members: list[tuple[str, bytes | str]] = []
    for index in range(40):
        # Few names, so that they recur; files and links under the same one.
        name = f"{'ab'[random.integers(2)]}/{random.integers(8)}.jpg"
        earlier = [name for name, content in members if isinstance(content, bytes)]
        kind = int(random.integers(5)) if earlier else 0
        if kind < 3:
            members.append((f"./{name}" if kind == 2 else name, jpeg(1000 * seed + index)))
        elif kind == 3 and (target := earlier[random.integers(len(earlier))]) != name:
            still = next(c for n, c in reversed(members) if n == target)
            if isinstance(still, bytes):  # GNU tar would link the link itself
                members.append((name, f"={target}"))
        elif kind == 4:
            folder, number = "ab"[random.integers(2)], random.integers(9)
            members.append((name, f"@../{folder}/{number}.jpg"))
    linked(tmp_path / "x.tar", members)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xPf", "x.tar", "-C", "out"], cwd=tmp_path, check=True)
    files = (path for path in sorted((tmp_path / "out").rglob("*.jpg")) if path.exists())
    unpacked = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in files}
    source = WebDataset(root=tmp_path / "x.tar")
    assert {s.metadata["file"][6:]: s.image for s in everything(source)} == unpacked
    again = pickle.loads(pickle.dumps(source))
    assert [again[i].image for i in range(len(again))] == [s.image for s in everything(source)]


def test_labels_and_texts_may_be_links_and_come_again(tmp_path: Path):
    members: list[tuple[str, bytes | str]] = [("labels/cat", b"cat"), ("texts/one", b"shared")]
    for index in range(4):
        members += [(f"{index}.jpg", jpeg(index)), (f"{index}.cls", "=labels/cat")]
        members += [(f"{index}.txt", "@texts/one")]
    members += [("2.cls", b"dog"), ("3.jpg", jpeg(33)), ("texts/one", b"in the end")]
    source = WebDataset(root=linked(tmp_path / "x.tar", members), label="cls")
    samples = everything(source)
    assert [source.classes[s.label] for s in samples] == ["cat", "cat", "dog", "cat"]
    assert [s.image for s in samples] == [jpeg(i) for i in (0, 1, 2, 33)]
    assert {s.metadata["txt"] for s in samples} == {"in the end"}
    assert "3 members have the name of an earlier one of their tar" in source.notes[-1]


def test_links_out_of_a_tar_and_in_circles_are_passed_over(tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    members: list[tuple[str, bytes | str]] = [
        ("a/1.jpg", f"@{tmp_path}/secret.jpg"),
        ("a/2.jpg", "@../../secret.jpg"),
        ("a/3.jpg", "@4.jpg"),
        ("a/4.jpg", "@3.jpg"),
        ("a/5.jpg", "@5.jpg"),
        ("a/6.jpg", "=secret.jpg"),
        ("a/7.jpg", "@../a"),
        ("a/8.jpg", b"good"),
    ]
    source = WebDataset(root=linked(tmp_path / "x.tar", members))
    assert [sample.image for sample in everything(source)] == [b"good"]
    assert "7 links that lead to no file of their tar" in source.notes[0]


def test_a_tar_without_links_and_repetitions_is_read_through_once(tmp_path: Path, monkeypatch):
    passes: list[int] = []

    def counted(file, size):
        passes.append(size)
        return entries(file, size)

    monkeypatch.setattr("shards.source.tar_samples.entries", counted)
    monkeypatch.setattr("shards.source.tar_links.entries", counted)
    write(tmp_path / "a.tar", [(f"{i}.jpg", b"x") for i in range(9)])
    assert len(WebDataset(root=tmp_path)) == 9 and len(passes) == 1
    write(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.jpg", b"y")])
    assert len(WebDataset(root=tmp_path)) == 1 and len(passes) == 4


def test_what_systems_leave_in_a_tar_is_no_sample(tmp_path: Path):
    names = ["cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/cat/._1.jpg"]
    names += ["__MACOSX/cat/1.jpg", "cat/.ipynb_checkpoints/1.jpg", "cat/._1.jpg"]
    write(tmp_path / "a.tar", [(name, b"x") for name in names])
    assert [sample.key for sample in everything(WebDataset(root=tmp_path))] == ["cat/1"]
