"""Matching: two images of any kind in, matches in their pixels out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ..data.images import read_image
from ..errors import InputError
from ..models.loftr import LoFTR
from .alignment import Found, Masks, View, Views, best_look, whole_view
from .base import Predictor
from .confidence import probability, select_confident
from .finite import check_finite
from .matches import Matches
from .refinement import refine as refined_matches

BATCH = 4  # pairs that run together: each needs some hundred MB at 640x480 pixels

Input = tuple[Tensor, Tensor | None]  # image and mask, as the network takes them


class Matcher(Predictor):
    """Matches images with a `LoFTR`.

    Args:
        model: the network. It stays as it is: on its device, in its mode. Its weights are shared, not copied. On a CPU, convolutions take half the
            time after ``model.to(memory_format=torch.channels_last)``; `from_pretrained` does that.
        device: where to run it, such as "cpu" or "cuda"; by default where it is. Another device takes a copy of the weights.
    """

    model: LoFTR

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "tiny", *, device: str | torch.device | None = None, **options: Any
    ) -> Matcher:
        """Load weights.

        Args:
            name_or_path: "tiny" comes with the package; "indoor" and "outdoor" are downloaded once; or the path of a file or of a folder of
                `save_pretrained`; or "hf-hub:OWNER/NAME".
            device: where to run; by default a CUDA GPU if there is one.
            options: fields of `LoFTRConfig` to change that the weights do not depend on: ``topk=(32, 16)``, ``respect_masks=False``, ...

        Raises:
            ValueError, OSError: an unknown name or option, a file that cannot be read, weights that do not fit.
        """
        return cls._loaded(name_or_path, "matcher", device, channels_last=True, **options)

    @overload
    def match(
        self,
        image0: Any,
        image1: Any,
        *,
        mask0: Any = ...,
        mask1: Any = ...,
        max_size: int = ...,
        threshold: float | None = ...,
        pad_to: int | None = ...,
        align: bool = ...,
        refine: bool = ...,
    ) -> Matches: ...
    @overload
    def match(
        self,
        image0: Sequence[tuple[Any, Any]],
        *,
        mask0: Sequence[Any] | None = ...,
        mask1: Sequence[Any] | None = ...,
        max_size: int = ...,
        threshold: float | None = ...,
        pad_to: int | None = ...,
        align: bool = ...,
        refine: bool = ...,
    ) -> list[Matches]: ...
    def match(
        self,
        image0: Any,
        image1: Any = None,
        *,
        mask0: Any = None,
        mask1: Any = None,
        max_size: int = 640,
        threshold: float | None = None,
        pad_to: int | None = None,
        align: bool = True,
        refine: bool = True,
    ) -> Matches | list[Matches]:
        """Match two images, or a list of pairs.

        Args:
            image0, image1: of any size each; a path, PIL image, numpy array or torch tensor, see `data.images.read_image`. In place of both, a list
                of pairs (image 0, image 1): those whose sizes agree run in batches of up to 4.
            mask0, mask1: bool ``[H, W]``, True = valid, numpy arrays or torch tensors of the images' sizes; nothing is matched elsewhere. For a
                list of pairs, lists with a mask or None for each.
            max_size: images are shrunk until their longer side is at most this many pixels. Larger finds more and takes longer. After
                that, each side must have at least 32 pixels.
            threshold: least confidence of a match, 0..1. By default it is what the model was made with. A calibrated model, such as "tiny", has
                0.85 with ``refine``, or less where this leaves fewer than 1000 matches, down to 0.3.
            pad_to: pad both images at the right and the bottom to squares of this side, with masks, as in the published evaluation on
                MegaDepth. Attention sees the padding where the configuration has ``respect_masks=False``, as the
                published network does; else it changes little, and only near the edges.
            align: where the matches say that the images differ in scale (by a fifth) or rotation (by 10 degrees), align the coarser image with
                the other and match again. Where they do not agree at all, try quarter turns and other scales first. The matches that
                agree most with each other are kept. An addition to LoFTR, whose published evaluations go without; where it happens, matching
                takes two to three times as long.
            refine: move points of image 0 to distinctive pixels near them, and align the patches around matches, to a fraction of a pixel; see
                `predict.refinement`. With a calibrated model, such as "tiny", the confidence is then the probability that a match is
                within 3 pixels of the truth. An addition to LoFTR too.

        Returns:
            `Matches`, in pixels of the images as given; for a list of pairs, a list of them.

        Raises:
            ValueError, OSError: bad images or options, or a network that gives NaN or infinity.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}, expected 0..1")
        if single := not isinstance(image0, list | tuple):
            image0, mask0, mask1 = [(image0, image1)], [mask0], [mask1]
        elif image1 is not None:
            raise InputError(
                "image0 is a list and image1 was given too, expected a list of pairs (image 0, image 1) alone"
            )
        pairs = _read_pairs(image0, mask0, mask1, max_size, single)
        calibration = self.model.config.calibration if refine else ()
        least = threshold
        if threshold is not None and calibration:  # the threshold then applies to the calibrated confidence
            least = min(threshold, self.model.config.threshold)
        find = partial(self.find, pad_to=pad_to, threshold=least)
        matches = []
        for pair, found in zip(pairs, find([pair.views for pair in pairs]), strict=True):
            if align:
                look = best_look(pair.images, pair.views, lambda *views: find([views])[0], found, pair.masks)
                (view0, view1), found = (look.view0, look.view1), look.found
            else:
                view0, view1 = pair.views
            points0, points1, confidence = found
            if refine:
                refined = refined_matches(view0.gray, view1.gray, points0, points1, confidence, self.device)
                points0, points1 = refined.points0, refined.points1
                if calibration:
                    confidence = probability(calibration, confidence, refined)
                    rows = select_confident(confidence) if threshold is None else confidence > threshold
                    points0, points1, confidence = points0[rows], points1[rows], confidence[rows]
            keypoints = view0.map_to_given(points0), view1.map_to_given(points1)
            rows = _unmasked(pair.masks[0], keypoints[0]) & _unmasked(pair.masks[1], keypoints[1])
            matches.append(
                Matches(keypoints[0][rows], keypoints[1][rows], confidence[rows], scale=max(view0.scale, view1.scale))
            )
        return matches[0] if single else matches

    def find(self, views: Sequence[Views], *, pad_to: int | None = None, threshold: float | None = None) -> list[Found]:
        """Match pairs of views with the network alone, in their pixels; pairs of the same sizes run together. Options as in `match`."""
        inputs = [[_network_input(view, pad_to) for view in pair] for pair in views]
        alike = defaultdict(list)
        for n, pair in enumerate(inputs):
            alike[tuple((gray.shape, mask is None) for gray, mask in pair)].append(n)
        found: dict[int, Found] = {}
        for numbers in alike.values():
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                found |= zip(batch, self._find_batch([inputs[n] for n in batch], threshold), strict=True)
        return [found[n] for n in range(len(views))]

    def _find_batch(self, inputs: Sequence[Sequence[Input]], threshold: float | None) -> list[Found]:
        grays, masks = ([self._stacked([pair[side][part] for pair in inputs]) for side in (0, 1)] for part in (0, 1))
        with torch.inference_mode():
            features = self.model.encode(*grays, *masks)  # type: ignore[arg-type]  # grays are never None
            check_finite([features.coarse0, features.coarse1])  # NaN would give no match
            found = self.model.matches(features, threshold)
        check_finite(found)
        points0, points1 = (found[name].double().cpu().numpy() for name in ("keypoints0", "keypoints1"))
        sure, owner = found["confidence"].float().cpu().numpy(), found["batch_indexes"].cpu().numpy()
        return [Found(points0[owner == n], points1[owner == n], sure[owner == n]) for n in range(len(inputs))]

    def _stacked(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return torch.cat(tensors).to(self.device) if tensors else None


class _Pair(NamedTuple):
    """Two images ``[H, W, 3]`` uint8 as given, their masks, and the whole of each as the network sees it."""

    images: tuple[np.ndarray, np.ndarray]
    masks: Masks
    views: Views


def _read_pairs(given: Sequence[Any], masks0: Any, masks1: Any, max_size: int, single: bool) -> list[_Pair]:
    """Read a list of pairs, and check masks ``masks0`` and ``masks1``, lists of one for each or None."""
    pairs = []
    for name, masks in (("mask0", masks0), ("mask1", masks1)):
        if masks is not None and (not isinstance(masks, list | tuple) or len(masks) != len(given)):
            raise InputError(f"{name} is not a list of {len(given)}, expected a mask or None for each of the pairs")
    for n, pair in enumerate(given):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"pair {n} is a {type(pair).__name__}, expected (image 0, image 1)")
        images, masks, views = [], [], []
        for side, (source, all_masks) in enumerate(zip(pair, (masks0, masks1), strict=True)):
            where = f"{side}" if single else f"{side} of pair {n}"
            image = read_image(source)
            mask = None if all_masks is None else _checked_mask(all_masks[n], image, f"mask{where}")
            name = str(source) if isinstance(source, str | Path) else f"image{where}"
            images.append(image)
            masks.append(mask)
            views.append(whole_view(image, max_size, name, mask))
        pairs.append(_Pair((images[0], images[1]), (masks[0], masks[1]), (views[0], views[1])))
    return pairs


def _checked_mask(mask: Any, image: np.ndarray, name: str) -> np.ndarray | None:
    """A mask of an image as numpy array."""
    if mask is None:
        return None
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != bool:
        raise InputError(f"{name} has dtype {array.dtype}, expected bool, True = valid; convert it with {name} != 0")
    if array.shape != image.shape[:2]:
        raise InputError(f"{name} has shape {array.shape}, expected {image.shape[:2]}, the image's (height, width)")
    return array


def _unmasked(mask: np.ndarray | None, points: np.ndarray) -> np.ndarray:
    """Which of the pixels ``[M, 2]`` of an image are valid, bool ``[M]``."""
    if mask is None:
        return np.ones(len(points), bool)
    height, width = mask.shape
    x, y = points.round().astype(np.int64).T
    return mask[y.clip(0, height - 1), x.clip(0, width - 1)]


def _network_input(view: View, pad_to: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Image ``[1, 1, H, W]`` and, if parts of it are not to be matched, its mask, bool ``[1, H, W]``; padded with zeros to a square."""
    gray = torch.from_numpy(view.gray)[None, None]
    mask = None if view.valid is None else torch.from_numpy(view.valid)[None]
    if pad_to is None:
        return gray, mask
    height, width = gray.shape[-2:]
    if pad_to < max(height, width):
        raise InputError(f"pad_to is {pad_to}, expected at least the images' longer side, {max(height, width)} pixels")
    beyond = (0, pad_to - width, 0, pad_to - height)
    mask = gray.new_ones(1, height, width, dtype=torch.bool) if mask is None else mask
    return torch.nn.functional.pad(gray, beyond), torch.nn.functional.pad(mask, beyond)
