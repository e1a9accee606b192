"""The JSON schema of manifest.json for other programs, made from the classes that read it.

python -m shards.manifest_schema > shards/manifest.schema.json      # after a change of Manifest
"""

import ast
import inspect
import json
import sys
from typing import Any

import msgspec

from shards import layout
from shards.sealed_json import DIGEST


def schema() -> dict[str, Any]:
    """Return the schema: types and limits are msgspec's, descriptions are the docstrings."""
    kinds = (layout.Manifest, layout.Sha256)
    (_, digest), parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    for name, part in parts.items():
        part["additionalProperties"] = False
        part["description"] = _one_line(part["description"])
        for field, text in _docstrings(getattr(layout, name)).items():
            part["properties"][field]["description"] = _one_line(text)
    manifest = parts.pop("Manifest")
    manifest["title"] = f"{layout.MANIFEST} of a viewrank shard set"
    digest["description"] = "SHA-256 of this file's own bytes, with zeros in place of the digest."
    manifest["properties"][DIGEST] = digest
    manifest["required"].append(DIGEST)
    dialect = "https://json-schema.org/draft/2020-12/schema"
    whole = {"$schema": dialect, **manifest, "$defs": parts}
    return json.loads(json.dumps(whole))  # as others read it: a default may be a tuple here


def _docstrings(kind: type) -> dict[str, str]:
    """Return {field: the string below it}."""
    (found,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(found, ast.ClassDef)
    return {
        field.target.id: text
        for field, below in zip(found.body, found.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(text := below.value.value, str)
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=1) + "\n")
