"""Random damage, by chance and on purpose."""

import random
import re
from collections.abc import Callable
from typing import Any

import fsspec
import torch
from torch import Tensor

from tests.sentry import EVIL

PATHS = ["../../../outside", "/etc/passwd", "..", "a/../../b", "file:///etc/passwd", "s3://x/y"]
WORDS = ["\x00", "x" * 5000, "-1", "nan", "1e999", "9" * 20, "0", "true", "null", "[]", "{}", '"']
WORDS += ["'", ":", "\n", "\\u0000", "[" * 3000, "{" * 3000, "\xff\xfe", "${HOME}", "&a [*a]"]
CODE = ["!!python/object/apply:os.system [touch outside]", "!!python/name:os.system", "os.system"]
CODE += [f"{EVIL}.Evil", "subprocess.Popen", "torch.load", "builtins.eval", "http://127.0.0.1:1/x"]
_RESTS = ["", "/", "x", "/nowhere/x", "127.0.0.1:1/x", "..", "%00", "[::1", "x" * 5000, "\x00"]
_RESTS += ["x::file:///nowhere", "a?b=c&d", "bucket/set"]
_SCHEMES = [*sorted(fsspec.available_protocols()), "nowhere", "", "S3", "a b", "ftp:ftp"]
PLACES = [f"{scheme}://{rest}" for scheme in _SCHEMES for rest in _RESTS]
# Not to wait for the name of a host.
PLACES = [place for place in PLACES if not place.startswith("http") or "//127." in place]
PLACES += ["://", "file:/nowhere", "memory:", "", " ", "\x00", "a" * 300, "s3:/x", "é"]
"""Where a shard set or images might be; no host but this one."""
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


def edited_state(tree: Any, chance: random.Random) -> Any:
    """Return nested state with one value or tensor replaced, removed or moved somewhere inside."""
    if isinstance(tree, Tensor):
        other = chance.choice(_OTHER_TENSORS)
        return other(tree) if chance.random() < 0.8 else edited(None, chance)
    if isinstance(tree, dict) and tree and chance.random() < 0.95:
        name = chance.choice(list(tree))
        if chance.random() < 0.1:
            return {k: v for k, v in tree.items() if k != name}
        return {**tree, name: edited_state(tree[name], chance)}
    if isinstance(tree, list | tuple) and tree and chance.random() < 0.9:
        at = chance.randrange(len(tree))
        return type(tree)([*tree[:at], edited_state(tree[at], chance), *tree[at + 1 :]])
    return edited(None, chance)


_OTHER_TENSORS: list[Callable[[Tensor], Tensor]] = [
    lambda tensor: tensor.double(),
    lambda tensor: tensor.half(),
    lambda tensor: tensor.long() if tensor.isfinite().all() else tensor.bool(),
    lambda tensor: tensor.bool(),
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:1],
    lambda tensor: tensor.flatten()[:-1],
    lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()]),
    lambda _: torch.empty(0),
    lambda tensor: torch.full_like(tensor, float("nan") if tensor.is_floating_point() else 0),
    lambda tensor: torch.full_like(tensor, 1e30 if tensor.is_floating_point() else 1),
    lambda tensor: -tensor if tensor.dtype != torch.bool else ~tensor,
    lambda tensor: tensor.flip(0) if tensor.ndim else tensor + 1,
]


def bomb(chance: random.Random) -> str:
    """Return a short YAML text that is long once it is read."""
    depth, width = chance.choice([3, 6, 9, 20]), chance.choice([2, 9, 50])
    kind = chance.choice(["list", "map", "merge", "long", "text", "digits"])
    where = chance.choice(["x{}", "views{}", "method{}", "- x{}", "? x{}\n"])
    lines = ["a0: &a0 [x, x, x]" if kind == "list" else "a0: &a0 {x: 1}"]
    for level in range(1, depth):
        above = [f"*a{level - 1}"] * width
        name = where.replace("{}", str(level)) if level == depth - 1 else f"a{level}"
        if kind == "list":
            lines.append(f"{name}: &a{level} [{', '.join(above)}]")
        elif kind == "map":
            pairs = ", ".join(f"k{i}: {each}" for i, each in enumerate(above))
            lines.append(f"{name}: &a{level} {{{pairs}}}")
        else:
            lines.append(f"{name}: &a{level} {{<<: [{', '.join(above)}], k{level}: 1}}")
    if kind == "long":
        long = ", ".join(["x"] * 20_000)
        lines = [f"a: &a [{long}]", *(f"b{i}: *a" for i in range(5_000))]
    elif kind == "text":
        lines = [f"a: &a {'x' * 100_000}", *(f"b{i}: *a" for i in range(20_000))]
    elif kind == "digits":
        digits = chance.choice(["9" * 5_000, "1" + ":59" * 100_000, "0x" + "f" * 500_000])
        lines = [where.replace("{}", "") + f": {digits}"]
    return "\n" + "\n".join(lines) + "\n"
