"""Small methods to test with, and the batches that they are given."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from embeddings import embeddings
from torch import Tensor, nn

from model.encoder import Encoder
from model.method import BYOL, DINO, JointEmbedding, Method, MoCo, SimSiam, SwAV
from model.objective import SmoothAP


class Flat(Encoder):
    """Four pixels in, six features out: no batch norm, no time."""

    feature_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4, 6)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.layer(F.adaptive_avg_pool2d(images_NCHW, 2).flatten(1)).tanh()


SIZES: dict[str, Any] = {"hidden_size": 7, "embedding_size": 5}
MAKE: dict[str, Callable[[], Method]] = {
    "S2R2": lambda: JointEmbedding(encoder=Flat(), objective=SmoothAP(), **SIZES),
    "SwAV": lambda: SwAV(
        encoder=Flat(), prototypes=9, queue_size=8, queue_start=2, freeze_prototypes=2, **SIZES
    ),
    "MoCo": lambda: MoCo(encoder=Flat(), queue_size=10, momentum=0.9, **SIZES),
    "SimSiam": lambda: SimSiam(encoder=Flat(), predictor_size=3, **SIZES),
    "BYOL": lambda: BYOL(encoder=Flat(), momentum=0.9, **SIZES),
    "DINO": lambda: DINO(
        encoder=Flat(),
        prototypes=9,
        norm_last_layer=False,
        momentum=0.9,
        freeze_last_layer=0.2,
        **SIZES,
    ),
}


def made(name: str) -> Method:
    torch.manual_seed(0)
    return MAKE[name]()


def batch(step: int, *, counts: tuple[int, ...] = (2, 3), B: int = 4) -> tuple[Tensor, ...]:
    """Views as the loader lays them out."""
    sizes = (8, 6)
    return tuple(
        embeddings(B, count, size, size, 3, seed=10 * step + i, dtype=torch.float32).permute(
            1, 0, 4, 2, 3
        )
        for i, (count, size) in enumerate(zip(counts, sizes, strict=False))
    )
