"""Merges the points that a detector-free matcher finds anew in each pair into keypoints that all pairs share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..extras import require
from .match_store import MatchStore


class Tracks:
    """Keypoints of images, and one-to-one matches between them, from the matches in a store.

    Args:
        store: of matches.
        pairs: those to use.
        radius: for each image, by name: see `shared_keypoints`.

    ``keypoints`` has for each image, by name, float32 ``[K, 2]``, (x, y) in pixels of the file as stored, pixel centres at integers. Iterating
    gives for each pair (name of image 0, name of image 1, int64 ``[M, 3]``): rows of (id 0, id 1, row in the store's matches), sorted by id 0.
    """

    def __init__(self, store: MatchStore, pairs: Sequence[tuple[str, str]], radius: dict[str, float]) -> None:
        self.store, self.pairs = store, pairs
        self.keypoints: dict[str, np.ndarray] = {}
        self._ids: dict[tuple[int, int], np.ndarray] = {}  # (pair, side) -> keypoint of each point
        sides: dict[str, list[tuple[int, int]]] = {name: [] for name in radius}
        for number, pair in enumerate(pairs):
            for side, name in enumerate(pair):
                sides[name].append((number, side))
        for name, places in sides.items():
            found = [store.get(pairs[number]) for number, _ in places]
            points = [np.zeros((0, 2), np.float32), *(one[side] for one, (_, side) in zip(found, places, strict=True))]
            scores = [np.zeros(0, np.float32), *(one.confidence for one in found)]
            self.keypoints[name], ids = shared_keypoints(np.concatenate(points), np.concatenate(scores), radius[name])
            self._ids |= dict(
                zip(places, np.split(ids, np.cumsum([len(one.confidence) for one in found])), strict=False)
            )

    def __iter__(self) -> Iterator[tuple[str, str, np.ndarray]]:
        for number, (name0, name1) in enumerate(self.pairs):
            ids0, ids1 = self._ids[number, 0], self._ids[number, 1]
            rows = one_to_one(ids0, ids1, self.store.get((name0, name1)).confidence)
            yield name0, name1, np.stack([ids0[rows], ids1[rows], rows], 1)


def shared_keypoints(points: np.ndarray, scores: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose a few points to represent all points of an image, none nearer to another than the radius.

    Points at the same place add up their scores. The best one becomes a keypoint and suppresses all within the radius; then the best of the rest,
    and so on. Each point belongs to its nearest keypoint.

    Args:
        points: ``[N, 2]``; scores: ``[N]``, above 0.
        radius: how far a point may be from its keypoint.

    Returns:
        Keypoints ``[K, 2]`` float32, by falling score, and the keypoint of each point, int64 ``[N]``.
    """
    points = np.asarray(points, np.float32).reshape(-1, 2)
    if not len(points):
        return points, np.zeros(0, np.int64)
    tree_of = require("scipy.spatial", "sfm").cKDTree
    places, place = np.unique(points, axis=0, return_inverse=True)
    total = np.bincount(place.ravel(), np.asarray(scores, np.float64), len(places))
    free, tree, kept = np.ones(len(places), bool), tree_of(places), []
    for best in np.argsort(
        -total, kind="stable"
    ):  # ties by position, so that the order of the pairs makes no difference
        if free[best]:
            kept.append(best)
            free[tree.query_ball_point(places[best], radius)] = False
    keypoints = places[kept]
    return keypoints, tree_of(keypoints).query(points)[1].astype(np.int64)


def one_to_one(ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The rows of matches ``[M]`` that are the best of both their keypoints, sorted by keypoint of image 0; of equal ones, the first."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    best0 = order[np.unique(np.asarray(ids0)[order], return_index=True)[1]]
    best1 = order[np.unique(np.asarray(ids1)[order], return_index=True)[1]]
    rows = np.intersect1d(best0, best1)
    return rows[np.argsort(np.asarray(ids0)[rows])]
