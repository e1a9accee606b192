"""All processes of a run read the same data with the same settings, code and libraries.

They are started by a launcher on each machine, from files of that machine: a rank of another seed,
or of another shuffle of the images, would train on, and nothing would look wrong. And all of them
write into one folder.
"""

from __future__ import annotations

import platform
import secrets
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from accelerate.utils import gather_object

from training.config import SHARD_SETS
from training.data import ShardSets
from training.processes import Processes
from training.run.origin import versions
from training.settings import Settings

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "numpy", "triton")
LIBRARIES += ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
# Machines may have sets, weights and the run's folder at different places; content tells them.
PLACES = ("run", "weights", *SHARD_SETS)
_NAMED = 4  # differences that a message has room for
_LATE = 10  # seconds until a network's disk shows another machine's new file at the latest


def refuse_differences(settings: Settings, sets: ShardSets, processes: Processes) -> None:
    """Compare what the ranks read with what rank 0 does.

    Args:
        settings: of this process.
        sets: its shard sets.
        processes: wait for each other here.

    Raises:
        ValueError: on rank 0, what differs by name; the other ranks end with code 2.
    """
    if processes.world_size == 1:
        return
    mine = facts(settings, sets, machine=processes.machine)
    first: dict[str, str] = processes.from_first(mine)
    lines: list[str] = gather_object([differences(mine, first, rank=processes.rank)])
    if not any(lines):
        return
    if not processes.first:  # one message is enough
        sys.exit(2)
    raise ValueError(
        f"{'; '.join(filter(None, lines))}. All ranks of a run are started with the same flags, "
        "data, code and libraries."
    )


def refuse_other_disks(run: Path, processes: Processes) -> None:
    """Refuse a run's folder that is another one on some machine: no checkpoint would be whole.

    Args:
        run: the folder, as this process finds it.
        processes: wait for each other here.

    Raises:
        ValueError: on rank 0, which ranks do not see its folder; the others end with code 2.
    """
    if processes.world_size == 1:
        return
    name = f".seen-{secrets.token_hex(4)}"
    if processes.first:
        try:
            (run / name).touch()
        except OSError:  # a full disk, which does not end a run
            name = ""
    name = processes.from_first(name)
    seen, end = not name or (run / name).exists(), time.monotonic() + _LATE
    while not seen and time.monotonic() < end:
        time.sleep(0.2)
        seen = (run / name).exists()
    who = "" if seen else f"rank {processes.rank} on {platform.node()}"
    blind = [each for each in gather_object([who]) if each]
    if processes.first and name:
        (run / name).unlink(missing_ok=True)
    if not blind:
        return
    if not processes.first:
        sys.exit(2)
    raise ValueError(
        f"{run} is another folder for {', '.join(blind[:_NAMED])} than for rank 0 on "
        f"{platform.node()}: each rank writes its part of a checkpoint there. Give --run on a disk "
        "that all machines see."
    )


def facts(settings: Settings, sets: ShardSets, *, machine: str) -> dict[str, str]:
    """Return what has to be the same on all ranks, by name.

    Args:
        settings: of this process.
        sets: its shard sets.
        machine: see `Processes.machine`.
    """
    found = {name: str(value) for name, value in settings.flat().items() if name not in PLACES}
    for name, shard_set in sets.by_setting().items():
        content = f"{len(shard_set)} samples, manifest {shard_set.manifest.digest()[:12]}"
        found[f"content of --{name}"] = content
    found["device and precision"] = machine
    found["viewrank's code"] = _code()
    return found | {f"version of {name}": text for name, text in versions(*LIBRARIES).items()}


def differences(mine: Mapping[str, str], first: Mapping[str, str], *, rank: int) -> str:
    """Return in which facts a rank differs from rank 0, as words; "" if in none."""
    names = [n for n in {**first, **mine} if mine.get(n) != first.get(n)]
    if not names:
        return ""
    texts = [f"{n} {mine.get(n, '(none)')}, not {first.get(n, '(none)')}" for n in names[:_NAMED]]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"rank {rank} differs from rank 0: {'; '.join(texts)}{more}"


def _code() -> str:
    """Return a digest of the program's modules."""
    root, digest = Path(__file__).parents[2], sha256()
    rooms = ("training", "model", "pipeline", "shards", "evaluation")
    for path in sorted(path for room in rooms for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
