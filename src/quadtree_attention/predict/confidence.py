"""What the confidence of a refined match means: the probability that it is right, by all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .refinement import Refined

SURE, DOUBTFUL, FEW = 0.85, 0.3, 1000


def probability(calibration: Sequence[float], confidence: np.ndarray, refined: Refined) -> np.ndarray:
    """Probability that each match is within 3 pixels of the truth, float32 ``[M]``: a logistic regression.

    Args:
        calibration: its constant, and a factor for each column of `evidence`.
        confidence: of the network ``[M]``.
        refined: what alignment found.
    """
    constant, *factors = calibration
    return (1 / (1 + np.exp(-(constant + evidence(confidence, refined) @ factors)))).astype(np.float32)


def evidence(confidence: np.ndarray, refined: Refined) -> np.ndarray:
    """What a match is judged by, ``[M, 5]``.

    The network's log odds, and logarithms of: the distance from where the neighbours expect the match, the standard deviation of its place, the
    neighbours that agree before refinement as a share of all there could be, and after it as a share of all there are.
    """
    sure = np.clip(confidence.astype(np.float64), 1e-4, 1 - 1e-4)
    parts = (
        refined.stray[:, 1] + 0.1,
        refined.deviation.clip(0.01, 1),
        refined.support[:, 0] + 0.02,
        refined.share[:, 1] + 0.02,
    )
    return np.stack([np.log(sure / (1 - sure)), *map(np.log, parts)], 1)


def kept(probability: np.ndarray) -> np.ndarray:
    """Which matches to keep where nobody said how sure they have to be: bool ``[M]``.

    Those above `SURE`; where these are fewer than `FEW`, as many of the surest above `DOUBTFUL`. Many exact matches make a better geometry without
    the doubtful ones, few make a better one with them.
    """
    if (probability > SURE).sum() >= FEW:
        return probability > SURE
    chosen = np.zeros(len(probability), bool)
    chosen[np.argsort(-probability, kind="stable")[:FEW]] = True
    return chosen & (probability > DOUBTFUL)
