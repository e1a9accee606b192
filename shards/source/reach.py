"""Which files a list of paths may have read: those below its root, and where its user allows.

A table or a data set may come from anybody, and what is no image goes into quarantine/, which
people publish with the set. So a path that leads to the passwords of this machine, the environment
of this process or a server of this network must not be read because a row names it.
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from shards import durable
from shards.source.location import File, split_location
from shards.source.source import NoImage
from shards.storage import folder_at, is_remote

# Of the kernel: processes, devices. /dev/shm is a folder in memory.
_SPECIAL = re.compile(r"/(?:proc|sys|dev(?!/shm/))(?:/|$)")
_LOCAL = re.compile(r"^(?:file|local)://(?=/)")


class Outside(NoImage):
    """A path leads to where nothing may be read; the message names the flag that allows it."""


class Reach:
    """Reads what paths name below a root, or below other places that are allowed.

    Links are followed before it is judged where a path leads. Nothing allows files of the kernel.
    """

    def __init__(self, root: str, allow_outside: str | Sequence[str] | None) -> None:
        """Take the places that may be read.

        Args:
            root: Folder or URL that relative paths start from.
            allow_outside: Other folders or beginnings of URLs that paths may lead to.

        Raises:
            ValueError: One of these is empty.
        """
        self._root = _LOCAL.sub("", root)
        others = [allow_outside] if isinstance(allow_outside, str) else allow_outside or []
        if "" in others:
            raise ValueError("allow_outside holds an empty name; expected folders, or URLs.")
        places = [self._root, *(_LOCAL.sub("", place) for place in others)]
        self._store = folder_at(self._root) if is_remote(self._root) else None
        self._urls = [place for place in places if is_remote(place)]
        self._folders = [os.path.abspath(place) for place in places if not is_remote(place)]
        self._real: list[str] | None = None  # the folders without links, as this machine sees them

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_real": None}

    def open(self, path: str) -> IO[bytes]:
        """Open the file that a path names.

        Raises:
            Outside: It must not be read.
            OSError: It cannot be read.
        """
        where = self.find(path)
        return durable.open_regular(where) if isinstance(where, Path) else where[0].open(where[1])

    def read(self, path: str) -> bytes:
        """Return the content of the file that a path names; see `open`."""
        where = self.find(path)
        return durable.read(where) if isinstance(where, Path) else where[0].read(where[1])

    def check(self, path: str) -> None:
        """Refuse a path that leads outside by itself. Links below the root are seen by `read`.

        Raises:
            Outside: It must not be read.
        """
        if path.startswith("/") or "://" in path or ".." in path:
            self.find(path)

    def find(self, path: str) -> Path | File:
        """Return a file of this machine, or a folder of a store and a name in it.

        Raises:
            Outside: It must not be read.
            NoImage: It is no path.
        """
        if "\0" in path:
            raise NoImage(errno.EINVAL, "is no path: it holds a zero byte", path.replace("\0", " "))
        local = _LOCAL.sub("", path)
        if is_remote(local):
            return self._find_in_store(local)
        if not local.startswith("/"):
            if self._store is not None:
                if _climbs(local):
                    raise self._refusal(path, f"{self._root}/{local}")
                return self._store, local
            local = os.path.join(self._root, local)
        real = os.path.realpath(local)
        if self._real is None:
            self._real = [os.path.realpath(folder) for folder in self._folders]
        if _SPECIAL.match(real):
            text = f"is {real}, which belongs to the system; nothing allows to read that"
            raise Outside(errno.EACCES, text, path)
        if not any(_is_below(real, folder) for folder in self._real):
            raise self._refusal(path, real)
        return Path(real)

    def _find_in_store(self, url: str) -> File:
        for place in self._urls:
            above = place if place.endswith("://") else place.rstrip("/") + "/"
            rest = url.removeprefix(above)
            if rest != url and not ("://" in rest or "::" in rest or _climbs(rest)):
                return split_location(url)
        raise self._refusal(url, url)

    def _refusal(self, path: str, real: str) -> Outside:
        leads = "" if real == path else f" leads to {real}, and"
        protocol, separator, rest = real.partition("://")
        place = (
            protocol + separator + rest.split("/")[0] if separator else os.path.dirname(real) or "/"
        )
        return Outside(
            errno.EACCES,
            f"{leads} is not below {self._root}. What a list names may be read and published: if "
            f"that is meant, --allow_outside {place}".strip(),
            path,
        )


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _climbs(path: str) -> bool:
    """Whether a path in a store has steps that lead up, as servers understand them."""
    return ".." in re.split(r"[/\\]", unquote(unquote(path)))
