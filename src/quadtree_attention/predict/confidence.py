"""Confidence of a refined match: the probability that it is right, from everything known about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .refinement import Refined

SURE, DOUBTFUL, FEW = 0.85, 0.3, 1000


def probability(calibration: Sequence[float], confidence: np.ndarray, refined: Refined) -> np.ndarray:
    """Probability that each match is within 3 pixels of the truth, float32 ``[M]``: a logistic regression.

    Args:
        calibration: the constant, and a coefficient for each column of `evidence`.
        confidence: of the network, ``[M]``.
        refined: the refined matches.
    """
    constant, *factors = calibration
    return (1 / (1 + np.exp(-(constant + evidence(confidence, refined) @ factors)))).astype(np.float32)


def evidence(confidence: np.ndarray, refined: Refined) -> np.ndarray:
    """The predictors of the regression, ``[M, 5]``.

    The log odds of the network's confidence, and logarithms of: the distance from where the neighbours expect the match; the standard deviation of
    its position; the neighbours that agree before refinement, as a share of the most there can be, and after it, as a share of those there are.
    """
    sure = np.clip(confidence.astype(np.float64), 1e-4, 1 - 1e-4)
    parts = (
        refined.stray[:, 1] + 0.1,
        refined.deviation.clip(0.01, 1),
        refined.support[:, 0] + 0.02,
        refined.share[:, 1] + 0.02,
    )
    return np.stack([np.log(sure / (1 - sure)), *map(np.log, parts)], 1)


def select_confident(probability: np.ndarray) -> np.ndarray:
    """Choose the matches to keep without a threshold: bool ``[M]``.

    Keeps those above `SURE`. If there are fewer than `FEW`, it adds the surest others above `DOUBTFUL`, up to `FEW` in all. Where exact matches are
    many, doubtful ones make the geometry worse; where they are few, they make it better.
    """
    if (probability > SURE).sum() >= FEW:
        return probability > SURE
    chosen = np.zeros(len(probability), bool)
    chosen[np.argsort(-probability, kind="stable")[:FEW]] = True
    return chosen & (probability > DOUBTFUL)
