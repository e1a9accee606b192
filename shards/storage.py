"""A folder of files, on this machine's disks or in an object store: `data/mine`, `s3://bucket/mine`.

The standard library opens local files, and fsspec all others: any protocol that it knows, with the
package that it needs (`s3fs` for `s3://`), its configuration and its environment variables.
"""

import errno
import inspect
import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from shards import durable

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
    """A folder. Names are relative to it, with "/" between folders."""

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


class LocalFolder(Folder):
    """A folder on a disk."""

    def __init__(self, location: Location) -> None:
        self._root = Path(location)
        self.location = str(self._root)

    def exists(self) -> bool:
        return self._root.is_dir()

    def sizes(self) -> dict[str, int]:
        try:
            with os.scandir(self._root) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        yield from self._walk("", ())

    def _walk(
        self, folder: str, above: tuple[str, ...]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        real = os.path.realpath(self._root / folder)
        if real in above:  # a link that leads back up
            return
        folders, files = [], []
        with os.scandir(self._root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
        yield folder, folders, files
        for name in folders:
            yield from self._walk(f"{folder}/{name}" if folder else name, (*above, real))

    def open(self, name: str) -> IO[bytes]:
        return durable.open_regular(self._root / name)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name that no other process uses: an earlier run of the task may still be writing, even
        # on another machine.
        own = f"{os.getpid()}-{secrets.token_hex(4)}"
        with durable.replaced(path, suffix=own) as aside, aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def remove(self, name: str) -> None:
        path = self._root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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

    def exists(self) -> bool:
        with _as_os_error(self.location):
            return bool(self._files.exists(self._prefix))

    def sizes(self) -> dict[str, int]:
        try:
            with _as_os_error(self.location):
                listed = self._files.ls(self._prefix, detail=True)
        except FileNotFoundError:
            return {}
        return {
            entry["name"].rpartition("/")[2]: int(entry["size"])
            for entry in listed
            if entry["type"] == "file"
        }

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        yield from self._walk("")

    def _walk(self, folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
        # Not fsspec's own walk: below the top it takes a listing that fails for an empty folder.
        prefix = f"{self._prefix}/{folder}" if folder else self._prefix
        with _as_os_error(self.path(folder)):
            listed = self._files.ls(prefix, detail=True)
        folders, files = [], []
        for entry in listed:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name and not name.startswith(".") and entry["name"].strip("/") != prefix.strip("/"):
                (folders if entry["type"] == "directory" else files).append(name)
        yield folder, folders, files
        for name in folders:
            yield from self._walk(f"{folder}/{name}" if folder else name)

    def open(self, name: str) -> IO[bytes]:
        with _as_os_error(self.path(name)):
            return self._files.open(f"{self._prefix}/{name}", "rb")

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        end = None if size is None else start + size
        with _as_os_error(self.path(name)):
            return self._files.cat_file(f"{self._prefix}/{name}", start=start or None, end=end)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        # Written to a local file first: an interrupted upload must leave no object.
        with tempfile.NamedTemporaryFile(prefix="viewrank-") as file:
            yield file  # pyright: ignore[reportReturnType]
            file.flush()
            with _as_os_error(self.path(name)):
                self._files.put_file(file.name, f"{self._prefix}/{name}")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _as_os_error(self.path(name)):
            self._files.rm(f"{self._prefix}/{name}", recursive=True)


@contextmanager
def _as_os_error(location: str) -> Iterator[None]:
    """Turn any error of a store's package into an OSError that names the location."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location) from None
    except OSError as error:
        # EPIPE would look like a reader of our output that has gone.
        number = errno.EIO if error.errno in (None, errno.EPIPE) else error.errno
        raise OSError(number, f"{location}: {error}") from None
    except Exception as error:  # botocore, aiohttp, google, azure: each raises other types
        text = " ".join(str(error).split())
        raise OSError(errno.EIO, f"{location}: {type(error).__name__}: {text}") from None
