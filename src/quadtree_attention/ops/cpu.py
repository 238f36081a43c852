"""The "cpu" backend: Numba kernels (cpu_kernels.py) as torch.library ops, with their backward.

Tensors are in tree order, ``[B, heads, N, dim]`` contiguous, float32 or float64. The coarsest level goes through matrix products in chunks; every
finer level is one fused kernel call. The backward pass recomputes all scores from the kept candidates.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_kernels as kernels
from .memory import empty, keep_freed_memory, zeros_like
from .modes import is_plain, is_transformed
from .reference import gradients
from .threads import run
from .tree import Tree, kept_counts

ROOT_CHUNK = 2**20  # scores of the coarsest level held at once: few enough to stay in the cache


def attend(
    query: Tree, key: Tree, value: Tree, topk: tuple[int, ...], variant: str, level_weights: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Quadtree attention on trees; same contract as `reference.attend`."""
    dtype = query.tokens[-1].dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    levels = len(query.tokens)
    q, k, v = ([x.to(work).contiguous() for x in tree.tokens] for tree in (query, key, value))
    weights = torch.ones(levels, dtype=work, device=q[0].device) if level_weights is None else level_weights.to(work)
    # The first call of a torch.library op imports torch's compiler, which takes two seconds; a command that matches two photographs can
    # do without.
    function = forward if is_plain(*q, *k, *v, weights) else forward_op
    out, kept, _ = function(q, k, v, key.valid or [], [*topk, 0], variant == "a", weights)
    if query.valid is not None:
        out = out.masked_fill(~query.valid[-1][:, None, :, None], 0)
        kept = [x.masked_fill(~valid[:, None, :, None], -1) for x, valid in zip(kept, query.valid, strict=False)]
    return out.to(dtype), kept


def forward(
    q: list[Tensor],
    k: list[Tensor],
    v: list[Tensor],
    valid: list[Tensor],
    topk: list[int],
    variant_a: bool,
    weights: Tensor,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output ``[B, heads, N, dim_v]``; a level but the last: kept keys int32 and their scores ``[B, heads, N_l, K_l]``."""
    keep_freed_memory()
    out, kept, share = _allocate(q, k, v, topk)
    scale = 1 / math.sqrt(q[0].shape[-1])
    weight = weights.tolist()
    with torch.autocast("cpu", enabled=False):
        _forward_levels(q, k, v, valid, variant_a, weight, scale, out, kept, share)
    return out, kept, share


def _forward_levels(q, k, v, valid, variant_a, weight, scale, out, kept, share) -> None:
    if len(q) == 1 and not valid and q[0].shape[-1] == v[0].shape[-1]:  # nothing to select
        torch.mul(F.scaled_dot_product_attention(q[0], k[0], v[0]), weight[0], out=out)
        return
    above = _root_forward(q[0], k[0], v[0], valid, kept, share, variant_a, weight[0], scale)
    for level in range(1, len(q)):
        last = level == len(q) - 1
        here = out if last else empty((*q[level].shape[:3], v[0].shape[-1]), v[0])
        no_more = (kept[0].new_empty(*q[level].shape[:3], 0), share[0].new_empty(*q[level].shape[:3], 0))
        after = no_more if last else (kept[level], share[level])
        mask = _mask(valid, level)
        above = fine_level(
            q[level], k[level], v[level], mask, kept[level - 1], share[level - 1], above, variant_a, weight[level], scale, here, *after
        )  # fmt: skip
    if len(q) == 1:
        out.copy_(above.view_as(out))


def fine_level(q, k, v, mask, kept, share, above, variant_a, weight, scale, out, next_kept, next_share) -> Tensor:
    """Run one finer level: fill out, and also next_kept and next_share, except at the last level, where they are empty."""
    arrays = _arrays(kept, share, above)
    task = partial(
        _call, kernels.fine_forward, q.shape[1], variant_a, *_arrays(q, k, v), *mask, *arrays,
        _number(weight, q), _number(scale, q), *_arrays(out, next_kept, next_share),
    )  # fmt: skip
    run(task, arrays[0].shape[0] * arrays[0].shape[1])
    return out


forward_op = torch.library.custom_op("quadtree_attention::cpu_forward", forward, mutates_args=(), device_types="cpu")


@forward_op.register_fake
def _(q, k, v, valid, topk, variant_a, weights):
    return _allocate(q, k, v, topk)


def _allocate(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], topk: list[int]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    out = empty((*q[-1].shape[:3], v[-1].shape[-1]), q[-1])
    children = q[1].shape[2] // q[0].shape[2] if len(q) > 1 else 1
    counts = kept_counts(topk, k[0].shape[2], children)[:-1]
    kept = [empty((*x.shape[:3], n), x, torch.int32) for x, n in zip(q, counts, strict=False)]
    return out, kept, [empty((*x.shape[:3], n), x) for x, n in zip(q, counts, strict=False)]


@torch.library.custom_op("quadtree_attention::cpu_backward", mutates_args=(), device_types="cpu")
def backward_op(
    grad: Tensor, q: list[Tensor], k: list[Tensor], v: list[Tensor], valid: list[Tensor], kept: list[Tensor], share: list[Tensor],
    variant_a: bool, weights: Tensor,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    """Gradients of query, key and value levels and of the level weights."""
    with torch.autocast("cpu", enabled=False):
        return _backward_levels(grad, q, k, v, valid, kept, share, variant_a, weights)


def _backward_levels(grad, q, k, v, valid, kept, share, variant_a, weights):
    grad_q, grad_k, grad_v = ([zeros_like(x) for x in levels] for levels in (q, k, v))
    grad_weights = torch.zeros_like(weights)
    scale = 1 / math.sqrt(q[0].shape[-1])
    weight = weights.tolist()
    grad = grad.contiguous()
    heads = q[0].shape[0] * q[0].shape[1]
    empty = (q[0].new_empty(*q[-1].shape[:3], 0, dtype=torch.int32), q[0].new_empty(*q[-1].shape[:3], 0))
    after_kept, after_grad = empty  # of the level at hand, from the next finer one
    for level in range(len(q) - 1, 0, -1):
        grad_share = torch.zeros_like(share[level - 1]) if variant_a else share[level - 1]
        per_head = q[0].new_zeros(heads, dtype=torch.float64)
        mask, masked = _mask(valid, level)
        task = partial(
            _call, kernels.fine_backward, q[0].shape[1], variant_a, *_arrays(q[level], k[level], v[level]), mask, masked,
            *_arrays(kept[level - 1], share[level - 1], grad), _number(weight[level], q[0]), _number(scale, q[0]),
            *_arrays(after_kept, after_grad, grad_q[level], grad_k[level], grad_v[level], grad_share), per_head.numpy(),
        )  # fmt: skip
        run(task, heads, chunks_per_thread=heads)
        grad_weights[level] = per_head.sum()
        grad = grad.unflatten(2, (q[level - 1].shape[2], -1)).sum(3)
        after_kept, after_grad = kept[level - 1], grad_share
    grad_weights[0] = _root_backward(
        grad,
        q[0],
        k[0],
        v[0],
        valid,
        after_kept,
        after_grad,
        variant_a,
        weight[0],
        scale,
        grad_q[0],
        grad_k[0],
        grad_v[0],
    )
    return grad_q, grad_k, grad_v, grad_weights


@backward_op.register_fake
def _(grad, q, k, v, valid, kept, share, variant_a, weights):
    return (*([torch.empty_like(x) for x in levels] for levels in (q, k, v)), torch.empty_like(weights))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, valid, ctx.topk, ctx.variant_a, weights = inputs
    _, kept, share = output
    ctx.mark_non_differentiable(*kept, *share)
    ctx.set_materialize_grads(False)
    ctx.counts = (len(q), len(valid), len(kept))
    ctx.save_for_backward(*q, *k, *v, *valid, *kept, *share, weights)


def _backward(ctx, grad, *_):
    levels, masks, lists = ctx.counts
    if grad is None:
        return [None] * levels, [None] * levels, [None] * levels, [None] * masks, None, None, None
    saved = list(ctx.saved_tensors)
    parts = []
    for count in (levels, levels, levels, masks, lists, lists):
        parts.append(saved[:count])
        saved = saved[count:]
    if torch.is_grad_enabled() or is_transformed(grad):  # the result is to be differentiated again, or batched
        grad_q, grad_k, grad_v, grad_weights = gradients(
            grad, *parts[:4], ctx.topk[:-1], "a" if ctx.variant_a else "b", saved[0]
        )
    else:
        grad_q, grad_k, grad_v, grad_weights = backward_op(grad, *parts, ctx.variant_a, saved[0])
    return grad_q, grad_k, grad_v, [None] * masks, None, None, grad_weights


forward_op.register_autograd(_backward, setup_context=_setup_context)


def _root_forward(q, k, v, valid, kept, share, variant_a, weight, scale) -> Tensor:
    """Compute the message of the coarsest level times its weight; fill kept[0] and share[0] if there is a next level."""
    heads = q.shape[1]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out = v.new_empty(*q.shape[:2], v.shape[-1])
    for rows in _root_chunks(q, k):
        score = torch.bmm(q[:, rows] * scale, k.transpose(1, 2))
        chosen = kept[0].flatten(0, 1)[:, rows] if kept else q.new_empty(*score.shape[:2], 0, dtype=torch.int32)
        its_share = share[0].flatten(0, 1)[:, rows] if kept else q.new_empty(*score.shape[:2], 0)
        _root_rows(score, heads, valid, variant_a, chosen, its_share)
        out[:, rows] = torch.bmm(score, v).mul_(weight)
    return out


def _root_rows(score: Tensor, heads: int, valid: list[Tensor], variant_a: bool, kept: Tensor, share: Tensor) -> None:
    mask, masked = _mask(valid, 0)
    task = partial(_call, kernels.root_rows, heads, variant_a, score.numpy(), mask, masked, kept.numpy(), share.numpy())
    run(task, score.shape[0] * score.shape[1])


def _root_backward(grad, q, k, v, valid, kept, grad_share, variant_a, weight, scale, grad_q, grad_k, grad_v) -> Tensor:
    """Add to grad_q, grad_k and grad_v of the coarsest level, and return the gradient of its weight."""
    heads = q.shape[1]
    q, k, v, grad, kept, grad_share = (x.flatten(0, 1) for x in (q, k, v, grad, kept, grad_share))
    grad_q, grad_k, grad_v = (x.view(-1, *x.shape[2:]) for x in (grad_q, grad_k, grad_v))
    grad_weight = q.new_zeros((), dtype=torch.float64)
    for rows in _root_chunks(q, k):
        score = torch.bmm(q[:, rows] * scale, k.transpose(1, 2))
        nothing = (kept.new_empty(*score.shape[:2], 0), q.new_empty(*score.shape[:2], 0))
        _root_rows(score, heads, valid, False, *nothing)
        pull = torch.bmm(grad[:, rows], v.transpose(1, 2))
        message_score = score
        if variant_a and kept.shape[-1]:
            # Kept keys have no part in this message; the gradient of their score comes from the next level.
            place = torch.where(kept[:, rows] >= 0, kept[:, rows], score.shape[-1]).long()
            pull = torch.cat([pull, pull[..., :1]], -1).scatter_(-1, place, grad_share[:, rows])[..., :-1]
            message_score = torch.cat([score, score[..., :1]], -1).scatter_(-1, place, 0)[..., :-1]
        grad_v.baddbmm_(message_score.transpose(1, 2), grad[:, rows], alpha=weight)
        delta = (score * pull).sum(-1, keepdim=True)
        grad_weight += delta.sum(dtype=torch.float64)
        pull = pull.sub_(delta).mul_(score).mul_(scale * weight)
        grad_q[:, rows] += torch.bmm(pull, k)
        grad_k.baddbmm_(pull.transpose(1, 2), q[:, rows])
    return grad_weight


def _root_chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Ranges of coarsest queries whose scores fit in ROOT_CHUNK numbers."""
    size = max(1, ROOT_CHUNK // max(1, q.shape[0] * k.shape[1]))
    return [slice(start, start + size) for start in range(0, q.shape[1], size)]


def _call(kernel, heads: int, variant_a: bool, *rest_and_range) -> None:
    *rest, start, stop = rest_and_range
    kernel(start, stop, heads, variant_a, *rest)


def _arrays(*tensors: Tensor):
    """Numpy views ``[B * heads, N, ...]`` of contiguous tensors."""
    return [(x.detach().flatten(0, 1) if x.dim() == 4 else x.detach()).numpy() for x in tensors]


def _mask(valid: list[Tensor], level: int):
    return (valid[level].contiguous().numpy(), True) if valid else (np.empty((0, 0), np.bool_), False)


def _number(value: float, like: Tensor):
    """A numpy scalar of the tensor's dtype, so that kernels stay in it."""
    return like.new_tensor(value).numpy()[()]
