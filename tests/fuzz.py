"""Damage whatever viewrank reads, in thousands of ways, and watch what happens.

    python -m tests.fuzz --cases 2000 --out benchmarks/results/fuzz-cpu.json

Recipes, manifests, indexes, tars, tables, images, checkpoints, exports and dumps are changed at
random: bits, bytes, cuts, repeats, and words that mean harm (paths that lead out, YAML tags, class
paths, aliases that unfold, numbers too large). Some are sealed anew, as whoever wants to do harm
would. Each case is then read as the programs read it; `tests.fuzz_targets` has the list. What may
happen: it is accepted, or refused in one line. What may not: any other exception, the end of the
process, 30 seconds without an answer, a process started, a connection opened, a module imported
that a recipe named, a file written outside the case's own folder, a pickle loaded.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz_targets import CONNECTS, TARGETS, go_to_place, prepare
from tests.sentry import EVIL, Sentry
from training.command import LESS_MEMORY, run_command

SECONDS = 30
EVIL_CODE = "raise SystemExit('code of a recipe was run')\n"
Case = dict[str, Any]
"""What one case was, and what happened: case, target, outcome, detail."""


class Hang(BaseException):
    """A case took too long."""


def fuzz(cases: int, seed: int, root: Path, *, first: int = 0, only: str = "") -> dict[str, Any]:
    """Read so many damaged things in this process; return the counts, and all that went wrong.

    Args:
        cases: how many.
        seed: of all of them; a case can be repeated alone by its number.
        root: empty folder to work in.
        first: number of the first.
        only: the only target; "" takes all, by their weights.
    """
    prepare(root / "whole")
    return summary(seed, list(results(range(first, first + cases), seed, root, only)))


def fuzz_apart(
    cases: int, seed: int, root: Path, *, first: int = 0, only: str = ""
) -> dict[str, Any]:
    """Do the same in other processes, which a case may end; print each that goes wrong."""
    prepare(root / "whole")
    _read_whole(root)
    log, end, done = root / "results.jsonl", first + cases, list[Case]()
    log.touch()
    while len(done) < cases:
        numbers = range(first + len(done), end)
        apart = multiprocessing.get_context("spawn").Process(
            target=_log_results, args=(numbers, seed, root, only, log)
        )
        apart.start()
        apart.join()
        done = [json.loads(line) for line in log.read_text().splitlines()]
        if len(done) < cases:
            number = first + len(done)
            how, name = f"ended the process, code {apart.exitcode}", _target(seed, number, only)
            died = {"case": number, "target": name, "outcome": how, "detail": ""}
            with log.open("a") as file:
                file.write(json.dumps(died) + "\n")
            print(f"case {number}, {died['target']}: {how}", flush=True)
            done.append(died)
    return summary(seed, done)


def summary(seed: int, done: list[Case]) -> dict[str, Any]:
    """Count outcomes by target."""
    counts = Counter((each["target"], each["outcome"]) for each in done)
    table = {name: {o: n for (t, o), n in counts.items() if t == name} for name in TARGETS}
    wrong = [each for each in done if each["outcome"] not in ("accepted", "refused")]
    return {"seed": seed, "cases": len(done), "counts": table, "wrong": wrong}


def results(numbers: range, seed: int, root: Path, only: str = "") -> Iterator[Case]:
    """Yield what happened, case after case; the folder holds what `prepare` made."""
    (root / f"{EVIL}.py").write_text(EVIL_CODE)
    sys.path.insert(0, str(root))
    _read_whole(root)
    sentry = Sentry()
    signal.signal(signal.SIGALRM, _too_late)
    try:
        for number in numbers:
            name = _target(seed, number, only)
            outcome, detail = _one(root, name, random.Random(f"{seed}-{number}-{name}"), sentry)
            yield {"case": number, "target": name, "outcome": outcome, "detail": detail}
    finally:
        sys.path.remove(str(root))


def _read_whole(root: Path) -> None:
    """Read what is not damaged: all of it is accepted, and libraries make their caches."""
    for read in dict.fromkeys(read for _, _, read in TARGETS.values() if read is not go_to_place):
        shutil.rmtree(root / "case", ignore_errors=True)
        shutil.copytree(root / "whole", root / "case")
        with redirect_stdout(StringIO()):
            read(root / "case")


def _target(seed: int, number: int, only: str) -> str:
    if only:
        return only
    weights = [weight for weight, _, _ in TARGETS.values()]
    (name,) = random.Random(f"{seed}-{number}").choices(list(TARGETS), weights)
    return name


def _log_results(numbers: range, seed: int, root: Path, only: str, log: Path) -> None:
    faulthandler.enable()
    with log.open("a", buffering=1) as file:
        for case in results(numbers, seed, root, only):
            file.write(json.dumps(case) + "\n")
            if case["outcome"] not in ("accepted", "refused"):
                print("case {case}, {target}: {outcome}\n{detail}".format(**case), flush=True)


def _one(root: Path, name: str, chance: random.Random, sentry: Sentry) -> tuple[str, str]:
    case = root / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(root / "whole", case)
    _, damage, read = TARGETS[name]
    damage(case, chance)
    said = StringIO()
    tempfile.tempdir = str(case)  # what is written for a moment has its place, too
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)  # where no signal is heard
    try:
        watching = sentry.watching(case, connects=name in CONNECTS)
        with watching, redirect_stdout(StringIO()), redirect_stderr(said):
            run_command(lambda: read(case))
        outcome, detail = "accepted", ""
    except SystemExit as ended:
        text = said.getvalue()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        outcome, detail = "refused", text
        if ended.code != 2 or len(errors) != 1 or len(errors[0]) < 15:
            outcome = "refused without a reason"
        elif LESS_MEMORY in text:
            outcome = "no memory left"
    except Hang:
        outcome, detail = "hang", traceback.format_exc()
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        tempfile.tempdir = None
    if sentry.seen:
        outcome, detail = "harm", "\n".join(sentry.seen)
    return outcome, detail[-3000:]


def _too_late(_: int, __: FrameType | None) -> None:
    raise Hang


def main() -> None:
    """Damage, read, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cases", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--first", type=int, default=0, help="number of the first case")
    arguments.add_argument("--only", choices=TARGETS, default="", help="damage nothing else")
    arguments.add_argument("--out", type=Path, help="where to write the counts, as JSON")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as root:
        where = Path(root).resolve()
        done = fuzz_apart(given.cases, given.seed, where, first=given.first, only=given.only)
    for name, outcomes in done["counts"].items():
        print(f"{name:26} " + ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes.items()))
    print(f"{done['cases']:,} cases, {len(done['wrong'])} that should not be")
    if given.out:
        given.out.write_text(json.dumps(done, indent=1) + "\n")
    sys.exit(bool(done["wrong"]))


if __name__ == "__main__":
    main()
