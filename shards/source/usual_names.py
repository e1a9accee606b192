"""What usual names of folders mean: splits of a data set, and what systems leave behind."""

import re
from collections.abc import Iterable

_SPLIT = re.compile(
    r"(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev|eval(?:uation)?)"
    r"|(?P<test>test(?:ing)?)|(?P<unlabelled>unlabel+ed)",
    re.IGNORECASE,
)
# What may follow: train2017, val_256, test-set, TrainingData, valid_images.
_REST = re.compile(r"([-_ ]?(set|data|images?|imgs?|split|\d+))*", re.IGNORECASE)
# Of Synology, QNAP and NetApp, macOS, Windows and Linux, version control, Python. Hidden names,
# such as .ipynb_checkpoints, .thumbnails, .git or ._x.jpg, are left out everywhere.
_LEFTOVER = re.compile(
    r"@eaDir|@Recycle|@Recently-Snapshot|@tmp|@SynoResource|#recycle|#snapshot|~snapshot"
    r"|__MACOSX|Network Trash Folder|Temporary Items|\$RECYCLE\.BIN|RECYCLER"
    r"|System Volume Information|lost\+found|CVS|__pycache__",
    re.IGNORECASE,
)


def is_leftover(name: str) -> bool:
    """Whether a folder of that name was left by a system or a tool, not by its user."""
    return name.startswith(".") or _LEFTOVER.fullmatch(name) is not None


def splits_among(names: Iterable[str]) -> list[str]:
    """Return the names that look like splits of a data set, if they stand for two or more of them.

    One alone says little: "train" is also a vehicle.
    """
    kinds = {name: kind for name in names if (kind := _kind(name))}
    return list(kinds) if len(set(kinds.values())) > 1 else []


def is_split(name: str) -> bool:
    """Whether a name looks like that of a split of a data set."""
    return _kind(name) is not None


def _kind(name: str) -> str | None:
    begin = _SPLIT.match(name)
    return begin.lastgroup if begin and _REST.fullmatch(name, begin.end()) else None
