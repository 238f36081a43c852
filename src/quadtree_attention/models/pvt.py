"""PVTv2 with quadtree attention: timm's `PyramidVisionTransformerV2` with another attention, in timm as quadtree_b0 .. quadtree_b4.

``timm.create_model("quadtree_b0", ...)`` takes all options of timm's PVTv2 (num_classes, in_chans, features_only, drop_path_rate, depths, ...)
except those of spatial reduction, and also those of `QuadtreeTransformer`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from timm.models.pvt_v2 import MlpWithDepthwiseConv, OverlapPatchEmbed, PyramidVisionTransformerV2
from torch import Tensor, nn

from ..compat import resolve_pretrained_cfg
from ..errors import InputError
from ..nn import QuadtreeAttention
from ..ops.dispatch import Backend, Variant
from ..ops.modes import is_plain
from .checkpoint import misfit, read_checkpoint
from .keys import convert_published
from .releases import PUBLISHED, download

__all__ = ["QuadtreeTransformer", "checkpoint_filter_fn"]

LEVELS = (4, 3, 2, 1)
WHOLE, STRIP = (
    2**21,
    2**19,
)  # largest size of a hidden map that is computed whole, and size of a strip of larger ones: measured at 448 and 896 pixels


@register_notrace_module  # a leaf of torch.fx's graphs
class BlockAttention(QuadtreeAttention):
    """`QuadtreeAttention` with the call that timm's blocks use, and their final dropout."""

    def __init__(self, dim: int, num_heads: int, *, proj_drop: float = 0.0, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:  # type: ignore[override]
        """``[B, H*W, dim]`` and (H, W) to ``[B, H*W, dim]``."""
        x = x.unflatten(1, feat_size)
        if torch.jit.is_scripting():
            x = self.scripted(x)
        else:
            x = super().forward(x)
        return self.proj_drop(x.flatten(1, 2))


@register_notrace_module
class Mlp(MlpWithDepthwiseConv):
    """timm's MLP, computed in strips of rows where that saves memory and time: on a CPU, without gradients.

    The hidden maps of the first stages are larger than the caches, and allocating them takes longer than the arithmetic.
    """

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        """``[B, H*W, dim]`` and (H, W) to ``[B, H*W, dim]``."""
        if torch.jit.is_scripting():
            return self.whole(x, feat_size)
        else:  # TorchScript reads on after a return
            return self.in_strips(x, feat_size)

    def whole(self, x: Tensor, feat_size: list[int]) -> Tensor:
        """timm's forward, under a name that TorchScript can call."""
        hidden = self.fc1(x).transpose(1, 2).unflatten(2, feat_size)
        hidden = self.dwconv(self.relu(hidden)).flatten(2).transpose(1, 2)
        return self.drop(self.fc2(self.drop(self.act(hidden))))

    def in_strips(self, x: Tensor, feat_size: list[int]) -> Tensor:
        """`whole`, in strips where that is faster."""
        height, width = feat_size
        row = width * self.fc1.out_features
        # One buffer, filled in place, works only if the layers do nothing else.
        plain = type(self.fc1) is type(self.fc2) is nn.Linear and not torch.is_autocast_enabled("cpu")
        if height * row <= WHOLE or self.training or not plain or not is_plain(x, self.fc1.weight):
            return self.whole(x, feat_size)
        rows = max(4, STRIP // row)
        buffer = x.new_empty((rows + 2) * width, self.fc1.out_features)
        out = x.new_empty(*x.shape[:2], self.fc2.out_features)
        for image, result in zip(x.contiguous(), out, strict=True):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                above, below = int(top > 0), int(bottom < height)  # the convolution looks one row further
                strip = image[(top - above) * width : (bottom + below) * width]
                hidden = buffer[: len(strip)]
                torch.addmm(self.fc1.bias, strip, self.fc1.weight.t(), out=hidden)
                hidden = self.dwconv(self.relu(hidden).view(1, -1, width, hidden.shape[1]).permute(0, 3, 1, 2))
                hidden = self.act(hidden[:, :, above : above + bottom - top].permute(0, 2, 3, 1)).flatten(0, 2)
                torch.addmm(self.fc2.bias, hidden, self.fc2.weight.t(), out=result[top * width : bottom * width])
        return out


@register_notrace_module
class PatchEmbed(OverlapPatchEmbed):
    """timm's first layer, with clear errors for bad images."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, ceil(H/4), ceil(W/4), dim]``."""
        if not torch.jit.is_scripting():
            self.check(x)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))

    def check(self, x: Tensor) -> None:
        """Raise ValueError for what cannot be an image."""
        channels = self.proj.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise InputError(
                f"images have shape {tuple(x.shape)}, expected [B, {channels}, H, W]; "
                "a model for another number of channels is made with in_chans"
            )
        if not x.numel():
            raise InputError(f"images have shape {tuple(x.shape)}, expected at least one image and one pixel")


class QuadtreeTransformer(PyramidVisionTransformerV2):
    """timm's PVTv2 with quadtree attention in all blocks (published: variant "b" with value branches and LePE, levels 4, 3, 2, 1).

    Takes images ``[B, in_chans, H, W]`` of any size.

    Args:
        levels: of the tree in each stage, one number per stage.
        topk: keys kept at each level but the last, coarse to fine: one number for all, or a list for the deepest tree; shallower trees take its
            first entries, and further ones have no effect, as published. Published: 8 for classification, 32 for detection and segmentation.
        variant: "b"; or "a", which has neither value branches nor LePE.
        value_act: activation of the value branches: "gelu" (published for classification) or "relu" (detection, segmentation).
        value, lepe: as in `QuadtreeAttention`; None: "conv" and True for variant "b", as published, "pool" and False for "a".
        backend: backend of the operator; None picks the best.
        arguments: those of timm's PVTv2.

    Raises:
        ValueError: options that do not fit together.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        levels: Sequence[int] = LEVELS,
        topk: int | Sequence[int] = 8,
        variant: Variant = "b",
        value_act: Literal["gelu", "relu"] = "gelu",
        value: Literal["pool", "conv"] | None = None,
        lepe: bool | None = None,
        backend: Backend | None = None,
        qkv_bias: bool = True,
        **arguments: Any,
    ) -> None:
        if not len(depths) == len(embed_dims) == len(num_heads) == len(levels):
            raise InputError(
                f"depths, embed_dims, num_heads and levels have {len(depths)}, {len(embed_dims)}, {len(num_heads)} and {len(levels)} "
                "entries, expected one for each stage"
            )
        for name in ("sr_ratios", "linear"):
            if arguments.get(name):
                raise InputError(
                    f"{name} is {arguments[name]}, expected nothing: quadtree attention has no spatial reduction; use pvt_v2 for it"
                )
        if arguments.get("attn_drop_rate"):
            raise InputError(
                f"attn_drop_rate is {arguments['attn_drop_rate']}, expected 0: quadtree attention has no dropout of single scores; "
                "use proj_drop_rate or drop_path_rate"
            )
        super().__init__(
            depths=tuple(depths),
            embed_dims=tuple(embed_dims),
            num_heads=tuple(num_heads),
            sr_ratios=(1,) * len(depths),
            qkv_bias=qkv_bias,
            **arguments,
        )
        device, dtype = arguments.get("device"), arguments.get("dtype")
        self.patch_embed = PatchEmbed(7, 4, self.in_chans, embed_dims[0], device=device, dtype=dtype)
        stages: Any = self.stages  # an nn.Sequential of timm's PyramidVisionTransformerStage
        for stage, dim, heads, stage_levels in zip(stages, embed_dims, num_heads, levels, strict=True):
            for block in stage.blocks:
                block.attn = BlockAttention(
                    dim,
                    heads,
                    proj_drop=arguments.get("proj_drop_rate", 0.0),
                    levels=stage_levels,
                    topk=_stage_topk(topk, stage_levels, max(levels)),
                    variant=variant,
                    value=value or ("conv" if variant == "b" else "pool"),
                    value_act=value_act,
                    lepe=variant == "b" if lepe is None else lepe,
                    qkv_bias=qkv_bias,
                    backend=backend,
                ).to(device=device, dtype=dtype)
                block.mlp.__class__ = Mlp  # the same parts, called differently
        self.patch_embed.apply(self._init_weights)
        self.stages.apply(self._init_weights)

    def _init_weights(self, m: nn.Module) -> None:
        super()._init_weights(m)
        if isinstance(m, QuadtreeAttention):  # 1x1 convolutions in the published code, and initialised as such
            for linear in (m.q_proj, m.k_proj, m.v_proj):
                nn.init.normal_(linear.weight, std=math.sqrt(2 / m.dim))


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights for ``model`` in timm's names. Published weights are converted; from detectors, the backbone is taken.

    Raises:
        ValueError: weights of another network, or of another size.
    """
    state = dict(state_dict)
    if "patch_embed.proj.weight" not in state:
        state = convert_published(state)
    want = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    have = {name: value for name, value in state.items() if not name.startswith("head.")}
    first = "patch_embed.proj.weight"  # timm fits it to in_chans
    if first in have and have[first].shape[0] == want[first].shape[0]:
        have[first] = want[first]
    if problem := misfit(want, have):
        raise InputError(
            f"weights do not fit the model: {problem}; are they of another variant than {getattr(model, 'default_cfg', {}).get('architecture')}?"
        )
    return state


def _stage_topk(topk: int | Sequence[int], levels: int, deepest: int) -> int | tuple[int, ...]:
    if isinstance(topk, int):
        return topk
    if len(topk) < deepest - 1:
        raise InputError(
            f"topk has {len(topk)} entries, expected one number, or at least {deepest - 1}: one for each level but the last of the deepest tree"
        )
    return tuple(topk)[: levels - 1]


def _create(name: str, pretrained: bool, /, **kwargs: Any) -> nn.Module:
    cfg = resolve_pretrained_cfg(name, kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None))
    overlay = {}
    if (
        pretrained
        and cfg.source in (None, "timm")
        and not cfg.state_dict
        and not cfg.hf_hub_id
        and (cfg.file or cfg.url)
    ):
        # Read here, because timm's reader refuses checkpoints that hold more than tensors.
        overlay["state_dict"] = read_checkpoint(cfg.file or download(PUBLISHED[name]))
    model: Any = build_model_with_cfg(  # with features_only timm's wrapper, else a QuadtreeTransformer
        partial(
            QuadtreeTransformer, variant=kwargs.pop("variant", "b")
        ),  # timm's function has an argument of that name
        name,
        pretrained,
        pretrained_cfg=cfg.to_dict(),
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(flatten_sequential=True, out_indices=kwargs.pop("out_indices", (0, 1, 2, 3))),
        **kwargs,
    )
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _cfg(name: str) -> dict[str, Any]:
    return dict(
        url=PUBLISHED[name].url,
        license=PUBLISHED[name].licence,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,  # as validated by the published code, DeiT's
        interpolation="bicubic",
        first_conv="patch_embed.proj",
        classifier="head",
        paper_ids="arXiv:2201.02767",
        origin_url="https://github.com/Tangshitao/QuadTreeAttention",
    )


default_cfgs = generate_default_cfgs({f"quadtree_b{n}.in1k": _cfg(f"quadtree_b{n}") for n in range(5)})


@register_model
def quadtree_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """3.6 M parameters, 0.6 G multiply-accumulates at 224x224."""
    return _create("quadtree_b0", pretrained, **{"depths": (2, 2, 2, 2), "embed_dims": (32, 64, 160, 256), **kwargs})


@register_model
def quadtree_b1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """13.7 M parameters, 2.3 G multiply-accumulates at 224x224."""
    return _create("quadtree_b1", pretrained, **{"depths": (2, 2, 2, 2), **kwargs})


@register_model
def quadtree_b2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """25.1 M parameters, 4.5 G multiply-accumulates at 224x224."""
    return _create("quadtree_b2", pretrained, **{"depths": (3, 4, 6, 3), **kwargs})


@register_model
def quadtree_b3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """46.3 M parameters, 7.8 G multiply-accumulates at 224x224."""
    return _create("quadtree_b3", pretrained, **{"depths": (3, 4, 18, 3), **kwargs})


@register_model
def quadtree_b4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """64.2 M parameters, 11.4 G multiply-accumulates at 224x224."""
    return _create("quadtree_b4", pretrained, **{"depths": (3, 8, 27, 3), **kwargs})
