"""Pairs with a large confidence, found a tile at a time, against the matrix of all confidences."""

import pytest
import torch

from quadtree_attention.errors import InputError
from quadtree_attention.models.loftr.matching import dual_softmax
from quadtree_attention.ops import dispatch, matching
from quadtree_attention.ops.matching import confident_pairs

DEVICE = (
    "cuda" if torch.cuda.is_available() else "cpu"
)  # Triton's kernels are interpreted without a GPU, see conftest.py
needs_numba = pytest.mark.skipif(not dispatch.HAS_NUMBA, reason="needs Numba")
needs_triton = pytest.mark.skipif(not dispatch.HAS_TRITON, reason="needs Triton")


@pytest.fixture(params=["reference", pytest.param("cpu", marks=needs_numba), pytest.param("cuda", marks=needs_triton)])
def backend(request, monkeypatch):
    """Each way to compute; the plain one in tiles of a few rows."""
    monkeypatch.setitem(matching.TILE, "cpu", 2000)
    return request.param


def features(batch=1, length0=100, length1=90, channels=16, scale=1.0, seed=0):
    """Tokens of image 1 resemble some of image 0, more or less."""
    generator = torch.Generator().manual_seed(seed)
    feat0 = torch.randn(batch, length0, channels, generator=generator)
    order = torch.randperm(length0, generator=generator)[torch.arange(length1) % length0]
    noise = torch.rand(batch, length1, 1, generator=generator) * torch.randn(
        batch, length1, channels, generator=generator
    )
    return feat0 * scale, (feat0[:, order] + noise) * scale


def check(backend, feat0, feat1, threshold, mask0=None, mask1=None):
    channels = feat0.shape[2]
    confidence = dual_softmax(feat0.double(), feat1.double(), 1 / channels, mask0, mask1)
    if mask0 is not None:
        confidence = confidence * mask0[:, :, None]
    there = [None if x is None else x.to(DEVICE if backend == "cuda" else "cpu") for x in (feat0, feat1, mask0, mask1)]
    found = matching.Pairs(*(x.cpu() for x in confident_pairs(*there[:2], threshold, *there[2:], backend=backend)))
    b, i, j = torch.where(confidence > threshold)
    assert len(b)
    for got, want in zip(found[:3], (b, i, j), strict=True):
        assert got.dtype == torch.int64
        assert torch.equal(got, want)
    assert found.confidence.dtype == feat0.dtype
    largest = (feat0.double() @ feat1.double().transpose(1, 2)).abs().max().item()
    error = (
        4 * torch.finfo(torch.float32).eps * max(largest, 10)
    )  # of a score, of the logarithm of a sum, and so of a confidence
    torch.testing.assert_close(found.confidence.double(), confidence[b, i, j], rtol=error, atol=0)


@pytest.mark.parametrize("threshold", [1 / 64, 0.05, 0.2, 0.5])
@pytest.mark.parametrize(
    ("length0", "length1", "channels"),
    [
        (1, 1, 16),
        (7, 5, 3),  # less than a block, channels that fill no vector
        (100, 90, 16),
        (241, 513, 16),  # one more than a block of rows, and than a tile
        (20, 8200, 8),  # more columns than a stripe
    ],
)
def test_all_pairs_above_the_threshold(backend, threshold, length0, length1, channels):
    check(backend, *features(1, length0, length1, channels, 2.0), threshold)


def test_batches_and_masks(backend):
    feat0, feat1 = features(3, scale=1.5)
    check(backend, feat0, feat1, 0.1)
    mask0, mask1 = torch.rand(3, 100) < 0.7, torch.rand(3, 90) < 0.8
    check(backend, feat0, feat1, 0.1, mask0)
    check(backend, feat0, feat1, 0.1, None, mask1)
    mask1[1] = False  # nothing of one image
    check(backend, feat0, feat1, 0.1, mask0, mask1)


@pytest.mark.parametrize("scale", [0.1, 4.0, 8.0, 40.0])
def test_scores_of_any_size(backend, scale):
    """In float32, in float64, and where the exponentials of the scores are no numbers at all."""
    feat0, feat1 = (
        (4 * x).round() * (scale / 4) for x in features(1, 64, 64)
    )  # whose products have no rounding errors
    if scale == 0.1:  # all alike: an even share of 64 by 64 is below any threshold
        assert len(confident_pairs(feat0, feat1, 1 / 64, backend=backend if DEVICE == "cpu" else None).b) == 0
        return
    check(backend, feat0, feat1, 0.2)


def test_equal_tokens_share(backend):
    feat0, feat1 = features(1, 40, 40, 16, 2.0)
    feat0[:, 20:30] = feat0[:, 0:10]
    feat1[:, 5] = feat1[:, 6]
    check(backend, feat0, feat1, 1 / 64)


def test_double_features_stay_double():
    feat0, feat1 = (x.double() for x in features())
    check(None, feat0, feat1, 0.2)
    with pytest.raises(InputError, match=r"'cpu' cannot be used: .*float64"):
        confident_pairs(feat0, feat1, 0.2, backend="cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_what_is_no_number_is_no_match_and_harms_nothing(backend, bad):
    feat0, feat1 = features(1, 600, 600, 16)
    feat0[0, 3] = bad
    found = confident_pairs(feat0, feat1, 0.2, backend=backend if DEVICE == "cpu" else None)
    assert not ((found.i == 3) & ~(found.confidence <= 1.001)).any()


@needs_numba
def test_any_number_of_threads_gives_the_same_bits():
    feat0, feat1 = features(1, 1000, 9000, 16, 2.0)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(confident_pairs(feat0, feat1, 0.02))
    finally:
        torch.set_num_threads(threads)
    assert len(found[0].b) > 100
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)


@needs_numba
def test_the_kernel_runs_where_it_can(monkeypatch):
    """Many tokens with scores that are not large; the plain way would be a tile at a time."""
    monkeypatch.setattr(matching, "tiles", None)
    feat0, feat1 = features(1, 5000, 4000, 16, 1.0)
    assert len(confident_pairs(feat0, feat1, 0.2).b)
