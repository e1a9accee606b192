"""The Triton kernels of `model.kernel.fused_smooth_ap`: all pairs of rows, tile by tile.

Each program owns ROWS rows of one side and meets `span` of the other side's, OTHERS at a time; the
scores of a tile never leave its registers. Embeddings come as the sum of TERMS terms of bf16, which
tensor cores take from shared memory as they are; see `tile_choice.terms_for`.
"""

# Triton's types say neither that its loops can be unrolled nor that a number can be a constant.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false

import triton
import triton.language as tl


@triton.jit
def compare(
    z_TQD,
    sample_Q,
    key_KQ,
    z_TGD,
    sample_G,
    sums_SXKQ,
    Q,
    G,
    span,
    scale,
    K: tl.constexpr,
    D: tl.constexpr,
    GRAD: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sum up how surely the gallery stands above each positive of each query, and the slope."""
    first_q, first_k, part = tl.program_id(0) * ROWS, tl.program_id(1) * BLOCK_K, tl.program_id(2)
    q = first_q + tl.arange(0, ROWS)
    own = tl.load(sample_Q + q, mask=q < Q, other=-1)
    sums_KQ = sums_SXKQ + tl.cast(part, tl.int64) * (2 * K if GRAD else K) * Q
    keys, negatives, slope = (), (), ()
    for k in tl.static_range(BLOCK_K):
        at = (first_k + k) * Q + q
        keys += (tl.load(key_KQ + at, mask=(q < Q) & (at < K * Q), other=1.0)[:, None],)
        negatives += (tl.zeros((ROWS,), tl.float32),)
        slope += (tl.zeros((ROWS,), tl.float32),)
    z_q = load_terms(z_TQD, first_q, Q, 0, D, TERMS, ROWS, DEPTH)
    for first_g in range(part * span, tl.minimum(part * span + span, G), OTHERS):
        g = first_g + tl.arange(0, OTHERS)
        sample = tl.load(sample_G + g, mask=g < G, other=-2)
        S = tl.zeros((ROWS, OTHERS), tl.float32)
        if D <= DEPTH:
            z_g = load_terms(z_TGD, first_g, G, 0, D, TERMS, OTHERS, DEPTH)
            S = add_scores(S, z_q, z_g, TERMS)
        else:
            S = scores(S, z_TQD, first_q, Q, z_TGD, first_g, G, D, TERMS, ROWS, OTHERS, DEPTH)
        left_out = (own[:, None] == sample[None, :]) | (g >= G)[None, :]
        ready = make_ready(S, left_out, scale, SIGMOID)
        next_negatives, next_slope = (), ()
        for k in tl.static_range(0, BLOCK_K, 2):
            above = stand_above(ready, keys[k : min(k + 2, BLOCK_K)], SIGMOID)
            for i in tl.static_range(len(above)):
                next_negatives += (negatives[k + i] + tl.sum(above[i], 1),)
                if GRAD:
                    next_slope += (slope[k + i] + tl.sum(above[i] - above[i] * above[i], 1),)
        negatives = next_negatives
        if GRAD:
            slope = next_slope
    for k in tl.static_range(BLOCK_K):
        at = (first_k + k) * Q + q
        known = (q < Q) & (at < K * Q)
        tl.store(sums_KQ + at, negatives[k], mask=known)
        if GRAD:
            tl.store(sums_KQ + K * Q + at, slope[k], mask=known)


@triton.jit
def pull(
    z_TLD,
    sample_L,
    z_TRD,
    sample_R,
    key_KL,
    weight_KL,
    key_KR,
    weight_KR,
    dz_SLD,
    L,
    R,
    span,
    scale,
    K: tl.constexpr,
    D: tl.constexpr,
    LEFT_ASKS: tl.constexpr,
    RIGHT_ASKS: tl.constexpr,
    FIRST: tl.constexpr,
    SIGMOID: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Add up dL/dz of the rows on the left: queries, gallery rows, or both."""
    first_l, first_d, part = tl.program_id(0) * ROWS, tl.program_id(1) * DEPTH, tl.program_id(2)
    row = first_l + tl.arange(0, ROWS)
    own = tl.load(sample_L + row, mask=row < L, other=-1)
    keys, weights = (), ()  # two of each for every positive: of the left, of the right
    for k in tl.static_range(K):
        if LEFT_ASKS:
            keys += (tl.load(key_KL + k * L + row, mask=row < L, other=1.0)[:, None],)
            weights += (tl.load(weight_KL + k * L + row, mask=row < L, other=0.0)[:, None],)
    z_l = load_terms(z_TLD, first_l, L, 0, D, TERMS, ROWS, DEPTH)
    dz = tl.zeros((ROWS, DEPTH), tl.float32)
    for first_r in range(part * span, tl.minimum(part * span + span, R), OTHERS):
        other = first_r + tl.arange(0, OTHERS)
        sample = tl.load(sample_R + other, mask=other < R, other=-2)
        z_r = load_terms(z_TRD, first_r, R, first_d, D, TERMS, OTHERS, DEPTH)
        S = tl.zeros((ROWS, OTHERS), tl.float32)
        if D <= DEPTH:
            S = add_scores(S, z_l, z_r, TERMS)
        else:
            S = scores(S, z_TLD, first_l, L, z_TRD, first_r, R, D, TERMS, ROWS, OTHERS, DEPTH)
        ready = make_ready(S, own[:, None] == sample[None, :], scale, SIGMOID)
        pulls = tl.zeros((ROWS, OTHERS), tl.float32)
        PER_K: tl.constexpr = 2 if LEFT_ASKS and RIGHT_ASKS else 1
        for first in tl.static_range(0, K * PER_K, 2):
            key, weight = (), ()
            for i in tl.static_range(first, min(first + 2, K * PER_K)):
                if LEFT_ASKS and i % PER_K == 0:
                    key += (keys[i // PER_K],)
                    weight += (weights[i // PER_K],)
                else:
                    at = (i // PER_K) * R + other
                    key += (tl.load(key_KR + at, mask=other < R, other=1.0)[None, :],)
                    weight += (tl.load(weight_KR + at, mask=other < R, other=0.0)[None, :],)
            above = stand_above(ready, key, SIGMOID)
            for i in tl.static_range(len(above)):
                pulls += weight[i] * (above[i] - above[i] * above[i])
        # Rows beyond the last are zeros, so how they pull does not matter.
        dz = add_pulled(dz, pulls, z_r, TERMS)
    d = first_d + tl.arange(0, DEPTH)
    at = dz_SLD + (tl.cast(part, tl.int64) * L + row[:, None]) * D + d[None, :]
    inside = (row < L)[:, None] & (d < D)[None, :]
    if not FIRST:  # of several rounds of positives
        dz += tl.load(at, mask=inside, other=0.0)
    tl.store(at, dz, mask=inside)


@triton.jit
def scores(
    S,
    z_TLD,
    first_l,
    L,
    z_TRD,
    first_r,
    R,
    D: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Return a tile of scores of more dimensions than are multiplied at a time."""
    for first_d in range(0, D, DEPTH):
        z_l = load_terms(z_TLD, first_l, L, first_d, D, TERMS, ROWS, DEPTH)
        z_r = load_terms(z_TRD, first_r, R, first_d, D, TERMS, OTHERS, DEPTH)
        S = add_scores(S, z_l, z_r, TERMS)
    return S


@triton.jit
def add_scores(S, z_l, z_r, TERMS: tl.constexpr):
    """Add the products of all terms that count, the least first: 1, 3 or 6 of them."""
    for least in tl.static_range(TERMS):
        for left in tl.static_range(TERMS - least):
            S = tl.dot(z_l[left], tl.trans(z_r[TERMS - 1 - least - left]), S)
    return S


@triton.jit
def add_pulled(dz, pulls, z_r, TERMS: tl.constexpr):
    """Add pulls · z, of two terms at most: no temperature magnifies what the third would add."""
    high = pulls.to(tl.bfloat16)
    if TERMS > 1:
        dz = tl.dot((pulls - high.to(tl.float32)).to(tl.bfloat16), z_r[0], dz)
        dz = tl.dot(high, z_r[1], dz)
    return tl.dot(high, z_r[0], dz)


@triton.jit
def load_terms(
    z_TND,
    first,
    N,
    first_d,
    D: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Load a tile of each term; zeros beyond the last row and the last dimension."""
    row, d = tl.arange(0, ROWS)[:, None], first_d + tl.arange(0, DEPTH)[None, :]
    inside = first + row < N
    if D % DEPTH != 0:
        inside = inside & (d < D)
    terms = ()
    for t in tl.static_range(TERMS):
        # N · D may pass 2³¹; within a tile offsets are small.
        z_ND = z_TND + (tl.cast(N, tl.int64) * t + first) * D
        terms += (tl.load(z_ND + row * D + d, mask=inside, other=0.0),)
    return terms


@triton.jit
def make_ready(S, left_out, scale, SIGMOID: tl.constexpr):
    """Return scores as `stand_above` takes them: 2^-y, or y. A row left out is above no other."""
    if SIGMOID == "one exponent each":
        return tl.where(left_out, float("-inf"), S * scale)
    # Times a key it must be finite, times another infinite: 2^96 for keys of 2^±31.
    nothing: tl.constexpr = 2.0**96 if SIGMOID == "two by one root" else float("inf")
    return tl.where(left_out, nothing, tl.exp2(S * -scale))


@triton.jit
def stand_above(ready, keys, SIGMOID: tl.constexpr):
    """Return σ((s - s_k) / τ) for one or two positives; a key is 2^y_k, or y_k."""
    if SIGMOID == "two by one root" and len(keys) == 2:
        # 1/a = b · 1/(a b), while a b < 2^128: half the roots.
        a, b = 1 + ready * keys[0], 1 + ready * keys[1]
        both = inverse(a * b)
        return both * b, both * a
    above = ()
    for k in tl.static_range(len(keys)):
        if SIGMOID == "one exponent each":
            above += (inverse(1 + tl.exp2(keys[k] - ready)),)
        else:
            above += (inverse(1 + ready * keys[k]),)
    return above


@triton.jit
def inverse(x):
    """Return 1 / x: a root and its square are two instructions; a division took nine (sm_90)."""
    root = tl.rsqrt(x)
    return root * root
