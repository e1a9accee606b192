"""Who may import whom, held against the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"shards", "pipeline", "model", "training", "evaluation", "tools", "train", "benchmarks"}
FILES = sorted({ROOT / "train.py", *ROOT.glob("[a-z]*/**/*.py")})
# From the ground up: a part imports parts below it, and itself.
FLOORS = (
    *("shards", "pipeline", "model", "evaluation", "training"),
    *("train", "tools", "viewrank", "benchmarks"),
)

# What each part may import besides the standard library. `training` knows `pipeline` for the typed
# configuration alone: a recipe names view policies as well as methods.
MAY_IMPORT = {
    # Of nvidia only nvimgcodec, the decoder beneath DALI; fsspec for stores; the rest optional.
    "shards": {"shards", "numpy", "PIL", "torchvision", "nvidia", "fsspec", "ray"}
    | {"pyarrow", "datasets", "msgspec", "webdataset", "braceexpand"},
    "pipeline": {"pipeline", "shards", "nvidia", "torch", "numpy", "triton"},
    "model": {"model", "torch", "torchvision", "timm", "triton"},
    # Optional: pycocotools, COCO's own scores; h5py, the form of a benchmark's submissions.
    "evaluation": {"evaluation", "model", "pipeline", "shards", "torch", "numpy"}
    | {"torchvision", "pycocotools", "h5py"},
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
    | {"safetensors", "shards", "comet_ml"},
    "tools": {"shards", "pipeline", "model", "evaluation", "training", "tools", "train"}
    | {"torch", "numpy", "PIL", "rich", "jsonargparse", "accelerate", "matplotlib", "pyarrow"}
    # What reads an export, to check it.
    | {"torchvision", "timm", "transformers", "onnx", "onnxruntime", "safetensors", "yaml"}
    | {"jinja2", "markupsafe", "plotly", "umap"},
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
    for path in FILES:
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


def test_torch_distributed_is_used_in_two_files_of_the_model() -> None:
    users = {p.name for p in (ROOT / "model").rglob("*.py") if "torch.distributed" in p.read_text()}
    assert users == {"gather.py", "sync_batch_norm.py"}


def test_nothing_imports_the_program_or_the_tools() -> None:
    for part in set(MAY_IMPORT) - {"tools"}:
        for path in (ROOT / part).rglob("*.py"):
            assert not imports(path, part) & {"train", "tools"}, path


def modules() -> dict[str, ast.Module]:
    """Return {dotted name: syntax tree} of all that is no test."""
    found = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ("tests", "examples", "docs"):
            found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def arrows(trees: dict[str, ast.Module], *, all_of_them: bool = True) -> dict[str, set[str]]:
    """Return {module: the own modules that it imports}; not all: those at its top alone."""
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        nodes = ast.walk(tree) if all_of_them else tree.body
        found[name] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found[name] |= {each.name for each in node.names if each.name in trees}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for each in node.names:
                    whole = f"{node.module}.{each.name}"
                    found[name].add(whole if whole in trees else node.module)
        found[name] &= trees.keys() - {name}
    return found


def test_no_import_runs_back_up() -> None:
    for name, imported in arrows(modules()).items():
        part = name.partition(".")[0]
        above = {each for each in imported if _floor(each) > _floor(name)}
        # A command that dispatches, and one that runs the program, name it by necessity.
        assert not above, f"{name} imports {', '.join(sorted(above))}, above {part}"


def _floor(name: str) -> int:
    return FLOORS.index(name.partition(".")[0])


def test_no_imports_run_in_a_circle() -> None:
    left = arrows(modules())
    while True:
        imported = set().union(*left.values())
        free = [name for name in left if name not in imported or not left[name] & left.keys()]
        if not free:
            break
        for name in free:
            del left[name]
        left = {name: imports & left.keys() for name, imports in left.items()}
    assert not left, f"a circle among {', '.join(sorted(left))}"


def test_a_class_name_means_one_thing() -> None:
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert not twice


def test_a_file_name_means_one_thing() -> None:
    free = {"__init__.py", "__main__.py", "conftest.py"}  # Python's and pytest's own
    names = [path.name for path in FILES if path.name not in free]
    assert sorted(names) == sorted(set(names)), {n for n in names if names.count(n) > 1}


def test_a_name_says_what_a_file_holds() -> None:
    nothing = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
    assert not [path for path in FILES if path.stem in nothing]


def test_the_program_is_read_from_top_to_bottom() -> None:
    text = (ROOT / "train.py").read_text()
    headings = [line.split()[2] for line in text.splitlines() if line.startswith("    # ──")]
    assert headings == [
        "config",
        "processes",
        "data",
        "method",
        "resume",
        "monitor",
        "loop",
        "finish",
    ]
    assert len(text.splitlines()) <= 220
    (function,) = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "pretrain"
    ]
    assert function.end_lineno is not None and function.end_lineno - function.lineno < 140
    inner = ast.FunctionDef | ast.Lambda | ast.ClassDef
    assert not [n for n in ast.walk(function) if isinstance(n, inner) and n is not function]
