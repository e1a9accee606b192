"""Build the Dockerfile and train in its container, on Debian where CUDA's image is not to be had.

    python -m tests.container    # as root, with buildah, debootstrap and Python 3.12; 20 GB

The image that the Dockerfile begins with comes from a registry that tests do not reach. Debian by
debootstrap has its name here, with packages python3.12, python3.12-dev and python3.12-venv that
hold this machine's Python: every line of the Dockerfile runs as it stands, only CUDA's libraries
are PyTorch's own alone, as they are for pip. Then a user whom the image does not know trains on
photographs, as docs/install.md has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.program import ROOT
from tests.typed import photos

PROGRAMS = ("buildah", "debootstrap", "dpkg-deb", "dpkg-scanpackages")
RELEASE = "bookworm"
PACKAGES = ("python3.12", "python3.12-dev", "python3.12-venv")
LIBRARIES = "libbz2-1.0, libffi8, liblzma5, libreadline8, libsqlite3-0, libssl3, zlib1g"
OF_THIS_MACHINE = ("etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
IMAGE = "viewrank"
STRANGER = 1000
"""Whom the image does not know: most often the first user of a machine."""


def python() -> Path | None:
    """Return the folder of a Python 3.12 that may be copied."""
    found = sorted(Path.home().glob(".pyenv/versions/3.12.*"))
    return found[-1] if found else None


def base_of_dockerfile() -> str:
    """Return the image that the Dockerfile begins with."""
    (found,) = re.findall(r"^FROM (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return found


def debian(folder: Path) -> Path:
    """Make Debian's smallest system, with a repository of its own that has Python 3.12."""
    root = folder / "debian"
    run(["debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE, root])
    there = python()
    assert there is not None
    repository = root / "packages"
    repository.mkdir()
    for name in PACKAGES:
        content = folder / name
        control = content / "DEBIAN/control"
        control.parent.mkdir(parents=True)
        lines = [f"Package: {name}", f"Version: {there.name}", "Architecture: amd64"]
        lines += [f"Depends: {LIBRARIES}", "Maintainer: nobody <nobody@example.org>"]
        control.write_text("\n".join([*lines, "Description: this machine's Python", ""]))
    package = folder / PACKAGES[0]
    shutil.copytree(there, package / "usr/local", symlinks=True)
    then = package / "DEBIAN/postinst"
    then.write_text("#!/bin/sh\nldconfig\n")
    then.chmod(0o755)
    for name in PACKAGES:
        run(["dpkg-deb", "-Znone", "--build", folder / name, repository / f"{name}.deb"])
    index = run(["dpkg-scanpackages", "."], cwd=repository)
    (repository / "Packages").write_text(index)
    source = root / "etc/apt/sources.list.d/own.list"
    source.write_text("deb [trusted=yes] file:/packages ./\n")
    for name in OF_THIS_MACHINE:
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    return root


def run(words: list[str | Path], cwd: Path = ROOT) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


class Buildah:
    """buildah with a store of its own.

    Args:
        folder: for the store.
    """

    def __init__(self, folder: Path) -> None:
        where = ["--root", folder / "store", "--runroot", folder / "run"]
        self.program = ["buildah", *where, "--storage-driver", "overlay"]

    def __call__(self, *words: str | Path) -> str:
        """Run a command of buildah's; return what it prints."""
        return run([*self.program, *words]).strip()


def main() -> None:
    """Build, and train; print what it comes to."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing or python() is None:
        sys.exit(f"this needs root, a Python 3.12 of pyenv, and {', '.join(PROGRAMS)}.")
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    buildah = Buildah(folder)
    begin = time.monotonic()

    def say(what: str) -> None:
        seconds = round(time.monotonic() - begin)
        print(json.dumps({"seconds": seconds, "done": what}), flush=True)

    try:
        container = buildah("from", "scratch")
        buildah("copy", container, debian(folder), "/")
        buildah("commit", "--rm", container, f"docker.io/{base_of_dockerfile()}")
        say("Debian has the name of the base image")

        checkout = folder / "checkout"
        run(["git", "clone", "--quiet", ROOT, checkout])
        buildah("build", "--isolation", "chroot", "--pull-never", "--tag", IMAGE, checkout)
        say("built")

        work = folder / "work"
        photos(work / "my/photos", 128)
        for path in (work, *work.rglob("*")):
            os.chown(path, STRANGER, STRANGER)
        container = buildah("from", "--pull-never", IMAGE)
        about = json.loads(buildah("inspect", container))["OCIv1"]["config"]
        words = [*about["Entrypoint"], "train", "my/photos", "--max_seconds", "10"]
        volume = ["--volume", f"{work}:/work"]
        user = ["--user", f"{STRANGER}:{STRANGER}"]
        said = buildah("run", "--isolation", "chroot", *user, *volume, container, "--", *words)
        encoder = next(work.rglob("encoder.safetensors"))
        assert encoder.stat().st_uid == STRANGER
        say(f"user {STRANGER} trained {encoder.relative_to(work)}: {said.splitlines()[-1]}")
    finally:
        buildah("rm", "--all")
        buildah("rmi", "--all", "--force")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
