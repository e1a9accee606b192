"""Folders on a disk, as they are found, and on a server of files, which may list none."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards.outage import Unreachable
from shards.source.location import find_tars, is_there
from shards.storage import LocalFolder, folder_at


def test_links_to_themselves_and_through_files_are_names_like_others(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "folder" / "itself").symlink_to("itself")
    (tmp_path / "through").symlink_to("file/deeper")
    (tmp_path / "link").symlink_to("file")
    folder = LocalFolder(tmp_path)
    assert [(inside, folders, sorted(files)) for inside, folders, files in folder.walk()] == [
        ("", ["folder"], ["file", "link", "through"]),
        ("folder", [], ["itself"]),
    ]
    assert folder.sizes() == {"file": 4, "link": 4}
    assert LocalFolder(tmp_path / "folder").sizes() == {}


def test_a_file_that_goes_while_its_folder_is_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    real = os.scandir

    @contextmanager
    def scandir(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(path) as entries:
            listed = [*entries]
        (tmp_path / "b").unlink()
        yield iter(listed)

    monkeypatch.setattr(os, "scandir", scandir)
    assert LocalFolder(tmp_path).sizes() == {"a": 1, "c": 1}


def answer_of_s3(monkeypatch: pytest.MonkeyPatch, status: int, code: str) -> OSError:
    """Return our error for the one that s3fs makes of an answer of S3."""
    pytest.importorskip("s3fs", reason="s3fs, whose errors these are, is missing")
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer: Any = {
        "Error": {"Code": code, "Message": f"S3 says {code}"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }

    def refuse(*_: object, **__: object) -> bytes:
        raise translate_boto_error(ClientError(answer, "GetObject"))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(OSError, match=r"memory://bucket/file|No such file") as error:
        folder_at("memory://bucket").read("file")
    assert code in str(error.value) or isinstance(error.value, FileNotFoundError)
    return error.value


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [
        (403, "AccessDenied", errno.EACCES),
        (400, "ExpiredToken", errno.EACCES),
        (403, "403", errno.EACCES),
        (403, "UnknownToS3fs", errno.EACCES),
        (404, "NoSuchKey", errno.ENOENT),
        (410, "UnknownToS3fs", errno.ENOENT),
        (400, "InvalidArgument", errno.EINVAL),
    ],
)
def test_what_a_store_refuses_is_no_defect_of_a_disk(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, number: int
) -> None:
    error = answer_of_s3(monkeypatch, status, code)
    assert error.errno == number and not isinstance(error, Unreachable)


@pytest.mark.parametrize(
    ("status", "code", "busy"),
    [
        (503, "SlowDown", True),
        (503, "ServiceUnavailable", True),
        (429, "UnknownToS3fs", True),
        (500, "InternalError", False),
        (502, "UnknownToS3fs", False),
        (400, "RequestTimeout", False),
    ],
)
def test_a_store_that_answers_that_it_cannot_says_whether_it_is_busy(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, busy: bool
) -> None:
    error = answer_of_s3(monkeypatch, status, code)
    assert isinstance(error, Unreachable) and (error.status, error.busy) == (status, busy)


def test_a_server_that_is_away_is_not_called_an_absent_file() -> None:
    pytest.importorskip("aiohttp", reason="aiohttp, by which fsspec asks servers, is missing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        folder = folder_at(f"http://127.0.0.1:{free.getsockname()[1]}")
        for ask in (folder.open, folder.holds, folder.read):
            with pytest.raises(Unreachable) as error:
                ask("file")
            assert not error.value.status


@contextmanager
def served(folder: Path, *, lists: bool) -> Iterator[str]:
    """Give the address of a server of a folder's files, which lists them or refuses to."""

    class OneFolder(SimpleHTTPRequestHandler):
        def __init__(self, *connection: Any) -> None:
            super().__init__(*connection, directory=str(folder))

        def list_directory(self, path: Any) -> Any:
            return super().list_directory(path) if lists else self.send_error(403)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), OneFolder) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("lists", [True, False])
def test_tars_are_found_on_a_server_whether_it_lists_them_or_not(
    tmp_path: Path, lists: bool
) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp, by which fsspec asks servers, is missing")
    for name in ("000.tar", "001.tar"):
        (tmp_path / name).write_bytes(bytes(1024))
    with served(tmp_path, lists=lists) as server:
        assert is_there(server)
        for pattern, names in (
            ("{000..001}.tar", ["000.tar", "001.tar"]),
            ("001.tar", ["001.tar"]),
        ):
            found = find_tars(f"{server}/{pattern}", "")
            assert [folder.path(name) for folder, name in found] == [f"{server}/{n}" for n in names]
            assert all(folder.holds(name) for folder, name in found)
        with pytest.raises(FileNotFoundError, match=r"/002\.tar is missing"):
            find_tars(f"{server}/{{000..002}}.tar", "")
