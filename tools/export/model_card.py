"""The model card of an exported encoder: what it is, how it was made, what it is worth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluation.figures import NAMES, ordered
from tools.export.architecture import described
from tools.export.subject import Subject
from training.monitor import legible_records
from training.surroundings import without_absolute_paths
from training.trained import recipe

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")  # of a licence, as the Hub lists them


def card(subject: Subject, facts: Mapping[str, Any]) -> str:
    """Return a README.md in the form of the Hugging Face Hub.

    Args:
        subject: what is exported.
        facts: about it, with what the check of the export found, if it was made.
    """
    parts = [_head(facts), f"# {described(subject)}, trained without labels", _use(subject)]
    parts += ["## How it was made", _table(_made(subject, facts))]
    if found := last_evaluation(subject.run, facts["step"]):
        parts += [f"## What it is worth, at step {found['step']:,}"]
        figures = {name: value for name, value in found.items() if name in NAMES}
        parts += [_table((name, text) for _, name, text in ordered(figures))]
    if check := facts.get("check"):
        rows = [(each["reader"], f"{each['relative']:.1e}") for each in check["found"]]
        parts += [
            "## Checked",
            f"Largest difference on {check['images']} images, as a share of the feature's length:",
        ]
        parts += [_table(rows)]
    if subject.run is not None:
        values = without_absolute_paths(recipe(subject.run, device="cpu").resolved)
        parts += ["## The recipe", f"```yaml\n{yaml.safe_dump(values, sort_keys=False)}```"]
    return "\n\n".join(parts) + "\n"


def last_evaluation(run: Path | None, step: int) -> dict[str, Any] | None:
    """Return the record of a run's last evaluation that is not after a step; None without any."""
    found = None
    for record in legible_records(run)[0] if run is not None else []:
        if "evaluation" in record and record["step"] <= step and NAMES.keys() & record.keys():
            found = record
    return found


def _head(facts: Mapping[str, Any]) -> str:
    """Return what the Hub reads by machine."""
    values: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "transformers", "self-supervised-learning", "viewrank"],
    }
    license = facts.get("license")
    if isinstance(license, str):  # the file that it is read from may be anybody's
        listed = _IDENTIFIER.fullmatch(license) is not None
        values |= {"license": license} if listed else {"license": "other", "license_name": license}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _use(subject: Subject) -> str:
    return f"""\
Images become {subject.encoder.feature_size} features. In this folder:

```python
import timm

network = timm.create_model("local-dir:.", pretrained=True).eval()  # timm 1.0.31 or newer
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
feature_1F = network(prepare(image)[None])
```

```python
import transformers

network = transformers.AutoModel.from_pretrained(".")
prepare = transformers.AutoImageProcessor.from_pretrained(".")
feature_1F = network(**prepare(image)).pooler_output
```"""


def _made(subject: Subject, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of it, each by name."""
    data, weights = facts.get("data"), facts.get("weights")
    objective = facts.get("objective")
    yield "method", f"{facts.get('method')}" + (f", {objective}" if objective else "")
    yield "updates", f"{facts['step']:,}"
    if isinstance(data, dict):
        split = f", {data['split']}" if data.get("split") else ""
        yield "data", f"{data.get('samples')} images of {data.get('source')}{split}"
        yield "SHA-256 of its manifest", str(data.get("manifest_sha256"))
    yield (
        "images",
        (
            f"{subject.size} px: the shorter side scaled to {facts['resize_shorter']} px by "
            f"{facts['interpolation']} interpolation, and the centre cut out"
        ),
    )
    began = "random weights"
    if isinstance(weights, dict):
        began = f"{without_absolute_paths(weights.get('from'))}, SHA-256 {weights.get('sha256')}"
    yield "began with", began
    if isinstance(weights, dict):
        yield "licence of that", facts.get("license") or "not said"
    yield "commit of viewrank", str(facts.get("commit"))
    if isinstance(versions := facts.get("versions"), dict):
        yield "versions", ", ".join(f"{name} {each}" for name, each in versions.items())
    yield "exported by", f"`{facts['exported']['command']}`"


def _table(rows: Any) -> str:
    lines = [f"| {name} | {text} |" for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *lines])
