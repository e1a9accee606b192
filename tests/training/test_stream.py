"""A program whose standard streams were closed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MONITOR = """
from pathlib import Path
from training.monitor import Monitor
with Monitor(Path("."), main=True, step=0, total_steps=1) as monitor:
    monitor.header({"run": "x"})
    monitor.say("done")
"""
STARTED = """
import sys
from training.shown_commands import start
start([sys.executable, "-c", "pass"], shown=["python"])
"""


@pytest.mark.parametrize("code", [MONITOR, STARTED])
def test_a_program_whose_output_is_closed_goes_on(code: str, tmp_path: Path) -> None:
    closed = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code]
    done = subprocess.run(
        closed, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
