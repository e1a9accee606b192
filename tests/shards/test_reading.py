"""A file that cannot be read is no outage; a place that is away is one, whatever its error says."""

import errno
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shards.writing.reading
from shards.layout import ShardSet
from shards.outage import Unreachable
from shards.source import STL10, ImageFolder, Sample, Source, Table, WebDataset
from shards.source.source import NoImage
from shards.writing.prepare import Preparation
from shards.writing.reading import OutOfResources, Reader
from shards.writing.write import write


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lengths of all waits, none of which takes time."""
    waits: list[float] = []
    monkeypatch.setattr(shards.writing.reading.time, "sleep", waits.append)
    return waits


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server has answered yet."""
    monkeypatch.setattr(shards.writing.reading, "_answered", {})
    monkeypatch.setattr(shards.writing.reading, "_dead", {})
    monkeypatch.setattr(shards.writing.reading, "_flawed", set())


class Flaky(Source):
    """Pictures that raise an error, each or for a while, in a place that is there or away."""

    name = "flaky"

    def __init__(self, error: OSError | None, times: int, *, away: int = 0) -> None:
        self.split, self.classes = "", []
        self.error, self.left, self.away, self.reads = error, times, away, 0

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        if self.left:
            self.left -= 1
            assert self.error is not None
            raise self.error
        pixels = np.random.RandomState(index).randint(0, 256, (16, 16, 3)).astype(np.uint8)
        return Sample(f"{index:05d}", pixels, -1, index, {})

    def reachable(self) -> bool:
        self.away -= 1
        return self.away < 0


def contents(shard_set: ShardSet) -> dict[str, bytes]:
    root = Path(shard_set.root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


NUMBERS = (errno.ENOENT, errno.EACCES, errno.EINVAL, errno.EIO, errno.ENODATA)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_file_that_cannot_be_read_is_counted_without_a_wait(pauses: list[float], number: int):
    source = Flaky(OSError(number, os.strerror(number), "x.jpg"), 2)
    read = Reader(source)
    with pytest.raises(OSError, match=r"x\.jpg"):
        read(3)
    assert not pauses and read(4).id == 4


def test_a_sample_that_has_no_image_is_not_asked_for_twice(pauses: list[float]):
    source = Flaky(NoImage(errno.ENODATA, "has no image"), 1, away=10**6)
    with pytest.raises(NoImage):
        Reader(source)(0)
    assert source.reads == 1 and not pauses


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EACCES])
def test_a_place_that_is_away_for_a_while_is_waited_for(pauses: list[float], number: int):
    source = Flaky(OSError(number, "", "x.jpg"), 2, away=2)
    assert Reader(source)(7).id == 7
    assert pauses == [1.0, 5.0]


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(n, "") for n in (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENETDOWN)),
        ConnectionError("refused"),
        TimeoutError("too long"),
    ],
)
def test_errors_of_connections_are_waited_for_though_the_place_seems_to_answer(
    pauses: list[float], error: OSError
):
    assert Reader(Flaky(error, 3))(7).id == 7
    assert pauses == [1.0, 5.0, 25.0]


class Servers(Flaky):
    """Pictures of three servers in turn, some of which do not answer."""

    def __init__(self, *dead: str) -> None:
        super().__init__(None, 0)
        self.dead = {*dead}

    def url(self, index: int) -> str:
        return f"https://{'abc'[index % 3]}/{index}.jpg"

    def __getitem__(self, index: int) -> Sample:
        if self.url(index)[8] in self.dead:
            self.reads += 1
            raise Unreachable(errno.EHOSTUNREACH, "no such host")
        return super().__getitem__(index)


def test_of_many_servers_a_dead_one_loses_its_own_images_alone(pauses: list[float]):
    source = Servers("a")
    lost: list[str] = []
    for index in range(30):
        try:
            assert Reader(source)(index).id == index  # one a shard, here of one image
        except NoImage as error:
            assert error.strerror == "a does not answer, others do"
            lost.append(error.filename)
    assert lost == [source.url(index) for index in range(0, 30, 3)]
    assert pauses == [1.0, 5.0, 25.0]  # it was waited for once
    assert source.reads == 20 + 4 + 1  # the others, it, and once another to see if there is one


def of_status(status: int) -> Unreachable:
    """Return the error of a server that answers with a status instead of the file."""
    error = Unreachable(errno.EIO, f"it says {status}")
    error.status = status
    return error


class Statuses(Servers):
    """Pictures of three servers in turn; some of the pictures bring an error instead."""

    def __init__(self, errors: Mapping[int, OSError]) -> None:
        super().__init__()
        self.errors = {**errors}

    def __getitem__(self, index: int) -> Sample:
        if index in self.errors:
            raise self.errors[index]
        return super().__getitem__(index)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("others", [True, False])
def test_a_server_that_is_busy_is_not_dead(status: int, others: bool):
    busy = range(0, 3 if others else 60, 3)
    with pytest.raises(Unreachable, match="bring the source back"):
        Reader(Statuses(dict.fromkeys(busy, of_status(status))))(0)


@pytest.mark.parametrize("status", [408, 500, 502, 521, 530])
def test_a_file_at_which_its_server_always_fails_is_lost_alone(pauses: list[float], status: int):
    """Be it the first that is asked for, or a later one."""
    bad = (0, 9, 10, 33)  # three of one server, one of another
    read, lost = Reader(Statuses(dict.fromkeys(bad, of_status(status)))), []
    for index in range(40):
        try:
            assert read(index).id == index
        except NoImage as error:
            assert error.strerror == f"it says {status}"
            lost.append(error.filename)
    assert lost == [f"https://{'abc'[index % 3]}/{index}.jpg" for index in bad]
    # Once for each server: that it fails at single files is known then.
    assert pauses == [1.0, 5.0, 25.0, 1.0, 1.0, 5.0, 25.0, 1.0]


def test_a_server_that_begins_to_fail_at_all_its_files_is_waited_for(pauses: list[float]):
    source = Statuses({6: of_status(502)})
    read = Reader(source)
    read(0)
    with pytest.raises(NoImage):
        read(6)
    pauses.clear()
    source.errors.update(dict.fromkeys(range(0, 60, 3), of_status(502)))
    with pytest.raises(Unreachable, match=r"it says 502.*bring the source back"):
        read(9)
    assert pauses == [1.0, 5.0, 25.0]


def test_a_server_that_fails_at_all_its_files_from_the_first_is_dead(pauses: list[float]):
    read = Reader(Statuses(dict.fromkeys(range(0, 60, 3), of_status(530))))
    for index in (0, 3, 6):
        with pytest.raises(NoImage, match="a does not answer, others do"):
            read(index)
    assert read(1).id == 1 and pauses == [1.0, 5.0, 25.0]


@pytest.mark.parametrize("lists", [True, False])
def test_any_number_of_forbidden_files_in_a_row_are_only_forbidden(
    pauses: list[float], lists: bool
):
    """As of a bucket some of whose objects are somebody else's, whether it may be listed or not."""

    class Bucket(Flaky):
        def __getitem__(self, index: int) -> Sample:
            if index < 40:
                raise PermissionError(errno.EACCES, f"no access to {index}.jpg")
            return super().__getitem__(index)

        def reachable(self) -> bool:
            if not lists:
                raise PermissionError(errno.EACCES, "no listing")
            return True

    read = Reader(Bucket(None, 0))
    for _ in range(2):  # before one was read, and after it
        for index in range(40):
            with pytest.raises(PermissionError, match=rf"no access to {index}\.jpg"):
                read(index)
        assert read(59).id == 59
    assert not pauses


def test_a_server_that_begins_to_refuse_while_others_do_not_is_waited_for_once(
    pauses: list[float],
):
    """As one that lets nobody fetch more than so many."""
    source = Statuses({})
    read = Reader(source)
    read(0)
    refused = PermissionError(errno.EACCES, "it says 403")
    source.errors.update(dict.fromkeys(range(0, 60, 3), refused))
    for index in (3, 6, 9):
        with pytest.raises(PermissionError, match="it says 403"):
            read(index)
        assert read(index + 1).id == index + 1
    assert pauses == [1.0, 5.0, 25.0]


@pytest.mark.parametrize("lists", [True, False])
def test_access_that_runs_out_ends_the_writing_before_an_image_is_lost(
    tmp_path: Path, pauses: list[float], lists: bool
):
    """Not even the last ones, which are fewer than may be missing."""

    class Expiring(Flaky):
        def __getitem__(self, index: int) -> Sample:
            if self.reads >= 57:
                self.error = PermissionError(errno.EACCES, "the token has expired")
                self.left = 10**6
            return super().__getitem__(index)

        def reachable(self) -> bool:
            if self.error is not None and not lists:
                raise self.error
            return True

    says = r"the token has expired\): the source refuses other samples, too.*renew the access"
    with pytest.raises(Unreachable, match=says):
        write(Expiring(None, 0), tmp_path / "out", samples_per_shard=30)
    assert pauses == [1.0, 5.0, 25.0]
    shard_set = write(Flaky(None, 0), tmp_path / "out", samples_per_shard=30)
    assert len(shard_set) == 60 and not shard_set.manifest.account.quarantined


def test_a_source_all_of_which_is_forbidden_ends_the_writing_once_too_much_is_missing(
    tmp_path: Path, pauses: list[float]
):
    source = Flaky(PermissionError(errno.EACCES, "no access: 403"), 10**6)
    says = r"9 of 60 samples \(15\.0%\) cannot be read.*no access: 403"
    with pytest.raises(ValueError, match=says):
        write(source, tmp_path / "out", samples_per_shard=3)
    with pytest.raises(ValueError, match=r"none of 60 images can be used.*no access: 403"):
        write(source, tmp_path / "out", samples_per_shard=3, max_missing=1.0)
    assert not pauses


@contextmanager
def serving(answers: dict[str, bytes | int]) -> Iterator[str]:
    """Give the address of a server of files, some of which it answers with a status."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[self.path]
            self.send_response(answer if isinstance(answer, int) else 200)
            data = b"" if isinstance(answer, int) else answer
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_of_a_table_of_urls_those_with_a_bad_status_are_lost_alone(
    tmp_path: Path, pauses: list[float]
):
    pytest.importorskip("aiohttp", reason="aiohttp, by which fsspec asks servers, is missing")
    bad = dict(enumerate((401, 403, 404, 410, 451, 500, 502, 521, 530), start=1))
    answers: dict[str, bytes | int] = {}
    for index in range(14):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (index, 0, 0)).save(file, "JPEG")
        answers[f"/{index}.jpg?size=o"] = bad.get(index, file.getvalue())
    with serving(answers) as server:
        (tmp_path / "t.csv").write_text("\n".join(["path", *(server + path for path in answers)]))
        source = Table(table=tmp_path / "t.csv", allow_outside="http://")
        shard_set = write(source, tmp_path / "out", max_missing=0.7)
    account = shard_set.manifest.account
    assert (account.written, account.quarantined, account.repaired) == (5, 9, 0)
    lines = (tmp_path / "out" / "quarantine" / "reasons.jsonl").read_text().splitlines()
    for line in lines:
        row = json.loads(line)
        index = int(re.findall(r"/(\d+)\.jpg", line)[0])
        assert row["reason"] == "unreadable"
        assert str(bad[index]) in row["detail"] or bad[index] in (404, 410)
    assert len(lines) == len(bad) and pauses == [1.0, 5.0, 25.0, 1.0, 1.0, 1.0]


@pytest.mark.usefixtures("pauses")
def test_files_of_a_disk_do_not_say_that_the_network_is_up():
    class Disk(Servers):
        def url(self, index: int) -> str:
            return "" if index % 3 else super().url(index)

    with pytest.raises(Unreachable, match="bring the source back"):
        Reader(Disk("a"))(0)


def test_a_network_that_is_down_is_not_the_servers_fault(pauses: list[float]):
    with pytest.raises(Unreachable, match="bring the source back"):
        Reader(Servers("a", "b", "c"))(0)
    assert pauses == [1.0, 5.0, 25.0]


def test_a_server_that_has_answered_is_waited_for(pauses: list[float]):
    source = Servers()
    read = Reader(source)
    read(0)
    source.dead = {"a"}
    with pytest.raises(Unreachable, match="bring the source back"):
        read(3)
    assert pauses == [1.0, 5.0, 25.0]


def test_a_file_that_is_there_again_when_its_place_is_was_not_lost(pauses: list[float]):
    """The place came back between the two questions."""
    assert Reader(Flaky(FileNotFoundError(errno.ENOENT, "", "x.jpg"), 1))(7).id == 7
    assert not pauses


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_of_the_machine_is_no_fault_of_the_image(pauses: list[float], number: int):
    with pytest.raises(OutOfResources, match="this machine cannot read any image now"):
        Reader(Flaky(OSError(number, ""), 1))(0)
    assert not pauses


def test_images_in_a_row_with_errors_of_a_disk_are_the_disk_s(pauses: list[float]):
    source = Flaky(OSError(errno.EIO, "", "x.jpg"), 2 * 19)
    read = Reader(source)
    for index in range(19):
        with pytest.raises(OSError, match=r"x\.jpg") as raised:
            read(index)
        assert not isinstance(raised.value, OutOfResources | Unreachable)
    assert read(19).id == 19
    source.left = 10**6
    for index in range(19):
        with pytest.raises(OSError, match=r"x\.jpg"):
            read(index)
    with pytest.raises(Unreachable, match="20 images in a row cannot be read") as gone:
        read(19)
    assert isinstance(pickle.loads(pickle.dumps(gone.value)), Unreachable) and not pauses


def test_any_number_of_absent_files_in_a_row_are_only_absent(tmp_path: Path, pauses: list[float]):
    """As in a table most of whose files were never downloaded."""
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{i}.jpg\n" for i in range(200)))
    for index in (0, 150):
        (tmp_path / f"{index}.jpg").write_bytes(b"image")
    read = Reader(Table(root=tmp_path, table=tmp_path / "t.csv"))
    lost = 0
    for index in range(200):
        try:
            assert read(index).id in (0, 150)
        except FileNotFoundError:
            lost += 1
    assert lost == 198 and not pauses


def test_a_table_most_of_whose_images_are_absent_is_written_if_that_is_meant(
    class_folders, tmp_path: Path, pauses: list[float]
):
    root = class_folders(classes=1, per_class=30)
    names = [f"class_00/{i:04d}.jpg" for i in range(100)]
    (tmp_path / "t.csv").write_text("path\n" + "\n".join(names))
    how = Preparation(min_side=1)
    with pytest.raises(ValueError, match=r"unreadable.*--max_missing 0\.\d+$"):
        write(Table(root=root, table=tmp_path / "t.csv"), tmp_path / "out", preparation=how)
    table = Table(root=root, table=tmp_path / "t.csv")
    shard_set = write(table, tmp_path / "out", preparation=how, max_missing=0.7)
    account = shard_set.manifest.account
    assert (account.written, account.quarantined) == (30, 70) and not pauses


def test_an_outage_changes_no_byte_of_the_set(tmp_path: Path, pauses: list[float]):
    absent = OSError(errno.ENOENT, "")
    for drop in (False, True):
        source = Flaky(absent, 3, away=3)
        found = write(source, tmp_path / f"out{drop}", drop_duplicates=drop)
        plain = write(Flaky(None, 0), tmp_path / f"plain{drop}", drop_duplicates=drop)
        assert contents(found) == contents(plain)
    assert len(pauses) == 6


@pytest.mark.parametrize("drop", [False, True])
def test_a_source_that_is_gone_ends_the_writing_which_goes_on_later(
    tmp_path: Path, pauses: list[float], drop: bool
):
    for error in (OSError(errno.ENOENT, ""), OSError(errno.ENOTCONN, "")):
        gone = Flaky(error, 10**6, away=10**6)
        with pytest.raises(OSError, match=r"the source seems to be gone\. Complete shards stay"):
            write(gone, tmp_path / "out", samples_per_shard=30, drop_duplicates=drop)
    shard_set = write(Flaky(None, 0), tmp_path / "out", samples_per_shard=30, drop_duplicates=drop)
    assert len(shard_set) == 60 and not (tmp_path / "out" / "quarantine").exists()
    assert pauses == [1.0, 5.0, 25.0] * 2


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_disk_that_is_not_mounted_is_away(
    class_folders, tmp_path: Path, pauses: list[float], left: str
):
    """Where it was there is nothing, or the folder that it is mounted over."""
    root = class_folders(classes=2, per_class=3)
    (tmp_path / "t.csv").write_text("path\nclass_00/0000.jpg\n")
    sources = [ImageFolder(root=root), Table(root=root, table=tmp_path / "t.csv")]
    assert all(source.reachable() for source in sources)
    shutil.rmtree(root)
    if left != "nothing":
        root.mkdir()
    for source in sources:
        with pytest.raises(Unreachable):
            Reader(source)(0)
    assert pauses == [1.0, 5.0, 25.0] * 2


def test_files_that_hold_many_images_are_places(tmp_path: Path, pauses: list[float]):
    images = np.zeros((2, 3, 96, 96), np.uint8)
    (tmp_path / "unlabeled_X.bin").write_bytes(images.tobytes())
    source = STL10(root=tmp_path, split="unlabeled")
    (tmp_path / "unlabeled_X.bin").unlink()
    with pytest.raises(Unreachable):
        Reader(source)(1)
    tars = tmp_path / "tars"
    tars.mkdir()
    write(Flaky(None, 0), tmp_path / "set", samples_per_shard=30)
    for tar in (tmp_path / "set").glob("*.tar"):
        tar.rename(tars / tar.name)
    packed = WebDataset(root=tars)
    assert Reader(packed)(59) == packed[59]
    shutil.rmtree(tars)
    with pytest.raises(Unreachable):
        Reader(packed)(59)
    assert pauses == [1.0, 5.0, 25.0] * 2
