"""Parts for torchvision's detectors, where the published ones (mmdetection 2.13) differ from it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from ...compat import BoxCoder
from ...errors import InputError
from ...nn.base import sum_dtype
from ..classifier import build_backbone
from .config import DetectorConfig

MASK_THRESHOLD = 0.5
FINEST_BOX = 56  # boxes of less than twice this size, in pixels, use the finest map


class ExtraLevels(ExtraFPNBlock):
    """Adds coarser maps, each half the size, by strided convolutions: the first from the backbone's last map, without ReLU between them.

    torchvision starts from the pyramid's last map if it has as many channels as the backbone's, and has a ReLU before P7.
    """

    def __init__(self, in_channels: int, out_channels: int, levels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(out_channels if level else in_channels, out_channels, 3, 2, 1) for level in range(levels)]
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # convolutions may lack one
        self.convs = nn.ModuleList(convs)

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        x = c[-1]
        for n, conv in enumerate(self.convs):
            x = conv(x)
            p.append(x)
            names.append(f"extra{n}")
        return p, names


class Pyramid(nn.Module):
    """A timm backbone with torchvision's feature pyramid.

    Maps images ``[B, 3, H, W]`` to a dict of maps ``[B, channels, H/s, W/s]`` (rounded up), fine to coarse, s in ``strides``.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        body = build_backbone(config.backbone, features_only=True, **config.options)
        wanted = [8, 16, 32] if config.detector == "retinanet" else [4, 8, 16, 32]
        reduction = body.feature_info.reduction()
        if missing := [stride for stride in wanted if stride not in reduction]:
            raise InputError(
                f"{config.backbone} has maps at 1/{', 1/'.join(map(str, reduction))}, expected one at 1/{missing[0]} too"
            )
        if config.frozen_norm:
            body = _frozen(body)
        self.body, self.out_channels = body, config.channels
        self.chosen = [reduction.index(stride) for stride in wanted]
        channels = [body.feature_info.channels()[place] for place in self.chosen]
        if config.detector == "retinanet":
            extra = ExtraLevels(channels[-1], config.channels, config.extra_levels)
            self.strides = wanted + [64, 128][: config.extra_levels]
        else:
            extra = LastLevelMaxPool()
            self.strides = [*wanted, 64]
        self.fpn = FeaturePyramidNetwork(channels, config.channels, extra, group_norm(config))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return self.fpn(OrderedDict((str(n), maps[place]) for n, place in enumerate(self.chosen)))


class Anchors(AnchorGenerator):
    """Anchors around multiples of the published strides, of exact sizes.

    torchvision rounds their corners, and divides the image's size by the map's, which is not the stride where a map's size was rounded up. The
    order is the same: row by row, then aspect ratio, then size.
    """

    def __init__(self, strides: Sequence[int], scale: float, octaves: int) -> None:
        sizes = tuple(tuple(scale * stride * 2 ** (n / octaves) for n in range(octaves)) for stride in strides)
        super().__init__(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = list(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Corners ``[ratios * scales, 4]`` around the origin; ratios are height over width."""
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        half = torch.stack((sizes / roots[:, None], sizes * roots[:, None]), -1).flatten(0, 1) / 2
        return torch.cat((-half, half), 1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors ``[A, 4]`` of each image, in float32 or better."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.promote_types(feature_maps[0].dtype, torch.float32), device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([tuple(one.shape[-2:]) for one in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class ClippedBoxCoder(BoxCoder):
    """torchvision's box coder, except that boxes cannot shrink below 16/1000 of the anchor, and are decoded in float32 or better."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Codes ``[N, 4 * classes]`` and boxes ``[N, 4]`` to ``[N, 4 * classes]``."""
        codes = sum_dtype(rel_codes).unflatten(1, (-1, 4))
        lowest = torch.tensor(
            [-math.inf, -math.inf, *(-self.bbox_xform_clip * weight for weight in self.weights[2:])],
            dtype=codes.dtype,
            device=codes.device,
        )
        return super().decode_single(codes.maximum(lowest).flatten(1), boxes)


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign with pixel centres at halves (aligned) and as many samples as a bin has pixels; the map is chosen by the size of the box.

    torchvision's is not aligned. The map follows equation 1 of the FPN paper, with 224 pixels at stride 16.
    """

    def __init__(self, strides: Sequence[int], output_size: int) -> None:
        super().__init__([str(n) for n in range(len(strides))], output_size, 0)
        self.strides = list(strides)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps ``[B, C, H, W]`` and boxes ``[N, 4]`` of each image to ``[all N, C, output_size, output_size]``."""
        maps = [x[name] for name in self.featmap_names]
        all_boxes = torch.cat(boxes)
        index = torch.cat([one.new_full((len(one), 1), n) for n, one in enumerate(boxes)])
        sides = all_boxes[:, 2:] - all_boxes[:, :2]
        level = torch.floor(torch.log2(sides.prod(1).sqrt() / FINEST_BOX + 1e-6)).clamp(0, len(maps) - 1)
        out = maps[0].new_zeros(len(all_boxes), maps[0].shape[1], *self.output_size)
        for n, (one, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.where(level == n)[0]
            one = sum_dtype(one)
            rois = torch.cat((index[here], all_boxes[here]), 1).to(one.dtype)
            pooled = roi_align(one, rois, self.output_size, 1 / stride, sampling_ratio=0, aligned=True)
            out[here] = pooled.to(out.dtype)
        return out


class Preparation(GeneralizedRCNNTransform):
    """torchvision's transform, with sizes rounded and masks pasted as published. It does not resize in training, where the data loader does."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        if self.training:
            return image, target
        height, width = image.shape[-2:]
        size = scaled_size((height, width), self.min_size[0], self.max_size)
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0], target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if self.training:
            return result
        for found, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], shape, original)
            if "masks" in found:
                found["masks"] = paste_masks(found["masks"][:, 0], found["boxes"], original)
        return result


def scaled_size(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is ``min_size``, or the longer one ``max_size`` if that is smaller; rounded."""
    factor = min(min_size / min(size), max_size / max(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste masks, given inside their boxes, into the whole image, sampled at pixel centres.

    Args:
        masks: ``[N, M, M]`` in 0..1.
        boxes: ``[N, 4]`` in pixels.
        size: (H, W) of the image.

    Returns:
        bool ``[N, H, W]``.
    """
    out = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for mask, box, canvas in zip(masks, boxes, out, strict=True):
        x0, y0, x1, y1 = box.tolist()
        left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
        right, bottom = min(math.ceil(x1) + 1, size[1]), min(math.ceil(y1) + 1, size[0])
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        xs = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        ys = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1)
        pasted = F.grid_sample(mask[None, None].float(), grid[None].float(), align_corners=False)[0, 0]
        canvas[top:bottom, left:right] = pasted >= MASK_THRESHOLD
    return out


def group_norm(config: DetectorConfig) -> type[nn.Module] | None:
    """The norm layer of pyramid and heads, in the form that torchvision takes."""
    return None if config.norm == "none" else EightGroups


class EightGroups(nn.GroupNorm):
    """GroupNorm with 8 groups."""

    def __init__(self, channels: int) -> None:
        super().__init__(8, channels)


def _frozen(body: nn.Module) -> nn.Module:
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(body)
