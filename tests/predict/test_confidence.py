import numpy as np
import pytest

from quadtree_attention.models.loftr import LoFTRConfig
from quadtree_attention.predict.confidence import DOUBTFUL, FEW, SURE, evidence, probability, select_confident
from quadtree_attention.predict.refinement import Refined


def refined(count: int, **values) -> Refined:
    two = np.full((count, 2), 0.5)
    given = {"likeness": np.ones(count), "deviation": np.full(count, 0.1), "stray": two, "support": two, "share": two}
    return Refined(points0=two, points1=two, **{**given, **values})


def test_probability_is_logistic_in_its_evidence():
    found = refined(3, stray=np.array([[9, 0.1], [9, 0.9], [9, 9.9]]))
    confidence = np.array([0.5, 0.5, 0.8], np.float32)
    columns = evidence(confidence, found)
    np.testing.assert_allclose(columns[:, 0], [0, 0, np.log(4)], atol=1e-6)
    np.testing.assert_allclose(columns[:, 1], np.log([0.2, 1.0, 10.0]))
    chance = probability((0.0, 0.0, -1.0, 0.0, 0.0, 0.0), confidence, found)
    np.testing.assert_allclose(chance, [5 / 6, 1 / 2, 1 / 11], rtol=1e-6)
    assert chance.dtype == np.float32


def test_evidence_is_finite_at_the_ends():
    nothing = {name: np.zeros((2, 2)) for name in ("stray", "support", "share")}
    assert np.isfinite(evidence(np.array([0.0, 1.0]), refined(2, deviation=np.zeros(2), **nothing))).all()


def test_the_sure_are_kept_and_of_few_the_surest():
    many = np.concatenate([np.full(FEW, SURE + 0.05), np.full(50, SURE - 0.05)])
    assert select_confident(many).sum() == FEW
    few = np.concatenate([np.full(100, SURE + 0.05), np.full(40, DOUBTFUL + 0.1), np.full(70, DOUBTFUL - 0.1)])
    np.testing.assert_array_equal(select_confident(few), few > DOUBTFUL)
    middle = np.linspace(DOUBTFUL + 0.01, SURE - 0.01, FEW + 200)
    assert select_confident(middle).sum() == FEW
    assert select_confident(middle)[-1]
    assert not select_confident(middle)[0]


def test_a_calibration_has_six_numbers_or_none():
    assert LoFTRConfig().calibration == ()
    assert LoFTRConfig(calibration=[1, 2, 3, 4, 5, 6]).calibration == (1, 2, 3, 4, 5, 6)
    with pytest.raises(ValueError, match="calibration has 2 numbers, expected 6, or none"):
        LoFTRConfig(calibration=(1.0, 2.0))
