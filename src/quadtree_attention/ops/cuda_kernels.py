"""Triton kernels of the "cuda" backend: one level forward, and its gradients by query and by key.

One program works on a *group* of queries that share a list of candidate keys. At a finer level these are the F children of one query, and their
candidates the F children of each key that this query kept, F * K places in all; at the coarsest level (ROOT) a group is a block of any G queries
and the candidates are all keys. Candidates are taken CB places at a time, so that nothing but the result of a level is ever stored.

Per batch entry and head: q [nq, D], k [nk, D], v [nk, DV], kept [groups, K] int32 with -1 for none. Scores and sums are float32. All index
arithmetic inside a head is 32-bit unless WIDE. ``keep`` equals KEEP, but is not a constant, so that loops over it are not unrolled.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))  # below every packed score
NONE = tl.constexpr(float("-inf"))
SIZES = [
    "level",
    "nq",
    "nk",
    "heads",
    "keep",
    "query_groups",
    "groups",
]  # one compiled kernel serves images of all sizes


@triton.constexpr_function
def _log2(n):
    return n.bit_length() - 1


@triton.jit
def _rows(base, rows, there, D: tl.constexpr, DP: tl.constexpr, WIDE: tl.constexpr):
    """Rows of a [n, D] matrix as [len(rows), DP], zeros where there is none."""
    channel = tl.arange(0, DP)
    if WIDE:
        rows = rows.to(tl.int64)
    mask = there[:, None]
    if D != DP:
        mask = mask & (channel[None, :] < D)
    return tl.load(base + rows[:, None] * D + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _put(base, rows, there, x, D: tl.constexpr, DP: tl.constexpr, WIDE: tl.constexpr):
    channel = tl.arange(0, DP)
    if WIDE:
        rows = rows.to(tl.int64)
    mask = there[:, None]
    if D != DP:
        mask = mask & (channel[None, :] < D)
    tl.store(base + rows[:, None] * D + channel[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _candidates(kept, valid, places, count, F: tl.constexpr, ROOT: tl.constexpr, MASKED: tl.constexpr):
    """Key token at each place of a group's list, and whether there is one; token 0 where not."""
    there = places < count
    if ROOT:
        token = places
    else:
        parent = tl.load(kept + places // F, mask=there, other=-1)
        there = parent >= 0
        token = parent * F + places % F
    token = tl.where(there, token, 0)
    if MASKED:
        there = there & (tl.load(valid + token, mask=there, other=0) != 0)
    return token, there


@triton.jit
def _scores(
    queries, k, valid, kept, start, count, scale, CB: tl.constexpr, F: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    ROOT: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """CB places of a group's list from ``start`` on: the places, their tokens, whether there is one, their keys [CB, DP], and scores [G, CB]."""
    places = start + tl.arange(0, CB)
    token, there = _candidates(kept, valid, places, count, F, ROOT, MASKED)
    keys = _rows(k, token, there, D, DP, WIDE)
    score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    return places, token, there, keys, tl.where(there[None, :], score, NONE)


@triton.jit
def _shares(share, start, SLOTS: tl.constexpr, CB: tl.constexpr, F: tl.constexpr):
    """Scores [CB / F] of the keys whose children stand at the places from ``start`` on."""
    slots = start // F + tl.arange(0, CB // F)
    return tl.load(share + slots, mask=slots < SLOTS, other=0.0)


@triton.jit
def _siblings(score, G: tl.constexpr, N: tl.constexpr, F: tl.constexpr):
    """Softmax [G, N / F, F] of scores [G, N] over each F neighbours; zeros where there is nothing."""
    score = tl.reshape(score, (G, N // F, F))
    high = tl.max(score, 2)
    power = tl.exp(score - tl.where(high == NONE, 0.0, high)[:, :, None])
    total = tl.sum(power, 2)
    return power / tl.where(total == 0, 1.0, total)[:, :, None]


@triton.jit
def _pack(score, places):
    """int64 that sorts as (score, -place): the best first, ties to the lower place, and no two alike."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # now ordered as the float was
    return (bits.to(tl.int64) << 32) | (places ^ 0x7FFFFFFF).to(tl.int64)[None, :]


@triton.jit
def _unpack(packed):
    bits = (packed >> 32).to(tl.int32)
    score = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return score, ~packed.to(tl.int32) & 0x7FFFFFFF


@triton.jit
def _along(axis: tl.constexpr, dims: tl.constexpr):
    """0 and 1 along one axis of a cube [2, 2, ...]."""
    return tl.reshape(tl.arange(0, 2), [1] * axis + [2] + [1] * (dims - axis - 1))


@triton.jit
def _merged(x, rising, size: tl.constexpr, dims: tl.constexpr):
    """Order the sequences of 2^size that lie along the last axes of a cube and each first rise and then fall, or the other way round: falling, or
    rising where ``rising`` is 1."""
    for done in tl.static_range(size):
        other = tl.sum(x, dims - size + done, keep_dims=True) - x  # the other one of each pair; wraps around and back
        x = tl.where((other > x) != ((_along(dims - size + done, dims) ^ rising) != 0), other, x)
    return x


@triton.jit
def _best(packed, rising: tl.constexpr, G: tl.constexpr, N: tl.constexpr, KN: tl.constexpr):
    """The best KN [G, KN] of packed [G, N] in order, by a bitonic sort that drops the lower half wherever it may."""
    LOG_G: tl.constexpr = _log2(G)
    LOG_K: tl.constexpr = _log2(KN)
    LOG_N: tl.constexpr = LOG_K if N < KN else _log2(N)
    for doubled in tl.static_range(8):
        if N * 2**doubled < KN:
            blank = tl.full((G, N * 2**doubled), LOWEST, tl.int64)
            packed = tl.reshape(tl.join(packed, blank), (G, N * 2 ** (doubled + 1)))
    x = tl.reshape(packed, [2] * (LOG_G + LOG_N))
    for size in tl.static_range(1, LOG_K + 1):
        if size == LOG_N:
            x = _merged(x, rising, size, LOG_G + LOG_N)
        else:  # neighbouring sequences in opposite order
            x = _merged(x, _along(LOG_G + LOG_N - 1 - size, LOG_G + LOG_N), size, LOG_G + LOG_N)
    for left in tl.static_range(LOG_G + LOG_N - 1, LOG_G + LOG_K - 1, -1):
        x = tl.max(x, left - LOG_K)
        if left == LOG_G + LOG_K:
            x = _merged(x, rising, LOG_K, left)
        else:
            x = _merged(x, _along(left - 1 - LOG_K, left), LOG_K, left)
    return tl.reshape(x, (G, KN))


@triton.jit
def _last(top, KEEP: tl.constexpr, KN: tl.constexpr):
    """The KEEP-th best of top [G, KN]: the least that is kept."""
    return tl.sum(tl.where(tl.arange(0, KN)[None, :] == KEEP - 1, top, 0), 1)


@triton.jit
def _merge(top, packed, KEEP: tl.constexpr, KN: tl.constexpr, G: tl.constexpr, CB: tl.constexpr):
    """The best KN of top [G, KN], best first, and packed [G, CB], best first."""
    LOG_G: tl.constexpr = _log2(G)
    LOG_K: tl.constexpr = _log2(KN)
    if tl.max(tl.max((packed > _last(top, KEEP, KN)[:, None]).to(tl.int32), 1), 0) > 0:
        more = _best(packed, 1, G, CB, KN)
        x = tl.reshape(tl.maximum(top, more), [2] * (LOG_G + LOG_K))  # falling and rising: the best KN of both
        top = tl.reshape(_merged(x, 0, LOG_K, LOG_G + LOG_K), (G, KN))
    return top


@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, valid, kept, share, above, weights, out, next_kept, next_share, lse,
    level, nq, nk, heads, keep, groups, scale,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, F: tl.constexpr, G: tl.constexpr, CB: tl.constexpr,
    SLOTS: tl.constexpr, KEEP: tl.constexpr, KN: tl.constexpr, ROOT: tl.constexpr, VARIANT_A: tl.constexpr, MASKED: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Message of one level times its weight plus what came from above (equations 2 to 6), the KEEP best keys of each query, and
    their scores (variant a) or the log-sum of exponentials that a softmax over the whole list divides by.

    out [nq, DV], above [groups, DV], next_kept and next_share [nq, KEEP], share [groups, SLOTS], lse [nq].
    """
    SIBLINGS: tl.constexpr = VARIANT_A and not ROOT  # softmax over the children of one key, times that key's score
    LEAVE_OUT: tl.constexpr = VARIANT_A and KEEP > 0  # kept keys are left to the next level
    ONCE: tl.constexpr = not ROOT and SLOTS * F <= CB
    head = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    start_q = head.to(tl.int64) * nq
    start_k = head.to(tl.int64) * nk
    q += start_q * D
    out += start_q * DV
    k += start_k * D
    v += start_k * DV
    valid += (head // heads).to(tl.int64) * nk
    mine = head.to(tl.int64) * groups + group
    kept += mine * SLOTS
    share += mine * SLOTS
    count = nk if ROOT else SLOTS * F

    rows = group * G + tl.arange(0, G)
    here = rows < nq
    queries = _rows(q, rows, here, D, DP, WIDE)
    high = tl.full((G,), NONE, tl.float32)
    total = tl.zeros((G,), tl.float32)
    message = tl.zeros((G, DVP), tl.float32)
    top = tl.full((G, KN), LOWEST, tl.int64)
    for start in range(0, count, CB):
        places, token, there, _keys, score = _scores(
            queries, k, valid, kept, start, count, scale, CB, F, D, DP, ROOT, MASKED, WIDE, PRECISION
        )
        values = _rows(v, token, there, DV, DVP, WIDE)
        order = score
        if SIBLINGS:
            shares = _shares(share, start, SLOTS, CB, F)
            power = tl.reshape(_siblings(score, G, CB, F) * shares[None, :, None], (G, CB))
            order = power
        else:
            higher = tl.maximum(high, tl.max(score, 1))
            shift = tl.where(higher == NONE, 0.0, higher)
            power = tl.exp(score - shift[:, None])
            fade = tl.exp(high - shift)
            total = total * fade + tl.sum(power, 1)
            message = message * fade[:, None]
            high = higher
        if KEEP > 0:
            packed = tl.where(there[None, :], _pack(order, places), LOWEST)
            if ONCE:
                top = _best(packed, 0, G, CB, KN)
            else:
                top = _merge(top, packed, KEEP, KN, G, CB)
        if LEAVE_OUT and ONCE:
            power = tl.where(packed < _last(top, KEEP, KN)[:, None], power, 0.0)
        if ONCE or not LEAVE_OUT:
            message += tl.dot(power.to(values.dtype), values, input_precision=PRECISION)

    if not SIBLINGS:
        empty = total == 0
        total = tl.where(empty, 1.0, total)
        sums = tl.where(empty, 0.0, high) + tl.log(total)
        tl.store(lse + start_q + rows, sums, mask=here)
        if not LEAVE_OUT:
            message = message / total[:, None]
    if LEAVE_OUT and not ONCE:
        for start in range(0, count, CB):
            places, token, there, _keys, score = _scores(
                queries, k, valid, kept, start, count, scale, CB, F, D, DP, ROOT, MASKED, WIDE, PRECISION
            )
            values = _rows(v, token, there, DV, DVP, WIDE)
            if SIBLINGS:
                shares = _shares(share, start, SLOTS, CB, F)
                power = tl.reshape(_siblings(score, G, CB, F) * shares[None, :, None], (G, CB))
                for slot in range(keep):
                    best = tl.sum(tl.where(tl.arange(0, KN)[None, :] == slot, top, 0), 1)
                    place = _unpack(best)[1]
                    power = tl.where((places[None, :] == place[:, None]) & (best != LOWEST)[:, None], 0.0, power)
            else:
                packed = tl.where(there[None, :], _pack(score, places), LOWEST)
                power = tl.exp(score - sums[:, None])
                power = tl.where(packed < _last(top, KEEP, KN)[:, None], power, 0.0)
            message += tl.dot(power.to(values.dtype), values, input_precision=PRECISION)

    message = message * tl.load(weights + level)
    if not ROOT:
        channel = tl.arange(0, DVP)
        message += tl.load(above + mine * DV + channel, mask=channel < DV, other=0.0)[None, :]
    _put(out, rows, here, message, DV, DVP, WIDE)

    if KEEP > 0:
        slot = tl.arange(0, KN)[None, :]
        score, place = _unpack(top)
        found = top != LOWEST
        if ROOT:
            token = place
        else:
            parent = tl.load(kept + place // F, mask=found, other=0)
            token = parent * F + place % F
        where = (start_q + rows)[:, None] * KEEP + slot
        fits = here[:, None] & (slot < KEEP)
        if VARIANT_A:  # before the keys: the other order crashes LLVM's AMD backend of Triton 3.8
            if ROOT:
                score = tl.exp(score - sums[:, None])
            tl.store(next_share + where, tl.where(found, score, 0.0), mask=fits)
        tl.store(next_kept + where, tl.where(found, token, -1), mask=fits)


@triton.jit
def _score_gradients(
    pull, values, token, rows, here, next_kept, next_grad, keep, KEEP: tl.constexpr, LEAVE_OUT: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Gradient [len(rows), len(token)] of each query's score of each key, and 0 for the keys that its message leaves out, else 1."""
    grad = tl.dot(pull, tl.trans(values), input_precision=PRECISION)
    shown = tl.full(grad.shape, 1.0, tl.float32)
    if LEAVE_OUT:
        for slot in range(keep):
            where = rows * KEEP + slot
            hit = token[None, :] == tl.load(next_kept + where, mask=here, other=-1)[:, None]
            grad = tl.where(hit, tl.load(next_grad + where, mask=here, other=0.0)[:, None], grad)
            shown = tl.where(hit, 0.0, shown)
    return grad, shown


@triton.jit(do_not_specialize=SIZES)
def backward_query(
    q, k, v, valid, kept, share, grad, weights, lse, next_kept, next_grad, grad_q, delta, grad_share,
    level, nq, nk, heads, keep, groups, scale,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, F: tl.constexpr, G: tl.constexpr, CB: tl.constexpr,
    SLOTS: tl.constexpr, KEEP: tl.constexpr, ROOT: tl.constexpr, VARIANT_A: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one level's queries [nq, D] and (variant a) of the scores handed to it, grad_share [groups, SLOTS].

    grad [nq, DV] is that of the level's output, next_grad [nq, KEEP] that of the scores it handed on. delta [nq], needed by `backward_key`, is the
    sum over a query's list of score times score's gradient.
    """
    SIBLINGS: tl.constexpr = VARIANT_A and not ROOT
    LEAVE_OUT: tl.constexpr = VARIANT_A and KEEP > 0
    ONCE: tl.constexpr = not ROOT and SLOTS * F <= CB
    head = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    start_q = head.to(tl.int64) * nq
    start_k = head.to(tl.int64) * nk
    k += start_k * D
    v += start_k * DV
    valid += (head // heads).to(tl.int64) * nk
    mine = head.to(tl.int64) * groups + group
    kept += mine * SLOTS
    share += mine * SLOTS
    next_kept += start_q * KEEP
    next_grad += start_q * KEEP
    count = nk if ROOT else SLOTS * F

    rows = group * G + tl.arange(0, G)
    here = rows < nq
    far = rows.to(tl.int64) if WIDE else rows
    queries = _rows(q + start_q * D, rows, here, D, DP, WIDE)
    pull = _rows(grad + start_q * DV, rows, here, DV, DVP, WIDE).to(v.dtype.element_ty)
    weight = tl.load(weights + level) * scale
    lean = tl.zeros((G,), tl.float32)
    if not SIBLINGS:
        sums = tl.load(lse + start_q + rows, mask=here, other=0.0)
        if not ONCE:
            for start in range(0, count, CB):
                _places, token, there, keys, score = _scores(
                    queries, k, valid, kept, start, count, scale, CB, F, D, DP, ROOT, MASKED, WIDE, PRECISION
                )
                values = _rows(v, token, there, DV, DVP, WIDE)
                slope, _shown = _score_gradients(
                    pull, values, token, far, here, next_kept, next_grad, keep, KEEP, LEAVE_OUT, PRECISION
                )
                lean += tl.sum(tl.exp(score - sums[:, None]) * slope, 1)
    total = tl.zeros((G, DP), tl.float32)
    for start in range(0, count, CB):
        _places, token, there, keys, score = _scores(
            queries, k, valid, kept, start, count, scale, CB, F, D, DP, ROOT, MASKED, WIDE, PRECISION
        )
        values = _rows(v, token, there, DV, DVP, WIDE)
        slope, _shown = _score_gradients(
            pull, values, token, far, here, next_kept, next_grad, keep, KEEP, LEAVE_OUT, PRECISION
        )
        if SIBLINGS:
            shares = _shares(share, start, SLOTS, CB, F)
            power = _siblings(score, G, CB, F)
            slope = tl.reshape(slope, (G, CB // F, F))
            inner = tl.sum(power * slope, 2)
            slots = start // F + tl.arange(0, CB // F)
            tl.store(grad_share + mine * SLOTS + slots, tl.sum(inner, 0), mask=slots < SLOTS)
            change = tl.reshape(power * (slope - inner[:, :, None]) * shares[None, :, None], (G, CB))
        else:
            power = tl.exp(score - sums[:, None])
            if ONCE:
                lean = tl.sum(power * slope, 1)
            change = power * (slope - lean[:, None])
        total += tl.dot(change.to(keys.dtype), keys, input_precision=PRECISION)
    _put(grad_q + start_q * D, rows, here, total * weight, D, DP, WIDE)
    if not SIBLINGS:
        tl.store(delta + start_q + rows, lean, mask=here)


@triton.jit(do_not_specialize=SIZES)
def backward_key(
    q, k, v, valid, entries, first, share, grad, weights, lse, delta, next_kept, next_grad, grad_k, grad_v,
    level, nq, nk, heads, keep, query_groups, groups, scale,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, F: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    SLOTS: tl.constexpr, KEEP: tl.constexpr, ROOT: tl.constexpr, VARIANT_A: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one level's keys [nk, D] and values [nk, DV], each summed by one program in a fixed order: no atomics.

    A program holds G keys: the F children of one key, or any G of the coarsest level. ``entries`` lists, key by key, the positions in
    kept [B * heads, query_groups, SLOTS] at which it was kept, and ``first`` [B * heads * groups + 1] where each key's part begins. R queries a step.
    """
    SIBLINGS: tl.constexpr = VARIANT_A and not ROOT
    LEAVE_OUT: tl.constexpr = VARIANT_A and KEEP > 0
    head = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    start_q = head.to(tl.int64) * nq
    start_k = head.to(tl.int64) * nk
    next_kept += start_q * KEEP
    next_grad += start_q * KEEP
    token = group * G + tl.arange(0, G)
    inside = token < nk
    there = inside
    if MASKED:
        there = there & (tl.load(valid + (head // heads).to(tl.int64) * nk + token, mask=inside, other=0) != 0)
    keys = _rows(k + start_k * D, token, there, D, DP, WIDE)
    values = _rows(v + start_k * DV, token, there, DV, DVP, WIDE)
    if ROOT:
        count = nq
    else:
        begin = tl.load(first + head.to(tl.int64) * groups + group)
        count = ((tl.load(first + head.to(tl.int64) * groups + group + 1) - begin) * F).to(tl.int32)
    total_k = tl.zeros((G, DP), tl.float32)
    total_v = tl.zeros((G, DVP), tl.float32)
    for start in range(0, count, R):
        step = start + tl.arange(0, R)
        here = step < count
        if ROOT:
            rows = step
        else:
            entry = tl.load(entries + begin + step // F, mask=here, other=0).to(tl.int64)
            place = tl.where(here, entry - head.to(tl.int64) * query_groups * SLOTS, 0)
            if not WIDE:
                place = place.to(tl.int32)
            rows = (place // SLOTS).to(tl.int32) * F + step % F
        far = rows.to(tl.int64) if WIDE else rows
        queries = _rows(q + start_q * D, rows, here, D, DP, WIDE)
        pull = _rows(grad + start_q * DV, rows, here, DV, DVP, WIDE).to(values.dtype)
        score = tl.where(there[None, :], tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale, NONE)
        slope, shown = _score_gradients(
            pull, values, token, far, here, next_kept, next_grad, keep, KEEP, LEAVE_OUT, PRECISION
        )
        if SIBLINGS:
            shares = tl.load(share + entry, mask=here, other=0.0)
            power = tl.reshape(_siblings(score, R, G, G), (R, G))
            change = power * (slope - tl.sum(power * slope, 1)[:, None]) * shares[:, None]
            power = power * shares[:, None]
        else:
            power = tl.exp(score - tl.load(lse + start_q + rows, mask=here, other=0.0)[:, None])
            power = tl.where(here[:, None], power, 0.0)
            change = power * (slope - tl.load(delta + start_q + rows, mask=here, other=0.0)[:, None])
        total_v += tl.dot(tl.trans((power * shown).to(values.dtype)), pull, input_precision=PRECISION)
        total_k += tl.dot(tl.trans(change.to(keys.dtype)), queries, input_precision=PRECISION)
    weight = tl.load(weights + level)
    _put(grad_k + start_k * D, token, inside, total_k * (weight * scale), D, DP, WIDE)
    _put(grad_v + start_k * DV, token, inside, total_v * weight, DV, DVP, WIDE)
