"""Exact scores: every query against the whole gallery in float32, a block at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores in one block. 8 MiB on the CPU: larger leaves the cache (64 MiB counts half as fast), and
# smaller makes threads wait for each other more often. A GPU wants fewer, larger kernels: 64 MiB.
CPU_SCORES = 2**21
GPU_SCORES = 2**24
LEAST_ROWS = 64  # a narrower matrix product costs more in packing than it computes
GALLERY = 2**26  # numbers of a gallery that are normalised at once: 256 MiB


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute matrix products in true float32, whatever training has set.

    Autocast, TF32 on the GPU and bfloat16 on the CPU round a score to 8 or 11 bits. That makes ties
    where there are none, and the order of a ranking is all that is measured here.
    """
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type=device.type, enabled=False):
            yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before


def blocks(
    query_QD: Tensor, gallery_GD: Tensor, *, rows: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the score matrix S [Q, G] in blocks of queries; the caller may overwrite a block.

    Args:
        query_QD: queries [Q, D], float32; normalise them for cosine scores.
        gallery_GD: gallery rows [G, D], float32, on the same device.
        rows: queries per block; None chooses so that memory stays bounded whatever Q is.

    Yields:
        The first query's row number, and the scores [rows, G] from there on.
    """
    if rows is None:
        scores = GPU_SCORES if query_QD.is_cuda else CPU_SCORES
        rows = max(LEAST_ROWS, scores // max(1, len(gallery_GD)))
    for start in range(0, len(query_QD), rows):
        with exact_float32(query_QD.device):
            S_QG = query_QD[start : start + rows] @ gallery_GD.T
        yield start, S_QG


@torch.no_grad()
def nearest(
    query_QF: Tensor, gallery_GF: Tensor, *, count: int, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and the rows [Q, K] of the most similar gallery rows, the best first.

    The search is exact. Memory: the queries once more, a part of the gallery, a block of scores and
    12 bytes a neighbour, so a gallery of a million rows is held once and never copied.

    Args:
        query_QF: queries [Q, F]; they need not be normalised.
        gallery_GF: gallery rows [G, F], on the same device.
        count: K; all of the gallery where it is smaller.
        rows: queries per block; changes memory and speed only.
    """
    query_QF = F.normalize(query_QF.float(), dim=1)
    best_QK = query_QF.new_empty(len(query_QF), 0)
    row_QK = best_QK.long()
    columns = max(1, GALLERY // gallery_GF.shape[1])
    for first in range(0, len(gallery_GF), columns):
        part_GF = F.normalize(gallery_GF[first : first + columns].float(), dim=1)
        found = [
            S_QG.topk(min(count, S_QG.shape[1]), dim=1)
            for _, S_QG in blocks(query_QF, part_GF, rows=rows)
        ]
        score_QK = torch.cat([best_QK, torch.cat([s_QK for s_QK, _ in found])], dim=1)
        place_QK = torch.cat([row_QK, first + torch.cat([place for _, place in found])], dim=1)
        best_QK, order_QK = score_QK.topk(min(count, score_QK.shape[1]), dim=1)
        row_QK = place_QK.gather(1, order_QK)
    return best_QK, row_QK
