"""What mmdetection 2.13 computes, written plainly from its documentation and source, in float64 numpy and loops."""

import math

import numpy as np

RATIOS = (0.5, 1.0, 2.0)


def anchors(size, stride, sizes):
    """Row by row, column by column, ratio by ratio, size by size; around multiples of the stride."""
    out = []
    for y in range(size[0]):
        for x in range(size[1]):
            for ratio in RATIOS:
                for side in sizes:
                    width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                    out.append(
                        (
                            x * stride - width / 2,
                            y * stride - height / 2,
                            x * stride + width / 2,
                            y * stride + height / 2,
                        )
                    )
    return np.array(out)


def decode(box, delta, stds, size):
    """One box moved by deltas, whose logarithms of scale are kept within +-|log(16/1000)|, and clipped to the image."""
    dx, dy, dw, dh = (d * s for d, s in zip(delta, stds, strict=True))
    limit = abs(math.log(16 / 1000))
    dw, dh = min(max(dw, -limit), limit), min(max(dh, -limit), limit)
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return tuple(min(max(c, 0.0), float(size[1 - n % 2])) for n, c in enumerate(corners))


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both + 1e-12)


def suppress(found, threshold):
    """Rows (score, class, box), surest first, without those that overlap a surer one of their class."""
    kept = []
    for one in sorted(found, key=lambda row: -row[0]):
        if all(other[1] != one[1] or iou(other[2], one[2]) <= threshold for other in kept):
            kept.append(one)
    return kept


def bilinear(image, y, x):
    """RoIAlign's sample of ``[C, H, W]`` at a point where pixels stand at whole numbers; zero more than a pixel outside."""
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(image))
    y, x = max(y, 0), max(x, 0)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    v, u = (0.0 if y0 == height - 1 else y - y0), (0.0 if x0 == width - 1 else x - x0)
    return (
        image[:, y0, x0] * (1 - v) * (1 - u)
        + image[:, y0, x1] * (1 - v) * u
        + image[:, y1, x0] * v * (1 - u)
        + image[:, y1, x1] * v * u
    )


def roi_align(maps, strides, box, bins):
    """Bins ``[C, bins, bins]`` of one box, from the map that its size asks for: aligned, as many samples a bin as it has pixels."""
    width, height = box[2] - box[0], box[3] - box[1]
    level = min(max(math.floor(math.log2(math.sqrt(width * height) / 56 + 1e-6)), 0), len(maps) - 1)
    image, stride = maps[level], strides[level]
    x0, y0, x1, y1 = (c / stride - 0.5 for c in box)
    bin_height, bin_width = (y1 - y0) / bins, (x1 - x0) / bins
    rows, columns = math.ceil(bin_height), math.ceil(bin_width)
    out = np.zeros((len(image), bins, bins))
    for j in range(bins):
        for i in range(bins):
            for r in range(rows):
                for c in range(columns):
                    y = y0 + bin_height * (j + (r + 0.5) / rows)
                    x = x0 + bin_width * (i + (c + 0.5) / columns)
                    out[:, j, i] += bilinear(image, y, x) / (rows * columns)
    return out


def paste(mask, box, size):
    """A mask ``[M, M]`` sampled at the centres of the image's pixels, zero outside; True from a half on."""
    side = len(mask)
    out = np.zeros(size, bool)
    padded = np.pad(mask, 1)
    for y in range(size[0]):
        for x in range(size[1]):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5 + 1
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5 + 1
            if 0 <= v <= side + 1 and 0 <= u <= side + 1:
                j, i = min(int(v), side), min(int(u), side)
                dv, du = v - j, u - i
                value = (
                    padded[j, i] * (1 - dv) * (1 - du)
                    + padded[j, i + 1] * (1 - dv) * du
                    + padded[j + 1, i] * dv * (1 - du)
                    + padded[j + 1, i + 1] * dv * du
                )
                out[y, x] = value >= 0.5
    return out


def conv(x, weight, bias, stride=1, padding=None):
    """A convolution ``[C, H, W]`` to ``[out, H', W']``, tap by tap."""
    side = weight.shape[-1]
    padding = side // 2 if padding is None else padding
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    height, width = (x.shape[1] - side) // stride + 1, (x.shape[2] - side) // stride + 1
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for j in range(side):
        for i in range(side):
            part = x[:, j : j + (height - 1) * stride + 1 : stride, i : i + (width - 1) * stride + 1 : stride]
            out += np.einsum("oc,chw->ohw", weight[:, :, j, i], part)
    return out


def layer(state, name, x, **options):
    return conv(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def nearest(x, size):
    rows = np.arange(size[0]) * x.shape[1] // size[0]
    columns = np.arange(size[1]) * x.shape[2] // size[1]
    return x[:, rows][:, :, columns]


def neck(state, maps, extra):
    """mmdetection's FPN over the backbone's maps; ``extra``: "on_input" with two more convolutions, or "pool"."""
    laterals = [layer(state, f"neck.lateral_convs.{n}.conv", x) for n, x in enumerate(maps)]
    for n in range(len(maps) - 1, 0, -1):
        laterals[n - 1] = laterals[n - 1] + nearest(laterals[n], laterals[n - 1].shape[1:])
    outs = [layer(state, f"neck.fpn_convs.{n}.conv", x) for n, x in enumerate(laterals)]
    if extra == "pool":
        return [*outs, outs[-1][:, ::2, ::2]]
    outs.append(layer(state, f"neck.fpn_convs.{len(maps)}.conv", maps[-1], stride=2))
    outs.append(layer(state, f"neck.fpn_convs.{len(maps) + 1}.conv", outs[-1], stride=2))
    return outs


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def per_anchor(x, width):
    """``[anchors * width, H, W]`` to ``[H * W * anchors, width]``."""
    return x.transpose(1, 2, 0).reshape(-1, width)
