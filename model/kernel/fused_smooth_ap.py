"""Smooth-AP and its gradient in two Triton kernels: O(N · (D + V)) memory, never N × N.

The definition is `model.objective.SmoothAP` in PyTorch's operators, which the CPU runs. There each
positive k takes several passes over a chunk of scores; here a tile of scores stays in registers.
With y = s / (τ ln 2) and above_gk = σ((s_g - s_k) / τ) = 1 / (1 + 2^-y_g · 2^y_k):

    1  scores within a sample; among_positives_k      PyTorch: [V, V, A], [chunk, K, K]
    2  negatives_k = Σ_g above_gk                     kernel `compare`: queries × gallery, but for
       slope_k     = Σ_g above_gk (1 - above_gk)      those of the query's own sample
    3  position = among_positives + negatives         PyTorch: [Q, K]
       loss = mean of negatives / position, the derivatives w_k by negatives_k; and all that the
       positives' own scores get: -w_k slope_k, and from one another
    4  pull_qg = Σ_k w_qk above_gk (1 - above_gk)     kernel `pull`: scores and above once more
       dz_q += Σ_g pull_qg z_g;  dz_g += Σ_q pull_qg z_q

A program of step 4 owns rows of dz and meets all rows on the other side: no atomics, so two runs
are equal to the bit. If the whole gallery asks (one rank, no small crops), a row is query and
gallery at once: both pulls come from one tile of scores. That 1 - AP is negatives / position,
without a difference, keeps it exact where the order is nearly perfect.

Tensor cores multiply bf16: float32 embeddings are split once, in advance, into two or three terms
of bf16 (`tile_choice.terms_for`), whose three or six products a program adds up as it meets them.

Its cost at N = 32,768, V = 4, D = 128 (1.1e9 pairs) for an H100, computed from the machine code
(docs/kernels.md), not measured; in float32 with two terms, and in bf16:

    all instructions    42 + 56 a pair, 31 + 47 in bf16, at 128 a clock · 132
                        multiprocessors · 1.755 GHz = 3.0e13 / s                  3.6   2.8 ms
    special functions   an exp2 a pair, a root for two positives (three: 3; step 4
                        has six: 4), at 16 a clock                                2.0   2.0 ms
    matrix products     2 N² D each, 3 + 6 and 1 + 2 of them, at 950 TFLOP/s      2.6   0.9 ms
    second-level cache  N / rows times all terms of all embeddings, 13 and 6 GB,
                        at 5 TB/s                                                 2.6   1.3 ms

What of them runs side by side decides: 3.6 to 6.2 ms in float32, if that is the first with the
third in series, and 2.8 to 3.7 in bf16. The first two grow with V, the last two with D. Hence one
2^-y_g for all positives and one root for two of them, where the range of float32 allows
(temperatures from 0.0466 on; from 0.0145 on a root each; below, an exp2 too), and scores again
rather than stored.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses import FakeTensor

from model.kernel import pair_tiles
from model.kernel.tile_choice import Precision, Tiles, capability_of, terms_for, tiles_for

# Positives that a program compares with at once: their keys and sums stay in its registers.
_POSITIVES = 8
# 2^y is neither zero nor infinite in float32 for scores of ±1, if y is at most this; and if at most
# that, the product of two sigmoids' denominators is finite.
_LARGEST_Y, _LARGEST_Y_OF_TWO = 100.0, 31.0
# Comparisons between positives that exist at once (64 MiB).
_CHUNK = 1 << 24


class Side(NamedTuple):
    """The L rows on one side of the scores."""

    z_TLD: Tensor
    """bf16; the embeddings are the sum of these T terms."""
    sample_L: Tensor
    """Rows of one sample are not compared by the kernels."""
    key_KL: Tensor | None = None
    """If these rows ask: what scores are compared with for each positive; `pairs.stand_above`."""
    weight_KL: Tensor | None = None
    """Derivative of the loss by `negatives`, over the temperature."""


def smooth_ap(
    z_VAD: Tensor,
    gallery_views: int,
    samples: slice,
    *,
    temperature: float,
    precision: Precision,
    grad: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss and, if `grad`, its gradient [V, A, D].

    Given fake tensors it allocates what real ones would need, and launches nothing.

    Args:
        z_VAD: float32, contiguous, of unit length.
        gallery_views: see `Objective.forward`.
        samples: see `Objective.forward`; start and stop are set.
        temperature: see `SmoothAP`.
        precision: see `SmoothAP`.
        grad: whether the gradient is wanted.
        tiles: of both kernels, if not those of `tiles_for`.
    """
    V, A, D = z_VAD.shape
    U, B = gallery_views, samples.stop - samples.start
    scale = 1 / (temperature * math.log(2))  # y = scale · s
    z_TVAD = terms_of(z_VAD, terms_for(precision, temperature, D))
    if precision == "bf16":
        z_VAD = z_TVAD[0].float()
    sample_VA = torch.arange(A, dtype=torch.int32, device=z_VAD.device).expand(V, A)
    view_V = torch.arange(V, device=z_VAD.device)
    gallery = Side(z_TVAD[:, :U].flatten(1, 2).contiguous(), sample_VA[:U].flatten())
    z_UBD = z_VAD[:U, samples]

    loss = z_VAD.new_zeros(())
    dz_VAD = torch.zeros_like(z_VAD) if grad else None
    # First the queries that are in the gallery themselves, then those that are not.
    for views, nearest in ((slice(0, U), 1), (slice(U, V), 0)):
        z_WBD = z_VAD[views, samples]
        W = len(z_WBD)
        if W == 0:
            continue
        S_WBU = torch.einsum("wbd,ubd->wbu", z_WBD, z_UBD)
        positive_WK = (view_V[:W, None] + view_V[nearest:U]) % U
        positive_WBK = positive_WK[:, None].expand(-1, B, -1)
        y_QK = S_WBU.gather(-1, positive_WBK).flatten(0, 1).mul_(scale)

        key_KQ = (y_QK.exp2() if scale <= _LARGEST_Y else y_QK).T.contiguous()
        z_TQD = z_TVAD[:, views, samples].flatten(1, 2).contiguous()
        asking = Side(z_TQD, sample_VA[views, samples].flatten(), key_KQ)
        negatives_KQ, slope_KQ = compare(asking, gallery, scale, grad=grad, tiles=tiles)
        slope_QK = None if slope_KQ is None else slope_KQ.T
        share = 1 / (y_QK.shape[1] * V * B * temperature)
        loss_Q, weight_QK, dS_QK = _rank(y_QK, negatives_KQ.T, slope_QK, share)
        loss += loss_Q.sum() / (V * B)
        if dz_VAD is None:
            continue
        dS_WBU = torch.zeros_like(S_WBU).scatter_(-1, positive_WBK, dS_QK.view_as(positive_WBK))
        dz_VAD[views, samples] += torch.einsum("wbu,ubd->wbd", dS_WBU, z_UBD)
        dz_VAD[:U, samples] += torch.einsum("wbu,wbd->ubd", dS_WBU, z_WBD)
        asking = asking._replace(weight_KL=weight_QK.T.contiguous())
        if (W, B, nearest) == (U, A, 1):
            dz_VAD[:U] += pull(asking, asking, scale, tiles=tiles).view(U, A, -1)
        else:
            dz_VAD[views, samples] += pull(asking, gallery, scale, tiles=tiles).view(W, B, -1)
            dz_VAD[:U] += pull(gallery, asking, scale, tiles=tiles).view(U, A, -1)
    return loss, dz_VAD


def terms_of(z_VAD: Tensor, terms: int) -> Tensor:
    """Return bf16 [terms, V, A, D] that add up to z: each is what the ones before left over."""
    found, rest_VAD = [], z_VAD
    for _ in range(terms):
        found.append(rest_VAD.bfloat16())
        rest_VAD = rest_VAD - found[-1].float()
    return torch.stack(found)


def _rank(
    y_QK: Tensor, negatives_QK: Tensor, slope_QK: Tensor | None, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 - AP of each query [Q], and given `slope_QK` its derivatives [Q, K].

    These are by `negatives` and by the positives' scores, times the temperature's inverse and
    over all queries: `share` is 1 / (K · temperature · queries).
    """
    loss_Q = torch.empty_like(y_QK[:, 0])
    weight_QK, dS_QK = torch.empty_like(y_QK), torch.empty_like(y_QK)
    queries = max(1, _CHUNK // y_QK.shape[1] ** 2)
    for start in range(0, len(y_QK), queries):
        q = slice(start, start + queries)
        # [q, k, p]: how surely positive p stands above positive k, itself by one half.
        above_qKK = (y_QK[q, None, :] - y_QK[q, :, None]).mul_(math.log(2)).sigmoid_()
        among_positives_qK = 0.5 + above_qKK.sum(-1)
        position_qK = among_positives_qK + negatives_QK[q]
        share_qK = negatives_QK[q] / position_qK
        loss_Q[q] = share_qK.mean(-1)
        if slope_QK is not None:
            weight_QK[q] = among_positives_qK / position_qK.square() * share
            push_qKK = above_qKK.mul_(1 - above_qKK).mul_(
                (share_qK / position_qK * share)[..., None]
            )
            dS_QK[q] = push_qKK.sum(-1) - push_qKK.sum(-2) - weight_QK[q] * slope_QK[q]
    return loss_Q, weight_QK, dS_QK


def compare(
    asking: Side, gallery: Side, scale: float, *, grad: bool, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return negatives and, if `grad`, slope [K, Q] for each positive of each query."""
    assert asking.key_KL is not None
    (K, Q), (T, G, D) = asking.key_KL.shape, gallery.z_TLD.shape
    rounds = triton.cdiv(K, _POSITIVES)
    block_K = triton.cdiv(K, rounds)
    tiles = tiles or tiles_for("compare", capability_of(gallery.z_TLD.device), T, D, block_K)
    blocks = triton.cdiv(Q, tiles.rows)
    parts, span = _parts(blocks * rounds, G, tiles)
    sums_SXKQ = asking.key_KL.new_empty(parts, 1 + grad, K, Q)
    _launch(
        pair_tiles.compare,
        (blocks, rounds, parts),
        tiles,
        asking.z_TLD,
        asking.sample_L,
        asking.key_KL,
        gallery.z_TLD,
        gallery.sample_L,
        sums_SXKQ,
        Q,
        G,
        span,
        scale,
        K=K,
        D=D,
        GRAD=grad,
        SIGMOID=_sigmoid(scale),
        BLOCK_K=block_K,
    )
    negatives_KQ, *slope_KQ = sums_SXKQ.sum(0)
    return negatives_KQ, slope_KQ[0] if grad else None


def pull(left: Side, right: Side, scale: float, *, tiles: Tiles | None = None) -> Tensor:
    """Return dL/dz of the rows on the left [L, D] by their scores with those on the right."""
    (T, L, D), R = left.z_TLD.shape, right.z_TLD.shape[1]
    keys = left.key_KL if left.key_KL is not None else right.key_KL
    assert keys is not None
    K, sides = min(len(keys), _POSITIVES), (left.key_KL is not None) + (right.key_KL is not None)
    tiles = tiles or tiles_for("pull", capability_of(left.z_TLD.device), T, D, K, sides)
    blocks, columns = triton.cdiv(L, tiles.rows), triton.cdiv(D, tiles.depth_of(D))
    parts, span = _parts(blocks * columns, R, tiles)
    dz_SLD = left.z_TLD.new_empty((parts, L, D), dtype=torch.float32)
    for first in range(0, len(keys), _POSITIVES):
        k = slice(first, first + _POSITIVES)
        asked = [
            None if each is None else each[k]
            for each in (left.key_KL, left.weight_KL, right.key_KL, right.weight_KL)
        ]
        _launch(
            pair_tiles.pull,
            (blocks, columns, parts),
            tiles,
            left.z_TLD,
            left.sample_L,
            right.z_TLD,
            right.sample_L,
            *asked,
            dz_SLD,
            L,
            R,
            span,
            scale,
            K=len(keys[k]),
            D=D,
            LEFT_ASKS=left.key_KL is not None,
            RIGHT_ASKS=right.key_KL is not None,
            FIRST=first == 0,
            SIGMOID=_sigmoid(scale),
        )
    return dz_SLD.sum(0)


def _parts(programs: int, others: int, tiles: Tiles) -> tuple[int, int]:
    """Return into how many parts the other side is cut, and the rows of each."""
    blocks = triton.cdiv(others, tiles.others)
    parts = max(1, min(blocks, tiles.programs // programs))
    return parts, triton.cdiv(blocks, parts) * tiles.others


def _sigmoid(scale: float) -> str:
    """Return how `pair_tiles.stand_above` computes it, for scores of ±1."""
    if scale > _LARGEST_Y:
        return "one exponent each"
    return "one root each" if scale > _LARGEST_Y_OF_TWO else "two by one root"


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    tiles: Tiles,
    z_TLD: Tensor,
    *rest: Any,
    D: int,
    **more: Any,
) -> None:
    options = {
        **more,
        "D": D,
        "TERMS": len(z_TLD),
        "ROWS": tiles.rows,
        "OTHERS": tiles.others,
        "DEPTH": tiles.depth_of(D),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,  # Triton 3.10 is to leave it out by default
    }
    _start(kernel, grid, (z_TLD, *rest), options)


def _start(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    z_TLD = arguments[0]
    if isinstance(z_TLD, FakeTensor):
        return  # training.memory_forecast follows a step
    # Triton launches on the current device, whatever its arguments lie on.
    with torch.cuda.device(z_TLD.device) if z_TLD.is_cuda else nullcontext():
        kernel[grid](*arguments, **options)
