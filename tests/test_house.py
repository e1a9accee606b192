"""Who may import whom, held against the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"shards", "pipeline", "model", "training", "evaluation", "tools", "train", "benchmarks"}

# What each part may import besides the standard library. `training` knows `pipeline` for the typed
# configuration alone: a recipe names view policies as well as methods.
MAY_IMPORT = {
    # Of nvidia only nvimgcodec, the decoder beneath DALI; fsspec for stores; the rest optional.
    "shards": {"shards", "numpy", "PIL", "torchvision", "nvidia", "fsspec", "ray"}
    | {"pyarrow", "datasets"},
    "pipeline": {"pipeline", "shards", "nvidia", "torch", "numpy", "triton"},
    "model": {"model", "torch", "torchvision", "triton"},
    "evaluation": {"evaluation", "model", "pipeline", "shards", "torch"},
    "training": {
        "accelerate",
        "evaluation",
        "training",
        "model",
        "pipeline",
        "torch",
        "numpy",
        "timm",
        "rich",
        "yaml",
        "jsonargparse",
    }
    | {"safetensors", "shards"},
    "tools": {"shards", "pipeline", "model", "evaluation", "training", "tools"}
    | {"torch", "numpy", "PIL", "rich", "jsonargparse", "accelerate", "matplotlib"},
}


def imports(path: Path, part: str) -> set[str]:
    """Return the top-level packages that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(part if node.level else (node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_the_house_allows(part: str) -> None:
    import sys

    files = list((ROOT / part).rglob("*.py"))
    assert files
    for path in files:
        foreign = imports(path, part) - set(sys.stdlib_module_names) - MAY_IMPORT[part]
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def test_only_the_pipeline_imports_dali() -> None:
    for path in ROOT.glob("*/**/*.py"):
        part = path.relative_to(ROOT).parts[0]
        if part in OWN - {"pipeline", "benchmarks"}:
            assert "nvidia.dali" not in path.read_text(), path


def test_triton_is_imported_by_the_model_s_kernels_alone_and_they_by_functions() -> None:
    """So whoever has no GPU never pays for it."""
    kernels = set((ROOT / "model" / "kernel").glob("[!_]*.py"))
    assert kernels
    for path in set((ROOT / "model").rglob("*.py")) - kernels:
        assert "triton" not in imports(path, "model"), path
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = ".".join(name.name for name in node.names).split(".")
                named += (getattr(node, "module", "") or "").split(".")
                assert "kernel" not in named or not {k.stem for k in kernels} & {*named}, path


def test_torch_distributed_is_used_in_one_file_of_the_model() -> None:
    users = [p.name for p in (ROOT / "model").rglob("*.py") if "torch.distributed" in p.read_text()]
    assert users == ["gather.py"]


def test_nothing_imports_the_program_or_the_tools() -> None:
    for part in set(MAY_IMPORT) - {"tools"}:
        for path in (ROOT / part).rglob("*.py"):
            assert not imports(path, part) & {"train", "tools"}, path
