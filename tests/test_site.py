"""The documentation is built strictly: all links lead somewhere, and no page asks another host."""

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from tools import __main__ as viewrank
from tools.evaluate.chosen_protocols import PROTOCOLS
from training.command_line import Nested, Rest
from training.config import Config
from training.settings import CLASSES, concrete

ROOT = Path(__file__).parent.parent


# mkdocs as its own command runs it where viewrank is not installed from this folder: isolated (-I)
# and without the finder of an editable installation.
MKDOCS = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in each.__module__]
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-I", "-c", MKDOCS, "build", "--strict", "--quiet", "--site-dir", out],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_every_page_is_in_the_navigation(site: Path) -> None:
    named = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert f"- {name}\n" in named, name
        assert (site / name).with_suffix(".html").exists()


def test_no_page_asks_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*", page.read_text())
        assert not [tag for tag in loaded if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)], (
            page
        )


def test_the_reference_has_every_command_setting_and_class(site: Path) -> None:
    commands, settings, classes = (
        (site / "reference" / f"{name}.html").read_text()
        for name in ("commands", "settings", "classes")
    )
    assert all(f'id="{name}"' in commands for name in viewrank.commands())
    assert all(f"--{name}" in settings for name in Config.__dataclass_fields__)
    for base in CLASSES.values():
        own = {
            each
            for each in concrete(base)
            if each.__module__.split(".")[0] in ("model", "pipeline")
        }
        assert own and all(f'id="{each.__name__.lower()}"' in classes for each in own)
    for name, protocol in PROTOCOLS.items():
        assert f'id="{name}"' in classes
        settings_of = inspect.signature(protocol).parameters
        assert settings_of and all(f"--{name}.{each} " in classes for each in settings_of)


def test_the_reference_has_every_parameter_of_a_command(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text()
    parts = {text.partition('"')[0]: text for text in page.split('<h2 id="')}
    for name in set(viewrank.commands()) - {"train", "shard"}:
        main = import_module(viewrank._module(name)).main
        hints = get_type_hints(main, include_extras=True)
        for each, parameter in inspect.signature(main).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY or hints[each] == Rest:
                continue
            dot = ".SETTING" if hints[each] == Nested else ""
            assert each == "settings" or f"--{each}{dot} " in parts[name], (name, each)
    assert "--encoder CLASS [--encoder.SETTING VALUE" in parts["evaluate"]
