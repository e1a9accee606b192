"""Text of strangers, such as names of files and classes, made fit to show on one line."""

import re
from collections.abc import Iterable

# Control characters (a newline, an escape sequence that rules the terminal), bytes that are not
# UTF-8 (surrogates), separators of lines and paragraphs, and what turns the direction of text.
_UNFIT = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    r"""Return text in which such characters are written as Python would: \n, \x1b, \udcff."""
    return _UNFIT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def few(names: Iterable[str], most: int = 6, what: str = "") -> str:
    """Return the first of some names on one line, such as "a, b, … (9 folders)" or "no folders".

    Args:
        names: all of them.
        most: how many are shown.
        what: they are, in the plural; without it their number is not said.
    """
    names = list(names)
    shown = ", ".join(map(one_line, names[:most]))
    if len(names) > most:
        shown += f", … ({len(names):,} {what})" if what else ", …"
    return shown or (f"no {what}" if what else "none")
