"""What mkdocs does besides: reference pages from the code, and links to files outside docs/.

A link such as ../benchmarks/results/x.json is right where the repository is read; on the site that
file is copied below files/.
"""

from __future__ import annotations

import inspect
import os
import posixpath
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
os.environ["COLUMNS"] = "84"  # help fits the page

LINK = re.compile(r"(\]\()([^)#\s]+)")
COPIES = "files"
KINDS = (".json", ".yaml", ".py", ".ipynb")
BASES = ("method", "encoder", "objective", "policy", "augments")


def on_startup(**_: Any) -> None:
    """Let our packages be imported; at the top mkdocs would put sys.path back."""
    sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code, and the files that pages link to."""
    for name, text in (("commands", commands()), ("settings", settings()), ("classes", classes())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    outside: set[str] = set()
    for page in files.documentation_pages():
        for _, target in LINK.findall(page.content_string):
            path = _outside(page.src_uri, target)
            outside |= {path} if path else set()
    for path in sorted(outside):
        content = (ROOT / path).read_bytes() if (ROOT / path).is_file() else _listing(ROOT / path)
        files.append(File.generated(config, _copy(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that lead out of docs/ to the copies."""

    def pointed(found: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, found[2])
        if not path:
            return found[0]
        return found[1] + posixpath.relpath(_copy(path), posixpath.dirname(page.file.src_uri))

    return LINK.sub(pointed, markdown)


def _outside(page: str, target: str) -> str:
    """Return the path, from the repository's root, of a file outside docs/ that a page links to."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return ""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return path if not path.startswith("docs/") and (ROOT / path).exists() else ""


def _copy(path: str) -> str:
    """Return where a copy is: text files that are no pages here."""
    return f"{COPIES}/{path}" + ("" if path.endswith(KINDS) else ".txt")


def _listing(folder: Path) -> bytes:
    return "\n".join(sorted(each.name for each in folder.iterdir())).encode()


def commands() -> str:
    """Return every command with its help."""
    from tools import __main__ as viewrank

    parts = ["# Commands", "", "`viewrank NAME …` is `python -m tools.NAME …` in a checkout.", ""]
    for name, file in viewrank.commands().items():
        parts += [f"## {name}", "", viewrank.summary(file), ""]
        if text := _help(name):
            parts += ["```text", text.rstrip(), "```", ""]
    return "\n".join(parts)


def _help(name: str) -> str:
    from tools import __main__ as viewrank
    from tools import shard
    from training.command_line import add_parameters, described
    from training.flags import FlagParser

    if name == "train":
        return (
            "usage: viewrank train --config RECIPE [--SETTING VALUE …], see Settings\n"
            "       viewrank train FOLDER …, see train_folder"
        )
    main = import_module(viewrank._module(name)).main
    if name == "shard":
        texts = [shard._list(shard.SOURCES)]
        texts += [shard._parser(each, of).format_help() for each, of in shard.SOURCES.items()]
        return "\n\n".join(texts)
    if not inspect.signature(main).parameters:
        return ""
    parser = FlagParser(prog=f"viewrank {name}", description=described(main)[0])
    add_parameters(parser, main)
    return parser.format_help()


def settings() -> str:
    """Return the help of train.py: every field of the configuration."""
    from training.settings import parser

    text = parser(prog="viewrank train").format_help()
    return f"# Settings\n\nEvery field of a recipe is a flag.\n\n```text\n{text.rstrip()}\n```\n"


def classes() -> str:
    """Return every class that a recipe or `viewrank evaluate` can name, with its flags."""
    from tools.evaluate.chosen_protocols import PROTOCOLS
    from training import class_help
    from training.command_line import described
    from training.settings import CLASSES, concrete

    where = {
        "method": "method",
        "encoder": "method.encoder",
        "objective": "method.objective",
        "policy": "views.policy",
        "augments": "views.policy.augments",
    }
    said = "What stands for a class in a recipe, and [protocols](#-protocol), with their settings."
    parts = ["# Classes", "", said, ""]
    for base in BASES:
        own = sorted(concrete(CLASSES[base]), key=lambda each: each.__name__)
        parts += [f"## --{where[base]}", ""]
        for each in own:
            parts += [f"### {each.__name__}", "", "```text"]
            parts += [class_help.text(each, where[base], "viewrank train").rstrip(), "```", ""]
            if base in ("objective", "policy", "augments"):
                parts += ["```text", inspect.cleandoc(each.__doc__ or ""), "```", ""]
    parts += ["## --protocol", "", "Those of `viewrank evaluate` with settings of their own.", ""]
    for name, protocol in PROTOCOLS.items():
        text = class_help.text(protocol, name, "viewrank evaluate")
        text = text.replace(f"--{name} {protocol.__name__}", f"--protocol {name}", 1)
        parts += [f"### {name}", "", described(protocol)[0], ""]
        parts += ["```text", text.rstrip(), "```", ""]
    return "\n".join(parts)
