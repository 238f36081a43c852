"""What a camera sees of rectangles, by solving for one ray at a time."""

import numpy as np


def first_hit(rectangles, K, pose, x, y):
    """Number of the rectangle that the ray of pixel (x, y) meets first, its place there (a, b), and its depth; -1 for none."""
    world = np.linalg.inv(pose)
    direction = world[:3, :3] @ np.linalg.solve(K, [x, y, 1.0])
    best = (-1, None, np.inf)
    for number, r in enumerate(rectangles):
        # corner + a * across + b * down = eye + z * direction
        matrix = np.stack([r.across, r.down, -direction], 1)
        if abs(np.linalg.det(matrix)) < 1e-12:
            continue
        a, b, z = np.linalg.solve(matrix, world[:3, 3] - r.corner)
        if 0 <= a <= 1 and 0 <= b <= 1 and 0 < z < best[2]:
            best = (number, (a, b), z)
    return best


def project(point, K, pose):
    """Pixel (x, y) of a point of the world."""
    x, y, w = K @ (pose[:3, :3] @ point + pose[:3, 3])
    return np.array([x, y]) / w
