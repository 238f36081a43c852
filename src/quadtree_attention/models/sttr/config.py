"""The configuration of an STTR, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import InputError

AttentionKind = Literal["quadtree_a", "quadtree_b", "full"]
PositionKind = Literal["rotary", "relative", "none"]
ResolutionKind = Literal[1, 4]


@dataclass(frozen=True)
class STTRConfig:
    """Architecture of `STTR`; the defaults are those of the published STTR, with quadtree attention.

    Attributes:
        stem_dims: channels of the three convolutions at 1/2.
        stage_dims: channels of the residual stages at 1/4 and 1/8.
        blocks_per_stage: residual blocks in each.
        pool_dim: channels of each of the four branches of the pyramid of averages, at 1/16.
        growth, dense_layers: channels that each layer of a dense block adds, and its number of layers.
        dim: channels of a token.
        resolution: image pixels per pixel of the feature map: 1 as in STTR, 4 as in its light version, whose ``dim`` is
            ``growth * dense_layers``.
        stride: pixels from one token to the next, in rows and columns; a multiple of ``resolution``.
        num_heads: of the transformer.
        num_layers: pairs of a self- and a cross-attention layer.
        attention: attention along the rows; the last cross-attention, which becomes the assignment, is full in any case.
        levels, topk: of quadtree attention; ``levels - 1`` entries, coarse to fine.
        position: "rotary" rotates half of the channels of queries and keys by their position in the row, at each level after pooling;
            "relative" is STTR's own sum of content and position terms, for "full" attention only; "none" adds no position.
        mlp_ratio: channels of the convolutional MLP after each self-attention, `ConvMlp` on all tokens of an image, as a multiple of
            ``dim``; the only exchange between rows. 0, as in STTR: none.
        sinkhorn_iterations: of the optimal transport.
        fine_dim: channels of fine matching at 1/2, see `FineMatching`; 0, as in STTR: none. Needs ``resolution`` 4.
        fine_reach: pixels of 1/2 that fine matching searches to either side.
        context_blocks, context_dim, context_expansion: of context adjustment at full resolution; without blocks it only finds occlusion.
        context_limit: largest correction of disparity in pixels that it makes outside of training; 0: none, and it takes no time; None: any.

    Raises:
        ValueError: values that do not fit together.
    """

    stem_dims: tuple[int, int, int] = (16, 16, 32)
    stage_dims: tuple[int, int] = (64, 128)
    blocks_per_stage: int = 3
    pool_dim: int = 32
    growth: int = 4
    dense_layers: int = 4
    dim: int = 128
    resolution: ResolutionKind = 1
    stride: int = 3
    num_heads: int = 8
    num_layers: int = 6
    attention: AttentionKind = "quadtree_b"
    levels: int = 4
    topk: tuple[int, ...] = (8, 8, 8)
    position: PositionKind = "rotary"
    mlp_ratio: int = 0
    sinkhorn_iterations: int = 10
    fine_dim: int = 0
    fine_reach: int = 2
    context_blocks: int = 8
    context_dim: int = 16
    context_expansion: int = 4
    context_limit: float | None = None

    def __post_init__(self) -> None:
        # JSON has lists where these are tuples.
        for name in ("stem_dims", "stage_dims", "topk"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, kind in (("attention", AttentionKind), ("position", PositionKind), ("resolution", ResolutionKind)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(map(str, get_args(kind)))
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {choices}")
        for name, count in (("stem_dims", 3), ("stage_dims", 2)):
            if len(getattr(self, name)) != count or min(getattr(self, name)) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected {count} numbers of channels")
        counts = (
            "blocks_per_stage",
            "pool_dim",
            "growth",
            "dense_layers",
            "dim",
            "stride",
            "num_heads",
            "num_layers",
            "levels",
        )
        for name in (
            *counts,
            "sinkhorn_iterations",
            "fine_reach",
            "context_dim",
            "context_expansion",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("mlp_ratio", "context_blocks"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.attention.startswith("quadtree") and len(self.topk) != self.levels - 1:
            raise InputError(
                f"topk is {self.topk} for {self.levels} levels, expected {self.levels - 1}: all levels but the last"
            )
        if self.topk and min(self.topk) < 1:
            raise InputError(f"topk is {self.topk}, expected at least 1 each")
        if self.position == "relative" and self.attention != "full":
            raise InputError(
                f"position is 'relative' with attention {self.attention!r}, expected 'rotary' or 'none' with it"
            )
        if self.dim % self.num_heads or self.dim // self.num_heads % 4:
            raise InputError(
                f"dim is {self.dim}, expected a multiple of 4 channels for each of num_heads ({self.num_heads})"
            )
        if self.context_limit is not None and not self.context_limit >= 0:
            raise InputError(f"context_limit is {self.context_limit}, expected pixels of at least 0, or None")
        if self.stride % self.resolution:
            raise InputError(f"stride is {self.stride}, expected a multiple of resolution ({self.resolution})")
        if self.fine_dim < 0 or self.fine_dim % 4:
            raise InputError(f"fine_dim is {self.fine_dim}, expected a multiple of 4, or 0 for no fine matching")
        if self.fine_dim and self.resolution != 4:
            raise InputError(
                f"fine_dim is {self.fine_dim} at resolution {self.resolution}, expected resolution 4 or fine_dim 0"
            )
        if self.resolution == 4 and self.dim != self.growth * self.dense_layers:
            raise InputError(
                f"dim is {self.dim}, expected growth * dense_layers = {self.growth * self.dense_layers} at resolution 4"
            )


STTR_PRESETS: dict[str, STTRConfig] = {
    "sttr": STTRConfig(attention="full", position="relative"),
    "quadtree": STTRConfig(),
    "tiny": STTRConfig(
        stem_dims=(16, 16, 32),
        stage_dims=(48, 64),
        blocks_per_stage=2,
        pool_dim=16,
        growth=16,
        dim=64,
        resolution=4,
        stride=4,
        num_heads=4,
        num_layers=2,
        mlp_ratio=2,
        fine_dim=32,
        context_blocks=0,
        context_dim=8,
        context_expansion=2,
    ),
}
