"""A folder of files, on this machine's disks or in an object store: `data/mine`, `s3://bucket/mine`.

The standard library opens local files, and fsspec all others: any protocol that it knows, with the
package that it needs (`s3fs` for `s3://`), its configuration and its environment variables.
"""

import errno
import inspect
import io
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

from shards import durable
from shards.outage import LastAnswer, Unreachable, answered, is_outage, of_place, status_of

SLOWEST = 100_000  # bytes a second, with which a file on its way is no outage yet
_BLOCK = 2**20  # bytes of a file in a store that are asked for at once
Location = str | os.PathLike[str]


def is_remote(location: Location) -> bool:
    """Whether a location is in an object store, that is, has a protocol."""
    return "://" in os.fspath(location)


def folder_at(location: Location) -> "Folder":
    """Return the folder at a location, whether it exists or not.

    Raises:
        ValueError: the protocol is unknown, or its package is not installed.
    """
    return RemoteFolder(os.fspath(location)) if is_remote(location) else LocalFolder(location)


class Folder(ABC):
    """A folder. Names are relative to it, with "/" between folders.

    A place that does not answer is an `shards.outage.Unreachable`, whatever it was asked for.
    """

    location: str
    """As people and DALI read it."""

    def path(self, name: str) -> str:
        """Return the full path of a file."""
        return f"{self.location}/{name}"

    def __str__(self) -> str:
        return self.location

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.location == other.location

    def __hash__(self) -> int:
        return hash(self.location)

    @abstractmethod
    def exists(self) -> bool:
        """Whether the folder exists; in a store it does as soon as a file is in it."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return {name: bytes} of the files in the folder itself; {} if it does not exist."""

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name in it."""
        return name in self.sizes()

    @abstractmethod
    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (folder, names of folders, names of files), top down, unsorted; "" is the top.

        To remove a name from the list of folders leaves that folder out. To sort the list sets the
        order of the folders below. Hidden names are left out.
        """

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; it can be sought in."""

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Return a file's content, or `size` bytes from `start` on; one request in a store."""
        with self.open(name) as file:
            file.seek(start)
            return file.read() if size is None else file.read(size)

    @abstractmethod
    def create(self, name: str) -> Any:
        """Give, as a context, a file to write; it gets its name if no error is raised inside.

        A named file is complete and durable. It replaces an earlier file of the name at once.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once, durably."""
        with self.create(name) as file:
            file.write(data)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; do nothing if it does not exist."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what processes that were killed have left of files that they wrote."""


class LocalFolder(Folder):
    """A folder on a disk."""

    def __init__(self, location: Location) -> None:
        self._root = Path(location)
        self.location = str(self._root)

    def exists(self) -> bool:
        with of_place(self.location, whole=True):
            return self._root.is_dir()

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            with of_place(self.location, whole=True), os.scandir(self._root) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # removed or renamed since it was listed
                        if _leads(entry, os.DirEntry.is_file):
                            found[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        return found

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        yield from self._walk("", ())

    def _walk(
        self, folder: str, above: tuple[str, ...]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        real = os.path.realpath(self._root / folder)
        if real in above:  # a link that leads back up
            return
        folders, files = [], []
        place = self._root / folder
        with of_place(str(place), whole=True), os.scandir(place) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    of = folders if _leads(entry, os.DirEntry.is_dir) else files
                    of.append(entry.name)
        yield folder, folders, files
        for name in folders:
            yield from self._walk(f"{folder}/{name}" if folder else name, (*above, real))

    def open(self, name: str) -> IO[bytes]:
        with of_place(self.path(name)):
            return durable.open_regular(self._root / name)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with durable.created(self._root / name) as file:
            yield file

    def link(self, name: str, target: str) -> None:
        """Make a file that is a link, in place of one of that name."""
        path = self._root / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def clean(self) -> None:
        durable.clean(self._root)

    def remove(self, name: str) -> None:
        path = self._root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _leads(entry: os.DirEntry[str], to: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Return what `to` says of an entry, and no of a link that leads nowhere, such as to itself."""
    try:
        return to(entry)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise  # such as of a disk that has gone


class RemoteFolder(Folder):
    """A prefix of an object store, by fsspec."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        self._protocol, _, _ = self.location.partition("://")
        self._opened: tuple[int, Any] = (0, None)
        try:
            if wanted := self._wanted():
                raise ValueError(f"its store wants more than a path: {', '.join(wanted)}")
            # The store's package removes the protocol; some keep a slash in front.
            self._prefix = self._files._strip_protocol(self.location)
        except Exception as error:  # each store's package raises others
            text = " ".join(str(error).split())
            raise ValueError(
                f"{location} cannot be opened: {text}. Install the package if it names one (s3:// "
                "needs uv pip install s3fs), or copy the files to a local folder."
            ) from None

    def _wanted(self) -> list[str]:
        """Return what the store cannot be opened without, such as the host of ftp://."""
        import fsspec

        kind = fsspec.get_filesystem_class(self._protocol)
        _, *parameters = inspect.signature(kind.__init__).parameters.values()
        named = (p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        return [p.name for p in named if p.default is p.empty]

    @property
    def _files(self) -> Any:
        """The file system; a forked process opens another, as connections do not fork."""
        import fsspec

        if self._opened[0] != os.getpid():
            # Listings must not be remembered: other processes write here too.
            files = fsspec.filesystem(self._protocol, use_listings_cache=False)
            self._opened = os.getpid(), files
        return self._opened[1]

    def __getstate__(self) -> str:
        return self.location  # connections belong to a process

    def __setstate__(self, location: str) -> None:
        self.__init__(location)

    def _ask(
        self,
        name: str,
        work: Callable[..., Any],
        *args: Any,
        alive: Callable[[], bool] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what the store answers about a file, or about the folder if the name is empty."""
        place = self.path(name) if name else self.location
        with _as_os_error(place):
            return answered(place, partial(work, *args, **kwargs), alive=alive)

    def exists(self) -> bool:
        return bool(self._ask("", self._files.exists, self._prefix))

    def sizes(self) -> dict[str, int]:
        try:
            listed = self._listed("")
        except FileNotFoundError:
            return {}
        found: dict[str, int] = {}
        for entry in listed:
            with suppress(FileNotFoundError):  # a server's list may name what is not there
                if entry["type"] == "file":
                    found[entry["name"].rpartition("/")[2]] = self._size(entry)
        return found

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        prefix = f"{self._prefix}/{folder}" if folder else self._prefix
        # A million names take minutes: while they come, the store answers something short.
        alive = partial(self._files.exists, self._prefix)
        return self._ask(folder, self._files.ls, prefix, detail=True, alive=alive)

    def _size(self, entry: Mapping[str, Any]) -> int:
        size = entry["size"]
        if size is None:  # a server lists names alone
            size = self._ask("", self._files.size, entry["name"])
        return int(size or 0)

    def holds(self, name: str) -> bool:
        # Not by a listing, which servers of files need not give.
        try:
            return self._ask(name, self._files.info, f"{self._prefix}/{name}")["type"] == "file"
        except FileNotFoundError:
            return False

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        yield from self._walk("")

    def _walk(self, folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
        # Not fsspec's own walk: below the top it takes a listing that fails for an empty folder.
        prefix = f"{self._prefix}/{folder}" if folder else self._prefix
        listed = self._listed(folder)
        folders, files = [], []
        for entry in listed:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name and not name.startswith(".") and entry["name"].strip("/") != prefix.strip("/"):
                (folders if entry["type"] == "directory" else files).append(name)
        yield folder, folders, files
        for name in folders:
            yield from self._walk(f"{folder}/{name}" if folder else name)

    def open(self, name: str) -> IO[bytes]:
        file = self._ask(name, self._files.open, f"{self._prefix}/{name}", "rb")
        return io.BufferedReader(_StoreFile(file, self.path(name)), _BLOCK)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        path, end = f"{self._prefix}/{name}", None if size is None else start + size
        begin = time.monotonic()

        def slow() -> bool:  # and not away: many files share the network
            try:
                much = self._files.size(path) if size is None else size
            except Exception:  # each store's package raises others
                much = 0
            return time.monotonic() - begin < (much or 0) / SLOWEST

        return self._ask(name, self._files.cat_file, path, start=start or None, end=end, alive=slow)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        # Written to a local file first: an interrupted upload must leave no object. That file has
        # no name, so it goes with this process, however that ends.
        with tempfile.TemporaryFile() as file:
            with durable.named(f"{tempfile.gettempdir()}, on the way to {self.path(name)}"):
                yield file  # pyright: ignore[reportReturnType]
                file.flush()
                file.seek(0)
            local, there = f"/dev/fd/{file.fileno()}", f"{self._prefix}/{name}"
            progress = LastAnswer()
            # Nothing is told of before a part is there, and many files share the network.
            progress.allow(os.fstat(file.fileno()).st_size / SLOWEST)
            send = partial(self._files.put_file, local, there, callback=_callback(progress))
            with _as_os_error(self.path(name)):
                answered(self.path(name), send, progress)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(name, self._files.rm, f"{self._prefix}/{name}", recursive=True)

    def clean(self) -> None:
        """A store has whole files only."""


class _StoreFile(io.RawIOBase):
    """A file of a store, each read of which is answered in time."""

    def __init__(self, file: Any, place: str) -> None:
        self._file, self._place = file, place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(-1)

    def _read(self, size: int) -> bytes:
        with _as_os_error(self._place):
            return answered(self._place, partial(self._file.read, size))

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _callback(progress: LastAnswer) -> Any:
    """Return what a store's package calls for every part that it has sent."""
    import fsspec

    class Sent(fsspec.Callback):
        def relative_update(self, inc: int = 1) -> None:  # noqa: ARG002
            progress.now()

        def absolute_update(self, value: int) -> None:  # noqa: ARG002
            progress.now()

    return Sent()


@contextmanager
def _as_os_error(location: str) -> Iterator[None]:
    """Turn any error of a store's package into an OSError that names the location."""
    try:
        yield
    except Unreachable:
        raise
    except Exception as error:  # botocore, aiohttp, google, azure: each raises other types
        cause = error.__cause__
        if isinstance(error, FileNotFoundError) and cause is not None and is_outage(cause):
            raise _translated(cause, location) from None  # as fsspec says that a server is away
        raise _translated(error, location) from None


def _translated(error: BaseException, location: str) -> OSError:
    status, number = status_of(error), getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    text = " ".join(str(error).split())
    if not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    lost = is_outage(error) or isinstance(error, BrokenPipeError)
    # EPIPE would look like a reader of our output that has gone.
    if number in (None, errno.EIO, errno.EPIPE):
        refused = not lost and (isinstance(error, PermissionError) or 400 <= status < 500)
        number = errno.EACCES if refused else errno.EIO
    if not lost:
        return OSError(number, f"{location}: {text}")
    said = Unreachable(number, f"{location}: {text}")
    said.status = status
    return said
