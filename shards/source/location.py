"""Which files are meant: by a path, by a folder, or by a pattern such as data/{000..009}.tar."""

import errno
import os
import re
from pathlib import Path
from typing import IO

from braceexpand import braceexpand

from shards.source.labels import natural
from shards.storage import Folder, folder_at, is_remote

File = tuple[Folder, str]
_SERVERS = ("http://", "https://")
"""Places that need not list their folders."""
_COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4))$", re.IGNORECASE)


def split_location(path: str) -> File:
    """Return the folder of a file and its name in it."""
    protocol, separator, rest = path.rpartition("://")
    folder, slash, name = rest.rpartition("/")
    if not separator:
        folder = folder or ("/" if slash else ".")
    elif not slash:  # a whole store
        folder, name = rest, ""
    return folder_at(protocol + separator + folder), name


def open_table(path: str) -> IO[bytes]:
    """Open a file that holds a table.

    Raises:
        FileNotFoundError: It is not there; the message names the flag.
    """
    folder, name = split_location(path)
    try:
        return folder.open(name)
    except FileNotFoundError:
        said = f"{path} is missing. Give the table as --table."
        raise FileNotFoundError(errno.ENOENT, said) from None


def is_there(location: str) -> bool:
    """Whether a folder exists and holds anything: where a disk is not mounted, it holds nothing.

    Raises:
        OSError: Its place does not answer.
    """
    if is_remote(location):
        # A server of files has no folders, and says itself when it is away.
        return location.startswith(_SERVERS) or folder_at(location).exists()
    try:
        with os.scandir(location) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def find_tars(root: str | Path, split: str) -> list[File]:
    """Return the tars of a folder in the order of their names, or those that a pattern means.

    Raises:
        FileNotFoundError: There are none, or one that a pattern names is absent.
        ValueError: They are compressed.
    """
    root = os.fspath(root)
    patterned = re.search(r"[*?\[{]", root) is not None
    if not patterned or (not is_remote(root) and folder_at(root).exists()):
        folder, name = split_location(root)
        if name.endswith(".tar") and (folder.holds(name) or not folder_at(root).exists()):
            return _there([root])
        return _of_folder(folder_at(root), split.strip("/"))
    if split:
        raise ValueError(
            f"--split {split} and the pattern {root} were both given; expected one of them. Write "
            "the split into the pattern."
        )
    found: list[File] = []
    exact: list[str] = []
    for path in expand(root):
        if re.search(r"[*?\[]", path):
            found += glob(path)
        else:
            exact.append(path)
    found += _there(exact)
    if not found:
        raise FileNotFoundError(f"no file is called {root}. Give another pattern as --root.")
    for folder, name in found:
        _refuse_compressed(folder, [name])
    return found


def expand(pattern: str) -> list[str]:
    """Write out the braces of a pattern as bash does: {a,b}, {000..009}.

    Raises:
        ValueError: a brace is neither a range nor a choice, or has no end.
    """
    try:
        paths = list(dict.fromkeys(braceexpand(pattern, escape=False)))
    except ValueError:
        raise ValueError(f"the braces of {pattern} are not balanced. Close each of them.") from None
    if brace := re.search(r"\{[^{}]*\}", paths[0]):
        raise ValueError(
            f"{brace[0]} in {pattern} is neither a range such as {{000..009}} nor a choice such as "
            "{a,b}. Write one of them."
        )
    return paths


def glob(pattern: str) -> list[File]:
    """Return the files whose paths a pattern fits, sorted; no * goes beyond a folder."""
    protocol, separator, rest = pattern.rpartition("://")
    steps = rest.split("/")
    fixed = next(i for i, step in enumerate(steps) if re.search(r"[*?\[]", step))
    top = protocol + separator + "/".join(steps[:fixed])
    above = folder_at(top if fixed and top else "/" if fixed else ".")
    if not above.exists():
        raise FileNotFoundError(f"{above}, in {pattern}, is not a folder. Correct the pattern.")
    found = sorted(_fitting(above, "/".join(steps[fixed:])), key=natural)
    folders: dict[str, Folder] = {}
    files = []
    for path in found:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = folder_at(above.path(folder)) if folder else above
        files.append((folders[folder], name))
    return files


def _fitting(above: Folder, pattern: str) -> list[str]:
    """Return the files below a folder that a pattern fits, relative to it."""
    if is_remote(above.location):
        import fsspec

        system, root = fsspec.url_to_fs(above.location)
        found = system.glob(f"{root}/{pattern}", detail=True)
        names = [path for path, facts in found.items() if facts["type"] == "file"]
        return [name.removeprefix(root).strip("/") for name in names]
    root = Path(above.location)
    names = [str(path.relative_to(root)) for path in root.glob(pattern) if path.is_file()]
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def _there(paths: list[str]) -> list[File]:
    """Return the files at paths, refusing paths without one; each folder is listed once."""
    listed: dict[str, tuple[Folder, dict[str, int]]] = {}
    files, missing = [], []
    for path in paths:
        above, name = split_location(path)
        lists = not path.startswith(_SERVERS)
        if above.location not in listed:
            listed[above.location] = above, above.sizes() if lists else {}
        folder, names = listed[above.location]
        there = name in names if lists else folder.holds(name)
        (files if there else missing).append((folder, name))
    if missing:
        raise FileNotFoundError(
            f"{missing[0][0].path(missing[0][1])} is missing"
            + (f", and {len(missing) - 1:,} more of {len(paths):,}" if len(missing) > 1 else "")
            + ". Correct --root, or fetch what is missing."
        )
    return files


def _of_folder(top: Folder, split: str) -> list[File]:
    if not top.exists():
        raise FileNotFoundError(
            f"{top} is not a folder. Give a folder of tars, or a pattern such as "
            "data/{000..009}.tar, as --root."
        )
    folder = folder_at(top.path(split)) if split else top
    names = list(folder.sizes()) if folder.exists() else []
    _refuse_compressed(folder, names)
    tars = sorted((name for name in names if name.lower().endswith(".tar")), key=natural)
    if not tars:
        below = ", ".join(sorted(next(top.walk())[1], key=natural)[:6])
        raise FileNotFoundError(
            f"{folder} holds no .tar files. "
            + (f"{top} has the folders {below}: give one as --split. " if below else "")
            + "Give the folder of the tars, or a pattern, as --root."
        )
    return [(folder, name) for name in tars]


def _refuse_compressed(folder: Folder, names: list[str]) -> None:
    for name in names:
        if _COMPRESSED.search(name):
            raise compressed(folder.path(name))


def compressed(path: str) -> ValueError:
    """Return the error for a tar that cannot be read at any place, being compressed."""
    return ValueError(
        f"{path} is compressed, so samples in it cannot be read in any order; expected plain tars. "
        f"Unpack the compression, not the tar, which costs next to no space: gunzip {path}"
    )
