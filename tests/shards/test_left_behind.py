"""The next start removes what killed processes have left, and nothing that a living one writes."""

import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import durable
from shards.health.repair import repair
from shards.layout import ShardSet, open_shards
from shards.source.source import Names
from shards.storage import LocalFolder
from shards.subset import selection
from shards.subset.selection import select
from shards.writing.write import write
from tests.conftest import Pictures


@pytest.fixture
def whole(tmp_path: Path) -> ShardSet:
    return write(Pictures(40), tmp_path / "set", samples_per_shard=8)


def fork(work: Callable[[], None]) -> int:
    """Do something in a process of its own; return its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return child


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class HeldProcess:
    """A process that stops in the midst of its work, until it is let go."""

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        began, self._go = os.pipe(), os.pipe()

        def pause() -> None:
            os.write(began[1], b".")
            os.read(self._go[0], 1)

        def whole() -> None:
            work(pause)
            os._exit(0)

        self.process = fork(whole)
        os.close(began[1])
        assert os.read(began[0], 1), "it ended before it began"

    def end(self) -> int:
        os.write(self._go[1], b".")
        return wait_for(self.process)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_half_written_file_goes_with_the_process_that_was_writing_it(tmp_path: Path) -> None:
    def killed() -> None:
        with durable.created(tmp_path / "00000.idx"):
            die()

    def living(pause: Callable[[], None]) -> None:
        with durable.created(tmp_path / "00001.idx") as file:
            file.write(b"whole")
            pause()

    assert wait_for(fork(killed)) == -signal.SIGKILL
    held = HeldProcess(living)
    # The number of a process that lives says nothing: it may be another one by now.
    (tmp_path / f".00002.idx.{held.process}-0123abcd").write_bytes(b"half")
    kept = [".00003.idx", ".keep.12-0123", "00004.idx.1-0123abcd", "sub"]
    for name in kept[:3]:
        (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".deep.1-00000000").symlink_to(tmp_path / "00004.idx.1-0123abcd")
    assert len(names(tmp_path)) == 7
    durable.clean(tmp_path)
    (left,) = set(names(tmp_path)) - set(kept)
    assert left.startswith(f".00001.idx.{held.process}-")
    assert held.end() == 0
    assert names(tmp_path) == sorted([*kept, "00001.idx"])
    assert (tmp_path / "00001.idx").read_bytes() == b"whole"


def test_a_file_that_was_taken_for_left_behind_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = durable.fcntl.flock, []

    def flock(file: int, operation: int) -> None:  # between open and lock, another one cleans up
        tries.append(file)
        if len(tries) == 1:
            monkeypatch.setattr(durable.fcntl, "flock", real)
            durable.clean(tmp_path)
            monkeypatch.setattr(durable.fcntl, "flock", flock)
        real(file, operation)

    monkeypatch.setattr(durable.fcntl, "flock", flock)
    with durable.created(tmp_path / "file") as file:
        file.write(b"whole")
    assert len(tries) == 2 and names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_where_nothing_can_be_locked_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(durable.fcntl, "flock", unsupported)
    with durable.created(tmp_path / "file"):
        (writing,) = names(tmp_path)
        durable.clean(tmp_path)
        assert names(tmp_path) == [writing]
        with durable.shared(tmp_path / "lock", clean=lambda: pytest.fail("cleaned")):
            pass
    assert "file" in names(tmp_path)


def test_a_repair_removes_what_a_killed_one_has_left(whole: ShardSet) -> None:
    root = Path(whole.root)
    before = names(root)
    (root / "00001.idx").unlink()

    def killed() -> None:
        os.replace = lambda *_: die()
        repair(root)

    assert wait_for(fork(killed)) == -signal.SIGKILL
    assert len(names(root)) == len(before)  # its own in place of the index
    assert repair(root).rebuilt == ["00001.idx"]
    assert names(root) == before


def selecting(whole: ShardSet, name: str, then: Callable[[], None]) -> None:
    """Select, and do something before the second shard is written."""
    real, calls = selection._write_shard, []

    def write_shard(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            then()
        return real(*arguments)  # pyright: ignore[reportArgumentType]

    selection._write_shard = write_shard  # pyright: ignore[reportAttributeAccessIssue]
    select(whole, name, fraction=0.5, stratified=False)


def test_a_selection_removes_what_a_killed_one_has_left(whole: ShardSet) -> None:
    subsets = Path(whole.root) / "subsets"
    assert wait_for(fork(lambda: selecting(whole, "first", die))) == -signal.SIGKILL
    (subsets / ".earlier.1234").mkdir()  # of a version before
    (subsets / ".mine").mkdir()
    left = names(subsets)
    assert len(left) == 4 and left[0] == ".earlier.1234" and left[1].startswith(".first.")
    select(whole, "second", fraction=0.5)
    assert names(subsets) == [".mine", "second"]


def test_a_selection_leaves_alone_what_another_one_is_writing(whole: ShardSet) -> None:
    subsets = Path(whole.root) / "subsets"
    held = HeldProcess(lambda pause: selecting(whole, "first", pause))
    select(whole, "second", fraction=0.5)
    assert [name for name in names(subsets) if name.startswith(".first.")]
    assert held.end() == 0
    assert names(subsets) == ["first", "second"]
    assert len(open_shards(subsets / "first")) == 20


# ── no space left ───────────────────────────────────────────────────────────────────────────────


def without_space(work: Callable[[Path], None], folder: Path) -> str:
    """Return the name in the error of a process that may write no more than a page."""
    told, tell = os.pipe()

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            work(folder)
        except OSError as error:
            os.write(tell, str(error.filename).encode())
        os._exit(0)

    process = fork(child)
    os.close(tell)
    with open(told) as pipe:
        name = pipe.read()
    assert wait_for(process) == 0
    return name


def replaced(folder: Path) -> None:
    with durable.replaced(folder / "file") as path, path.open("wb") as file:
        file.write(bytes(1 << 16))


def names_of_many(_: Path) -> None:
    found = Names()
    for number in range(Names._BLOCK):
        found.append(f"{number}")


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (lambda folder: durable.write(folder / "file", [bytes(1 << 16)]), "{}/file"),
        (lambda folder: durable.replace(folder / "file", [bytes(1 << 16)]), "{}/.file.partial"),
        (lambda folder: LocalFolder(folder).write("a/file", bytes(1 << 16)), "{}/a/file"),
        (replaced, "{}/file"),
        (names_of_many, tempfile.gettempdir()),
    ],
    ids=["write", "replace", "create", "replaced", "names"],
)
def test_a_full_disk_is_told_of_with_the_file(
    tmp_path: Path, work: Callable[[Path], None], named: str
) -> None:
    assert without_space(work, tmp_path) == named.format(tmp_path)
