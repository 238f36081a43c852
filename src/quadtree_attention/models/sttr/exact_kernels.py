"""Numba kernels of the last step of stereo, see `exact`: whole numbers throughout, so that any number of threads gives the same result.

Each pixel (or token) has its own range of disparities, ``low`` to ``low + count - 1``, ``[H, W]`` int32. Their costs and other values are
stored in one flat array, starting at ``start[y, x]``. Kernels are plain nogil functions. They are all in this file, because their cache checks
no other.
"""

from __future__ import annotations

import numpy as np

from ...ops.cpu_cache import compiled as _jit

WINDOW = 3  # pixels to either side that a census looks at
BITS = (2 * WINDOW + 1) ** 2 - 1
FAR = 32000  # more than any sum along a path


@_jit
def census(grey, out, first, last):
    """Compare each pixel with the 48 around it, one bit each: brighter or not (Zabih and Woodfill, ECCV 1994); rows from first to last.

    grey: ``[H + 6, W + 6]``, with a margin of three pixels. out: uint64 ``[H, W]``.
    """
    size = 2 * WINDOW + 1
    for y in range(first, last):
        for x in range(out.shape[1]):
            middle, bits = grey[y + WINDOW, x + WINDOW], np.uint64(0)
            for row in range(size):
                for column in range(size):
                    if row != WINDOW or column != WINDOW:
                        brighter = np.uint64(grey[y + row, x + column] > middle)
                        bits = (bits << np.uint64(1)) | brighter
            out[y, x] = bits


@_jit
def _ones(bits):
    """How many bits are set."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_jit
def pixel_costs(census0, census1, left, right, low, count, start, of_bits, of_colors, outside, cost, first, last):
    """How much each pixel differs from the right pixel at each of its disparities; rows from first to last.

    left, right: uint8 ``[H, W, 3]``. of_bits: int16 ``[49]``, cost of so many different bits of the census. of_colors: int16 ``[1531]``, cost of a
    colour difference in half grey levels, measured between pixels where that is less (Birchfield and Tomasi, PAMI 1998). outside: cost outside the
    image.
    """
    width = low.shape[1]
    for y in range(first, last):
        for x in range(width):
            place = start[y, x]
            for k in range(count[y, x]):
                there = x - (low[y, x] + k)
                if there < 0:
                    cost[place + k] = outside
                    continue
                before, after, halves = max(there - 1, 0), min(there + 1, width - 1), 0
                for c in range(3):
                    value, at = 2 * np.int64(left[y, x, c]), np.int64(right[y, there, c])
                    one, other = at + np.int64(right[y, before, c]), at + np.int64(right[y, after, c])
                    most, least = max(2 * at, one, other), min(2 * at, one, other)
                    halves += max(0, value - most, least - value)
                cost[place + k] = of_bits[_ones(census0[y, x] ^ census1[y, there])] + of_colors[halves]


@_jit
def add_paths(cost, low, count, start, grey, step, jump, edge, direction, widest, total):
    """Add to ``total`` the least costs of paths in one direction that end at each disparity of each pixel (semi-global matching,
    Hirschmueller, PAMI 2008).

    step: cost of a change of disparity by 1 along the path; jump: cost of a larger change where the image is smooth, half of it across a
    difference of ``edge`` grey levels. grey: float32 ``[H, W]``. direction: (columns, rows), each -1, 0 or 1. widest: the greatest count.
    cost, total: int16.
    """
    height, width = low.shape
    across, down = direction
    longest = 0
    for y in range(height):
        longest = max(longest, start[y, width - 1] + count[y, width - 1] - start[y, 0])
    paths = np.empty(
        (2, longest), np.int32
    )  # for the disparities of two rows: this one, and the one that paths come from
    least = np.empty((2, width), np.int32)
    around = np.empty(widest + 2, np.int32)
    step, jump, edge = np.int32(step), np.float32(jump), np.float32(edge)
    for row in range(height):
        y = row if down >= 0 else height - 1 - row
        from_y = y - down
        here, there = y & 1, from_y & 1
        for column in range(width):
            x = column if across >= 0 else width - 1 - column
            from_x = x - across
            place, size = start[y, x], count[y, x]
            costs, totals = cost[place : place + size], total[place : place + size]
            ends = paths[here, place - start[y, 0] : place - start[y, 0] + size]
            best = np.int32(FAR)
            if from_x < 0 or from_x >= width or from_y < 0 or from_y >= height:
                for k in range(size):
                    value = np.int32(costs[k])
                    ends[k] = value
                    totals[k] += costs[k]
                    best = min(best, value)
            else:
                base = least[there, from_x]
                difference = abs(grey[y, x] - grey[from_y, from_x])
                top = np.int32(base + max(np.int32(jump / (np.float32(1) + difference / edge)), step))
                # The earlier pixel's paths at this one's disparities, and one to either side.
                offset, known = low[y, x] - low[from_y, from_x] - 1, count[from_y, from_x]
                first = start[from_y, from_x] - start[from_y, 0]
                earlier = paths[there, first : first + known]
                begin, end = max(-offset, 0), min(known - offset, size + 2)
                if end <= begin:  # they have none in common
                    begin = end = size + 2
                for k in range(begin):
                    around[k] = FAR
                for k in range(begin, end):
                    around[k] = earlier[offset + k]
                for k in range(end, size + 2):
                    around[k] = FAR
                for k in range(size):
                    way = min(np.int32(min(around[k], around[k + 2]) + step), min(around[k + 1], top))
                    value = np.int32(np.int32(costs[k]) + np.int32(way - base))
                    ends[k] = value
                    totals[k] = np.int16(np.int32(totals[k]) + value)
                    best = min(best, value)
            least[here, x] = best


@_jit
def winners(total, low, count, start, disparity, margin, right):
    """Choose each pixel's disparity of least cost, to a fraction of a pixel, its margin over the best one not next to it, and the right view's.

    disparity, margin: float32 ``[H, W]``. right: int32 ``[H, W]``, disparity of least cost among all that fall on a pixel of the right view; -1
    where none does.
    """
    height, width = low.shape
    lowest = np.empty(width, np.int32)
    for y in range(height):
        lowest[:] = FAR + FAR
        right[y] = -1
        for x in range(width):
            place, size, best = start[y, x], count[y, x], 0
            for k in range(size):
                value = np.int32(total[place + k])
                if value < total[place + best]:
                    best = k
                there = x - (low[y, x] + k)
                if there >= 0 and value < lowest[there]:
                    lowest[there], right[y, there] = value, low[y, x] + k
            least, second = np.int32(total[place + best]), FAR
            for k in range(size):
                if abs(k - best) > 1:
                    second = min(second, np.int32(total[place + k]))
            part = np.float32(0)
            if 0 < best < size - 1:
                before, after = np.int32(total[place + best - 1]), np.int32(total[place + best + 1])
                part = np.float32(before - after) / np.float32(max(2 * (max(before, after) - least), 1))
            disparity[y, x] = low[y, x] + best + part
            margin[y, x] = second - least


@_jit
def check(disparity, right, tolerance, agree):
    """Left-right check: whether the right view has each pixel's disparity, to ``tolerance`` pixels, at the matching pixel; bool ``[H, W]``."""
    for y in range(disparity.shape[0]):
        for x in range(disparity.shape[1]):
            there = int(np.rint(x - disparity[y, x]))
            agree[y, x] = there >= 0 and right[y, there] >= 0 and abs(right[y, there] - disparity[y, x]) <= tolerance


@_jit
def drop_specks(disparity, known, fewest, tolerance):
    """Make connected regions of too few pixels unknown; connected neighbours differ by at most ``tolerance``."""
    height, width = disparity.shape
    seen = ~known
    stack = np.empty(height * width, np.int64)
    for first in range(height * width):
        if seen[first // width, first % width]:
            continue
        seen[first // width, first % width] = True
        stack[0], size, done = first, 1, 0
        while done < size:  # what was found stays on the stack
            y, x = stack[done] // width, stack[done] % width
            done += 1
            for side in range(4):
                other_y, other_x = y + (side == 0) - (side == 1), x + (side == 2) - (side == 3)
                if other_y < 0 or other_y >= height or other_x < 0 or other_x >= width or seen[other_y, other_x]:
                    continue
                if abs(disparity[other_y, other_x] - disparity[y, x]) <= tolerance:
                    seen[other_y, other_x] = True
                    stack[size] = other_y * width + other_x
                    size += 1
        if size < fewest:
            for k in range(size):
                known[stack[k] // width, stack[k] % width] = False


@_jit
def median(values, out, first, last):
    """Median of each pixel and the eight around it, with border pixels repeated outside; rows from first to last."""
    height, width = values.shape
    near = np.empty(9, values.dtype)
    for y in range(first, last):
        for x in range(width):
            size = 0
            for row in range(y - 1, y + 2):
                for column in range(x - 1, x + 2):
                    value = values[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                    k = size
                    while k > 0 and near[k - 1] > value:
                        near[k] = near[k - 1]
                        k -= 1
                    near[k] = value
                    size += 1
            out[y, x] = near[4]


@_jit
def hidden(disparity, apart, out):
    """Whether a left disparity map places pixels outside the right view, or behind others that are more than ``apart`` nearer: bool ``[H, W]``."""
    height, width = disparity.shape
    nearest = np.empty(width, disparity.dtype)
    for y in range(height):
        nearest[:] = 0
        for x in range(width):
            there = int(np.rint(x - disparity[y, x]))
            if there >= 0:
                nearest[there] = max(nearest[there], disparity[y, x])
        for x in range(width):
            there = int(np.rint(x - disparity[y, x]))
            out[y, x] = there < 0 or nearest[there] - disparity[y, x] > apart
