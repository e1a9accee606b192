"""The loop of docs/reliability.md that starts a run again, with a stand-in for `python`."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.program import ROOT


def loop() -> str:
    text = (ROOT / "docs" / "reliability.md").read_text()
    (found,) = re.findall(r"^while python .*?; done", text, flags=re.DOTALL | re.MULTILINE)
    return found.replace("sleep 5", "true")


def starts(folder: Path, codes: list[str]) -> int:
    """Return how often the loop starts a program that ends with one code after the other."""
    (folder / "codes").write_text("\n".join(codes) + "\n")
    (folder / "python").write_text(
        '#!/bin/bash\necho >> started\nend=$(sed -n "$(wc -l < started)p" codes)\n'
        "case $end in SIG*) kill -$end $$ ;; *) exit $end ;; esac\n"
    )
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", loop()], cwd=folder, env=environment, timeout=30, check=False)
    return len((folder / "started").read_text().splitlines())


@pytest.mark.parametrize("code", ["0", "2", "130", "SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL"])
def test_the_loop_ends_where_starting_again_does_not_help(tmp_path: Path, code: str) -> None:
    assert starts(tmp_path, [code, *["0"] * 3]) == 1


def test_the_loop_goes_on_after_a_kill_until_the_run_is_done(tmp_path: Path) -> None:
    assert starts(tmp_path, ["SIGKILL", "75", "1", "SIGBUS", "0", "75"]) == 5
