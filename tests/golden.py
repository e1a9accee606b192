"""Show that a change changes no number: the same runs by this tree and by another commit of it.

    python -m tests.golden --against HEAD~3      # ends with 1 and names what differs

Five recipes on one and on two processes, with evaluations and checkpoints, and a generated shard
set. Compared are all records but for time and memory, and the SHA-256 of every tensor file of every
checkpoint, of the exported encoder, of the settings, and of every file of the shard set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TWO = ("-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2")
# What a clock or the machine says, which is never the same twice.
UNSTEADY = {"images_per_second", "views_per_second", "data_wait", "loader_host", "memory_gib"}
UNSTEADY |= {"seconds", "seconds_left"}

SHARED = """
batch_size: 16
learning_rate: 0.01
warmup_epochs: 0.5
clip_gradient_norm: 1.0
shuffle_buffer: 32
log_every: 1
checkpoint_every: 4
keep_checkpoints: 9
evaluate_every: 0.75
profile_seconds: 0
steps: 9
tuned: none
"""
NETWORKS = """
    encoder: {class_path: SmallResNet, init_args: {width: 4}}
    hidden_size: 16
    embedding_size: 8
"""
MULTI_CROP = """
views: {count: 2, size: 24, policy: {class_path: SimCLRViews}}
more_views:
- {count: 2, size: 16, policy: {class_path: SwAVViews, init_args: {small: true, blur_window: 3}}}
"""
TWO_VIEWS = """
views: {count: 1, size: 16, policy: {class_path: SimCLRViews, init_args: {blur_window: 3}}}
more_views:
- {count: 1, size: 16, policy: {class_path: SimCLRViews, init_args: {area: [0.8, 1.0], blur: 0.0}}}
"""


def _method(name: str, own: str) -> str:
    return f"method:\n  class_path: {name}\n  init_args:{NETWORKS}{own}"


S2R2 = "    objective: {class_path: SmoothAP}\n"
RECIPES = {
    "s2r2": MULTI_CROP + _method("JointEmbedding", S2R2),
    "moco": MULTI_CROP + _method("MoCo", "    queue_size: 48\n"),
    "swav": MULTI_CROP + _method("SwAV", "    prototypes: 9\n    queue_size: 16\n"),
    "qk": TWO_VIEWS
    + _method("QKIteration", "    start_steps: 1\n    phase_steps: 4\n    keys: 70\n"),
    "micro": MULTI_CROP + "micro_batch_size: 8\n" + _method("JointEmbedding", S2R2),
}


def fingerprint(tree: Path, scratch: Path) -> dict[str, Any]:
    """Return {what: digest or record} of all that a tree makes.

    Args:
        tree: a checkout.
        scratch: an empty folder; the same one for every tree, since settings name it.
    """
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"XDG_CACHE_HOME": str(scratch / "cache"), "COLUMNS": "200"}
    environment |= {"PYTHONPATH": str(tree)}  # before what is installed

    def call(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{tree}: {' '.join(command)}\n{done.stdout}\n{done.stderr}")

    found: dict[str, Any] = {}
    for split in ("train", "test"):
        out = scratch / "shards" / split
        source = ("sample", "--root", str(scratch / "generated"), "--split", split)
        call("-m", "tools.shard", *source, "--out", str(out), "--limit", "48")
        found |= {f"shards/{split}/{n}": digest for n, digest in _digests(out).items()}
    for name, recipe in RECIPES.items():
        file = scratch / f"{name}.yaml"
        file.write_text(SHARED + recipe)
        for processes in (1, 2):
            run = scratch / f"{name}-{processes}"
            flags = ["train.py", "--config", str(file), "--run", str(run)]
            flags += ["--shards", str(scratch / "shards" / "train")]
            flags += ["--evaluation_train", str(scratch / "shards" / "train")]
            flags += ["--evaluation_test", str(scratch / "shards" / "test")]
            launcher = [*TWO, "--main_process_port", "0"] if processes == 2 else []
            call(*launcher, *flags)
            found |= {f"{run.name}/{n}": digest for n, digest in _digests(run).items()}
            found |= {f"{run.name}/{n}": record for n, record in _records(run)}
    return found


def _digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of what was made; of settings and of the manifest, their text."""
    found: dict[str, str] = {}
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        name, content = str(path.relative_to(root)), path.read_bytes()
        if path.suffix == ".safetensors":
            content = _in_order(content)
        if path.suffix in (".tar", ".idx", ".safetensors"):
            found[name] = hashlib.sha256(content).hexdigest()
        elif path.suffix == ".yaml" or path.name == "manifest.json":
            found[name] = content.decode()
    return found


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file's tensors and metadata by name: writers differ in their order."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    ordered = json.dumps(header.pop("__metadata__", {}), sort_keys=True).encode()
    for name, each in sorted(header.items()):
        begin, end = each["data_offsets"]
        ordered += f"{name} {each['dtype']} {each['shape']}".encode() + data[begin:end]
    return ordered


def _records(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate((run / "metrics.jsonl").read_text().splitlines(), start=1):
        record = json.loads(line)
        yield f"record {number}", {k: v for k, v in record.items() if k not in UNSTEADY}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Another commit of this repository, in a folder of its own for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT)]
        subprocess.run([*git, "worktree", "add", "--detach", "-q", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def main() -> None:
    """Compare two trees, and name what differs."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--against", default="HEAD", help="the commit to compare with")
    arguments.add_argument("--keep", type=Path, help="JSON of its figures: read if it exists")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        if chosen.keep is not None and chosen.keep.exists():
            before = json.loads(chosen.keep.read_text())
            scratch = Path(before.pop("scratch"))
        else:
            with checkout(chosen.against) as tree:
                scratch.mkdir()
                before = fingerprint(tree, scratch)
            shutil.rmtree(scratch)
            if chosen.keep is not None:
                kept = {"scratch": str(scratch), **before}
                chosen.keep.write_text(json.dumps(kept, indent=1))
        scratch.mkdir(parents=True)
        try:
            after = fingerprint(ROOT, scratch)
        finally:
            shutil.rmtree(scratch)
    differing = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    for name in differing:
        print(f"{name}: {before.get(name)} before, {after.get(name)} now")
    print(f"{len(before)} figures before, {len(after)} now, {len(differing)} differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
