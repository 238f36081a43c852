"""Semantic FPN, the semantic branch of Panoptic FPN (Kirillov et al., arXiv 1901.02446), over any timm backbone with maps at 1/4 to 1/32."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import IMAGENET_MEAN, IMAGENET_STD
from ..data.recognition.ade20k import ADE20K_LABELS, IGNORE
from ..data.recognition.masks import check_sides, fitted_sizes
from ..errors import InputError, check_range
from ..extras import require
from .classifier import build_backbone
from .keys import BACKBONE, Rule, convert_by
from .pretrained import FromPretrained

STRIDES = (4, 8, 16, 32)
Norm = Literal["batch", "group"]
NORMS = get_args(Norm)


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything that defines a segmenter, except its weights.

    backbone: any name in timm, such as "quadtree_b0"; options: its further arguments; labels: names of the classes, at most 255;
    neck_channels, head_channels: widths of the pyramid and of the head; norm: of the head, "batch" (published) or "group" (as in Panoptic FPN);
    dropout: of whole maps, before the last layer; mean, std: of each channel, in 0..1, RGB; long_side, short_side: images are scaled up or down to
    the largest size that exceeds neither; divisor: each side is then stretched to the next multiple of it.
    """

    backbone: str
    labels: Sequence[str] = ADE20K_LABELS
    options: Mapping[str, Any] = field(default_factory=dict)
    neck_channels: int = 256
    head_channels: int = 128
    norm: Norm = "batch"
    dropout: float = 0.1
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    long_side: int = 2048
    short_side: int = 512
    divisor: int = 32

    def __post_init__(self) -> None:
        if not 1 <= len(self.labels) <= IGNORE:
            raise InputError(f"labels has {len(self.labels)} names, expected 1 to {IGNORE}")
        check_range("neck_channels", self.neck_channels, 1)
        check_range("head_channels", self.head_channels, 1)
        check_range("dropout", self.dropout, 0, 1)
        if self.norm not in NORMS:
            raise InputError(f"norm is {self.norm!r}, expected one of {', '.join(NORMS)}")
        if self.norm == "group" and self.head_channels % 32:
            raise InputError(f"head_channels is {self.head_channels}, expected a multiple of 32 for norm 'group'")
        check_sides(self.long_side, self.short_side, self.divisor)

    def build(self) -> SemanticFPN:
        """The network, with random weights.

        Raises:
            ValueError: a backbone that timm does not know, options that do not fit it, or one without maps at 1/4, 1/8, 1/16 and 1/32.
        """
        return SemanticFPN(self)

    def sizes_for(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) to which an image is first scaled, and then stretched; see `data.recognition.masks.fitted_sizes`."""
        return fitted_sizes(height, width, self.long_side, self.short_side, self.divisor)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How an image is prepared for the network: the arguments of `data.recognition.masks.preprocess`."""
        names = ("mean", "std", "long_side", "short_side", "divisor")
        return {name: getattr(self, name) for name in names}


class SemanticFPN(FromPretrained, nn.Module):
    """A backbone, a feature pyramid (mmsegmentation's FPN, which torchvision's equals) and a head (its FPNHead)."""

    kind: ClassVar = "segmenter"

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        ops = require("torchvision.ops", "classify")
        self.config = config
        self.backbone = build_backbone(config.backbone, features_only=True, **config.options)
        info = self.backbone.feature_info
        strides, channels = info.reduction(), info.channels()
        if not set(STRIDES) <= set(strides):
            raise InputError(
                f"backbone {config.backbone} has maps at strides {', '.join(map(str, strides))}, expected 4, 8, 16 and 32"
            )
        self._places = [strides.index(stride) for stride in STRIDES]
        self._channels_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
        self.neck = ops.FeaturePyramidNetwork([channels[place] for place in self._places], config.neck_channels)
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.head = SemanticHead(
            config.neck_channels, config.head_channels, len(config.labels), config.norm, config.dropout
        )

    @overload
    def forward(self, images: Tensor) -> Tensor: ...
    @overload
    def forward(self, images: Sequence[Tensor]) -> list[Tensor]: ...
    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Logits of each pixel.

        Args:
            images: normalised, ``[B, C, H, W]``; or a list of ``[C, H, W]`` of any sizes. Images of one size run together. Nothing is
                padded, so each image gets the same result as alone.

        Returns:
            ``[B, classes, H, W]``; or a list of ``[classes, H, W]``.
        """
        if isinstance(images, Tensor):
            logits = self.head(self.neck(self.maps(images)))
            return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        found: list[Any] = [None] * len(images)
        for size in dict.fromkeys(image.shape for image in images):
            places = [n for n, image in enumerate(images) if image.shape == size]
            for n, logits in zip(places, self(torch.stack([images[n] for n in places])), strict=True):
                found[n] = logits
        return found

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of the backbone at 1/4, 1/8, 1/16 and 1/32, in this order."""
        maps = self.backbone(images)
        maps = [maps[place] for place in self._places]
        return {f"{n}": x.permute(0, 3, 1, 2) if self._channels_last else x for n, x in enumerate(maps)}


class SemanticHead(nn.Module):
    """Upsamples each map of the pyramid to 1/4 by 3x3 convolutions and doublings; a 1x1 convolution turns their sum into logits."""

    def __init__(self, in_channels: int, channels: int, classes: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        layer = require("torchvision.ops", "classify").Conv2dNormActivation
        norm_layer = nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, 32)
        self.scales = nn.ModuleList()
        for doublings in range(len(STRIDES)):
            layers: list[nn.Module] = []
            for n in range(max(doublings, 1)):
                layers.append(layer(channels if n else in_channels, channels, norm_layer=norm_layer))
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scales.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)
        for module in self.scales.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]  # convolutions may lack one

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Maps ``[B, C, H/s, W/s]`` to logits ``[B, classes, H/4, W/4]``; sides are rounded up, and doubled maps resized to the finest one's size."""
        total: Any = 0
        for x, scale in zip(maps.values(), self.scales, strict=True):
            x = scale(x)
            if isinstance(total, Tensor) and x.shape != total.shape:
                x = F.interpolate(x, total.shape[-2:], mode="bilinear", align_corners=False)
            total = total + x
        return self.classify(self.dropout(total))


def semantic_fpn(backbone: str, labels: Sequence[str] = ADE20K_LABELS, **options: Any) -> SegmenterConfig:
    """The published configuration over a backbone: quadtree backbones have ReLU in the value branches and K = 32.

    labels: names of the classes; options: of the backbone.
    """
    if backbone.startswith("quadtree_"):
        options = {"topk": 32, "value_act": "relu", **options}
    return SegmenterConfig(backbone, labels, options)


SEGMENTER_PRESETS = {
    name: semantic_fpn(name)
    for name in (
        *(f"quadtree_b{n}" for n in range(5)),
        *(f"pvt_v2_b{n}" for n in range(6)),
        "resnet50",
        "resnet101",
        "resnext101_32x4d",
    )
}

_END = r"\.(?P<end>weight|bias|running_mean|running_var|num_batches_tracked)"
SEMANTIC_FPN = (  # mmsegmentation's EncoderDecoder of a backbone, FPN and FPNHead
    *(rule.under(r"backbone\.", "backbone.") for rule in BACKBONE),
    Rule(r"neck\.lateral_convs\.(?P<n>\d+)\.conv\.(?P<end>weight|bias)", r"neck.inner_blocks.\g<n>.0.\g<end>"),
    Rule(r"neck\.fpn_convs\.(?P<n>\d+)\.conv\.(?P<end>weight|bias)", r"neck.layer_blocks.\g<n>.0.\g<end>"),
    Rule(r"decode_head\.scale_heads\.(?P<n>\d+)\.(?P<k>\d+)\.conv\.weight", r"head.scales.\g<n>.\g<k>.0.weight"),
    Rule(r"decode_head\.scale_heads\.(?P<n>\d+)\.(?P<k>\d+)\.(bn|gn)" + _END, r"head.scales.\g<n>.\g<k>.1.\g<end>"),
    Rule(r"decode_head\.conv_seg\.(?P<end>weight|bias)", r"head.classify.\g<end>"),
)


def convert_segmenter(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the weights of a Semantic FPN with a quadtree backbone from mmsegmentation's names to ours.

    Takes a state_dict, or a checkpoint that has one under "state_dict". The result fits `SemanticFPN`; tensors share memory with the given ones.

    Raises:
        ValueError: keys that such a network does not have; the message names the first few.
    """
    state = convert_by(SEMANTIC_FPN, state_dict, "a Semantic FPN of mmsegmentation")
    # timm's features_only joins the names of modules in a sequence.
    return {re.sub(r"^backbone\.stages\.", "backbone.stages_", key): value for key, value in state.items()}
