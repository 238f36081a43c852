"""The definition of quadtree attention in plain PyTorch: every device, every dtype, differentiable, exportable.

All tensors are in tree order (see tree.py) with heads in front of the tokens: ``[B, heads, N, dim]``. Each level works on blocks of parents
with all their children, so that memory stays bounded: blocks are recomputed in the backward pass where there is more than one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .modes import is_free
from .tree import Tree

BLOCK_NUMBERS = 2**24  # how many floats a block may gather or score at once


def attend(
    query: Tree, key: Tree, value: Tree, topk: tuple[int, ...], variant: str, level_weights: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Quadtree attention on trees (equations 2 to 6 of the paper).

    Returns the output ``[B, heads, N, dim_v]`` in tree order of the query's finest level, and for each level but the last the kept keys
    ``[B, heads, N_l, K_l]`` int64 in tree order, best first, -1 where there were fewer.
    """
    device = query.tokens[-1].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # sums would be in half precision
        with torch.autocast(device, enabled=False):
            return attend(query, key, value, topk, variant, level_weights)
    levels, children = len(query.tokens), query.children
    dtype = query.tokens[-1].dtype
    work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    candidates = []
    keep: int | torch.SymInt = 0
    for level in range(levels):
        q, k, v = (tree.tokens[level].to(work) for tree in (query, key, value))  # [B, heads, N, dim]
        q = q * (1 / math.sqrt(q.shape[-1]))
        k_valid = key.valid[level] if key.valid is not None else None
        found = k.shape[2] if level == 0 else children * keep
        keep = torch.sym_min(topk[level], found) if level < levels - 1 else 0
        if level == 0:
            message, kept, share = _root_level(q, k, v, k_valid, keep, variant)
        else:
            message, kept, share = _fine_level(q, k, v, k_valid, keep, variant, children, kept, share)
        if level_weights is not None:
            message = message * level_weights[level].to(work)
        if level == 0:
            out = message
        else:
            out = message + out.repeat_interleave(children, 2)
        if level < levels - 1:
            candidates.append(kept)
    if query.valid is not None:
        out = torch.where(query.valid[-1][:, None, :, None], out, out.new_zeros(()))
        for level, indices in enumerate(candidates):
            candidates[level] = indices.masked_fill(~query.valid[level][:, None, :, None], -1)
    return out.to(dtype), candidates


def gradients(
    grad: Tensor,
    query: list[Tensor],
    key: list[Tensor],
    value: list[Tensor],
    valid: list[Tensor],
    topk: list[int],
    variant: str,
    level_weights: Tensor,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Gradients of the levels of query, key and value and of the level weights, as a backend's backward pass gives them, but with every
    derivative of their own. ``valid`` is the keys'; an empty list means that all keys are valid."""
    levels = len(query)
    children = query[1].shape[2] // query[0].shape[2] if levels > 1 else 2
    grids = [(1,) * (children.bit_length() - 1)] * levels  # only the number of axes counts here

    def output(query: list[Tensor], key: list[Tensor], value: list[Tensor], level_weights: Tensor) -> Tensor:
        trees = Tree(query, None, grids), Tree(key, valid or None, grids), Tree(value, valid or None, grids)
        return attend(*trees, tuple(topk), variant, level_weights if variant == "b" else None)[0]

    return torch.func.vjp(output, query, key, value, level_weights)[1](grad)


def _root_level(
    q: Tensor, k: Tensor, v: Tensor, k_valid: Tensor | None, keep: int | torch.SymInt, variant: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Every query attends to every key. Returns message ``[B, H, N, dim_v]``, kept keys and their scores ``[B, H, N, keep]``."""

    def block(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = q @ k.transpose(-1, -2)  # [B, H, n, Nk]
        valid = k_valid[:, None, None, :] if k_valid is not None else None
        score = _softmax(logits, valid)
        kept = _select(logits, valid, keep)
        share = score.gather(-1, kept.clamp(min=0)) * (kept >= 0)
        if variant == "a" and keep:
            # Kept keys are refined by the next level, so their own share of the message is left out here.
            score = score * _not_kept(score, kept)
        return score @ v, kept, share

    return _in_blocks(block, (q,), (k, v), q.shape[0] * q.shape[1] * k.shape[2])


def _fine_level(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_valid: Tensor | None,
    keep: int | torch.SymInt,
    variant: str,
    children: int,
    kept: Tensor,
    share: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each query attends to the children of the keys that its parent kept.

    kept, share: ``[B, H, N / children, K]``. Returns the same as `_root_level`.
    """
    batch, heads, _, dim = q.shape
    q = q.unflatten(2, (-1, children))  # [B, H, parents, F, dim]
    first = torch.arange(batch * heads, device=q.device).reshape(batch, heads, 1, 1) * (k.shape[2] // children)
    k_rows = k.reshape(-1, children * dim)  # all children of a key lie in one row
    v_rows = v.reshape(-1, children * v.shape[-1])
    valid_rows = None
    if k_valid is not None:
        valid_rows = k_valid.unflatten(1, (-1, children))[:, None].expand(-1, heads, -1, -1).reshape(-1, children)

    def block(q: Tensor, kept: Tensor, share: Tensor, k_rows: Tensor, v_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parents, parent_keep = kept.shape[2:]
        row = kept.clamp(min=0) + first
        gathered_k = F.embedding(row, k_rows).reshape(batch, heads, parents, parent_keep * children, dim)
        gathered_v = F.embedding(row, v_rows).reshape(batch, heads, parents, parent_keep * children, v.shape[-1])
        logits = q @ gathered_k.transpose(-1, -2)  # [B, H, parents, F, K * F]
        valid = (kept >= 0)[..., None].expand(-1, -1, -1, -1, children)
        if valid_rows is not None:
            valid = valid & valid_rows[row]
        valid = valid.reshape(batch, heads, parents, 1, parent_keep * children)
        if variant == "b":
            score, order_by = _softmax(logits, valid), logits
        else:
            siblings = _softmax(logits.unflatten(-1, (-1, children)), valid.unflatten(-1, (-1, children)))
            score = (siblings * share[..., None, :, None]).flatten(-2)
            order_by = score
        chosen = _select(order_by, valid, keep)  # [B, H, parents, F, keep], places among the candidates
        place = chosen.clamp(min=0)
        chosen_share = score.gather(-1, place) * (chosen >= 0)
        if variant == "a" and keep:
            score = score * _not_kept(score, chosen)
        token = (kept[..., None] * children + torch.arange(children, device=kept.device)).flatten(-2)
        token = token[:, :, :, None].expand(-1, -1, -1, children, -1).gather(-1, place)
        token = torch.where(chosen >= 0, token, -1)
        return score @ gathered_v, token, chosen_share

    per_parent = batch * heads * kept.shape[-1] * children * (dim + v.shape[-1] + children)
    message, kept, share = _in_blocks(block, (q, kept, share), (k_rows, v_rows), per_parent)
    return message.flatten(2, 3), kept.flatten(2, 3), share.flatten(2, 3)


def _in_blocks(
    block: Callable[..., tuple[Tensor, Tensor, Tensor]],
    sliced: tuple[Tensor, ...],
    whole: tuple[Tensor, ...],
    numbers_per_row: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``block(*sliced, *whole)`` over slices of dim 2 and concatenate; exporting takes one slice, so that sizes stay free."""
    # Meta tensors need no memory; recorded graphs must hold for other sizes; transforms do not support recomputing.
    if sliced[0].is_meta or (is_free() and not torch.compiler.is_compiling()):
        return block(*sliced, *whole)
    rows = sliced[0].shape[2]
    size = max(1, BLOCK_NUMBERS // max(1, numbers_per_row))
    if rows <= size:
        return block(*sliced, *whole)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (*sliced, *whole))
    parts = []
    for start in range(0, rows, size):
        slices = tuple(x[:, :, start : start + size] for x in sliced)
        if needs_grad:
            parts.append(checkpoint(block, *slices, *whole, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(block(*slices, *whole))
    message, kept, share = (torch.cat(column, 2) for column in zip(*parts, strict=True))
    return message, kept, share


def _softmax(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over the last axis of the valid entries; zeros, never NaN, where there are none."""
    if valid is None:
        return logits.softmax(-1)
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~valid, lowest).softmax(-1) * valid


def _select(scores: Tensor, valid: Tensor | None, keep: int | torch.SymInt) -> Tensor:
    """Places of the ``keep`` highest valid scores of the last axis, best first, ties to the lower place; -1 where there are fewer."""
    scores = scores.detach()
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    if is_free() or scores.is_meta or not scores.numel():
        if torch.onnx.is_in_onnx_export():  # ONNX has no stable sort, but its TopK gives ties to the lower place
            value, place = scores.sort(dim=-1, descending=True)
        else:
            value, place = scores.sort(dim=-1, descending=True, stable=True)
        first = torch.arange(keep, device=place.device)  # a slice would limit exported graphs to keep < count
        value, place = value.index_select(-1, first), place.index_select(-1, first)
    else:
        value, place = _top(scores, keep)
    return torch.where(value > -torch.inf, place, -1) if valid is not None else place


def _top(scores: Tensor, keep: int | torch.SymInt) -> tuple[Tensor, Tensor]:
    """The first ``keep`` of a stable descending sort, by torch.topk, whose order among equals is arbitrary."""
    if keep == 0:
        return scores[..., :0], torch.empty(*scores.shape[:-1], 0, dtype=torch.int64, device=scores.device)
    value, place = scores.topk(keep, -1)
    place = place.sort(-1)[0]
    value, order = scores.gather(-1, place).sort(dim=-1, descending=True, stable=True)
    place = place.gather(-1, order)
    if keep == scores.shape[-1]:
        return value, place
    # Where an equal score was left out, topk may have taken the wrong one of them.
    tied = ((scores >= value[..., -1:]).sum(-1) > keep) & (value[..., -1] > -torch.inf)
    if tied.any():
        fixed_value, fixed_place = scores[tied].sort(dim=-1, descending=True, stable=True)
        value[tied], place[tied] = fixed_value[..., :keep], fixed_place[..., :keep]
    return value, place


def _not_kept(score: Tensor, kept: Tensor) -> Tensor:
    """1 for the places of ``score`` that are not in ``kept``, 0 for the others; -1 entries of ``kept`` name no place."""
    places = score.shape[-1]
    spare = torch.ones_like(F.pad(score, (0, 1)))  # the last column takes the -1 entries
    return spare.scatter(-1, torch.where(kept < 0, places, kept), 0)[..., :places]
