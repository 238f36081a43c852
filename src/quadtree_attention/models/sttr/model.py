"""STTR: a rectified pair of images in; disparity, occlusion and confidence out."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..pretrained import FromPretrained
from .assignment import optimal_transport, regress, spread
from .config import STTRConfig
from .context import ContextAdjustment
from .features import FeatureExtractor
from .fine import CELL, EDGE, Fine, FineMatching
from .transformer import RowTransformer


class StereoOutput(NamedTuple):
    """What `STTR` finds, for the left image.

    disparity: ``[B, H, W]`` in pixels, left x - disparity = right x; never negative.
    occlusion: ``[B, H, W]`` in 0..1, whether the right image does not show the pixel.
    confidence: ``[B, H, W]`` in 0..1, the share of the pixel's token that is assigned near its disparity.
    raw: disparity ``[B, h, w]`` of the tokens in pixels, before fine matching and context adjustment.
    shares: logarithms ``[B, h, w + 1, w + 1]`` of the assignment, left by right, dustbins last; see `optimal_transport`.
    logit: of occlusion, ``[B, H, W]``.
    fine: what fine matching found; None without it.
    """

    disparity: Tensor
    occlusion: Tensor
    confidence: Tensor
    raw: Tensor
    shares: Tensor
    logit: Tensor
    fine: Fine | None = None


class STTR(FromPretrained, nn.Module):
    """Stereo by attention along rows (STTR, Li et al., ICCV 2021), full or quadtree; images of any size, no largest disparity.

    Args:
        config: see `STTRConfig`; `STTR_PRESETS` has some.
    """

    kind: ClassVar = "stereo"

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.config = config
        self.features = FeatureExtractor(config)
        self.transformer = RowTransformer(config)
        self.dustbin = nn.Parameter(torch.zeros(()))
        self.fine = FineMatching(config) if config.fine_dim else None
        self.context = ContextAdjustment(config)

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        """Disparity of rectified pairs.

        Args:
            left, right: ``[B, 3, H, W]`` in 0..1, of one size, at least one pixel.

        Returns:
            `StereoOutput`. For the right view, see `right_view`.

        Raises:
            ValueError: images of another form.
        """
        tokens, maps = self._encode(left, right)
        scores = self.transformer(*tokens)
        shares = optimal_transport(scores, self.dustbin, self.config.sinkhorn_iterations)
        found = regress(shares[..., :-1, :-1].exp())
        left, stride, size = self._normalised(left), self.config.stride, (left.shape[-2], left.shape[-1])
        raw = found.disparity * stride
        fine = None if self.fine is None else self.fine(*maps, raw, found.confidence)
        disparity = spread(raw, size, stride, stride / 4) if fine is None else spread(fine.best(), size, CELL, EDGE)
        confidence = spread(found.confidence, size, stride, edge=1.0)
        adjusted, logit = self.context(disparity[:, None], 1 - confidence[:, None], left)
        return StereoOutput(adjusted[:, 0], logit[:, 0].sigmoid(), confidence, raw, shares, logit[:, 0], fine)

    def scores(self, left: Tensor, right: Tensor) -> Tensor:
        """How well each left token matches each right token in its row, ``[B, h, w, w]``, before any constraint."""
        return self.transformer(*self._encode(left, right)[0])

    def _encode(self, left: Tensor, right: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """Tokens of both images, and what fine matching needs: the maps at 1/2 and at 1/4 of left images, then of right ones."""
        _check_pair(left, right)
        pair = [self._normalised(image) for image in (left, right)]
        if self.training or torch.is_grad_enabled():
            pair = [torch.cat(pair)]
        tokens, maps = [], []
        for images in pair:  # one after the other, they need half the memory
            features, half = self.features(images)
            tokens.append(self.tokens(features))
            if self.fine is not None:
                maps.append((half, features))
            del features, half
        left_tokens, right_tokens = torch.cat(tokens).chunk(2)
        return (left_tokens, right_tokens), tuple(torch.cat(both) for both in zip(*maps, strict=True))

    def _normalised(self, image: Tensor) -> Tensor:
        """Normalise each image to mean 0 and deviation 1, over all channels."""
        image = image.to(self.dustbin.dtype)
        deviation, mean = torch.std_mean(image, (1, 2, 3), keepdim=True, correction=0)
        return (image - mean) / (deviation + 1e-3)

    def tokens(self, features: Tensor) -> Tensor:
        """Tokens ``[B, h, w, dim]``; (r, c) is the feature in the middle of its square of ``stride`` pixels."""
        step = self.config.stride // self.config.resolution
        first = min(step // 2, *(side - 1 for side in features.shape[-2:]))
        features = features[..., first::step, first::step]
        # Under autocast the map is in half precision; the residual stream of the transformer is not.
        return features.permute(0, 2, 3, 1).to(self.dustbin.dtype).contiguous()


def right_view(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and exchange the views: the disparity of the result, mirrored back, is that of the right image.

    >>> disparity = model(*right_view(left, right)).disparity.flip(-1)  # right x + disparity = left x
    """
    return right.flip(-1), left.flip(-1)


def _check_pair(left: Tensor, right: Tensor) -> None:
    for name, image in (("left", left), ("right", right)):
        if image.dim() != 4 or image.shape[1] != 3:
            raise InputError(
                f"{name} has shape {tuple(image.shape)}, expected [B, 3, H, W]; repeat the channel of a grey image"
            )
        if not image.is_floating_point():
            raise InputError(
                f"{name} has dtype {image.dtype}, expected floats in 0..1; convert it with {name}.float() / 255"
            )
        if 0 in image.shape:
            raise InputError(f"{name} has shape {tuple(image.shape)}, expected at least one image and one pixel")
    if left.shape != right.shape:
        raise InputError(
            f"left has shape {tuple(left.shape)} and right {tuple(right.shape)}, expected one shape: views of a rectified pair"
        )
