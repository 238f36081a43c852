"""torchvision's RetinaNet and Mask R-CNN, changed to compute what the published detectors compute.

Both take a list of images ``[3, H, W]`` in 0..1, of any sizes; in training also targets, dicts of boxes ``[N, 4]`` (x0, y0, x1, y1 in pixels), labels
int64 ``[N]``, 0 for the first class, and for Mask R-CNN masks ``[N, H, W]``, and return a dict of losses; otherwise they return for each
image a dict of boxes, labels, scores ``[N]``, surest first, and masks bool ``[N, H, W]``, in pixels of the image as given.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead

from ...nn.base import sum_dtype
from ..pretrained import FromPretrained
from .config import DetectorConfig
from .parts import AlignedRoIAlign, Anchors, ClippedBoxCoder, Preparation, Pyramid, group_norm


class RetinaNet(FromPretrained, detection.RetinaNet):
    """RetinaNet (arXiv 1708.02002) over a timm backbone."""

    kind: ClassVar = "detector"

    def __init__(self, config: DetectorConfig) -> None:
        backbone = Pyramid(config)
        anchors = Anchors(backbone.strides, config.anchor_scale or 4, 3)
        head = RetinaNetHead(
            config.channels, anchors.num_anchors_per_location()[0], len(config.labels), group_norm(config)
        )
        for part in (head.classification_head, head.regression_head):
            part.conv = part.conv[: config.convs]
        super().__init__(
            backbone,
            len(config.labels),
            anchor_generator=anchors,
            head=head,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.max_detections,
            topk_candidates=2**31 - 1,  # see postprocess_detections
        )
        self.config = config
        self.box_coder = head.regression_head.box_coder = ClippedBoxCoder((1.0, 1.0, 1.0, 1.0))
        self.transform = _preparation(config)

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """As in torchvision, but the candidates of a level are the anchors with the highest score of any class, with all their classes.

        torchvision counts each class of an anchor as a separate candidate.
        """
        levels = []
        for logits in head_outputs["cls_logits"]:  # [B, anchors, classes]
            if logits.shape[1] > self.config.candidates:
                best = logits.max(2).values
                kept = best.topk(self.config.candidates, 1).indices
                left_out = torch.ones_like(best, dtype=torch.bool).scatter(1, kept, False)
                logits = logits.masked_fill(left_out[..., None], -math.inf)
            levels.append(sum_dtype(logits))
        return super().postprocess_detections({**head_outputs, "cls_logits": levels}, anchors, image_shapes)


class MaskRCNN(FromPretrained, detection.MaskRCNN):
    """Mask R-CNN (arXiv 1703.06870) over a timm backbone."""

    kind: ClassVar = "detector"

    def __init__(self, config: DetectorConfig) -> None:
        backbone = Pyramid(config)
        classes = len(config.labels) + 1  # torchvision's 0 is the background
        norm = group_norm(config)
        super().__init__(
            backbone,
            rpn_anchor_generator=Anchors(backbone.strides, config.anchor_scale or 8, 1),
            rpn_pre_nms_top_n_test=config.candidates,
            rpn_post_nms_top_n_train=1000,
            rpn_post_nms_top_n_test=config.candidates,
            box_roi_pool=AlignedRoIAlign(backbone.strides[:4], 7),
            box_head=TwoMLPHead(config.channels * 7**2, config.features),
            box_predictor=detection.faster_rcnn.FastRCNNPredictor(config.features, classes),
            box_score_thresh=config.score_threshold,
            box_nms_thresh=config.nms_threshold,
            box_detections_per_img=config.max_detections,
            mask_roi_pool=AlignedRoIAlign(backbone.strides[:4], 14),
            mask_head=MaskRCNNHeads(config.channels, (config.channels,) * 4, 1, norm),
            mask_predictor=MaskRCNNPredictor(config.channels, config.channels, classes),
        )
        self.config = config
        self.rpn.box_coder = ClippedBoxCoder((1.0, 1.0, 1.0, 1.0))
        self.roi_heads.box_coder = ClippedBoxCoder((10.0, 10.0, 5.0, 5.0))
        self.transform = _preparation(config)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, else detections; see the top of this file."""
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        out = super().forward(images, targets)
        if self.training:
            return out
        return [{**found, "labels": found["labels"] - 1} for found in out]


def _preparation(config: DetectorConfig) -> nn.Module:
    return Preparation(config.min_size, config.max_size, list(config.mean), list(config.std), size_divisible=32)
