"""Exact scores: every query against the whole gallery in float32, a block at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Scores in one block. 8 MiB on the CPU: larger leaves the cache (64 MiB counts half as fast), and
# smaller makes threads wait for each other more often. A GPU wants fewer, larger kernels: 64 MiB.
CPU_SCORES = 2**21
GPU_SCORES = 2**24
LEAST_ROWS = 64  # a narrower matrix product costs more in packing than it computes


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
