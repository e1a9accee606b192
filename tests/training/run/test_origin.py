"""The commit of a checkout, and of nothing else."""

import runpy
import shutil
import subprocess
from pathlib import Path

from training.run import origin


def test_a_commit_is_that_of_the_own_checkout_and_not_of_a_repository_around_it(
    tmp_path: Path,
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    found: list[str | None] = []
    for above in (tmp_path, tmp_path / ".venv" / "site-packages" / "viewrank"):
        copied = above / "training" / "run" / "origin.py"
        copied.parent.mkdir(parents=True)
        shutil.copy(origin.__file__, copied)
        found.append(runpy.run_path(str(copied))["commit"]())
    assert found == [head.stdout.strip(), None]


def test_a_checkout_behind_a_link_is_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path(origin.__file__).parents[2])
    linked = runpy.run_path(str(tmp_path / "link" / "training" / "run" / "origin.py"))
    assert linked["commit"]() == origin.commit()
