"""Numba kernels for the CPU: each finer level is one fused step that never stores gathered keys or values.

Layout: tree order with heads in front, ``[B * heads, N, dim]``; the children of a key are then neighbours in memory. Kernels are plain nogil
functions over a range of rows (a row is one parent with its F queries, or one head), run by threads.py. Rows share no results, so any number of
threads gives the same numbers. Kernels work on the list of a row's valid candidates, four keys and four queries at a time.

This file is long because forward and backward of a level share their layout and their loops, and change together.
cpu_cache.py lists the files that kernels depend on, and compiles the kernels again when one of these has changed.
"""

from __future__ import annotations

import math
from functools import partial

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from . import cpu_blocks as blocks
from .cpu_cache import compiled

FAST = {"reassoc", "contract", "nsz", "arcp", "nnan", "afn"}
LN2 = math.log(2)
FEW = 24  # scores up to which comparing each with all others is the fastest way to order them


_jit = partial(compiled, fastmath=FAST)


# ---- exp of numbers <= 0, by a polynomial that LLVM vectorises ----


@intrinsic
def bits_to_float(typing_context, bits):
    """The float whose bits are the given integer's, 32 or 64 of them."""
    wide = bits == numba.types.int64
    result = numba.types.float64 if wide else numba.types.float32

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType() if wide else ir.FloatType())

    return result(bits), codegen


def _taylor(count):
    """Coefficients of 2**x around 0."""
    return tuple(LN2**k / math.factorial(k) for k in range(count))


C32 = tuple(np.float32(c) for c in _taylor(7))
C64 = _taylor(14)


def exp_nonpositive(x):
    """exp(x) for x <= 0, to the rounding of x's type."""
    return math.exp(x)


@overload(exp_nonpositive, inline="always")
def _exp_nonpositive(x):
    if x == numba.types.float32:

        def exp32(x):
            t = max(x * np.float32(1.4426950408889634), np.float32(-125.0))
            whole = np.int32(t - np.float32(0.5))
            r = t - np.float32(whole)
            c = C32
            p = c[0] + r * (c[1] + r * (c[2] + r * (c[3] + r * (c[4] + r * (c[5] + r * c[6])))))
            return p * bits_to_float(np.int32((whole + np.int32(127)) << np.int32(23)))

        return exp32

    def exp64(x):
        t = max(x * 1.4426950408889634, -1000.0)
        whole = np.int64(t - 0.5)
        r = t - np.float64(whole)
        c = C64
        p = c[13]
        p = c[12] + r * p
        p = c[11] + r * p
        p = c[10] + r * p
        p = c[9] + r * p
        p = c[8] + r * p
        p = c[7] + r * p
        p = c[6] + r * p
        p = c[5] + r * p
        p = c[4] + r * p
        p = c[3] + r * p
        p = c[2] + r * p
        p = c[1] + r * p
        p = c[0] + r * p
        return p * bits_to_float(np.int64((whole + np.int64(1023)) << np.int64(52)))

    return exp64


# ---- the steps of one row ----


@_jit
def _candidates(kept, valid, masked, children, head, heads, parent, token, slot):
    """List the valid children of the keys that a parent kept; returns how many. slot: which kept key each comes from."""
    count = 0
    for place in range(kept.shape[2]):
        key = kept[head, parent, place]
        if key < 0:
            break
        for child in range(children):
            if not masked or valid[head // heads, key * children + child]:
                token[count] = key * children + child
                slot[count] = place
                count += 1
    return count


@_jit
def _dots(x, head, first, children, y, token, count, scale, out):
    """out[i, j] = scale * x[first + i] . y[token[j]]; token and out have room for a multiple of 8 keys."""
    dim = x.shape[2]
    zero = x.dtype.type(0)
    if children == 2 and blocks.fits(x, dim):
        for j in range(count, (count + 7) // 8 * 8):
            token[j] = 0  # the last block is filled up with what nobody reads
        for j in range(0, count, 8):
            blocks.dots_of_two(
                x,
                (head * x.shape[1] + first) * dim,
                y,
                head * y.shape[1] * dim,
                dim,
                token,
                j,
                scale,
                out,
                j,
                out.shape[1],
            )
        return
    if children % 4 == 0 and blocks.fits(x, dim):
        for j in range(count, (count + 3) // 4 * 4):
            token[j] = 0  # the last block is filled up with what nobody reads
        for base in range(0, children, 4):
            for j in range(0, count, 4):
                blocks.dots(
                    x, (head * x.shape[1] + first + base) * dim, y, head * y.shape[1] * dim, dim,
                    token, j, scale, out, base * out.shape[1] + j, out.shape[1],
                )  # fmt: skip
        return
    for base in range(0, children, 4):
        if base + 4 <= children:
            i = first + base
            for j in range(count):
                t = token[j]
                s0, s1, s2, s3 = zero, zero, zero, zero
                for d in range(dim):
                    number = y[head, t, d]
                    s0 += x[head, i, d] * number
                    s1 += x[head, i + 1, d] * number
                    s2 += x[head, i + 2, d] * number
                    s3 += x[head, i + 3, d] * number
                out[base, j] = s0 * scale
                out[base + 1, j] = s1 * scale
                out[base + 2, j] = s2 * scale
                out[base + 3, j] = s3 * scale
        else:
            for i in range(base, children):
                for j in range(count):
                    t = token[j]
                    s0 = zero
                    for d in range(dim):
                        s0 += x[head, first + i, d] * y[head, t, d]
                    out[i, j] = s0 * scale


@_jit
def _sum_rows(weight, children, count, y, head, token, out, first):
    """out[head, first + i] += sum over j of weight[i, j] * y[token[j]]."""
    dim = y.shape[2]
    if children == 2 and count > 0 and blocks.fits(y, dim):
        for d in range(0, dim, blocks.LANES * 4 // y.itemsize):
            blocks.sum_two_rows(
                weight, weight.shape[1], y, head * y.shape[1] * dim + d, dim,
                token, count, out, (head * out.shape[1] + first) * dim + d,
            )  # fmt: skip
        return
    if children % 4 == 0 and count > 0 and blocks.fits(y, dim):
        lanes = blocks.LANES * 4 // y.itemsize
        for base in range(0, children, 4):
            for d in range(0, dim, lanes):
                blocks.sum_rows(
                    weight[base:], weight.shape[1], y, head * y.shape[1] * dim + d, dim,
                    token, count, out, (head * out.shape[1] + first + base) * dim + d,
                )  # fmt: skip
        return
    j = 0
    while j + 4 <= count:
        t0, t1, t2, t3 = token[j], token[j + 1], token[j + 2], token[j + 3]
        for i in range(children):
            w0, w1, w2, w3 = weight[i, j], weight[i, j + 1], weight[i, j + 2], weight[i, j + 3]
            for d in range(dim):
                out[head, first + i, d] += (
                    w0 * y[head, t0, d] + w1 * y[head, t1, d] + w2 * y[head, t2, d] + w3 * y[head, t3, d]
                )
        j += 4
    while j < count:
        for i in range(children):
            for d in range(dim):
                out[head, first + i, d] += weight[i, j] * y[head, token[j], d]
        j += 1


@_jit
def _scatter_rows(weight, children, count, x, head, first, token, out):
    """out[token[j]] += sum over i of weight[i, j] * x[first + i]."""
    dim = x.shape[2]
    if children == 2 and count > 0 and blocks.fits(x, dim):
        for d in range(0, dim, blocks.LANES * 4 // x.itemsize):
            blocks.scatter_two_rows(
                weight, weight.shape[1], x, (head * x.shape[1] + first) * dim + d, dim,
                token, count, out, head * out.shape[1] * dim + d,
            )  # fmt: skip
        return
    if children % 4 == 0 and count > 0 and blocks.fits(x, dim):
        lanes = blocks.LANES * 4 // x.itemsize
        for base in range(0, children, 4):
            for d in range(0, dim, lanes):
                blocks.scatter_rows(
                    weight[base:], weight.shape[1], x, (head * x.shape[1] + first + base) * dim + d, dim,
                    token, count, out, head * out.shape[1] * dim + d,
                )  # fmt: skip
        return
    for base in range(0, children, 2):  # children is 2, 4 or 8
        if base + 4 <= children:
            if base % 4:
                continue
            i = first + base
            for j in range(count):
                t = token[j]
                w0, w1, w2, w3 = weight[base, j], weight[base + 1, j], weight[base + 2, j], weight[base + 3, j]
                for d in range(dim):
                    out[head, t, d] += (
                        w0 * x[head, i, d] + w1 * x[head, i + 1, d] + w2 * x[head, i + 2, d] + w3 * x[head, i + 3, d]
                    )
        elif children == 2:
            i = first + base
            for j in range(count):
                t = token[j]
                w0, w1 = weight[base, j], weight[base + 1, j]
                for d in range(dim):
                    out[head, t, d] += w0 * x[head, i, d] + w1 * x[head, i + 1, d]


@_jit
def _softmax_row(row, count):
    """Softmax of the first ``count`` entries, in place."""
    if count == 0:
        return
    top = row[0]
    for j in range(1, count):
        top = max(top, row[j])
    total = row.dtype.type(0)
    for j in range(count):
        e = exp_nonpositive(row[j] - top)
        row[j] = e
        total += e
    inverse = row.dtype.type(1) / total
    for j in range(count):
        row[j] *= inverse


@_jit
def _score_bound(score, count, keep):
    """Find a number that at least ``keep`` scores reach, and few more: by bisection, with counts that LLVM vectorises."""
    low, high = score[0], score[0]
    for j in range(1, count):
        low = min(low, score[j])
        high = max(high, score[j])
    spare = 4 + keep // 4
    half = score.dtype.type(0.5)
    for _ in range(12):
        middle = half * (low + high)
        reach = np.int32(0)
        for j in range(count):
            reach += np.int32(score[j] >= middle)
        if reach >= keep:
            low = middle
            if reach <= keep + spare:
                break
        else:
            high = middle
    return low


@_jit
def _select_few(score, count, keep, best, place):
    """`_select` for few scores: the rank of each is the number of scores before it, counted without a branch."""
    for c in range(keep):
        place[c] = 0  # NaN scores leave some places unfilled
    for j in range(np.int32(count)):
        s = score[j]
        rank = np.int32(0)
        for i in range(np.int32(count)):
            rank += np.int32((score[i] > s) | ((score[i] == s) & (i < j)))
        rank = min(rank, np.int32(keep))  # one place more than are read
        best[rank] = s
        place[rank] = j
    return min(keep, count)


@_jit
def _select(score, count, keep, best, place, spare):
    """Places of the ``keep`` highest scores, best first, ties to the lower place; returns how many were found.

    spare: room for ``count`` places. best and place have room for one more than ``keep``.
    """
    if keep == 0 or count == 0:
        return 0
    if count <= FEW:
        return _select_few(score, count, keep, best, place)
    some = 0
    if count > keep:
        bar = _score_bound(score, count, keep)
        for j in range(count):  # no branch: places that do not count are written over
            spare[some] = j
            some += score[j] >= bar
    else:
        for j in range(count):
            spare[j] = j
        some = count
    found = 0
    for c in range(some):
        j = spare[c]
        s = score[j]
        if found < keep:
            at = found
            found += 1
        elif s > best[keep - 1]:
            at = keep - 1
        else:
            continue
        while at > 0 and best[at - 1] < s:
            best[at] = best[at - 1]
            place[at] = place[at - 1]
            at -= 1
        best[at] = s
        place[at] = j
    return found


@_jit
def _sibling_softmax(score, siblings, slot, share, head, parent, i, count):
    """Variant "a": softmax over the children of each kept key, and that times the key's own score."""
    j = 0
    while j < count:
        end = j + 1
        while end < count and slot[end] == slot[j]:
            end += 1
        top = score[i, j]
        for c in range(j + 1, end):
            top = max(top, score[i, c])
        total = score.dtype.type(0)
        for c in range(j, end):
            siblings[i, c] = exp_nonpositive(score[i, c] - top)
            total += siblings[i, c]
        inverse = score.dtype.type(1) / total
        for c in range(j, end):
            siblings[i, c] *= inverse
            score[i, c] = siblings[i, c] * share[head, parent, slot[c]]
        j = end


# ---- finer levels ----


@_jit
def fine_forward(
    start, stop, heads, variant_a, q, k, v, valid, masked, kept, share, above, weight, scale, out, next_kept, next_share
):
    """Rows ``start..stop`` of head * parents. ``above``: the parents' sum of messages, copied to their children in ``out``.

    q ``[BH, N, D]``, k ``[BH, Nk, D]``, v ``[BH, Nk, Dv]``, valid bool ``[B, Nk]``, kept int32 and share ``[BH, P, K]``, above ``[BH, P, Dv]``,
    out ``[BH, N, Dv]``, next_kept and next_share ``[BH, N, keep]`` (keep 0 at the last level).
    """
    parents = kept.shape[1]
    children = q.shape[1] // parents
    most = kept.shape[2] * children
    keep = next_kept.shape[2]
    room = (most + 7) // 8 * 8
    token, slot = np.empty(room, np.int32), np.empty(most, np.int32)
    score, siblings = np.empty((children, room), q.dtype), np.empty((children, most), q.dtype)
    best, place, spare = np.empty(keep + 1, q.dtype), np.empty(keep + 1, np.int32), np.empty(most + 1, np.int32)
    for row in range(start, stop):
        head, parent = row // parents, row % parents
        first = parent * children
        count = _candidates(kept, valid, masked, children, head, heads, parent, token, slot)
        _dots(q, head, first, children, k, token, count, scale, score)
        for i in range(children):
            for d in range(out.shape[2]):
                out[head, first + i, d] = above[head, parent, d]
            if variant_a:
                _sibling_softmax(score, siblings, slot, share, head, parent, i, count)
            if keep:
                found = _select(score[i], count, keep, best, place, spare)
                for c in range(keep):
                    next_kept[head, first + i, c] = token[place[c]] if c < found else -1
                    if variant_a:
                        next_share[head, first + i, c] = best[c] if c < found else 0
                if variant_a:
                    for c in range(found):
                        score[i, place[c]] = 0  # refined by the next level, left out here
            if not variant_a:
                _softmax_row(score[i], count)
                for j in range(count):
                    score[i, j] *= weight
        _sum_rows(score, children, count, v, head, token, out, first)


@_jit
def fine_backward(
    start, stop, heads, variant_a, q, k, v, valid, masked, kept, share, grad, weight, scale,
    next_kept, next_grad_share, grad_q, grad_k, grad_v, grad_share, grad_weight,
):  # fmt: skip
    """Gradients of heads ``start..stop`` (a head's keys are shared by all its rows); scores are recomputed.

    grad ``[BH, N, Dv]``: gradient of each query's message before its level weight. grad_q, grad_k, grad_v are added to; grad_share
    ``[BH, P, K]`` (variant "a") and grad_weight ``[BH]`` are written.
    """
    parents = kept.shape[1]
    children = q.shape[1] // parents
    most = kept.shape[2] * children
    keep = next_kept.shape[2]
    room = (most + 7) // 8 * 8
    token, slot = np.empty(room, np.int32), np.empty(most, np.int32)
    score, siblings = np.empty((children, room), q.dtype), np.empty((children, most), q.dtype)
    pull = np.empty((children, room), q.dtype)
    one = q.dtype.type(1)
    for head in range(start, stop):
        total_weight = 0.0
        for parent in range(parents):
            first = parent * children
            count = _candidates(kept, valid, masked, children, head, heads, parent, token, slot)
            if count == 0:
                continue
            _dots(q, head, first, children, k, token, count, scale, score)
            _dots(grad, head, first, children, v, token, count, one, pull)
            for i in range(children):
                if variant_a:
                    _sibling_softmax(score, siblings, slot, share, head, parent, i, count)
                    for c in range(keep):  # not part of this message; the gradient comes from the next level
                        kept_token = next_kept[head, first + i, c]
                        if kept_token < 0:
                            break
                        for j in range(count):
                            if token[j] == kept_token:
                                score[i, j] = 0
                                pull[i, j] = next_grad_share[head, first + i, c]
                                break
                    for j in range(count):
                        grad_share[head, parent, slot[j]] += siblings[i, j] * pull[i, j]
                else:
                    _softmax_row(score[i], count)
                    delta = q.dtype.type(0)
                    for j in range(count):
                        delta += score[i, j] * pull[i, j]
                    total_weight += delta
                    for j in range(count):
                        score[i, j] *= weight
                        pull[i, j] = score[i, j] * (pull[i, j] - delta) * scale
            _scatter_rows(score, children, count, grad, head, first, token, grad_v)
            if variant_a:
                for i in range(children):
                    j = 0
                    while j < count:
                        end = j
                        delta = q.dtype.type(0)
                        while end < count and slot[end] == slot[j]:
                            delta += siblings[i, end] * pull[i, end]
                            end += 1
                        for c in range(j, end):
                            pull[i, c] = share[head, parent, slot[j]] * siblings[i, c] * (pull[i, c] - delta) * scale
                        j = end
            _sum_rows(pull, children, count, k, head, token, grad_q, first)
            _scatter_rows(pull, children, count, q, head, first, token, grad_k)
        grad_weight[head] = total_weight


# ---- the coarsest level: scores come from a matrix product ----


@_jit
def root_rows(start, stop, heads, variant_a, score, valid, masked, kept, share):
    """Softmax of rows ``start..stop`` of score ``[BH, n, Nk]``, in place, and their selection: kept int32 and share ``[BH, n, keep]``.

    Variant "a" then sets the kept entries of the row to zero. Invalid keys get zero.
    """
    rows, keys = score.shape[1:]
    keep = kept.shape[2]
    token = np.arange(keys).astype(np.int32)
    line = np.empty(keys, score.dtype)
    best, place, spare = np.empty(keep + 1, score.dtype), np.empty(keep + 1, np.int32), np.empty(keys + 1, np.int32)
    for index in range(start, stop):
        head, row = index // rows, index % rows
        count = keys
        if masked:
            count = 0
            for j in range(keys):
                if valid[head // heads, j]:
                    token[count] = j
                    line[count] = score[head, row, j]
                    count += 1
        else:
            for j in range(keys):
                line[j] = score[head, row, j]
        found = _select(line, count, keep, best, place, spare)
        _softmax_row(line, count)
        for c in range(keep):
            kept[head, row, c] = token[place[c]] if c < found else -1
            share[head, row, c] = line[place[c]] if c < found else 0
        if variant_a:
            for c in range(found):
                line[place[c]] = 0
        if masked:
            for j in range(keys):
                score[head, row, j] = 0
            for j in range(count):
                score[head, row, token[j]] = line[j]
        else:
            for j in range(keys):
                score[head, row, j] = line[j]
