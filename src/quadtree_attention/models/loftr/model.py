"""LoFTR: two images in, matches out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...compat import multiplies_bfloat16
from ...errors import InputError
from ..pretrained import FromPretrained
from .backbone import ResNetFPN
from .config import LoFTRConfig
from .matching import (
    MASKED,
    FineWindows,
    dot_products,
    dual_softmax,
    expected_position,
    heat_map,
    log_optimal_transport,
    select_matches,
)
from .position import sine_encoding
from .tiles import coarse_matches
from .transformer import coarse_transformer, fine_transformer

STRIDE = 8  # pixels a coarse cell
FINE_STRIDE = 2  # pixels a cell of the fine map
WINDOWS = 128  # matches refined at a time on a CPU, outside training: what is computed for them stays in its cache


class Maps(NamedTuple):
    """What the backbone finds in images ``[B, 1, H, W]``: ``[B, h, w, C]`` at 1/8, ``h = ceil(H / 8)``, and ``[B, Cf, 4h, 4w]`` at 1/2."""

    coarse: Tensor
    fine: Tensor


@dataclass(frozen=True)
class Features:
    """What `LoFTR.encode` finds in a pair of images.

    coarse0, coarse1: ``[B, h, w, C]`` at 1/8, after the transformer, ``h = ceil(H / 8)``.
    fine0, fine1: ``[B, Cf, 4h, 4w]`` at 1/2.
    mask0, mask1: bool ``[B, h, w]``, True = valid, or None.

    Cell (row r, column c) at 1/8 stands for pixel (x, y) = (8c, 8r).
    """

    coarse0: Tensor
    coarse1: Tensor
    fine0: Tensor
    fine1: Tensor
    mask0: Tensor | None = None
    mask1: Tensor | None = None


class LoFTR(FromPretrained, nn.Module):
    """Detector-free matching of two images (LoFTR, Sun et al., CVPR 2021), with quadtree or another attention at 1/8.

    Args:
        config: see `LoFTRConfig`; `LOFTR_PRESETS` has some.
    """

    kind: ClassVar = "matcher"

    def __init__(self, config: LoFTRConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNetFPN(config.initial_dim, config.block_dims, config.blocks_per_stage)
        self.coarse = coarse_transformer(config)
        if config.matching == "optimal_transport":
            self.bin_score = nn.Parameter(torch.tensor(1.0))
        self.windows = FineWindows(config.d_model, config.d_fine, config.fine_window)
        self.fine = fine_transformer(config)

    @overload
    def forward(
        self,
        image0: Tensor,
        image1: Tensor,
        mask0: Tensor | None = ...,
        mask1: Tensor | None = ...,
        *,
        threshold: float | None = ...,
    ) -> dict[str, Tensor]: ...
    @overload
    def forward(self, image0: Mapping[str, Any], *, threshold: float | None = ...) -> dict[str, Tensor]: ...
    def forward(
        self,
        image0: Tensor | Mapping[str, Any],
        image1: Tensor | None = None,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
        *,
        threshold: float | None = None,
    ) -> dict[str, Tensor]:
        """Match pairs of images.

        Args:
            image0, image1: ``[B, 1, H, W]`` in 0..1, each of any size. In place of both, and of the masks, a dict as `kornia.feature.LoFTR`
                takes it: "image0", "image1" and, if there are any, "mask0" and "mask1", whose dtype may be any, 0 = padding.
            mask0, mask1: bool, True = valid, ``[B, H, W]`` or ``[B, ceil(H / 8), ceil(W / 8)]``, told by their shape.
            threshold: least confidence of a match; by default the configuration's.

        Returns:
            dict of ``keypoints0``, ``keypoints1`` ``[M, 2]`` (x, y) in pixels, ``confidence`` ``[M]`` and
            ``batch_indexes`` ``[M]`` int64; rows by image, then by cell of image 0. No match gives empty tensors.

        Raises:
            ValueError: images or masks of another form.
        """
        if isinstance(image0, Mapping):
            image0, image1, mask0, mask1 = _from_dict(image0, (image1, mask0, mask1))
        if image1 is None:
            raise InputError("image1 is missing, expected two batches of images, or a dict with image0 and image1")
        return self.matches(self.encode(image0, image1, mask0, mask1), threshold)

    def matches(self, features: Features, threshold: float | None = None) -> dict[str, Tensor]:
        """What `forward` returns, from what `encode` has found; the confidences of all pairs of cells are never held at once."""
        dustbin = self.bin_score if self.config.matching == "optimal_transport" else None
        config = replace(
            self.config,
            prefilter=self.config.prefilter and not self.training,
            threshold=self.config.threshold if threshold is None else threshold,
        )
        b, i, j, score = coarse_matches(
            features.coarse0, features.coarse1, features.mask0, features.mask1, config, dustbin
        )
        offset = self.refine(features, b, i, j)[:, :2] * (self.config.fine_window // 2 * FINE_STRIDE)
        return {
            "keypoints0": _pixels(i, features.coarse0).to(offset),
            "keypoints1": _pixels(j, features.coarse1).to(offset) + offset,
            "confidence": score,
            "batch_indexes": b,
        }

    def encode(
        self, image0: Tensor, image1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
    ) -> Features:
        """Backbone, position encoding and coarse transformer; arguments as in `forward`."""
        _check_image("image0", image0)
        _check_image("image1", image1)
        if image0.shape[0] != image1.shape[0]:
            raise InputError(
                f"got {image0.shape[0]} image0 and {image1.shape[0]} image1, expected as many of one as of the other"
            )
        mask0, mask1 = _cell_mask("mask0", mask0, image0), _cell_mask("mask1", mask1, image1)
        if self.training and _cells(image0) == _cells(image1):  # batch norm then sees both images at once
            both = self.describe(torch.cat([_padded(image0), _padded(image1)]))
            maps0, maps1 = map(Maps, both.coarse.chunk(2), both.fine.chunk(2))
        else:
            maps0, maps1 = self.describe(image0), self.describe(image1)
        return self.relate(maps0, maps1, mask0, mask1)

    def describe(self, image: Tensor) -> Maps:
        """What the backbone finds in images ``[B, 1, H, W]``, whatever they are matched with."""
        _check_image("image", image)
        dtype = self.backbone.conv1.weight.dtype
        short = not self.training and dtype == torch.float32 and self._is_short(image.device)
        with torch.autocast(image.device.type, torch.bfloat16) if short else nullcontext():
            coarse, fine = self.backbone(_padded(image.to(dtype)))
        # Under autocast the maps are in half precision; the residual stream of the transformer is not.
        return Maps(self._tokens(coarse.to(dtype)), fine)

    def _is_short(self, device: torch.device) -> bool:
        """Whether the backbone is to multiply in bfloat16."""
        if self.config.precision == "auto":
            return device.type == "cpu" and multiplies_bfloat16()
        return self.config.precision == "bfloat16"

    def relate(self, maps0: Maps, maps1: Maps, mask0: Tensor | None = None, mask1: Tensor | None = None) -> Features:
        """The coarse transformer on what `describe` found in either image; masks bool ``[B, h, w]``, True = valid."""
        respected = (mask0, mask1) if self.config.respect_masks else (None, None)
        coarse0, coarse1 = self.coarse(maps0.coarse, maps1.coarse, *respected)
        return Features(coarse0, coarse1, maps0.fine, maps1.fine, mask0, mask1)

    def confidence(self, features: Features) -> Tensor:
        """Confidence of every pair of cells ``[B, h0 * w0, h1 * w1]``."""
        return self.without_dustbins(self.assignment(features))

    def assignment(self, features: Features) -> Tensor:
        """The same as `confidence`; with optimal transport, with the dustbins, ``[B, h0 * w0 + 1, h1 * w1 + 1]``.

        See `dual_softmax` and `log_optimal_transport`.
        """
        mask0, mask1 = (None if mask is None else mask.flatten(1) for mask in (features.mask0, features.mask1))
        coarse0, coarse1 = features.coarse0.flatten(1, 2), features.coarse1.flatten(1, 2)
        if self.config.matching == "dual_softmax":
            return dual_softmax(coarse0, coarse1, self.config.temperature, mask0, mask1)
        similarity = dot_products(coarse0, coarse1, coarse0.shape[-1])
        for mask, axis in ((mask0, 2), (mask1, 1)):
            if mask is not None:
                similarity = similarity.masked_fill(~mask.unsqueeze(axis), MASKED)
        return log_optimal_transport(similarity, self.bin_score, self.config.sinkhorn_iterations, mask0, mask1).exp()

    def without_dustbins(self, assignment: Tensor) -> Tensor:
        """The confidences in the result of `assignment`, 0 where ``prefilter`` drops a cell."""
        if self.config.matching == "dual_softmax":
            return assignment
        confidence = assignment[:, :-1, :-1]
        if self.config.prefilter and not self.training:
            lost0 = assignment[:, :-1].argmax(2) == confidence.shape[2]
            lost1 = assignment[:, :, :-1].argmax(1) == confidence.shape[1]
            confidence = confidence.masked_fill(lost0[:, :, None] | lost1[:, None, :], 0.0)
        return confidence

    def select(self, confidence: Tensor, features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image in the batch, cell of image 0, cell of image 1, confidence, each ``[M]``; see `select_matches`."""
        _, height0, width0, _ = features.coarse0.shape
        _, height1, width1, _ = features.coarse1.shape
        return select_matches(
            confidence,
            (height0, width0),
            (height1, width1),
            threshold=self.config.threshold,
            border=self.config.border,
            mask0=features.mask0,
            mask1=features.mask1,
        )

    def refine(self, features: Features, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Where the centre of cell ``i`` of image 0 lies in the window around cell ``j`` of image 1.

        Returns ``[M, 3]``: x and y in units of the window's radius (``fine_window // 2`` cells of the fine map), and
        the standard deviation.
        """
        if torch.is_grad_enabled() or b.device.type != "cpu":
            return expected_position(self.heat(features, b, i, j))
        parts = zip(*(x.split(WINDOWS) for x in (b, i, j)), strict=True)
        return torch.cat([expected_position(self.heat(features, *part)) for part in parts])

    def heat(self, features: Features, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The heat map over each window whose mean `refine` takes, ``[M, fine_window**2]``."""
        windows0 = self.windows(features.fine0, features.coarse0, b, i)
        windows1 = self.windows(features.fine1, features.coarse1, b, j)
        return heat_map(*self.fine(windows0, windows1))

    def _tokens(self, coarse: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, h, w, C]``, with the position encoding added."""
        channels, height, width = coarse.shape[1:]
        tokens = coarse.permute(0, 2, 3, 1)
        if self.config.position == "none":
            return tokens
        bug = self.config.position == "sine_bug"
        return tokens + sine_encoding(height, width, channels, bug=bug, device=coarse.device).to(coarse.dtype)


def _from_dict(
    data: Mapping[str, Any], others: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Images and masks of kornia's dict; other keys are left alone, as in kornia."""
    if any(other is not None for other in others):
        raise InputError("got a dict and further images or masks, expected all of them in the dict")
    for name in ("image0", "image1"):
        if name not in data:
            raise InputError(f"the dict has no {name}, only {', '.join(map(str, data))}; expected image0 and image1")
    mask0, mask1 = (None if data.get(name) is None else data[name].bool() for name in ("mask0", "mask1"))
    return data["image0"], data["image1"], mask0, mask1


def _pixels(token: Tensor, coarse: Tensor) -> Tensor:
    """The pixels (x, y) ``[M, 2]`` of row-major cells ``[M]`` of ``coarse`` ``[B, h, w, C]``."""
    width = coarse.shape[2]
    return torch.stack([token % width, token // width], 1) * STRIDE


def _padded(image: Tensor) -> Tensor:
    """Repeat the last row and column until height and width are multiples of 8.

    This adds less than a cell: the top left pixel of every cell lies in the image, so no cell needs a mask.
    """
    height, width = image.shape[-2:]
    if height % STRIDE == 0 and width % STRIDE == 0:
        return image
    return F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


def _check_image(name: str, image: Tensor) -> None:
    if image.dim() != 4 or image.shape[1] != 1:
        raise InputError(f"{name} has shape {tuple(image.shape)}, expected [B, 1, H, W]: grey images, one channel")
    if not image.is_floating_point():
        raise InputError(
            f"{name} has dtype {image.dtype}, expected floats in 0..1; convert it with {name}.float() / 255"
        )
    if 0 in image.shape:
        raise InputError(f"{name} has shape {tuple(image.shape)}, expected at least one image and one pixel")


def _cells(image: Tensor) -> tuple[int, int]:
    """Height and width of images ``[B, 1, H, W]`` in cells."""
    return -(-image.shape[-2] // STRIDE), -(-image.shape[-1] // STRIDE)


def _cell_mask(name: str, mask: Tensor | None, image: Tensor) -> Tensor | None:
    """The mask at 1/8: a cell is valid if its top left pixel is."""
    if mask is None:
        return None
    batch, _, height, width = image.shape
    cells = (batch, -(-height // STRIDE), -(-width // STRIDE))
    if mask.dtype != torch.bool:
        raise InputError(
            f"{name} has dtype {mask.dtype}, expected torch.bool, True = valid; convert it with {name}.bool()"
        )
    if tuple(mask.shape) == cells:
        return mask
    if tuple(mask.shape) == (batch, height, width):
        return mask[:, ::STRIDE, ::STRIDE]
    shapes = f"{(batch, height, width)}, the image's, or {cells}, at 1/8"
    raise InputError(f"{name} has shape {tuple(mask.shape)}, expected {shapes}")
