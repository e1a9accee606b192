"""The wheel has one package, viewrank: a user's own `model` or `tools` does not meet ours.

A checkout has model/, pipeline/, tools/ … at its top. The build puts them into viewrank/ and
rewrites what names them: imports, dotted names in strings, and the commands in messages and in
recipes' heads, `python -m tools.shard` being `viewrank shard` there. An editable installation, as
make test has it, is the checkout as it is.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PACKAGE = "viewrank"
OWN = ("shards", "pipeline", "model", "training", "evaluation", "tools", "train")
_ANY = "|".join(OWN)
_FROM = re.compile(rf"^(\s*from )({_ANY})((?:\.\w+)*) import ", re.MULTILINE)
_IMPORT = re.compile(rf"^(\s*)import ({_ANY})$", re.MULTILINE)
_DOTTED_IMPORT = re.compile(rf"^\s*import ({_ANY})\..*$", re.MULTILINE)
_QUOTED = re.compile(rf"([\"'])({_ANY})((?:\.\w+)+)(?=[\"' ])")
_COMMAND = re.compile(r'python -m ("\s+f?")?tools\.(?=[\w{])')
_TRAIN = re.compile(r'python ("\s+f?")?train\.py')
# The launcher's flags have a value at most each; a message may go on in the next line's quotes.
_LAUNCHED = re.compile(
    r'accelerate launch ((?:--\S+ (?:[^-"\s]\S* )?)*)("\s+f?")?(train\.py|-m tools\.(?=[\w{]))'
)


def inside(text: str) -> str:
    """Return a module's text, or a recipe's, as it stands in the wheel.

    Raises:
        ValueError: it has `import model.encoder`, which would bind another name there.
    """
    if found := _DOTTED_IMPORT.search(text):
        raise ValueError(f"{found[0].strip()!r}: write it as from … import …")
    text = _COMMAND.sub(lambda m: f"{m[1] or ''}{PACKAGE} ", text)
    text = _TRAIN.sub(lambda m: f"{m[1] or ''}{PACKAGE} train", text)
    text = _LAUNCHED.sub(_launched, text)
    text = _FROM.sub(rf"\1{PACKAGE}.\2\3 import ", text)
    text = _IMPORT.sub(rf"\1from {PACKAGE} import \2", text)
    return _QUOTED.sub(_dotted, text)


def _launched(found: re.Match[str]) -> str:
    """Return the launcher's part of a command, with what it starts in the wheel."""
    started = f"-m {PACKAGE} " + ("train" if found[3] == "train.py" else "")
    return f"accelerate launch {found[1]}{found[2] or ''}{started}"


def _dotted(found: re.Match[str]) -> str:
    """Return a quoted dotted name, with the package before it if the name is a module of ours."""
    first = found[3].split(".")[1]
    folder = ROOT / found[2]
    there = (folder / first).is_dir() or (folder / f"{first}.py").is_file()
    return f"{found[1]}{PACKAGE}.{found[2]}{found[3]}" if there else found[0]


class OnePackage(build_py):
    """Build the wheel's one package."""

    def run(self) -> None:
        """Copy as setuptools does, then move and rewrite."""
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib)
        home = built / PACKAGE
        for name in OWN:
            for source in (built / name, built / f"{name}.py"):
                if source.exists():
                    target = home / source.name
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.move(source, target)
        shutil.copytree(ROOT / "recipes", home / "recipes", dirs_exist_ok=True)
        for path in (*home.rglob("*.py"), *home.rglob("*.yaml")):
            path.write_text(inside(path.read_text(encoding="utf-8")), encoding="utf-8")


setup(cmdclass={"build_py": OnePackage})
