"""The commands of README, tutorials, guides and reference are typed in order, only smaller."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import timm
import torch
import torchvision.models

from tests.evaluation.detection.rectangles import coco_folder
from tests.program import ROOT
from tests.typed import FEW, SHORT, SMALL, STEPS, checkout, commands, link, photos, typed

pytestmark = pytest.mark.slow

# In an order in which each finds what those before it made.
TUTORIALS = ["own_images", "own_code", "stl10_on_a_gpu", "coco_and_detection"]
PAGES = [f"docs/tutorials/{name}.md" for name in TUTORIALS]
ELSEWHERE = {
    "docs/guides/launching.md": "tests.two_nodes, tests.slurm",
    "docs/reliability.md": "tests.slurm, tests.torture",
    "docs/ranking.md": "its JSON files have the commands that made them",
}
"""{page: what runs its commands}."""
GUIDES = [f"docs/guides/{name}.md" for name in ("busy", "comparing", "using_a_run")]

STL10_FOR_ALL = {
    "data/stl10/train": "data/stl10-train",
    "data/stl10/test": "data/stl10-test",
    "data/cifar10-train20k": "data/stl10-train",
    "data/cifar10-test4k": "data/stl10-test",
}
"""{name of a set in the pages: the one of STL-10 that stands for it}."""


def faults(place: Path, pages: list[str], instead: Mapping[str, str] = {}) -> list[str]:
    """Type all commands of pages; return what the failing ones say."""
    said = [typed(command, place, instead) for page in pages for command in commands(page)]
    assert said
    return [text for text in said if text]


def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    found = faults(checkout(tmp_path / "place"), ["README.md"])
    assert not found, "\n".join(found)


def test_every_command_of_tutorials_and_guides_works(tmp_path: Path) -> None:
    place = checkout(tmp_path / "place")
    found = faults(place, PAGES)
    link(place, {**STL10_FOR_ALL, "runs/mine": "runs/own_cpu", "data/cifar10": "data/stl10"})
    torch.save(torchvision.models.resnet18().state_dict(), place / "resnet18.pth")
    found += faults(place, GUIDES)
    assert not found, "\n".join(found)


def prepared(place: Path, *words: str) -> None:
    """Run a command that a page takes for done."""
    for command in words:
        said = typed(command, place, {command: command})
        assert not said, said


def installed(place: Path) -> dict[str, str]:
    """docs/index.md and docs/install.md: a wheel's commands; Docker has its own rehearsal."""
    sets = "--evaluation_train none --evaluation_test none"
    return {
        "viewrank train my/photos": "viewrank train my/photos --max_seconds 3",
        f"--config own_cpu --shards data/own {sets}": (
            f"--config own_cpu --run runs/installed --shards data/own {sets} {STEPS} {SMALL}"
        ),
        "--config own_gpu": (
            f"--config own_gpu --run runs/two --shards data/own {sets} {STEPS} {SMALL}"
        ),
        "docker build -t viewrank .": "true",
        'docker run --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD":/work viewrank '
        "train my/photos": "true",
    }


def sharding(place: Path) -> dict[str, str]:
    """docs/sharding.md: tars of others, tables, Parquet files; no cluster, no store."""
    photos(place / "my/images", 400)
    for folder in ("laion", "a", "b"):
        tar_of(place / "my/images", place / "data" / folder / "0.tar")
    rows = [(path, path.parent.name) for path in sorted((place / "my/images").rglob("*.jpg"))]
    named = [f"{path.relative_to(place / 'my/images')},{label}\n" for path, label in rows]
    (place / "my.csv").write_text("path,label\n" + "".join(named))
    column = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in rows]
    numbers = [["dark", "light"].index(label) for _, label in rows]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["dark", "light"]},
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    hub = pyarrow.table({"image": column, "label": numbers}).replace_schema_metadata(about)
    other = pyarrow.table({"photo": column, "kind": [label for _, label in rows]})
    tables = {"food101/data/train-00000-of-00001.parquet": hub, "parts/0.parquet": other}
    for name, table in tables.items():
        (place / name).parent.mkdir(parents=True)
        pyarrow.parquet.write_table(table, place / name)
    return {
        "python train.py …": "python train.py --config recipes/own_cpu.yaml --run runs/tars "
        "--evaluation_train none --evaluation_test none",
        "--table my.csv --root my/images --out data/mine": (
            "--table my.csv --root my/images --out data/table"
        ),
        "--out …": "--out data/parts",
        "s3://in/images --out s3://out/mine --engine ray --ray_address auto": (
            "my/images --out data/ray --engine ray"
        ),
        "data/mine/subsets/labelled": "data/mine/subsets/labelled --run runs/labelled",
    }


def tar_of(folder: Path, out: Path) -> None:
    """Write a WebDataset tar as others do: KEY.jpg and KEY.json."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w") as tar:
        for path in sorted(folder.rglob("*.jpg")):
            about = json.dumps({"class": path.parent.name}).encode()
            for suffix, content in (("jpg", path.read_bytes()), ("json", about)):
                member = tarfile.TarInfo(f"{out.parent.name}{path.stem}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def trained(place: Path) -> None:
    """Make what most pages take for there: runs/mine, data/mine, STL-10's sets, and a ViT."""
    shard = "python -m tools.shard"
    train = f"python train.py --config recipes/stl10_cpu_s2r2.yaml {STEPS}"
    vit = "--method.encoder Timm --method.encoder.name vit_tiny_patch16_224"
    prepared(
        place,
        f"{shard} stl10 --root data/raw/stl10 --split train --out data/stl10-train",
        f"{shard} stl10 --root data/raw/stl10 --split test --out data/stl10-test",
        f"{shard} folder --root my/photos --out data/mine",
        f"{train} {SMALL} --run runs/mine",
        f"{train} {SHORT} {vit} --method.encoder.image_size 32 --views.size 32 --views.count 2 "
        "--more_views [] --run runs/vit",
    )
    link(place, STL10_FOR_ALL)


def encoders(place: Path) -> dict[str, str]:
    """docs/encoders.md: networks that others published; random weights stand in for theirs."""
    trained(place)
    torch.save(torchvision.models.resnet18().state_dict(), place / "resnet18.pth")
    torch.save(torchvision.models.resnet50().state_dict(), place / "resnet50.pth")
    network = timm.create_model("vit_small_patch16_224", num_classes=0)
    torch.save(network.state_dict(), place / "dino_deitsmall16_pretrain.pth")
    link(place, {"data/train": "data/stl10/train", "data/test": "data/stl10/test"})
    alone = f"{STEPS} {SHORT} --shards data/mine --evaluation_train none --evaluation_test none"
    begin = (
        "python train.py --config recipes/own_gpu.yaml --method.encoder Timm --method.encoder.name"
    )
    convnext, dino = [c for c in commands("docs/encoders.md") if c.startswith(begin)]
    return {
        convnext: f"{convnext} {alone} --run runs/convnext",
        dino: f"{dino} {alone} --run runs/dino",
        "--test data/test": "--size 64 --test data/test",
        "no -m tools.embed runs/mine data/mine --out features.parquet": (
            "no -m tools.embed runs/mine data/mine --out features-of-two.parquet"
        ),
        "runs/mine --to huggingface": "runs/vit --to huggingface",
    }


def evaluation(place: Path) -> dict[str, str]:
    """docs/evaluation.md: every protocol; benchmarks of hours have their own records."""
    trained(place)
    names = {
        "VOCdevkit": "data/raw/VOCdevkit",
        "COCO": "data/raw/coco",
        "stl10/train": "my/photos",
        "data/cifar10/train": "data/stl10-train",
        "data/cifar10/test": "data/stl10-test",
        "data/pets": "data/stl10",
    }
    link(place, names)
    coco_folder(place / "coco", range(24), "train2014")
    coco_folder(place / "coco", range(24, 40), "val2014")
    voc = "python -m tools.shard voc --root VOCdevkit/VOC2007 --split"
    layout = "--held_out data/stl10/test --training my/photos --out DISC21/images"
    few = "--queries 6 --distractors 4 --backgrounds 4"
    prepared(
        place,
        f"{voc} trainval --out data/voc-train",
        f"{voc} test --out data/voc-test",
        f"mkdir DISC21 && python -m benchmarks.disc21_layout {layout} {few}",
        "cd DISC21 && mv images/training images/train && mv images/ground_truth.csv "
        "dev_ground_truth.csv",
    )
    labels = f"--fine_tuning.labels 0.5 {FEW}"
    tiny = "voc_cpu.yaml --detection.iterations 2"
    compare = "python -m tools.compare recipes/stl10_cpu_{s2r2,simclr}.yaml --seconds 2 --seeds 0 "
    return {
        "--seconds 360 --points 1": "--seconds 2 --points 1",
        "--queries 1000 --distractors 1000 --backgrounds 300": few,
        "--fine_tuning.labels 0.01 0.1 1": labels,
        "--fine_tuning.layers head": f"--fine_tuning.layers head {labels}",
        "--fine_tuning.warmup 0.1": f"--fine_tuning.warmup 0.1 {labels}",
        '--fine_tuning.labels 0.1"': f'{labels}"',
        "--augmented_probe.epochs 100": "--augmented_probe.epochs 2",
        "linear augmented_probe": "linear augmented_probe --augmented_probe.epochs 2",
        "voc_c4.yaml --detection.root VOCdevkit": (
            f"{tiny} --detection.root VOCdevkit --detection.train_splits VOC2007/trainval "
            "--detection.test_splits VOC2007/test"
        ),
        "coco_fpn_1x.yaml --detection.root COCO": (
            f"{tiny} --detection.root COCO --detection.train_splits train2017 "
            "--detection.test_splits val2017"
        ),
        "voc_cpu.yaml --train": f"{tiny} --train",
        "python -m tools.compare … ": f"{compare} --out runs/pets --allow_differences policy ",
        **{c: "true" for c in commands("docs/evaluation.md") if "benchmarks.protocols" in c},
        **{c: "true" for c in commands("docs/evaluation.md") if "benchmarks.copy_scale" in c},
    }


def methods(place: Path) -> dict[str, str]:
    """docs/methods.md and docs/pipeline.md."""
    trained(place)
    names = {
        "runs/miner": "runs/mine",
        "data/coco-train": "data/mine",
        "data/coco-val": "data/stl10-test",
        "data/cifar10-train20k-pairs": "data/mine-pairs",  # which the page makes
        "data/raw/cifar10/train": "my/photos",
        "data/stl10-pretrain": "data/stl10-train",
    }
    link(place, names)
    copies = "python -m tools.shard copies --root data/stl10/test"
    few = "--queries 6 --distractors 4 --backgrounds 4"
    prepared(
        place,
        f"{copies} --split queries {few} --out data/cifar10-copies-queries",
        f"{copies} --split references {few} --out data/cifar10-copies-references",
    )
    network = "--method.encoder SmallResNet --method.encoder.width 4"
    begin = "python train.py --config recipes/"
    none = "--evaluation_test none"
    return {
        f"{begin}coco_dino.yaml": f"{begin}coco_dino.yaml {STEPS} {SHORT} {network} {none} "
        "--method.prototypes 16",
        f"{begin}cifar10_cpu_qk.yaml": f"{begin}cifar10_cpu_qk.yaml {STEPS} "
        f"{SHORT} {network} --method.keys 8",
        f"{begin}coco_s2r2_vit.yaml": f"{begin}coco_s2r2_vit.yaml {none} {STEPS} {SMALL}",
        "--skip 20000 --limit 4000": "--skip 20 --limit 10",
    }


REFERENCE: Mapping[str, tuple[Callable[[Path], Mapping[str, str]], list[str]]] = {
    "install": (installed, ["docs/index.md", "docs/install.md"]),
    "sharding": (sharding, ["docs/sharding.md"]),
    "encoders": (encoders, ["docs/encoders.md"]),
    "evaluation": (evaluation, ["docs/evaluation.md"]),
    "methods": (methods, ["docs/methods.md", "docs/pipeline.md"]),
}
"""{name: (what makes what its pages take for there, and says what is smaller; its pages)}."""


@pytest.mark.parametrize("name", REFERENCE)
def test_every_command_of_the_reference_works(name: str, tmp_path: Path) -> None:
    prepare, pages = REFERENCE[name]
    place = checkout(tmp_path / "place")
    found = faults(place, pages, prepare(place))
    assert not found, "\n".join(found)


def test_every_page_with_commands_is_typed() -> None:
    typed_pages = {"README.md", *PAGES, *GUIDES, *ELSEWHERE}
    typed_pages |= {page for _, pages in REFERENCE.values() for page in pages}
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    there = {str(path.relative_to(ROOT)) for path in paths}
    assert {page for page in there if list(commands(page))} == typed_pages
