"""The last step at full resolution: kernels against what they should compute, and walls and steps that must come out exactly."""

import numpy as np
import pytest
import torch

from quadtree_attention.models.sttr import STTR, STTR_PRESETS, StereoOutput, exact
from quadtree_attention.models.sttr import exact_kernels as kernels
from quadtree_attention.models.sttr.exact import agreed_tokens, exact_disparity


def scene(height=64, width=160, back=6, front=20, part=0.0):
    """A square before a wall, both of noise; part: of a pixel that all is nearer. Images uint8, disparity and what is hidden of the left view."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (height, 4 * (width + 60), 3)).astype(np.float32)
    smooth = np.stack(
        [np.convolve(row, np.ones(8) / 8, "same") for row in fine.transpose(0, 2, 1).reshape(-1, fine.shape[1])]
    )
    smooth = smooth.reshape(height, 3, -1).transpose(0, 2, 1)

    def wall(shift, right):
        place = 4 * (np.arange(width) + (shift + part if right else 0.0)) + 16
        return smooth[:, np.rint(place).astype(int)]

    square = slice(16, 48), slice(80, 112)
    left, right = wall(back, False), wall(back, True)
    other = smooth[::-1]
    left[square] = other[square[0], 4 * np.arange(80, 112)]
    columns = np.rint(4 * (np.arange(80 - front, 112 - front) + front + part)).astype(int)
    right[square[0], 80 - front : 112 - front] = other[square[0]][:, columns]
    disparity = np.full((height, width), back + part, np.float32)
    disparity[square] = front + part
    hidden = np.zeros((height, width), bool)
    hidden[:, :back] = True
    hidden[square[0], 80 - (front - back) : 80] = True
    images = (np.clip(1.6 * (x - 128) + 128, 0, 255).astype(np.uint8) for x in (left, right))
    return *images, disparity, hidden


def told(disparity, hidden, noise=0.0):
    """What a network without fine matching would say of it, from tokens at every fourth pixel."""
    raw = torch.from_numpy(disparity[2::4, 2::4].copy())
    rng = np.random.default_rng(1)
    raw = raw + torch.from_numpy(rng.uniform(-noise, noise, raw.shape).astype(np.float32))
    height, width = raw.shape
    shares = torch.full((height, width + 1, width + 1), 1e-6)
    right = (torch.arange(width) - raw / 4).round().long()
    for y in range(height):
        for x in range(width):
            shares[y, x, right[y, x] if right[y, x] >= 0 else width] = 1.0
    whole = torch.from_numpy(np.repeat(np.repeat(raw.numpy(), 4, 0), 4, 1))[None]
    sure = torch.from_numpy(~hidden)[None].float()
    return StereoOutput(whole, 1 - sure, sure, raw[None], shares.log()[None], 1 - sure)


@pytest.mark.parametrize("part", [0.0, 0.25])
def test_a_square_before_a_wall(part):
    left, right, disparity, hidden = scene(part=part)
    found = exact_disparity(left, right, told(disparity, hidden, noise=1.5), 4)
    error = np.abs(found.disparity - disparity)
    assert (error[~hidden] > 0.5).mean() < 0.03
    assert np.median(error) < 0.15
    assert (error[hidden] > 1).mean() < 0.3  # filled from behind
    assert (found.hidden != hidden).mean() < 0.03
    assert found.sure[~hidden].mean() > 0.6 > 0.3 > found.sure[hidden].mean()


def test_larger_images_than_the_network_saw():
    left, right, disparity, hidden = scene()
    large = [np.repeat(np.repeat(image, 2, 0), 2, 1) for image in (left, right)]
    found = exact_disparity(*large, told(disparity, hidden), 4, 2.0)
    want = 2 * np.repeat(np.repeat(disparity, 2, 0), 2, 1)
    error = np.abs(found.disparity - want)
    assert found.disparity.shape == (128, 320)
    assert (error[:, 40:] > 1).mean() < 0.1


def test_the_same_with_any_number_of_threads():
    left, right, disparity, hidden = scene()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(exact_disparity(left, right, told(disparity, hidden), 4))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_with_the_hypotheses_of_fine_matching():
    torch.manual_seed(0)
    model = STTR(STTR_PRESETS["tiny"]).train()  # with batch statistics a new network finds noise
    left, right, disparity, hidden = scene()
    with torch.no_grad():
        pair = (torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255) for image in (left, right))
        output = model(*pair)
    assert output.fine is not None
    error = np.abs(exact_disparity(left, right, output, 4).disparity - disparity)
    assert (error[~hidden] > 1).mean() < 0.1


@pytest.mark.parametrize("size", [(32, 32), (33, 70)])
def test_images_without_anything(size):
    image = np.full((*size, 3), 90, np.uint8)
    with torch.no_grad():
        output = STTR(STTR_PRESETS["tiny"]).eval()(*torch.full((2, 1, 3, *size), 90 / 255))
    found = exact_disparity(image, image, output, 4)
    assert np.isfinite(found.disparity).all()
    assert (found.disparity >= 0).all()


def test_tokens_agree_with_rows_around():
    """A row whose shares point elsewhere, but not surely, follows its neighbours."""
    height, width = 9, 24
    shares = torch.full((height, width + 1, width + 1), 1e-5)
    for x in range(3, width):
        shares[:, x, x - 3] = 0.9
        shares[4, x, x - 3], shares[4, x, max(x - 9, 0)] = 0.3, 0.6
    found = agreed_tokens(shares.log(), np.full((36, 96), 100, np.float32), 4.0)
    assert np.abs(found[:, 12:] - 3).max() < 0.5


def by_hand(cost, grey, step, jump, edge, direction):
    """Least costs ``[H, W, D]`` of paths in one direction, as the paper has them."""
    height, width, count = cost.shape
    across, down = direction
    ends = cost.astype(np.int64).copy()
    rows = range(height) if down >= 0 else range(height - 1, -1, -1)
    columns = range(width) if across >= 0 else range(width - 1, -1, -1)
    for y in rows:
        for x in columns:
            from_y, from_x = y - down, x - across
            if not (0 <= from_y < height and 0 <= from_x < width):
                continue
            before = ends[from_y, from_x]
            top = before.min() + max(
                int(np.float32(jump) / (1 + abs(grey[y, x] - grey[from_y, from_x]) / np.float32(edge))), step
            )
            for d in range(count):
                ways = [before[d], top]
                ways += [before[d - 1] + step] if d else []
                ways += [before[d + 1] + step] if d + 1 < count else []
                ends[y, x, d] = cost[y, x, d] + min(ways) - before.min()
    return ends


@pytest.mark.parametrize("direction", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (-1, 1), (1, -1)])
def test_paths(direction):
    rng = np.random.default_rng(0)
    cost = rng.integers(0, 900, (6, 9, 5)).astype(np.int16)
    grey = rng.integers(0, 256, (6, 9)).astype(np.float32)
    low, count, start = exact._layout(np.full((6, 9), 3), np.full((6, 9), 7))
    total = np.zeros(cost.size, np.int16)
    kernels.add_paths(cost.ravel(), low, count, start, grey, 100, 700, 30.0, direction, 5, total)
    np.testing.assert_array_equal(total.reshape(cost.shape), by_hand(cost, grey, 100, 700, 30, direction))


@pytest.mark.parametrize("direction", [(1, 0), (0, -1), (1, -1)])
def test_paths_through_ranges_of_their_own(direction):
    """What a pixel cannot have costs so much in the full volume that no path goes through it."""
    rng = np.random.default_rng(2)
    low, size = rng.integers(0, 6, (7, 8)), rng.integers(1, 5, (7, 8))
    high = low + size - 1
    whole = np.full((7, 8, 12), 20000, np.int64)
    flat = []
    for y, x in np.ndindex(7, 8):
        values = rng.integers(0, 900, size[y, x])
        whole[y, x, low[y, x] : high[y, x] + 1] = values
        flat.append(values)
    grey = rng.integers(0, 256, (7, 8)).astype(np.float32)
    cost = np.concatenate(flat).astype(np.int16)
    total = np.zeros_like(cost)
    low32, count, start = exact._layout(low, high)
    kernels.add_paths(cost, low32, count, start, grey, 100, 700, 30.0, direction, 4, total)
    want = by_hand(whole, grey, 100, 700, 30, direction)
    got = [want[y, x, low[y, x] : high[y, x] + 1] for y, x in np.ndindex(7, 8)]
    np.testing.assert_array_equal(total, np.concatenate(got))


def test_census_and_costs():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (8, 11)).astype(np.float32)
    out = np.empty((8, 11), np.uint64)
    padded = np.pad(grey, 3, mode="edge")
    kernels.census(padded, out, 0, 8)
    brighter = sum(padded[y : y + 8, x : x + 11] > grey for y in range(7) for x in range(7))
    bits = [[int(value).bit_count() for value in row] for row in out]
    np.testing.assert_array_equal(bits, brighter)
    image = np.repeat(rng.integers(0, 256, (8, 11, 1)), 3, 2).astype(np.uint8)
    shifted = np.roll(image, -2, 1)
    low, count, start = exact._layout(np.zeros((8, 11)), np.full((8, 11), 3))
    cost = exact._costs(image, shifted, [x[..., 0].astype(np.float32) for x in (image, shifted)], low, count, start)
    cost = cost.reshape(8, 11, 4)
    assert (cost[:, 5:6, 2] == 0).all()  # away from the margins, where a census sees what is not in the other view
    assert (cost[:, 5:6, [0, 1, 3]] > 0).all()
    assert (cost[:, 0, 1:] == exact.PARTS).all()  # beyond the image


def test_specks_medians_and_what_is_hidden():
    disparity = np.full((12, 20), 3.0, np.float32)
    disparity[4:6, 5:8], disparity[8:12, 10:20] = 9.0, 6.0
    known = np.ones((12, 20), bool)
    known[0, 0] = False
    kernels.drop_specks(disparity, known, 10, 1.5)
    assert not known[4:6, 5:8].any()
    assert not known[0, 0]
    assert known.sum() == 12 * 20 - 7
    noisy = disparity.copy()
    noisy[2, 3] = 50
    out = np.empty_like(noisy)
    kernels.median(noisy, out, 0, 12)
    padded = np.pad(noisy, 1, mode="edge")
    around = np.stack([padded[y : y + 12, x : x + 20] for y in range(3) for x in range(3)])
    np.testing.assert_array_equal(out, np.median(around, 0))
    hidden = np.empty((12, 20), bool)
    kernels.hidden(disparity, 1.0, hidden)
    assert np.flatnonzero(hidden[10]).tolist() == [
        0,
        1,
        2,
        7,
        8,
        9,
    ]  # out of the view, and 3 pixels behind what is 3 nearer
    assert np.flatnonzero(hidden[2]).tolist() == [0, 1, 2]
