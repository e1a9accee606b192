"""The Triton kernels of `model.kernel.fused_smooth_ap`: all pairs of rows, tile by tile.

Each program owns ROWS rows of one side and meets `span` of the other side's, OTHERS at a time; the
scores of a tile never leave its registers.
"""

# Triton's types do not say that its loops can be unrolled.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.jit
def compare(
    z_QD,
    sample_Q,
    key_KQ,
    z_GD,
    sample_G,
    sums_SXKQ,
    Q,
    G,
    span,
    scale,
    K: tl.constexpr,
    D: tl.constexpr,
    GRAD: tl.constexpr,
    FACTORED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
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
    z_q = load_rows(z_QD, first_q, Q, 0, D, ROWS, DEPTH)
    for first_g in range(part * span, tl.minimum(part * span + span, G), OTHERS):
        g = first_g + tl.arange(0, OTHERS)
        sample = tl.load(sample_G + g, mask=g < G, other=-2)
        if D <= DEPTH:
            z_g = load_rows(z_GD, first_g, G, 0, D, OTHERS, DEPTH)
            S = tl.dot(z_q, tl.trans(z_g), input_precision=PRECISION)
        else:
            S = scores(z_QD, first_q, Q, z_GD, first_g, G, D, PRECISION, ROWS, OTHERS, DEPTH)
        left_out = (own[:, None] == sample[None, :]) | (g >= G)[None, :]
        ready = make_ready(S, left_out, scale, FACTORED)
        next_negatives, next_slope = (), ()
        for k in tl.static_range(BLOCK_K):
            above = stand_above(ready, keys[k], FACTORED)
            next_negatives += (negatives[k] + tl.sum(above, 1),)
            if GRAD:
                next_slope += (slope[k] + tl.sum(above - above * above, 1),)
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
    z_LD,
    sample_L,
    z_RD,
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
    FACTORED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Add up dL/dz of the rows on the left: queries, gallery rows, or both."""
    first_l, first_d, part = tl.program_id(0) * ROWS, tl.program_id(1) * DEPTH, tl.program_id(2)
    row = first_l + tl.arange(0, ROWS)
    own = tl.load(sample_L + row, mask=row < L, other=-1)
    keys, weights = (), ()
    if LEFT_ASKS:
        for k in tl.static_range(K):
            keys += (tl.load(key_KL + k * L + row, mask=row < L, other=1.0)[:, None],)
            weights += (tl.load(weight_KL + k * L + row, mask=row < L, other=0.0)[:, None],)
    z_l = load_rows(z_LD, first_l, L, 0, D, ROWS, DEPTH)
    dz = tl.zeros((ROWS, DEPTH), tl.float32)
    for first_r in range(part * span, tl.minimum(part * span + span, R), OTHERS):
        other = first_r + tl.arange(0, OTHERS)
        sample = tl.load(sample_R + other, mask=other < R, other=-2)
        z_r = load_rows(z_RD, first_r, R, first_d, D, OTHERS, DEPTH)
        if D <= DEPTH:
            S = tl.dot(z_l, tl.trans(z_r), input_precision=PRECISION)
        else:
            S = scores(z_LD, first_l, L, z_RD, first_r, R, D, PRECISION, ROWS, OTHERS, DEPTH)
        ready = make_ready(S, own[:, None] == sample[None, :], scale, FACTORED)
        pulls = tl.zeros((ROWS, OTHERS), tl.float32)
        for k in tl.static_range(K):
            if LEFT_ASKS:
                above = stand_above(ready, keys[k], FACTORED)
                pulls += weights[k] * (above - above * above)
            if RIGHT_ASKS:
                key = tl.load(key_KR + k * R + other, mask=other < R, other=1.0)
                weight = tl.load(weight_KR + k * R + other, mask=other < R, other=0.0)
                above = stand_above(ready, key[None, :], FACTORED)
                pulls += weight[None, :] * (above - above * above)
        # Rows beyond the last are zeros, so how they pull does not matter.
        dz = tl.dot(pulls.to(z_r.dtype), z_r, dz, input_precision=PRECISION)
    d = first_d + tl.arange(0, DEPTH)
    at = dz_SLD + (tl.cast(part, tl.int64) * L + row[:, None]) * D + d[None, :]
    inside = (row < L)[:, None] & (d < D)[None, :]
    if not FIRST:  # of several rounds of positives
        dz += tl.load(at, mask=inside, other=0.0)
    tl.store(at, dz, mask=inside)


@triton.jit
def scores(
    z_LD,
    first_l,
    L,
    z_RD,
    first_r,
    R,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Return a tile of scores of more dimensions than are multiplied at a time."""
    S = tl.zeros((ROWS, OTHERS), tl.float32)
    for first_d in range(0, D, DEPTH):
        z_l = load_rows(z_LD, first_l, L, first_d, D, ROWS, DEPTH)
        z_r = load_rows(z_RD, first_r, R, first_d, D, OTHERS, DEPTH)
        S = tl.dot(z_l, tl.trans(z_r), S, input_precision=PRECISION)
    return S


@triton.jit
def load_rows(z_ND, first, N, first_d, D: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Load a tile; zeros beyond the last row and the last dimension."""
    row, d = tl.arange(0, ROWS)[:, None], first_d + tl.arange(0, DEPTH)[None, :]
    inside = first + row < N
    if D % DEPTH != 0:
        inside = inside & (d < D)
    # N · D may pass 2³¹; within a tile offsets are small.
    return tl.load(z_ND + tl.cast(first, tl.int64) * D + row * D + d, mask=inside, other=0.0)


@triton.jit
def make_ready(S, left_out, scale, FACTORED: tl.constexpr):
    """Return scores as `stand_above` takes them: 2^-y, or y. A row left out is above no other."""
    if FACTORED:
        return tl.where(left_out, float("inf"), tl.exp2(S * -scale))
    return tl.where(left_out, float("-inf"), S * scale)


@triton.jit
def stand_above(ready, key, FACTORED: tl.constexpr):
    """Return σ((s - s_k) / τ); the key is 2^y_k, or y_k. An infinite power makes it zero."""
    power = ready * key if FACTORED else tl.exp2(key - ready)
    root = tl.rsqrt(1 + power)  # with its square two instructions; a division took nine (sm_90)
    return root * root
