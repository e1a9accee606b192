"""Random damage, by chance and on purpose."""

import random
import re
from typing import Any

from tests.sentry import EVIL

PATHS = ["../../../outside", "/etc/passwd", "..", "a/../../b", "file:///etc/passwd", "s3://x/y"]
WORDS = ["\x00", "x" * 5000, "-1", "nan", "1e999", "9" * 20, "0", "true", "null", "[]", "{}", '"']
WORDS += ["'", ":", "\n", "\\u0000", "[" * 3000, "{" * 3000, "\xff\xfe", "${HOME}", "&a [*a]"]
CODE = ["!!python/object/apply:os.system [touch outside]", "!!python/name:os.system", "os.system"]
CODE += [f"{EVIL}.Evil", "subprocess.Popen", "torch.load", "builtins.eval", "http://127.0.0.1:1/x"]
HARM = [*PATHS, *WORDS, *CODE]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to four random changes."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([1, 2, 8, 64, 512]))
        kind = chance.choice(["flip", "random", "cut", "repeat", "harm", "end", "number", "zero"])
        if kind == "flip" and start < len(data):
            bit = bytes([data[start] ^ (1 << chance.randrange(8))])
            data = data[:start] + bit + data[start + 1 :]
        elif kind == "random":
            data = data[:start] + chance.randbytes(end - start) + data[end:]
        elif kind == "zero":
            data = data[:start] + bytes(end - start) + data[end:]
        elif kind == "cut":
            data = data[:start] + data[end:]
        elif kind == "repeat":
            data = data[:end] + data[start:end] * chance.choice([1, 3]) + data[end:]
        elif kind == "end":
            data = data[:start]
        elif kind == "harm":
            harm = chance.choice(HARM).encode("utf-8", "surrogateescape")
            data = data[:start] + harm + data[chance.choice([start, end]) :]
        elif kind == "number":
            numbers = list(re.finditer(rb"\d+", data[:100_000]))
            if numbers:
                found = chance.choice(numbers)
                value = chance.choice(["0", "-1", "1e999", "7", "4294967296", "999999999999999999"])
                data = data[: found.start()] + value.encode() + data[found.end() :]
    return data


def edited(value: Any, chance: random.Random) -> Any:
    """Return JSON with one value replaced, removed or moved somewhere inside."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {k: v for k, v in value.items() if k != name}
        return {**value, name: edited(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], edited(value[at], chance), *value[at + 1 :]]
    strange = [None, -1, 0, 10**30, 1e300, float("nan"), [], {}, True, {"class_path": "os.system"}]
    return chance.choice([*strange, {"class_path": f"{EVIL}.Evil"}, *HARM])
