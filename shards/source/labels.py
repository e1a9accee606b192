"""Labels as they are found, as text or as numbers, made into positions in a list of classes."""

import re
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

# "007" is a name. "7.0" is what pandas makes of a column of numbers with gaps.
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,17}))(?:\.0+)?")
_MOST_NUMBERS = 1_000_000  # classes named by their numbers, before they get new numbers
_MOST_NAMES = 10_000_000


def natural(name: str) -> str:
    """Sort key that puts 2.jpg before 10.jpg; 1.jpg and 01.jpg stay in their order.

    One string, which takes a tenth of the memory of a list of numbers and texts.
    """
    padded = re.sub("[0-9]+", lambda digits: digits[0].lstrip("0").zfill(20), name)
    return f"{padded}\0{name}"


class Labels:
    """Labels of samples, one after the other, eight bytes each while they are collected.

    Where all are whole numbers from 0 up, they stay what they are, and the classes are "0" up to
    the largest. Where one is not, all are names: sorted as people count, the label being the place
    in that order. Numbers above a million are names too, in the order of size. None, empty text
    and -1 mean that there is no label.
    """

    def __init__(self, what: str) -> None:
        """Begin without labels.

        Args:
            what: Where they come from, for messages: "column label of data.csv".
        """
        self._what = what
        self._values = array("q")  # numbers, or places in _names
        self._names: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def append(self, value: Any) -> None:
        """Add the label of the next sample.

        Raises:
            ValueError: It is neither a number nor text, or there are too many classes.
        """
        if isinstance(value, float):
            value = None if value != value else f"{value:.1f}" if value.is_integer() else str(value)
        if not (value is None or isinstance(value, (str, int))):
            raise ValueError(
                f"{self._what} holds {str(value)[:60]!r} (a {type(value).__name__}); expected the "
                "name or the number of a class. Give another as --label."
            )
        text = "-1" if value is None else str(value).strip() or "-1"
        number = _WHOLE.fullmatch(text)
        if not number and self._names is None:
            self._name_numbers()
        if self._names is None:
            assert number
            self._values.append(int(number[1]))
        else:  # numbers among names alike, whether they came before the first name or after
            text = number[1] if number else text
            self._values.append(-1 if text == "-1" else self._place(text))

    def _name_numbers(self) -> None:
        """Take the numbers until now for names, because there is a name among them."""
        self._names = {}
        for index, number in enumerate(self._values):
            self._values[index] = self._place(str(number)) if number != -1 else -1

    def _place(self, name: str) -> int:
        assert self._names is not None
        if len(self._names) == _MOST_NAMES and name not in self._names:
            raise ValueError(
                f"{self._what} holds more than {_MOST_NAMES:,} different texts, the last being "
                f"{name[:60]!r}; expected names of classes. Give another as --label."
            )
        return self._names.setdefault(name, len(self._names))

    def finish(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return the label of each sample, -1 if it has none, and the classes, [] without labels.

        Raises:
            ValueError: A number is below -1.
        """
        values = np.frombuffer(self._values, dtype=np.int64) if self._values else np.empty(0, int)
        if self._names is not None:
            found = list(self._names)
            order = sorted(range(len(found)), key=lambda place: natural(found[place]))
            position = np.empty(len(found) + 1, dtype=np.int32)
            position[order] = np.arange(len(found))
            position[-1] = -1  # of -1
            return position[values], [found[place] for place in order]
        if values.size and values.min() < -1:
            raise ValueError(
                f"{self._what} holds {values.min()}; expected numbers of classes from 0 up, or -1 "
                "for none. Number them from 0, or give names."
            )
        if not values.size or values.max() < 0:
            return np.full(len(values), -1, dtype=np.int32), []
        if values.max() < _MOST_NUMBERS:
            return values.astype(np.int32), [str(n) for n in range(int(values.max()) + 1)]
        numbers, places = np.unique(values, return_inverse=True)
        shift = 1 if numbers[0] == -1 else 0
        return (places - shift).astype(np.int32), [str(n) for n in numbers[shift:]]
