"""What is true of a pair: coarse matches and where they come to lie, from homographies or from depth and pose.

Cell (row r, column c) of an image stands for its pixel (stride * c, stride * r). It matches the cell of image 1 nearest to where its pixel
comes to lie, if the way back from that cell's pixel leads to the first cell again (LoFTR, Sun et al., CVPR 2021, section 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ...models.loftr.model import FINE_STRIDE, STRIDE


class Supervision(NamedTuple):
    """True coarse matches of a batch; rows by image, then by cell of image 0.

    b: image in the batch; i: cell of image 0; j: cell of image 1, int64 ``[M]``, cells row-major.
    warped: where the pixel of cell i lies in image 1, (x, y), float ``[M, 2]``.
    offset: ``warped`` from the pixel of cell j, in units of the fine window's radius, ``[M, 2]``; see `fine_target`.
    places: where the pixel of every cell of image 0 lies, ``[B, L, 2]``; infinity where that is not known or not in sight.
    known: bool ``[B, L]`` and ``[B, S]``, cells of either image of which anything can be said; None: all.
    """

    b: Tensor
    i: Tensor
    j: Tensor
    warped: Tensor
    offset: Tensor
    places: Tensor
    known: tuple[Tensor, Tensor] | None = None


def fine_target(warped: Tensor, pixel: Tensor, window: int) -> Tensor:
    """What refinement is to find: ``warped`` from ``pixel``, both ``[M, 2]``, in units of the fine window's radius."""
    return (warped - pixel) / (FINE_STRIDE * (window // 2))


def supervision(
    batch: Mapping[str, Any],
    *,
    window: int,
    depth_tolerance: float | None,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Supervision:
    """What is true of a batch, by the ``supervision`` that its samples name, all the same: "homography", "depth" or "points".

    The other arguments are as of `depth_supervision`.

    Raises:
        ValueError: samples of different kinds in a batch, or of none of these.
    """
    kinds = set(batch["supervision"])
    options: dict[str, Any] = {"window": window, "mask0": mask0, "mask1": mask1}
    if kinds == {"homography"}:
        return homography_supervision(batch["homography"], batch["visible0"], batch["visible1"], **options)
    cameras = [batch[key] for key in ("K0", "K1", "T_0to1")]
    if kinds == {"depth"}:
        return depth_supervision(batch["depth0"], batch["depth1"], *cameras, tolerance=depth_tolerance, **options)
    if kinds == {"points"}:
        sizes = [tuple(batch[key].shape[-2:]) for key in ("image0", "image1")]
        return point_supervision(batch["points0"], batch["points1"], *cameras, *sizes, **options)
    raise InputError(f"supervision of a batch is {', '.join(sorted(kinds))}, expected homography, depth or points")


# ---- homographies --------------------------------------------------------------------------------


def warp_by_homography(homography: Tensor, points: Tensor) -> Tensor:
    """Points ``[B, N, 2]`` (or ``[1, N, 2]``) through homographies ``[B, 3, 3]``; infinity at and beyond the horizon."""
    x, y, w = (points @ homography[:, :, :2].transpose(1, 2) + homography[:, None, :, 2]).unbind(-1)
    warped = torch.stack([x, y], -1) / w[..., None]
    return torch.where(w[..., None] > 1e-8, warped, torch.inf)


@torch.no_grad()
def homography_supervision(
    homography: Tensor,
    visible0: Tensor,
    visible1: Tensor,
    *,
    stride: int = STRIDE,
    window: int = 5,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Supervision:
    """Ground truth of coarse and fine matching between two views of a plane.

    The pixels of both cells, and the place where the first comes to lie, must be visible.

    Args:
        homography: ``[B, 3, 3]``, pixels (x, y) of image 0 to pixels of image 1.
        visible0, visible1: bool ``[B, H, W]``, False where an image does not show the plane.
        stride: pixels a coarse cell; sizes are rounded up to whole cells.
        window: side of the fine window.
        mask0, mask1: bool ``[B, h, w]`` at the coarse grid, False = padding.
    """
    cells0, cells1 = (_cells(v, m, stride) for v, m in ((visible0, mask0), (visible1, mask1)))  # [B, h, w]
    homography = homography.double()  # its entries span many orders of magnitude
    places = warp_by_homography(homography, _grid(cells0, stride))  # [B, L, 2]
    back = warp_by_homography(torch.linalg.inv(homography), _grid(cells1, stride))
    seen = _at(visible1, places)
    return _mutual(places, back, cells0.flatten(1) & seen, cells1.flatten(1), cells0, cells1, stride, window)


# ---- depth and pose ------------------------------------------------------------------------------


@torch.no_grad()
def depth_supervision(
    depth0: Tensor,
    depth1: Tensor,
    K0: Tensor,
    K1: Tensor,
    T_0to1: Tensor,
    *,
    stride: int = STRIDE,
    window: int = 5,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
    tolerance: float | None = 0.2,
) -> Supervision:
    """Ground truth of coarse and fine matching between two images with depth and relative pose.

    Args:
        depth0, depth1: ``[B, H, W]``, along the optical axis, of the images as the network sees them; 0 = not known.
        K0, K1: intrinsics ``[B, 3, 3]`` in pixels of those.
        T_0to1: ``[B, 4, 4]``, points of camera 0 to points of camera 1.
        stride, window, mask0, mask1: as of `homography_supervision`.
        tolerance: a point is in sight of the other image if the depth there is known and differs by less than this share from
            the point's (LoFTR's 0.2). None: no such check; that is what LoFTR's published training does, for want of a gain.
    """
    cells0, cells1 = (_cells(d > 0, m, stride) for d, m in ((depth0, mask0), (depth1, mask1)))
    K0, K1, T_0to1 = K0.double(), K1.double(), T_0to1.double()
    T_1to0 = torch.linalg.inv(T_0to1)
    places, good0 = _through_depth(depth0, depth1, K0, K1, T_0to1, cells0, stride, tolerance)
    back, good1 = _through_depth(depth1, depth0, K1, K0, T_1to0, cells1, stride, tolerance)
    return _mutual(places, back, good0, good1, cells0, cells1, stride, window)


def warp_by_depth(points: Tensor, depth: Tensor, K0: Tensor, K1: Tensor, T_0to1: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels ``[B, N, 2]`` of image 0 at depths ``[B, N]`` in image 1.

    Returns the pixels there ``[B, N, 2]``, infinity for points that are not in front of that camera, and their depths ``[B, N]``.
    """
    rays = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ torch.linalg.inv(K0).transpose(1, 2)
    there = (rays * depth[..., None]) @ T_0to1[:, :3, :3].transpose(1, 2) + T_0to1[:, None, :3, 3]
    pixels = there @ K1.transpose(1, 2)
    z = there[..., 2]
    pixels = pixels[..., :2] / pixels[..., 2:]
    return torch.where(z[..., None] > 1e-8, pixels, torch.inf), z


def _through_depth(
    depth0: Tensor,
    depth1: Tensor,
    K0: Tensor,
    K1: Tensor,
    T_0to1: Tensor,
    cells: Tensor,
    stride: int,
    tolerance: float | None,
) -> tuple[Tensor, Tensor]:
    """Where the pixels of the cells of image 0 lie in image 1 ``[B, L, 2]``, and which of them are seen there ``[B, L]``."""
    points = _grid(cells, stride).expand(len(depth0), -1, -1)
    places, z = warp_by_depth(points, depth0[:, ::stride, ::stride].flatten(1).double(), K0, K1, T_0to1)
    good = cells.flatten(1)
    if tolerance is not None:
        there = _at(depth1, places).double()
        good = good & ((z - there).abs() < tolerance * there)
    return places, good


# ---- single points -------------------------------------------------------------------------------


@torch.no_grad()
def point_supervision(
    points0: Tensor,
    points1: Tensor,
    K0: Tensor,
    K1: Tensor,
    T_0to1: Tensor,
    size0: tuple[int, int],
    size1: tuple[int, int],
    *,
    stride: int = STRIDE,
    window: int = 5,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Supervision:
    """Ground truth of coarse and fine matching from points that both images show, as structure from motion finds them.

    A cell has the depth of the point next to its pixel, at most half a cell away from it in x and y: the surface is taken to face the camera
    over these few pixels. Of cells without a point nothing is said.

    Args:
        points0, points1: ``[B, P, 3]``, pixel (x, y) and depth of the same points in both images; depth 0 fills up.
        K0, K1, T_0to1, stride, window, mask0, mask1: as of `depth_supervision`.
        size0, size1: (height, width) of the images.
    """
    K0, K1, T_0to1 = K0.double(), K1.double(), T_0to1.double()
    T_1to0 = torch.linalg.inv(T_0to1)
    blank0, blank1 = (
        torch.ones(len(K0), -(-h // stride), -(-w // stride), dtype=torch.bool, device=K0.device)
        for h, w in (size0, size1)
    )
    cells0, cells1 = (c if m is None else m for c, m in ((blank0, mask0), (blank1, mask1)))
    points0, points1 = points0.double(), points1.double()
    i, inside0 = _nearest(points0[..., :2] / stride, cells0.shape)  # [B, P]
    pixel0 = _grid(cells0, stride)[0, i]
    places, _ = warp_by_depth(pixel0, points0[..., 2], K0, K1, T_0to1)
    j, inside1 = _nearest(places / stride, cells1.shape)
    back, _ = warp_by_depth(_grid(cells1, stride)[0, j], points1[..., 2], K1, K0, T_1to0)
    returns, inside = _nearest(back / stride, cells0.shape)
    good = inside0 & inside1 & inside & (returns == i) & (points0[..., 2] > 0)
    good &= cells0.flatten(1).gather(1, i) & cells1.flatten(1).gather(1, j)
    away = (points0[..., :2] - pixel0).square().sum(-1)
    b, p = torch.where(good)
    for cell in (i, j):  # of several points of a cell the one next to its pixel
        b, p = _first_of_each(b, p, cell, away)
    order = torch.argsort(b * (int(i.max()) + 1 if i.numel() else 1) + i[b, p])
    b, p = b[order], p[order]
    at = torch.full((len(K0), cells0[0].numel(), 2), torch.inf, dtype=places.dtype, device=places.device)
    known = [torch.zeros_like(c.flatten(1)) for c in (cells0, cells1)]
    i, j, warped = i[b, p], j[b, p], places[b, p]
    at[b, i], known[0][b, i], known[1][b, j] = warped, True, True
    offset = fine_target(warped, _grid(cells1, stride)[0, j], window)
    return Supervision(b, i, j, warped.float(), offset.float(), at.float(), (known[0], known[1]))


def _first_of_each(b: Tensor, p: Tensor, cell: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
    """Of the points (b, p) of one cell ``cell[b, p]`` the one with the least ``away[b, p]``."""
    order = torch.argsort(away[b, p], stable=True)
    b, p = b[order], p[order]
    key = b * (int(cell.max()) + 1 if cell.numel() else 1) + cell[b, p]
    order = torch.argsort(key, stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    return b[order][first], p[order][first]


# ---- both ----------------------------------------------------------------------------------------


def _mutual(
    places: Tensor,
    back: Tensor,
    good0: Tensor,
    good1: Tensor,
    cells0: Tensor,
    cells1: Tensor,
    stride: int,
    window: int,
) -> Supervision:
    """Mutually nearest cells, of places ``[B, L, 2]`` and ``[B, S, 2]`` that good0 ``[B, L]`` and good1 ``[B, S]`` let through."""
    places, back = (torch.where(g[..., None], p, torch.inf) for g, p in ((good0, places), (good1, back)))
    nearest1, inside1 = _nearest(places / stride, cells1.shape)
    nearest0, inside0 = _nearest(back / stride, cells0.shape)
    returns = nearest0.gather(1, nearest1) == torch.arange(places.shape[1], device=places.device)
    b, i = torch.where(inside1 & returns & inside0.gather(1, nearest1))
    j = nearest1[b, i]
    warped = places[b, i]
    offset = fine_target(warped, _grid(cells1, stride)[0, j], window)
    return Supervision(b, i, j, warped.float(), offset.float(), places.float())


def _cells(visible: Tensor, mask: Tensor | None, stride: int) -> Tensor:
    """bool ``[B, h, w]``: whether the pixel of each cell is visible and no padding."""
    cells = visible[:, ::stride, ::stride]
    return cells if mask is None else cells & mask


def _grid(cells: Tensor, stride: int) -> Tensor:
    """Pixels (x, y) of the cells, row-major, float64 ``[1, h * w, 2]``."""
    y, x = (torch.arange(size, device=cells.device, dtype=torch.float64) * stride for size in cells.shape[1:])
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """``values [B, H, W]`` at the pixels nearest to places ``[B, N, 2]``; 0 (False) outside."""
    index, inside = _nearest(places, values.shape)
    return values.flatten(1).gather(1, index) * inside


def _nearest(place: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Row-major index of the nearest cell ``[B, N]``, and whether there is one; 0 where not. place (x, y) in cells."""
    height, width = shape[1:]
    x, y = place.round().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = torch.where(inside, y, 0).long() * width + torch.where(inside, x, 0).long()
    return index, inside
