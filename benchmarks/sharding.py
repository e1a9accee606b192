"""Sharding beside its peers: images/s, MB/s, memory; encodings of STL-10; quality of the shuffle.

    python -m benchmarks.sharding throughput --cifar10 DIR --coco DIR [--rounds 3] [--out FILE.json]
    python -m benchmarks.sharding stl10 [--images 100000]
    python -m benchmarks.sharding shuffle

Every writing is a process of its own, and in each round all take their turn, so that a busy minute
of the machine hits all of them. Give --scratch on a disk of memory (tmpfs) to measure the programs
rather than the disk: inputs are copied there, and shards are written there. Memory is the peak of
the proportional set size (PSS) over the whole tree of processes: pages that workers share count
once. Peers:

  shardwriter     webdataset's own ShardWriter, a loop over sorted files, bytes as they are
  img2dataset     as img2dataset works: decode, re-encode as JPEG 95, TarWriter; two processes,
                  each its own files (no download, no resize)
  tar             Python's tarfile adding the files of the folder, as `tar cf` does

The last three neither shuffle nor check (img2dataset's decode does), write no index, and leave what
they wrote where a kill left it. The machine should be otherwise idle.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.record import write

PER_SHARD = 2000
POLL = 0.05  # seconds between two looks at the memory
CLASSES, PER_CLASS, BATCH = 20, 1000, 256


# ── what is measured, each in a process of its own ────────────────────────────────────────────────


def files_below(root: Path) -> list[Path]:
    """Return the images of a folder, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".png"))


def write_ours(root: Path, out: Path, workers: int, verify: bool) -> int:
    """Write with viewrank."""
    from shards.engine import LocalWorkers
    from shards.source.folder import ImageFolder
    from shards.writing.prepare import Preparation
    from shards.writing.write import write

    how = Preparation(verify_decode=verify)
    # Nothing measured is smaller than eight tars, so that two workers have something to share.
    source = ImageFolder(root=str(root))
    per_shard = min(PER_SHARD, -(-len(source) // 8))
    written = write(
        source, out, engine=LocalWorkers(workers), preparation=how, samples_per_shard=per_shard
    )
    return len(written)


def write_shardwriter(root: Path, out: Path) -> int:
    """Write with webdataset's ShardWriter."""
    from webdataset.writer import ShardWriter

    out.mkdir()
    labels: dict[str, int] = {}
    files = files_below(root)
    with ShardWriter(f"{out}/%05d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for number, path in enumerate(files):
            label = labels.setdefault(path.parent.name, len(labels))
            image = {path.suffix[1:]: path.read_bytes()}
            facts = {"file": str(path.relative_to(root))}
            writer.write({"__key__": f"{number:09d}", **image, "cls": label, "json": facts})
    return len(files)


def write_img2dataset_style(root: Path, out: Path, workers: int) -> int:
    """Decode, encode again, and write with webdataset's TarWriter, in several processes."""
    out.mkdir()
    files = files_below(root)
    chunks = [files[i : i + PER_SHARD] for i in range(0, len(files), PER_SHARD)]
    if len(chunks) < workers * 4:
        chunks = [part.tolist() for part in np.array_split(np.array(files, object), workers * 4)]
    with ProcessPoolExecutor(workers) as pool:
        names = [str(out / f"{number:05d}.tar") for number in range(len(chunks))]
        return sum(pool.map(_img2dataset_shard, names, chunks))


def _img2dataset_shard(name: str, files: list[Path]) -> int:
    import io

    from PIL import Image
    from webdataset.writer import TarWriter

    with TarWriter(name) as writer:
        for number, path in enumerate(files):
            encoded = io.BytesIO()
            image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
            image.save(encoded, "JPEG", quality=95)
            facts = {"width": image.width, "height": image.height, "file": path.name}
            writer.write({"__key__": f"{number:09d}", "jpg": encoded.getvalue(), "json": facts})
    return len(files)


def write_tar(root: Path, out: Path) -> int:
    """Add the files to tars as they are."""
    out.mkdir()
    files = files_below(root)
    for number, start in enumerate(range(0, len(files), PER_SHARD)):
        with tarfile.open(out / f"{number:05d}.tar", "w") as tar:
            for path in files[start : start + PER_SHARD]:
                tar.add(path, str(path.relative_to(root)))
    return len(files)


WRITINGS: dict[str, Any] = {
    "viewrank, 1 worker": lambda root, out: write_ours(root, out, 1, True),
    "viewrank, 2 workers": lambda root, out: write_ours(root, out, 2, True),
    "viewrank, 1 worker, not decoded": lambda root, out: write_ours(root, out, 1, False),
    "viewrank, 2 workers, not decoded": lambda root, out: write_ours(root, out, 2, False),
    "shardwriter": write_shardwriter,
    "img2dataset style, 2 workers": lambda root, out: write_img2dataset_style(root, out, 2),
    "tar": write_tar,
}


def one(name: str, root: Path, out: Path) -> None:
    """Do one writing and print what it took, without the imports."""
    if name.startswith("viewrank"):
        import shards.source.folder
        import shards.writing.write  # noqa: F401
        from shards.image import load_codec

        load_codec()
    else:
        import webdataset.writer  # noqa: F401
        from PIL import Image  # noqa: F401

    begin = time.perf_counter()
    images = WRITINGS[name](root, out)
    print(json.dumps({"images": images, "seconds": time.perf_counter() - begin}))


# ── the stages ────────────────────────────────────────────────────────────────────────────────────


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the same files by all ways, round by round."""
    with tempfile.TemporaryDirectory(prefix="sharding-", dir=arguments.scratch) as scratch:
        wanted = []
        if arguments.cifar10:
            wanted += [("cifar10", arguments.cifar10, 1), ("cifar10 x 10", arguments.cifar10, 10)]
        if arguments.coco:
            wanted += [("coco x 10", arguments.coco, 10)]
        rows = []
        for data, original, times in wanted:
            root = _repeated(original, Path(scratch) / "in", times)
            once = data == "cifar10 x 10"  # ten times the time, and there for the memory
            names = ["viewrank, 2 workers"] if once else list(WRITINGS)
            size = sum(path.stat().st_size for path in files_below(root))
            _warm(root)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for _ in range(1 if once else arguments.rounds):
                for name in names:
                    out = Path(scratch) / "out"
                    found[name].append(_measure(name, root, out))
                    shutil.rmtree(out)
            for name, runs in found.items():
                seconds = [run["seconds"] for run in runs]
                row = {
                    "data": data,
                    "writing": name,
                    "images": runs[0]["images"],
                    "images_per_second": round(runs[0]["images"] / median(seconds), 1),
                    "mb_per_second": round(size / median(seconds) / 1e6, 1),
                    "seconds": [round(value, 2) for value in seconds],
                    "peak_mib": round(max(run["peak_mib"] for run in runs), 1),
                }
                print(json.dumps(row), file=sys.stderr)
                rows.append(row)
            shutil.rmtree(root)
    return {"throughput": rows}


def _measure(name: str, root: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.sharding", "one", name, str(root), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = _Peak(process.pid)
        printed, _ = process.communicate()
        peak.stop.set()
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return {**json.loads(printed), "peak_mib": peak.bytes / 2**20}


class _Peak(threading.Thread):
    """Follows the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.bytes, self.stop = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Look until told to stop."""
        import psutil

        while not self.stop.wait(POLL):
            total = 0
            try:
                root = psutil.Process(self.pid)
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            self.bytes = max(self.bytes, total)


def _repeated(root: Path, out: Path, times: int) -> Path:
    """Copy every file several times."""
    for path in files_below(root):
        data = path.read_bytes()
        folder = out / f"of_{path.parent.name}"
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(times):
            (folder / f"{path.stem}-{copy}{path.suffix}").write_bytes(data)
    return out


def _warm(root: Path) -> None:
    for path in files_below(root):
        path.read_bytes()


def stl10(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the official layout with generated pictures; time, size and loading of each form."""
    from shards.engine import LocalWorkers
    from shards.source.stl10 import STL10
    from shards.writing.prepare import Preparation
    from shards.writing.write import write

    rows = []
    with tempfile.TemporaryDirectory(prefix="stl10-", dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "stl10_binary"
        folder.mkdir()
        write_stl10_binaries(folder, arguments.images)
        source = STL10(root=folder, split="unlabeled")
        for encoding in ("png", "raw", "jpeg:95"):
            out = Path(scratch) / encoding.replace(":", "-")
            begin = time.perf_counter()
            written = write(
                source, out, engine=LocalWorkers(2), preparation=Preparation(encoding=encoding)
            )
            seconds = time.perf_counter() - begin
            rates = {views: _loading(str(out), views, arguments.steps) for views in (2, 8)}
            row = {
                "encoding": encoding,
                "images": len(written),
                "seconds": round(seconds, 1),
                "images_per_second": round(len(written) / seconds, 1),
                "gb": round(sum(shard.tar.bytes for shard in written.manifest.shards) / 1e9, 3),
                "loader_images_per_second": rates,
            }
            print(json.dumps(row), file=sys.stderr)
            rows.append(row)
            shutil.rmtree(out)
    return {"stl10": rows, "views": "96 px, SimCLRViews, batch 256, 2 threads"}


def write_stl10_binaries(folder: Path, images: int) -> None:
    """Write generated pictures (see `shards.source.generated.draw`) in STL-10's binary layout."""
    from shards.source.generated.draw import portrait

    random = np.random.default_rng(0)
    pictures = [portrait(i % 10, random, size=96).transpose(1, 2, 0) for i in range(500)]
    drawn = np.stack(pictures)  # [N, H, W, C]
    with open(folder / "unlabeled_X.bin", "wb") as file:
        for start in range(0, images, len(drawn)):
            # Others by flips and shifts: no two alike, and as hard to compress.
            shift = (start // len(drawn)) % 96
            block = np.roll(drawn, shift, axis=1 + start // len(drawn) % 2)
            if start // len(drawn) // 192 % 2:
                block = block[:, :, ::-1]
            block[:, 0, 0, 0] = np.arange(len(block)) % 256
            block[:, 0, 1, 0] = start // len(drawn) % 256
            file.write(block[: images - start].transpose(0, 3, 2, 1).tobytes())


def _loading(root: str, views: int, steps: int) -> float:
    """Return the loader's images/s, in a process of its own."""
    program = f"""
import time
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from shards.layout import open_shards
group = ViewGroup(policy=SimCLRViews(), count={views}, size=96)
with Loader(open_shards({root!r}), [group], batch_size_per_rank=256) as loader:
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    begin = time.perf_counter()
    for _ in range({steps}):
        next(batches)
    print({steps} * 256 / (time.perf_counter() - begin))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return round(float(done.stdout), 1)


def shuffle(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count the classes in the loader's batches, from a source that is sorted by class."""
    from webdataset.writer import ShardWriter

    from pipeline.augment import Crop, Policy
    from pipeline.dali import Pipeline, fn, types
    from pipeline.graph import ViewGroup
    from pipeline.loader import Loader
    from shards.source.source import Sample, Source
    from shards.writing.write import write

    class Sorted(Source):
        name = "sorted"

        def __init__(self) -> None:
            self.split, self.classes = "", [str(label) for label in range(CLASSES)]

        def __len__(self) -> int:
            return CLASSES * PER_CLASS

        def __getitem__(self, index: int) -> Sample:
            pixels = np.random.RandomState(index).randint(0, 256, (8, 8, 3)).astype(np.uint8)
            return Sample(f"{index:06d}", pixels, index // PER_CLASS, index, {})

    def classes(batches: list[list[int]]) -> dict[str, float]:
        distinct = [len(set(batch)) for batch in batches]
        return {
            "mean_classes_in_a_batch": round(float(np.mean(distinct)), 2),
            "first_batch": distinct[0],
            "fewest": min(distinct),
            "largest_share_of_a_class": max(max(Counter(b).values()) / len(b) for b in batches),
        }

    rows = {}
    with tempfile.TemporaryDirectory(prefix="shuffle-", dir=arguments.scratch) as scratch:
        source = Sorted()
        ours = write(source, Path(scratch) / "ours")
        group = ViewGroup(policy=Policy(crop=Crop()), count=1, size=8)
        with Loader(ours, [group], batch_size_per_rank=BATCH) as loader:
            rows["viewrank"] = classes([batch.label_B.tolist() for batch in loader])
        with Loader(ours, [group], batch_size_per_rank=BATCH, shuffle_buffer=1) as loader:
            batches = [batch.label_B.tolist() for batch in loader]
            rows["viewrank, without the loader's buffer"] = classes(batches)
        plain = Path(scratch) / "plain"
        plain.mkdir()
        with ShardWriter(f"{plain}/%05d.tar", maxcount=PER_SHARD, verbose=0) as writer:
            for index in range(len(source)):
                label = (index // PER_CLASS).to_bytes(8, "little")
                writer.write({"__key__": f"{index:06d}", "y.i64": label})
        tars = sorted(str(path) for path in plain.glob("*.tar"))
        pipeline: Any = Pipeline(batch_size=BATCH, num_threads=1, device_id=None, seed=0)
        with pipeline:
            label = fn.readers.webdataset(
                paths=tars, ext=["y.i64"], dtypes=[types.INT64], random_shuffle=True
            )
            pipeline.set_outputs(label)
        pipeline.build()
        batches = [
            pipeline.run()[0].as_array().ravel().tolist() for _ in range(len(source) // BATCH)
        ]
        rows["ShardWriter in order, DALI's default buffer of 1,024"] = classes(batches)
    print(json.dumps(rows, indent=1), file=sys.stderr)
    return {"shuffle": rows, "source": f"{CLASSES} classes x {PER_CLASS}, sorted", "batch": BATCH}


def main() -> None:
    """Run a stage and write its JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharding", description=__doc__)
    parser.add_argument("stage", choices=["throughput", "stl10", "shuffle"])
    parser.add_argument("--cifar10", type=Path, help="Class folders of CIFAR-10's JPEG files.")
    parser.add_argument("--coco", type=Path, help="COCO's folders of JPEG files.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100_000, help="Of stl10.")
    parser.add_argument("--steps", type=int, default=40, help="Batches of a loader's measurement.")
    parser.add_argument("--scratch", type=Path, help="Folder for what is written meanwhile.")
    parser.add_argument("--out", type=Path, help="JSON to write.")
    arguments = parser.parse_args()
    from training.surroundings import surroundings

    record = {
        "surroundings": surroundings(
            "webdataset", "pillow", "nvidia-nvimgcodec-cu13", "nvidia-dali-cuda130"
        ),
        "command": " ".join(["python -m benchmarks.sharding", *sys.argv[1:]]),
    }
    stage = {"throughput": throughput, "stl10": stl10, "shuffle": shuffle}[arguments.stage]
    record |= stage(arguments)
    write(record, arguments.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
