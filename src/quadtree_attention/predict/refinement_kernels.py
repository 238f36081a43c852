"""Numba kernels of `refinement_cpu`: the affine map around each match, distinctive points, and the alignment of patches.

A row is a match. Rows share no results, so any number of threads gives the same numbers. `refinement_torch` has the same steps in PyTorch: these are
tested against them, and their constants are passed in.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..ops.cpu_cache import compiled

FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}


_jit = partial(compiled, fastmath=FAST)


@_jit
def field_rows(
    start, stop, points0, points1, weights, starts, order, columns, corner, radius, rounds, first, last, stiffness, out
):
    """Fill rows of ``out`` ``[M, 9]``, see `refinement_torch.local_maps`.

    starts, order: matches by buckets of ``radius`` pixels, ``columns`` of them in a row from ``corner``, as `_buckets` makes them.
    """
    lines = (len(starts) - 1) // columns
    near = np.empty(len(points0), np.int64)
    base = np.empty(len(points0))
    for i in range(start, stop):
        x, y = points0[i, 0], points0[i, 1]
        u, v = points1[i, 0] - x, points1[i, 1] - y
        column, line = int((x - corner[0]) // radius), int((y - corner[1]) // radius)
        count = 0
        for row in range(max(line - 1, 0), min(line + 2, lines)):
            left, right = max(column - 1, 0), min(column + 2, columns)
            for place in range(starts[row * columns + left], starts[row * columns + right]):
                j = order[place]
                dx, dy = points0[j, 0] - x, points0[j, 1] - y
                squared = dx * dx + dy * dy
                if squared <= radius * radius:
                    near[count] = j
                    base[count] = weights[j] * math.exp(-2 * squared / (radius * radius))
                    count += 1
        a0 = a1 = a2 = b0 = b1 = b2 = agreeing = others = 0.0
        for turn in range(rounds):
            scale = first * (last / first) ** (turn / (rounds - 1))
            sxx = syy = stiffness * radius * radius
            sxy = sx = sy = ux = uy = vx = vy = us = vs = 0.0
            total = 1e-6
            agreeing = others = 0.0
            for k in range(count):
                j = near[k]
                dx, dy = points0[j, 0] - x, points0[j, 1] - y
                du, dv = points1[j, 0] - points0[j, 0] - u, points1[j, 1] - points0[j, 1] - v
                ru, rv = du - (a0 * dx + a1 * dy + a2), dv - (b0 * dx + b1 * dy + b2)
                share = 1 + (ru * ru + rv * rv) / (scale * scale)
                weight = base[k] / (share if turn == 0 else share * share)
                total += weight
                if j != i:
                    agreeing += weight
                    others += base[k]
                sx += weight * dx
                sy += weight * dy
                sxx += weight * dx * dx
                sxy += weight * dx * dy
                syy += weight * dy * dy
                us += weight * du
                ux += weight * du * dx
                uy += weight * du * dy
                vs += weight * dv
                vx += weight * dv * dx
                vy += weight * dv * dy
            # Around the means, shift and slopes separate: two unknowns each for u and v.
            mx, my = sx / total, sy / total
            cxx, cxy, cyy = sxx - sx * mx, sxy - sx * my, syy - sy * my
            det = cxx * cyy - cxy * cxy
            fx, fy = ux - us * mx, uy - us * my
            a0, a1 = (cyy * fx - cxy * fy) / det, (cxx * fy - cxy * fx) / det
            a2 = us / total - a0 * mx - a1 * my
            fx, fy = vx - vs * mx, vy - vs * my
            b0, b1 = (cyy * fx - cxy * fy) / det, (cxx * fy - cxy * fx) / det
            b2 = vs / total - b0 * mx - b1 * my
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = 1 + a0, a1, b0, 1 + b1
        out[i, 4], out[i, 5] = points1[i, 0] + a2, points1[i, 1] + b2
        out[i, 6], out[i, 7], out[i, 8] = math.sqrt(a2 * a2 + b2 * b2), agreeing, others


@_jit
def corner_rows(start, stop, image, points, reach, least, factor, out):
    """Fill rows of ``out`` ``[M, 2]``: the most distinctive pixel within ``reach`` of each point, or the point itself.

    The pixel must be distinctive by at least ``least``, and ``factor`` times as much as the point.
    """
    height, width = image.shape
    for i in range(start, stop):
        x0, y0 = int(np.round(points[i, 0])), int(np.round(points[i, 1]))
        out[i, 0], out[i, 1] = points[i, 0], points[i, 1]
        if not (0 <= x0 < width and 0 <= y0 < height):
            continue
        best = least
        if 3 <= y0 < height - 3 and 3 <= x0 < width - 3:
            best = max(least, factor * _corner(image, x0, y0))
        for y in range(max(y0 - reach, 3), min(y0 + reach + 1, height - 3)):
            for x in range(max(x0 - reach, 3), min(x0 + reach + 1, width - 3)):
                value = _corner(image, x, y)
                if value > best:
                    best = value
                    out[i, 0], out[i, 1] = x, y


@_jit
def _corner(image, x0, y0):
    """The smaller eigenvalue of the structure tensor over 5x5 pixels."""
    xx = xy = yy = np.float32(0)
    for y in range(y0 - 2, y0 + 3):
        for x in range(x0 - 2, x0 + 3):
            across = image[y, x + 1] - image[y, x - 1]
            down = image[y + 1, x] - image[y - 1, x]
            xx += across * across
            xy += across * down
            yy += down * down
    half = (xx - yy) / 2
    return (xx + yy) / 2 - math.sqrt(half * half + xy * xy)


@_jit
def align_rows(
    start, stop, image0, image1, points0, points1, maps, window, search, pull, steps, prior, noise, flat, moved, quality
):
    """Fill rows of ``moved`` ``[M, 2]``, positions in image 1, and ``quality`` ``[M, 2]``: likeness of the patches, deviation of the position.

    points1: start; maps: ``[M, 4]``, affine; window: weights ``[N, N]`` of a patch, N odd.
    """
    size = window.shape[0]
    radius = size // 2
    reach = radius + search + 2  # of what is taken from image 1
    side = 2 * reach + 1
    there = np.empty((side, side), np.float32)
    patch, seen = np.empty((size, size), np.float32), np.empty((size, size), np.float32)
    across, down = np.empty((size, size), np.float32), np.empty((size, size), np.float32)
    for i in range(start, stop):
        a, b, c, d = maps[i, 0], maps[i, 1], maps[i, 2], maps[i, 3]
        x0, y0 = points1[i, 0], points1[i, 1]
        moved[i, 0], moved[i, 1] = x0, y0
        quality[i, 0], quality[i, 1] = 0.0, prior
        mean = np.float32(0)
        for y in range(size):
            for x in range(size):
                u, v = points0[i, 0] + (x - radius), points0[i, 1] + (y - radius)
                patch[y, x] = _bilinear(image0, u, v)
                across[y, x] = (_bilinear(image0, u + 1, v) - _bilinear(image0, u - 1, v)) / 2
                down[y, x] = (_bilinear(image0, u, v + 1) - _bilinear(image0, u, v - 1)) / 2
                mean += window[y, x] * patch[y, x]
        power = mean_x = mean_y = with_x = with_y = hxx = hxy = hyy = np.float32(0)
        for y in range(size):
            for x in range(size):
                patch[y, x] -= mean
                weight, value, gx, gy = window[y, x], patch[y, x], across[y, x], down[y, x]
                power += weight * value * value
                mean_x += weight * gx
                mean_y += weight * gy
                with_x += weight * gx * value
                with_y += weight * gy * value
                hxx += weight * gx * gx
                hxy += weight * gx * gy
                hyy += weight * gy * gy
        if power < flat:
            continue
        # Gain and bias are fitted too: the part of the gradients that they explain says nothing about the position.
        hxx -= mean_x * mean_x + with_x * with_x / power
        hxy -= mean_x * mean_y + with_x * with_y / power
        hyy -= mean_y * mean_y + with_y * with_y / power
        for y in range(side):
            for x in range(side):
                u, v = x - reach, y - reach
                there[y, x] = _bilinear(image1, x0 + a * u + b * v, y0 + c * u + d * v)
        best = np.float32(-2)
        shift_x = shift_y = 0.0
        for v in range(-search, search + 1):
            for u in range(-search, search + 1):
                total = squares = product = np.float32(0)
                for y in range(size):
                    for x in range(size):
                        value = there[y + v + search + 2, x + u + search + 2]
                        weighted = window[y, x] * value
                        total += weighted
                        squares += weighted * value
                        product += weighted * patch[y, x]
                spread = max(squares - total * total, np.float32(0)) + flat
                value = product / math.sqrt(power * spread) - pull * (u * u + v * v)
                if value > best:
                    best, shift_x, shift_y = value, float(u), float(v)
        likeness = error = 0.0
        for step in range(steps + 1):
            mean = np.float32(0)
            for y in range(size):
                for x in range(size):
                    value = _bilinear(there, x + shift_x + (search + 2), y + shift_y + (search + 2))
                    seen[y, x] = value
                    mean += window[y, x] * value
            spread = product = np.float32(0)
            for y in range(size):
                for x in range(size):
                    seen[y, x] -= mean
                    spread += window[y, x] * seen[y, x] * seen[y, x]
                    product += window[y, x] * seen[y, x] * patch[y, x]
            gain = product / (spread + flat)
            likeness = product / math.sqrt(power * (spread + flat))
            error = ex = ey = 0.0
            for y in range(size):
                for x in range(size):
                    rest = gain * seen[y, x] - patch[y, x]
                    error += window[y, x] * rest * rest
                    ex += window[y, x] * across[y, x] * rest
                    ey += window[y, x] * down[y, x] * rest
            hold = noise * error / (prior * prior) + 1e-7
            dxx, dyy = hxx + hold, hyy + hold
            det = dxx * dyy - hxy * hxy
            if step == steps:
                quality[i, 1] = math.sqrt(noise * error * (dxx + dyy) / (2 * det))
                break
            ex, ey = ex + hold * shift_x, ey + hold * shift_y
            move_x, move_y = (dyy * ex - hxy * ey) / det, (dxx * ey - hxy * ex) / det
            shorter = max(1.0, math.sqrt(move_x * move_x + move_y * move_y))
            shift_x = min(max(shift_x - move_x / shorter, -search - 1.0), search + 1.0)
            shift_y = min(max(shift_y - move_y / shorter, -search - 1.0), search + 1.0)
        moved[i, 0] = x0 + a * shift_x + b * shift_y
        moved[i, 1] = y0 + c * shift_x + d * shift_y
        quality[i, 0] = likeness


@_jit
def _bilinear(image, x, y):
    """Sample an image ``[H, W]`` bilinearly; its edges go on outside."""
    height, width = image.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    fx, fy = np.float32(x - left), np.float32(y - top)
    upper = image[top, left] + fx * (image[top, left + 1] - image[top, left])
    lower = image[top + 1, left] + fx * (image[top + 1, left + 1] - image[top + 1, left])
    return upper + fy * (lower - upper)
