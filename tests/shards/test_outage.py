"""A place that does not answer is told from one that refuses, and nobody waits for it for ever."""

import errno
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards import outage
from shards.health.leave_out import find_bad
from shards.health.verification import verify
from shards.health.watch import Watch
from shards.layout import ShardSet
from shards.outage import LastAnswer, Unreachable, answer_within, answered, is_outage
from shards.source.source import Sample
from shards.storage import LocalFolder, folder_at
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures
from training.command import AGAIN, run_command


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    answer_within(0.3)
    yield
    answer_within(120)


def named(name: str, *bases: type[Exception], **facts: Any) -> Exception:
    """Return an error of a store's package, as its type and attributes show it."""
    error = type(name, bases or (Exception,), {})("it said so")
    vars(error).update(facts)
    return error


AWAY = [
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
    OSError(errno.EHOSTDOWN, "Host is down"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    TimeoutError(),
    named("EndpointConnectionError"),  # botocore
    named("ServerDisconnectedError"),  # aiohttp
    named("ServiceResponseTimeoutError"),  # azure
    named("ServiceRequestError"),
    named("ServiceUnavailable"),  # google
    named("ClientResponseError", status=503),
    named("HttpError", code="429"),
    named("ClientResponseError", status=408),
    named("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 500}}),
]
REFUSED = [
    FileNotFoundError(errno.ENOENT, "No such file"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),  # of one file
    BrokenPipeError(errno.EPIPE, "LostFile pipe"),  # the reader of our output
    ValueError("batch_size=0"),
    named("ClientResponseError", status=403),
    named("NoCredentialsError"),
    named("SSLError", type("ConnectionError", (Exception,), {})),  # botocore: the wrong certificate
]


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_what_does_not_answer_may_answer_later(error: Exception) -> None:
    assert is_outage(error)
    translated = OSError(errno.EBUSY, "as the store's package says it")
    translated.__cause__ = error
    assert is_outage(translated)


@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_what_refuses_refuses_again(error: Exception) -> None:
    assert not is_outage(error)


def exit_code(error: Exception) -> object:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


def test_a_command_says_by_its_code_whether_it_may_succeed_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = pickle.loads(pickle.dumps(Unreachable(errno.EIO, "does not answer", "s3://b/x")))
    assert exit_code(lost) == AGAIN == 75
    assert capsys.readouterr().err == "error: s3://b/x: does not answer\n"
    assert exit_code(OSError(errno.ESTALE, "Stale file handle", "/nfs/run")) == AGAIN
    assert exit_code(OSError(errno.ENOSPC, "No space left on device", "/full")) == 2
    assert exit_code(ValueError("batch_size=0")) == 2


# ── in time ─────────────────────────────────────────────────────────────────────────────────────


def test_a_call_that_never_returns_is_given_up() -> None:
    begin = time.monotonic()
    with pytest.raises(Unreachable, match=r"s3://b/x has not answered for 0\.3 s") as error:
        answered("s3://b/x", lambda: time.sleep(60))
    assert time.monotonic() - begin < 10
    assert error.value.errno == errno.ETIMEDOUT


def test_a_call_that_gets_on_is_waited_for() -> None:
    last = LastAnswer()

    def upload() -> str:
        for _ in range(8):
            time.sleep(0.1)
            last.now()
        return "done"

    assert answered("s3://b/x", upload, last) == "done"


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        answered("s3://b/x", lambda: 1 / 0)


@pytest.mark.parametrize("refusal", [None, PermissionError("listing is not allowed")])
def test_a_long_call_is_waited_for_while_its_place_answers_a_short_one(
    refusal: Exception | None,
) -> None:
    answer_within(0.2)
    asked: list[str] = []

    def listing() -> str:
        time.sleep(0.5)
        return "a million names"

    def alive() -> bool:
        asked.append("are you there?")
        if refusal is not None:
            raise refusal  # an answer, too
        return True

    assert answered("s3://b/x", listing, alive=alive) == "a million names"
    assert asked


def test_a_long_call_is_given_up_when_its_place_answers_nothing() -> None:
    answer_within(0.2)
    begin = time.monotonic()
    with pytest.raises(Unreachable, match=r"s3://b/x has not answered for 0\.2 s"):
        answered("s3://b/x", hang, alive=hang)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("size", [5_000_000, 10])
def test_a_read_is_given_time_by_the_size_of_its_file(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_at("memory://slow")
    folder.write("file", bytes(size))
    whole = MemoryFileSystem.cat_file

    def slow(*words: Any, **names: Any) -> bytes:
        time.sleep(1.0)  # 5 MB may take fifty seconds
        return whole(*words, **names)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", slow)
    if size > 10:
        assert folder.read("file") == bytes(size)
    else:
        with pytest.raises(Unreachable, match="memory://slow/file has not answered"):
            folder.read("file")


def hang(*_: Any, **__: Any) -> Any:
    time.sleep(60)


@pytest.mark.parametrize(
    ("method", "ask"),
    [
        ("exists", lambda folder: folder.exists()),
        ("ls", lambda folder: folder.sizes()),
        ("ls", lambda folder: next(folder.walk())),
        ("open", lambda folder: folder.open("file")),
        ("cat_file", lambda folder: folder.read("file")),
        ("put_file", lambda folder: folder.write("file", b"new")),
        ("rm", lambda folder: folder.remove("file")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_store_that_hangs_is_named_whatever_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, method: str, ask: Callable[[Any], Any]
) -> None:
    folder = folder_at("memory://hangs")
    folder.write("file", b"content")
    for each in (method, "exists"):  # by which it is asked whether it is there
        monkeypatch.setattr(MemoryFileSystem, each, hang)
    with pytest.raises(Unreachable, match=r"memory://hangs.* has not answered"):
        ask(folder)


def test_a_store_that_hangs_or_fails_while_a_file_is_read_is_named() -> None:
    folder = folder_at("memory://read")
    folder.write("file", b"content of a file")
    with folder.open("file") as file:
        assert file.read(7) == b"content" and file.seek(0) == 0
        assert file.read() == b"content of a file"
    for failure in (hang, named("ServerDisconnectedError")):
        with folder.open("file") as file:
            file.raw._file = LostFile(failure)  # pyright: ignore[reportAttributeAccessIssue]
            with pytest.raises(Unreachable, match="memory://read/file"):
                file.read(7)


class LostFile:
    """A file of a store that has gone since it was opened."""

    def __init__(self, failure: Exception | Callable[..., Any]) -> None:
        self.failure = failure

    def read(self, size: int) -> bytes:
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure(size)

    def close(self) -> None:
        pass


# ── a folder on a disk ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EIO])
def test_a_folder_whose_disk_has_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def gone(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "scandir", gone)
    monkeypatch.setattr(Path, "is_dir", gone)
    folder = LocalFolder(tmp_path)
    for ask in (folder.exists, folder.sizes, lambda: next(folder.walk())):
        with pytest.raises(Unreachable, match="is not mounted") as error:
            ask()
        assert error.value.filename == str(tmp_path)


def test_a_file_that_cannot_be_read_is_no_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", defect)
    with pytest.raises(OSError, match="Input/output error") as error:
        LocalFolder(tmp_path).open("file")
    assert not isinstance(error.value, Unreachable)


# ── what reads all of a set ─────────────────────────────────────────────────────────────────────


def away(*_: object) -> Any:
    raise Unreachable(errno.ESTALE, "does not answer", "/nfs/set")


def test_a_set_that_is_away_is_not_called_damaged(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = make_shard_set(42)
    monkeypatch.setattr(LocalFolder, "open", away)
    for look in (lambda: verify(shard_set.root), lambda: find_bad(shard_set)):
        with pytest.raises(Unreachable):
            look()


def test_a_set_that_was_away_for_a_while_is_watched_to_its_end(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set: ShardSet = make_shard_set(42)
    real, calls = LocalFolder.open, []

    def sometimes(folder: LocalFolder, name: str) -> Any:
        calls.append(name)
        return away() if len(calls) % 2 else real(folder, name)

    monkeypatch.setattr(LocalFolder, "open", sometimes)
    monkeypatch.setattr("shards.health.watch._AGAIN", 0.01)
    with Watch(shard_set, shard_set.manifest.shards) as watch:
        deadline = time.monotonic() + 20
        while watch.checked < watch.total and time.monotonic() < deadline:
            time.sleep(0.01)
    assert watch.checked == watch.total and not watch.found


class Hanging(Pictures):
    """A source in a store that stops answering."""

    def __getitem__(self, index: int) -> Sample:
        raise Unreachable(errno.ETIMEDOUT, f"{index}.jpg has not answered")


def test_a_source_that_hangs_ends_the_writing_at_its_first_image(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"sample \d+ cannot be read \(\d+\.jpg has not answered"):
        write(Hanging(60), tmp_path / "out")  # 36 s a pause for each image would be for ever


# ── nothing is left behind ──────────────────────────────────────────────────────────────────────


def test_a_killed_upload_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        with folder_at("memory://killed").create("file") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not list(tmp_path.iterdir())
    data = os.urandom(1 << 20)
    folder_at("memory://killed").write("file", data)
    assert fsspec.filesystem("memory").cat_file("/killed/file") == data


def test_no_space_for_an_upload_names_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OSError, match="No space left on device") as error:  # noqa: SIM117
        with folder_at("memory://full").create("file"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == f"{tempfile.gettempdir()}, on the way to memory://full/file"
    monkeypatch.setattr(outage, "_seconds", None)  # and for ever, if that is wanted
    folder_at("memory://full").write("file", b"")
