"""The "cuda" backend: Triton kernels (cuda_kernels.py) as torch.library ops, with their backward.

Tensors are in tree order, ``[B, heads, N, dim]`` contiguous, float16, bfloat16 or float32; scores and sums are float32. Each level is one kernel. The
backward pass recomputes all scores: one kernel by query, one by key. The latter reads, for each key, a list of the queries that kept it, made by a
stable sort: gradients have the same bits in every run, without atomics.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from . import cuda_kernels as kernels
from .modes import is_transformed
from .reference import gradients
from .tree import Tree, kept_counts

STEP = 4096  # numbers of keys or values that a program holds at once, a quarter of that in float32


def attend(
    query: Tree, key: Tree, value: Tree, topk: tuple[int, ...], variant: str, level_weights: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Quadtree attention on trees; same contract as `reference.attend`."""
    q, k, v = ([x.contiguous() for x in tree.tokens] for tree in (query, key, value))
    weights = (
        torch.ones(len(q), dtype=torch.float32, device=q[0].device) if level_weights is None else level_weights.float()
    )
    out, kept, _, _ = forward_op(q, k, v, key.valid or [], [*topk, 0], variant == "a", weights)
    if query.valid is not None:
        out = out.masked_fill(~query.valid[-1][:, None, :, None], 0)
        kept = [x.masked_fill(~valid[:, None, :, None], -1) for x, valid in zip(kept, query.valid, strict=False)]
    return out, kept


@torch.library.custom_op("quadtree_attention::cuda_forward", mutates_args=())
def forward_op(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], valid: list[Tensor], topk: list[int], variant_a: bool, weights: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:  # fmt: skip
    """Output ``[B, heads, N, dim_v]``; of each level but the last the kept keys int32 ``[B, heads, N_l, K_l]`` and (variant a) their scores; of
    each level that has one softmax over all its candidates the log-sum ``[B, heads, N_l]``."""
    out, kept, share, lse = _allocate(q, k, v, topk, variant_a)
    above = out
    for level, call in enumerate(_levels(q, k, v, valid, topk, variant_a)):
        here = out if call.last else out.new_empty(*q[level].shape[:3], v[level].shape[-1], dtype=torch.float32)
        call.launch(
            kernels.forward, call.groups, q[level], k[level], v[level], call.valid,
            *call.candidates(kept, share), above, weights, here,
            *call.passed_on(kept, share), call.entry(lse), level, *call.sizes, call.groups, call.scale, **call.shape, KN=call.sorted,
            CB=call.step, G=call.together, **call.launching,
        )  # fmt: skip
        above = here
    return out, kept, share, lse


@forward_op.register_fake
def _(q, k, v, valid, topk, variant_a, weights):
    return _allocate(q, k, v, topk, variant_a)


def _allocate(q, k, v, topk, variant_a):
    out = q[-1].new_empty(*q[-1].shape[:3], v[-1].shape[-1])
    children = q[1].shape[2] // q[0].shape[2] if len(q) > 1 else 1
    counts = kept_counts(topk, k[0].shape[2], children)[:-1]
    kept = [x.new_empty(*x.shape[:3], n, dtype=torch.int32) for x, n in zip(q, counts, strict=False)]
    share = [torch.empty_like(x, dtype=torch.float32) for x in kept] if variant_a else []
    lse = [x.new_empty(x.shape[:3], dtype=torch.float32) for x in (q[:1] if variant_a else q)]
    return out, kept, share, lse


@torch.library.custom_op("quadtree_attention::cuda_backward", mutates_args=())
def backward_op(
    grad: Tensor, q: list[Tensor], k: list[Tensor], v: list[Tensor], valid: list[Tensor], kept: list[Tensor], share: list[Tensor],
    lse: list[Tensor], topk: list[int], variant_a: bool, weights: Tensor,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    """Gradients of query, key and value levels and of the level weights."""
    grad_q, grad_k, grad_v = ([torch.empty_like(x) for x in levels] for levels in (q, k, v))
    grad_weights = torch.zeros_like(weights)
    grad = grad.contiguous()
    next_grad: list[Tensor] = [x.new_empty(0) for x in share]
    delta = [torch.empty_like(x) for x in lse]
    for call in reversed(_levels(q, k, v, valid, topk, variant_a)):
        level = call.level
        candidates = call.candidates(kept, share)
        if variant_a and level:
            next_grad[level - 1] = torch.zeros_like(share[level - 1])
        given = (grad, weights, call.entry(lse))
        handed = call.passed_on(kept, next_grad)
        call.launch(
            kernels.backward_query, call.groups, q[level], k[level], v[level], call.valid, *candidates,
            *given, *handed, grad_q[level], call.entry(delta), next_grad[level - 1] if variant_a and level else grad,
            level, *call.sizes, call.groups, call.scale, **call.shape, CB=call.step, G=call.together, **call.launching,
        )  # fmt: skip
        groups = math.ceil(call.nk / call.keys_together)
        entries, first = (grad, grad) if level == 0 else queries_by_key(kept[level - 1], groups)
        call.launch(
            kernels.backward_key, groups, q[level], k[level], v[level], call.valid, entries, first, candidates[1],
            *given, call.entry(delta), *handed, grad_k[level], grad_v[level],
            level, *call.sizes, call.groups, groups, call.scale, **call.shape, G=call.keys_together, R=call.rows_together, **call.key_launching,
        )  # fmt: skip
        if not variant_a:
            grad_weights[level] = delta[level].sum()
        if level:
            grad = grad.unflatten(2, (q[level - 1].shape[2], -1)).sum(3, dtype=torch.float32)
    return grad_q, grad_k, grad_v, grad_weights


@backward_op.register_fake
def _(grad, q, k, v, valid, kept, share, lse, topk, variant_a, weights):
    return (*([torch.empty_like(x) for x in levels] for levels in (q, k, v)), torch.empty_like(weights))


def queries_by_key(kept: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """List where each key was kept: positions in ``kept`` [B, heads, N, K], key by key, and where each key's part begins.

    Returns entries ``[B * heads * N * K]`` (those of -1 at the end) and first ``[B * heads * keys + 1]``. Within a key, positions ascend.
    """
    heads = kept.shape[0] * kept.shape[1]
    wide = torch.int64 if heads * keys >= 2**31 - 1 else torch.int32
    owner = kept.to(wide) + torch.arange(heads, device=kept.device, dtype=wide).view(*kept.shape[:2], 1, 1) * keys
    owner = owner.masked_fill_(kept < 0, heads * keys).flatten()
    owner, entries = owner.sort(stable=True)
    first = torch.searchsorted(owner, torch.arange(heads * keys + 1, device=kept.device, dtype=wide))
    return entries, first


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, valid, ctx.topk, ctx.variant_a, weights = inputs
    _, kept, share, lse = output
    ctx.mark_non_differentiable(*kept, *share, *lse)
    ctx.set_materialize_grads(False)
    ctx.counts = [len(x) for x in (q, k, v, valid, kept, share, lse)]
    ctx.save_for_backward(*q, *k, *v, *valid, *kept, *share, *lse, weights)


def _backward(ctx, grad, *_):
    levels, masks = ctx.counts[0], ctx.counts[3]
    if grad is None:
        return [None] * levels, [None] * levels, [None] * levels, [None] * masks, None, None, None
    *saved, weights = ctx.saved_tensors
    parts = []
    for count in ctx.counts:
        parts.append(saved[:count])
        saved = saved[count:]
    if torch.is_grad_enabled() or is_transformed(grad):  # the result is to be differentiated again, or batched
        grad_q, grad_k, grad_v, grad_weights = gradients(
            grad, *parts[:4], ctx.topk[:-1], "a" if ctx.variant_a else "b", weights
        )
    else:
        grad_q, grad_k, grad_v, grad_weights = backward_op(grad, *parts, ctx.topk, ctx.variant_a, weights)
    return grad_q, grad_k, grad_v, [None] * masks, None, None, grad_weights


forward_op.register_autograd(_backward, setup_context=_setup_context)


class _Level:
    """Sizes, blocks and arguments that the kernels of one level share."""

    def __init__(self, level: int, q, k, v, valid, counts: list[int], variant_a: bool) -> None:
        self.level, self.last = level, level == len(q) - 1
        self.device = q[level].device
        self.children = q[1].shape[2] // q[0].shape[2] if len(q) > 1 else 1
        self.batch_heads = q[level].shape[0] * q[level].shape[1]
        nq, dim = q[level].shape[2:]
        self.nk, dim_v = k[level].shape[2], v[level].shape[3]
        self.valid = valid[level].contiguous().view(torch.uint8) if valid else q[level]
        self.sizes = (nq, self.nk, q[level].shape[1], counts[level])  # and heads, and how many keys are kept
        self.scale = 1 / math.sqrt(dim)
        root = level == 0
        self.variant_a, self.has_lse = variant_a, root or not variant_a
        self.count = self.nk if root else counts[level - 1] * self.children  # candidates of a query
        padded = max(_power(dim), 16), max(_power(dim_v), 16)
        widest, narrow = max(padded), q[level].dtype.itemsize == 2
        step = (STEP if narrow else STEP // 4) // widest
        # Found by compiling (benchmarks/kernels.py): no spills, and the fewest instructions a query. A tensor core takes 16 queries of a warp at a
        # time; those of a finer level are fewer, and more warps would only work on copies of them, but for selection.
        if root:
            self.together = 16
            self.keys_together = 32 if narrow else 16
            self.step = self.rows_together = max(16, min(64, step))
            warps = keys_warps = 4 if narrow or widest <= 32 else 8
        else:
            self.together = self.keys_together = self.children
            self.step = max(16, min(128, _power(self.count), step))
            self.rows_together = max(16, min(32, step))
            warps = (1 if self.last else 2) if narrow else (2 if widest <= 32 else 4)
            keys_warps = 1 if narrow and widest <= 32 else 2
            if widest > 64:
                warps = keys_warps = 4
        self.launching: dict[str, int] = {"num_warps": warps, "num_stages": 2 if root else 1, "enable_fp_fusion": True}
        self.key_launching = {**self.launching, "num_warps": keys_warps}
        # NVIDIA's assembler would rather spill a few bytes than fit fewer programs onto a multiprocessor; given all registers it takes half as many
        # again of them, so that only kernels that do spill get them.
        tight = not narrow or variant_a
        if not torch.version.hip:
            if tight or root:
                self.launching["maxnreg"] = 255
            if tight or keys_warps == 1:
                self.key_launching["maxnreg"] = 255
        self.groups = math.ceil(nq / self.together)
        wide = max(self.nk, nq) * max(dim, dim_v, *counts) >= 2**31
        self.shape = {
            "D": dim, "DV": dim_v, "DP": padded[0], "DVP": padded[1], "F": self.children, "ROOT": root, "VARIANT_A": variant_a,
            "MASKED": bool(valid), "WIDE": wide, "PRECISION": dot_precision(), "SLOTS": 0 if root else counts[level - 1], "KEEP": counts[level],
        }  # fmt: skip
        self.sorted = max(2, _power(counts[level]))

    def candidates(self, kept: list[Tensor], share: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The lists that the level above passed on, and their scores; any tensor where the kernel reads none."""
        if self.level == 0:
            return self.valid, self.valid
        return kept[self.level - 1], share[self.level - 1] if self.variant_a else self.valid

    def passed_on(self, kept: list[Tensor], share: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What this level passes on, or the gradient of it; any tensor where there is nothing."""
        if self.last:
            return self.valid, self.valid
        return kept[self.level], share[self.level] if self.variant_a else self.valid

    def entry(self, per_query: list[Tensor]) -> Tensor:
        """This level's entry in a list that has entries only for levels with one softmax."""
        return per_query[self.level] if self.has_lse else self.valid

    def launch(self, kernel, groups: int, *arguments, **constants) -> None:
        if self.batch_heads == 0:
            return
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with on_device:
            kernel[(self.batch_heads * groups,)](*arguments, **constants)


def _levels(q, k, v, valid, topk: list[int], variant_a: bool) -> list[_Level]:
    children = q[1].shape[2] // q[0].shape[2] if len(q) > 1 else 1
    counts = kept_counts(topk, k[0].shape[2], children)
    return [_Level(level, q, k, v, valid, counts, variant_a) for level in range(len(q))]


def dot_precision() -> str:
    """How the kernels multiply float32: in TensorFloat-32 only where torch's own setting allows it, and on NVIDIA's hardware."""
    # The older getters raise once the newer setting has been used; this one handles both.
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed and not torch.version.hip else "ieee"


def _power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
