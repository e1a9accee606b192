"""One rank of a detector that two processes train."""

import os
from pathlib import Path

import torch
from accelerate import PartialState
from trials import Saves, detector, rectangles, schedule, trial

from evaluation.detection.detector import Kind
from evaluation.detection.detector_training import detect, train

STEPS = 3
CASES: dict[str, tuple[Kind, bool]] = {
    "fpn, frozen": ("fpn", False),
    "c4": ("c4", True),
    "retinanet": ("retinanet", True),
}


def work(rank: int, folder: str, port: int) -> None:
    """Train, and leave the weights and what is found in `folder`."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": 2}
    os.environ.update({n: str(v) for n, v in {**where, "LOCAL_RANK": rank}.items()})
    os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState(cpu=True)
    torch.set_num_threads(1)
    torch.save(learned(Path(folder), rank=rank, world_size=2), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def learned(folder: Path, *, rank: int = 0, world_size: int = 1) -> dict[str, object]:
    images, found = rectangles(folder), {}
    for name, (kind, train_batch_norm) in CASES.items():
        # In float64: else rounding changes the order of proposals, and that which are sampled.
        network = detector(kind, train_batch_norm=train_batch_norm).double()
        if world_size > 1 and train_batch_norm:
            network = network.synchronised()
        how = trial(rank=rank, world_size=world_size)
        train(how, Saves(every=1000).task(), network, images, schedule(iterations=STEPS))
        boxes = detect(how, network, images, shorter=64, longest=128, workers=0)
        weights = {n: t for n, t in network.state_dict().items() if t.is_floating_point()}
        found[name] = weights, torch.from_numpy(boxes.image_D), torch.from_numpy(boxes.box_D4)
    return found
