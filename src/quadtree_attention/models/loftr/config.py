"""The configuration of a LoFTR, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import InputError

AttentionKind = Literal["quadtree_a", "quadtree_b", "linear", "sr", "full"]
BlockKind = Literal["vit", "loftr"]
PositionKind = Literal["sine", "sine_bug", "none"]
MatchingKind = Literal["dual_softmax", "optimal_transport"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class LoFTRConfig:
    """Architecture and matching options of `LoFTR`; the defaults are those of the published outdoor model.

    Attributes:
        initial_dim: channels of the stem.
        block_dims: channels of the stages at 1/2, 1/4 and 1/8; the first is also the width of the fine transformer,
            the last that of the coarse one.
        blocks_per_stage: residual blocks in each stage.
        num_heads: heads of the coarse transformer.
        num_layers: pairs of a self- and a cross-attention layer in the coarse transformer.
        mlp_ratio: hidden channels of the "vit" blocks' MLP, as a multiple of the width.
        attention: attention of the coarse transformer; "sr" is spatial reduction.
        block: "vit" is the block of the released quadtree model, "loftr" LoFTR's own.
        levels, topk: of quadtree attention; ``levels - 1`` entries, coarse to fine.
        sr_pool: side of the grid that spatial reduction pools keys and values to.
        fine_heads, fine_layers: of the linear-attention transformer on the windows.
        fine_window: side of the windows at 1/2, odd.
        threshold: least confidence of a match.
        border: width, in cells of 1/8, of the margin of each image in which no match is accepted.
        matching: confidences from a "dual_softmax", or from "optimal_transport" with dustbins, the other method that LoFTR published.
        temperature: of the dual softmax.
        sinkhorn_iterations: of optimal transport.
        prefilter: with optimal transport, outside of training, drop cells whose largest share lies in a dustbin.
        respect_masks: whether attention leaves masked cells out; False repeats the published quadtree model, where only
            the matching step does.
        position: what is added to the coarse features before the transformer: LoFTR's "sine" encoding, "sine_bug", the
            one of its first released weights, whose frequencies fall too quickly, or "none", which cannot meet
            positions unseen in training.
        precision: of the backbone's convolutions outside training: "float32", "bfloat16", or "auto": bfloat16 on CPUs with instructions for
            it (AMX, AVX512-BF16), else float32. A network of another dtype keeps its own.
        calibration: the 6 coefficients by which `predict.confidence.probability` computes how likely a refined match is right;
            () keeps the network's own confidence.

    Raises:
        ValueError: values that do not fit together.
    """

    initial_dim: int = 128
    block_dims: tuple[int, int, int] = (128, 196, 256)
    blocks_per_stage: int = 2
    num_heads: int = 8
    num_layers: int = 4
    mlp_ratio: float = 4.0
    attention: AttentionKind = "quadtree_b"
    block: BlockKind = "vit"
    levels: int = 3
    topk: tuple[int, ...] = (16, 8)
    sr_pool: int = 8
    fine_heads: int = 8
    fine_layers: int = 1
    fine_window: int = 5
    threshold: float = 0.2
    border: int = 2
    matching: MatchingKind = "dual_softmax"
    temperature: float = 0.1
    sinkhorn_iterations: int = 3
    prefilter: bool = False
    respect_masks: bool = True
    position: PositionKind = "sine"
    precision: Precision = "float32"
    calibration: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # JSON has lists where these are tuples.
        object.__setattr__(self, "block_dims", tuple(self.block_dims))
        object.__setattr__(self, "topk", tuple(self.topk))
        object.__setattr__(self, "calibration", tuple(self.calibration))
        _choice("attention", self.attention, get_args(AttentionKind))
        _choice("block", self.block, get_args(BlockKind))
        _choice("position", self.position, get_args(PositionKind))
        _choice("matching", self.matching, get_args(MatchingKind))
        _choice("precision", self.precision, get_args(Precision))
        if len(self.block_dims) != 3 or min(self.block_dims) < 1:
            raise InputError(f"block_dims is {self.block_dims}, expected 3 numbers: channels at 1/2, 1/4 and 1/8")
        counts = (
            "blocks_per_stage",
            "num_heads",
            "num_layers",
            "levels",
            "sr_pool",
            "fine_heads",
            "fine_layers",
            "sinkhorn_iterations",
        )
        for name in ("initial_dim", *counts):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.attention.startswith("quadtree") and len(self.topk) != self.levels - 1:
            raise InputError(
                f"topk is {self.topk} for {self.levels} levels, expected {self.levels - 1}: all levels but the last"
            )
        if self.d_model % self.num_heads or self.d_model % 4:
            raise InputError(
                f"block_dims[-1] is {self.d_model}, expected a multiple of 4 and of num_heads ({self.num_heads})"
            )
        if self.d_fine % self.fine_heads:
            raise InputError(f"block_dims[0] is {self.d_fine}, expected a multiple of fine_heads, {self.fine_heads}")
        if self.fine_window < 1 or self.fine_window % 2 == 0:
            raise InputError(f"fine_window is {self.fine_window}, expected an odd number")
        if self.topk and min(self.topk) < 1:
            raise InputError(f"topk is {self.topk}, expected at least 1 each")
        if not self.mlp_ratio * self.d_model >= 1:
            raise InputError(f"mlp_ratio is {self.mlp_ratio}, expected above 0")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}, expected above 0")
        if len(self.calibration) not in (0, 6):
            raise InputError(f"calibration has {len(self.calibration)} numbers, expected 6, or none")
        if self.border < 0:
            raise InputError(f"border is {self.border}, expected 0 or more cells")

    @property
    def d_model(self) -> int:
        """Width of the coarse transformer."""
        return self.block_dims[-1]

    @property
    def d_fine(self) -> int:
        """Width of the fine transformer."""
        return self.block_dims[0]


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


LOFTR_PRESETS: dict[str, LoFTRConfig] = {
    "indoor": LoFTRConfig(topk=(32, 16)),
    "outdoor": LoFTRConfig(topk=(16, 8)),
    "lite": LoFTRConfig(initial_dim=64, block_dims=(64, 98, 128), topk=(16, 8)),
    "tiny": LoFTRConfig(
        initial_dim=32,
        block_dims=(32, 64, 128),
        blocks_per_stage=1,
        num_heads=4,
        num_layers=2,
        mlp_ratio=2.0,
        topk=(8, 8),
        fine_heads=4,
        position="none",
    ),
}
