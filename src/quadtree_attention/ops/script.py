"""The operator as one node of TorchScript's graphs: what `torch.jit.trace` and `torch.jit.script` record, with all sizes free.

As with torchvision's operators, such a graph runs, and loads from a file, only in Python processes that have imported quadtree_attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tree import token_pyramid

_library = torch.library.Library("quadtree_attention", "FRAGMENT")
_library.define(
    "attention(Tensor[] query, Tensor[] key, Tensor[] value, int levels, int[] topk, str variant, Tensor? level_weights, "
    "Tensor? query_mask, Tensor? key_mask, str? backend, bool return_candidates) -> (Tensor, Tensor[])"
)
_library.define("pyramid(Tensor x, int levels) -> Tensor[]")


def _attention(
    query: list[Tensor],
    key: list[Tensor],
    value: list[Tensor],
    levels: int,
    topk: list[int],
    variant: str,
    level_weights: Tensor | None,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    backend: str | None,
    return_candidates: bool,
) -> tuple[Tensor, list[Tensor]]:
    """`quadtree_attention`, with a list of one tensor where levels are to be averaged from it."""
    from .functional import quadtree_attention

    def given(x: list[Tensor]) -> Tensor | list[Tensor]:
        return x[0] if len(x) == 1 < levels else x

    options = dict(level_weights=level_weights, query_mask=query_mask, key_mask=key_mask, backend=backend)
    out = quadtree_attention(
        given(query),
        given(key),
        given(value),
        levels=levels,
        topk=topk,
        variant=variant,
        return_candidates=return_candidates,
        **options,
    )  # type: ignore[call-overload]  # its strings are any
    return out if return_candidates else (out, [])


# Their derivatives are those of what they call.
_library.impl("attention", _attention, "CompositeImplicitAutograd")
_library.impl("pyramid", token_pyramid, "CompositeImplicitAutograd")
attention = torch.ops.quadtree_attention.attention.default
