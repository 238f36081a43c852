"""The three steps of refining in PyTorch, on any device; they define what the kernels of `refinement_cpu` compute."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 6  # of robust fitting
STIFFNESS = 0.0025  # weight of slopes of the identity, over squared radii
REACH = 3  # pixels that a point may move in image 0
CORNER, FACTOR = 0.01, 2.0  # how distinctive the new place must be, and how much more than the old one
PATCH, SPREAD = 6, 3.0  # half of a patch's side, and the standard deviation of its weights
PULL = 0.002  # cost in likeness of a squared pixel's distance from the start
STEPS = 6  # of Lucas and Kanade
PRIOR = 1.0  # standard deviation of the start, in pixels
NOISE = 0.05  # one over the number of pixels of a patch whose noise is independent
FLAT = 1e-5  # variance of grey below which a patch shows nothing


class TorchSteps:
    """The three steps of refining, as `refinement_cpu.CpuSteps` has them, on any device."""

    def __init__(self, gray0: np.ndarray, gray1: np.ndarray, device: torch.device | str) -> None:
        self.device = device
        self.gray0, self.gray1 = (
            torch.from_numpy(np.ascontiguousarray(gray, np.float32)).to(device) for gray in (gray0, gray1)
        )

    def local_maps(self, points0, points1, weights, radius, first, last):
        """See `local_maps`."""
        return local_maps(*self._there(points0, points1, weights), radius, first, last).double().cpu().numpy()

    def distinctive(self, points):
        """See `distinctive`."""
        return distinctive(self.gray0, *self._there(points)).double().cpu().numpy()

    def align(self, points0, points1, maps, search):
        """See `align`."""
        found = align(self.gray0, self.gray1, *self._there(points0, points1, maps), search)
        return tuple(part.double().cpu().numpy() for part in found)

    def _there(self, *arrays: np.ndarray) -> list[Tensor]:
        exact = torch.float32 if torch.device(self.device).type == "mps" else torch.float64  # MPS has no float64
        return [torch.from_numpy(np.ascontiguousarray(array)).to(self.device, exact) for array in arrays]


def local_maps(points0: Tensor, points1: Tensor, weights: Tensor, radius: float, first: float, last: float) -> Tensor:
    """The affine map from image 0 to image 1 around each match that its neighbours agree with.

    Reweighted least squares over the matches within ``radius``, with their weights, a Gaussian of the distance, and Geman and McClure's function
    of the residual. It starts from neighbours that move as the match does, so that where two surfaces meet it finds the match's own, and narrows
    from ``first`` to ``last`` pixels, so that a single wrong match gives in to the others.

    Args:
        points0, points1: pixels ``[M, 2]``; weights: ``[M]``.

    Returns:
        ``[M, 9]``: the map's matrix, row by row (4), where it sends the match's point of image 0 (2), how far that is from its point of image 1, the
        sum of the weights of the other matches that agree with it, and of all others.
    """
    return torch.cat(
        [
            _maps_of(rows, points0, points1, weights, radius, first, last)
            for rows in torch.arange(len(points0)).split(256)
        ]
    )


def _maps_of(
    rows: Tensor, points0: Tensor, points1: Tensor, weights: Tensor, radius: float, first: float, last: float
) -> Tensor:
    rows = rows.to(points0.device)
    away = points0 - points0[rows, None]  # [R, M, 2]
    flow = points1 - points0
    flow = flow - flow[rows, None]  # [R, M, 2]
    squared = away.square().sum(2)
    base = weights * (-2 * squared / radius**2).exp() * (squared <= radius**2)
    slope, shift = away.new_zeros(len(rows), 2, 2), away.new_zeros(len(rows), 2)
    for number in range(ROUNDS):
        scale = first * (last / first) ** (number / (ROUNDS - 1))
        rest = flow - (away @ slope.transpose(1, 2) + shift[:, None])
        share = 1 + rest.square().sum(2) / scale**2
        weight = (base / (share if number == 0 else share.square()))[..., None]
        total = weight.sum(1) + 1e-6  # [R, 1]
        middle, drift = (weight * away).sum(1) / total, (weight * flow).sum(1) / total
        moments = (weight * away).transpose(1, 2) @ away - total[..., None] * middle[:, :, None] * middle[:, None]
        moments = moments + STIFFNESS * radius**2 * torch.eye(2).to(moments)
        mixed = (weight * flow).transpose(1, 2) @ away - total[..., None] * drift[:, :, None] * middle[:, None]
        slope = torch.linalg.solve(moments, mixed.transpose(1, 2)).transpose(1, 2)
        shift = drift - (slope @ middle[..., None]).squeeze(2)
    matrix = (slope + torch.eye(2).to(slope)).flatten(1)
    other = torch.arange(len(points0), device=rows.device) != rows[:, None]
    sums = torch.stack([(weight[..., 0] * other).sum(1), (base * other).sum(1)], 1)
    return torch.cat([matrix, points1[rows] + shift, shift.norm(dim=1, keepdim=True), sums], 1)


def distinctive(image: Tensor, points: Tensor) -> Tensor:
    """Move each point to the most distinctive pixel within 3 pixels; it stays where none is distinctive, or hardly more than the point's own.

    How distinctive a pixel is: the smaller eigenvalue of the structure tensor over 5x5 pixels (Shi and Tomasi, CVPR 1994).

    Args:
        image: float32 ``[H, W]``; points: pixels ``[M, 2]``.
    """
    height, width = image.shape
    across, down = torch.zeros_like(image), torch.zeros_like(image)
    across[:, 1:-1], down[1:-1] = image[:, 2:] - image[:, :-2], image[2:] - image[:-2]
    products = torch.stack([across * across, across * down, down * down])[:, None]
    xx, xy, yy = F.conv2d(products, torch.ones(1, 1, 5, 5).to(image), padding=2).squeeze(1)
    value = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    allowed = torch.zeros_like(value, dtype=torch.bool)
    allowed[3 : height - 3, 3 : width - 3] = True
    value = F.pad(value.masked_fill(~allowed, -1), [REACH] * 4, value=-1)
    offset = torch.arange(2 * REACH + 1, device=image.device)
    left, top = points.round().long().unbind(1)
    inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
    left, top = left * inside, top * inside
    around = value[(top[:, None] + offset)[:, :, None], (left[:, None] + offset)[:, None]].flatten(1)  # [M, 49]
    best, place = around.max(1)
    own = around[:, around.shape[1] // 2].clamp(min=0)
    there = torch.stack([left + place % len(offset), top + place // len(offset)], 1) - REACH
    better = inside & (best > (FACTOR * own).clamp(min=CORNER))
    return torch.where(better[:, None], there.to(points), points)


def align(
    image0: Tensor, image1: Tensor, points0: Tensor, points1: Tensor, maps: Tensor, search: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the patches around points of image 0 in image 1.

    Args:
        image0, image1: float32 ``[H, W]``.
        points0, points1: pixels ``[M, 2]``, the latter as a start; maps: ``[M, 4]``, matrices from image 0 to image 1.
        search: Lucas and Kanade's method begins at the best place within this many pixels of image 0 around the start.

    Returns:
        Pixels of image 1 ``[M, 2]``; correlation of the patches ``[M]``, 0 where that of image 0 is flat; standard deviation of the place ``[M]``.
    """
    parts = [
        _align(image0, image1, start, end, matrix, search)
        for start, end, matrix in zip(*(x.split(1024) for x in (points0, points1, maps)), strict=True)
    ]
    moved, likeness, deviation = (torch.cat(part) for part in zip(*parts, strict=True))
    return moved, likeness, deviation


def _align(
    image0: Tensor, image1: Tensor, points0: Tensor, points1: Tensor, maps: Tensor, search: int
) -> tuple[Tensor, Tensor, Tensor]:
    weights = window().to(image0.device)
    reach = PATCH + search + 2
    wide, grid = _square(reach, points0), _square(PATCH, points0)
    matrix = maps.unflatten(1, (2, 2))
    right, below = points0.new_tensor([1.0, 0.0]), points0.new_tensor([0.0, 1.0])
    places = points0[:, None, None] + grid  # [M, N, N, 2]
    patch = _sampled(image0, places)
    patch = patch - (weights * patch).sum((1, 2), keepdim=True)
    across = (_sampled(image0, places + right) - _sampled(image0, places - right)) / 2
    down = (_sampled(image0, places + below) - _sampled(image0, places - below)) / 2
    slopes = torch.stack([across, down], 1).flatten(2)  # [M, 2, N * N]
    flat, weight = patch.flatten(1), weights.flatten()
    power = (weight * flat * flat).sum(1)  # [M]
    told = power >= FLAT
    safe = power.clamp(min=FLAT)
    mean, mixed = (weight * slopes).sum(2), (weight * slopes * flat[:, None]).sum(2)  # [M, 2]
    tensor = (weight * slopes) @ slopes.transpose(1, 2) - mean[:, :, None] * mean[:, None]
    tensor = (
        (tensor - mixed[:, :, None] * mixed[:, None] / safe[:, None, None]).double()
        if points0.dtype == torch.float64
        else tensor
    )
    there = _sampled(image1, points1[:, None, None] + wide @ matrix[:, None].transpose(2, 3))  # [M, S, S]
    side = 2 * PATCH + 1
    seen = (
        there[:, 2:-2, 2:-2].unfold(1, side, 1).unfold(2, side, 1).flatten(3)
    )  # [M, 2 search + 1, 2 search + 1, N * N]
    total, squares = (seen * weight).sum(3), (seen * seen * weight).sum(3)
    product = (seen * (weight * flat)[:, None, None]).sum(3)
    way = _square(search, points0)
    spread = (squares - total.square()).clamp(min=0) + FLAT
    value = product / (safe[:, None, None] * spread).sqrt() - PULL * way.square().sum(2).to(product)
    shift = way.flatten(0, 1)[value.flatten(1).argmax(1)]  # [M, 2]
    eye = torch.eye(2).to(tensor)
    for step in range(STEPS + 1):
        seen = _between(there, grid + shift[:, None, None] + reach).flatten(1)
        seen = seen - (weight * seen).sum(1, keepdim=True)
        spread, product = (weight * seen * seen).sum(1) + FLAT, (weight * seen * flat).sum(1)
        rest = (product / spread)[:, None] * seen - flat
        error = (weight * rest * rest).sum(1).to(tensor)
        hold = NOISE * error / PRIOR**2 + 1e-7
        held = tensor + hold[:, None, None] * eye
        if step < STEPS:
            pull = (weight * slopes * rest[:, None]).sum(2).to(tensor) + hold[:, None] * shift.to(tensor)
            move = torch.linalg.solve(held, pull)
            shift = (shift - move / move.norm(dim=1, keepdim=True).clamp(min=1)).clamp(-search - 1, search + 1)
    likeness = (product / (safe * spread).sqrt()).to(tensor)
    deviation = (NOISE * error * held.diagonal(dim1=1, dim2=2).sum(1) / (2 * torch.linalg.det(held))).sqrt()
    moved = points1 + (matrix @ shift[..., None]).squeeze(2)
    return (
        torch.where(told[:, None], moved, points1),
        torch.where(told, likeness, torch.zeros_like(likeness)),
        torch.where(told, deviation, torch.full_like(deviation, PRIOR)),
    )


def _square(radius: int, like: Tensor) -> Tensor:
    """Places (x, y) around a point, ``[2 radius + 1, 2 radius + 1, 2]``."""
    side = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x, y], 2)


def _sampled(image: Tensor, places: Tensor) -> Tensor:
    """Sample an image ``[H, W]`` at places ``[M, h, w, 2]``, bilinearly; its edges go on outside."""
    return _between(image.expand(len(places), *image.shape), places)


def _between(images: Tensor, places: Tensor) -> Tensor:
    """Sample images ``[M, H, W]``, each at its places ``[M, h, w, 2]``."""
    height, width = images.shape[1:]
    x, y = places[..., 0].clamp(0, width - 1), places[..., 1].clamp(0, height - 1)
    left, top = x.long().clamp(max=width - 2), y.long().clamp(max=height - 2)
    fx, fy = (x - left).to(images), (y - top).to(images)
    own = torch.arange(len(images), device=images.device)[:, None, None]
    upper = torch.lerp(images[own, top, left], images[own, top, left + 1], fx)
    lower = torch.lerp(images[own, top + 1, left], images[own, top + 1, left + 1], fx)
    return torch.lerp(upper, lower, fy)


def window() -> Tensor:
    """Weights of a patch, float32 ``[N, N]``; they add up to 1."""
    squared = torch.arange(-PATCH, PATCH + 1, dtype=torch.float64).square()
    weights = (-(squared[:, None] + squared) / (2 * SPREAD**2)).exp()
    return (weights / weights.sum()).float()
