import pytest
import torch
import torch.nn.functional as F

from quadtree_attention.models.loftr.matching import (
    FineWindows,
    dual_softmax,
    expected_position,
    heat_map,
    log_optimal_transport,
    select_matches,
)


def test_dual_softmax_is_the_published_formula():
    torch.manual_seed(0)
    feat0, feat1 = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 7, 4, dtype=torch.float64)
    similarity = torch.einsum("blc,bsc->bls", feat0 / 2, feat1 / 2) / 0.1
    expected = similarity.softmax(1) * similarity.softmax(2)
    torch.testing.assert_close(dual_softmax(feat0, feat1, 0.1), expected)
    with_grad = dual_softmax(feat0.requires_grad_(), feat1, 0.1)
    torch.testing.assert_close(with_grad, expected)
    assert torch.autograd.gradcheck(lambda a, b: dual_softmax(a, b, 1.0), (feat0, feat1.requires_grad_()))


def test_masked_pairs():
    torch.manual_seed(0)
    feat0, feat1 = torch.randn(1, 6, 4), torch.randn(1, 5, 4)
    mask0, mask1 = torch.arange(6)[None] < 4, torch.arange(5)[None] < 3
    confidence = dual_softmax(feat0, feat1, 0.1, mask0, mask1)
    torch.testing.assert_close(confidence[:, :4, :3], dual_softmax(feat0[:, :4], feat1[:, :3], 0.1))
    assert (confidence[:, :4, 3:] == 0).all()
    assert (confidence[:, 4:, :3] == 0).all()
    torch.testing.assert_close(confidence[:, 4:, 3:], torch.full((1, 2, 2), 1 / 30))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_confidence_is_float32(dtype):
    feat = torch.randn(1, 4, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        confidence = dual_softmax(feat, feat, 0.1)
        expected = expected_position(heat_map(feat, feat))
    assert confidence.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(confidence, dual_softmax(feat.float(), feat.float(), 0.1))


def published_selection(confidence, grid0, grid1, threshold, border):
    """The published rule, written out over the whole matrix."""
    keep = (confidence > threshold).unflatten(2, grid1).unflatten(1, grid0)
    if border:
        for axis in (1, 2, 3, 4):
            keep.narrow(axis, 0, min(border, keep.shape[axis])).fill_(False)
            cut = min(border, keep.shape[axis])
            keep.narrow(axis, keep.shape[axis] - cut, cut).fill_(False)
    keep = keep.flatten(3).flatten(1, 2)
    keep = keep & (confidence == confidence.amax(2, True)) & (confidence == confidence.amax(1, True))
    b, i = torch.where(keep.any(2))
    j = keep.int().argmax(2)[b, i]
    return b, i, j, confidence[b, i, j]


@pytest.mark.parametrize("border", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("ties", [False, True])
def test_selection_is_the_published_rule(border, threshold, ties):
    confidence = torch.rand(3, 35, 24, generator=torch.Generator().manual_seed(border))
    if ties:
        confidence = (confidence * 20).round() / 20
    got = select_matches(confidence, (5, 7), (4, 6), threshold=threshold, border=border)
    for ours, theirs in zip(got, published_selection(confidence, (5, 7), (4, 6), threshold, border), strict=True):
        assert torch.equal(ours, theirs)


def test_selection_with_masks_is_the_selection_of_the_valid_part():
    grid, valid = (6, 7), (4, 5)
    mask = torch.zeros(1, *grid, dtype=torch.bool)
    mask[:, : valid[0], : valid[1]] = True
    inside = mask.flatten().nonzero()[:, 0]
    confidence = torch.rand(1, 42, 42, generator=torch.Generator().manual_seed(0))
    confidence[:, ~mask.flatten()] = 0
    confidence[:, :, ~mask.flatten()] = 0
    masked = select_matches(confidence, grid, grid, threshold=0.1, border=1, mask0=mask, mask1=mask)
    alone = select_matches(confidence[:, inside][:, :, inside], valid, valid, threshold=0.1, border=1)
    assert len(alone[0])
    assert torch.equal(masked[1], inside[alone[1]])
    assert torch.equal(masked[2], inside[alone[2]])
    assert torch.equal(masked[3], alone[3])


def test_invalid_cells_never_match():
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    confidence = torch.eye(4)[None]
    b, *_ = select_matches(confidence, (2, 2), (2, 2), threshold=0.0, border=0, mask0=mask)
    assert b.numel() == 0


def test_windows_are_unfolded_patches():
    torch.manual_seed(0)
    windows = FineWindows(6, 4, 5).double()
    fine, coarse = torch.randn(2, 4, 12, 20, dtype=torch.float64), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    b = torch.arange(2).repeat_interleave(15)
    token = torch.arange(15).repeat(2)
    patches = F.unfold(fine, 5, stride=4, padding=2).unflatten(1, (4, 25)).permute(0, 3, 2, 1)  # [B, L, 25, C]
    context = windows.down_proj(coarse.flatten(1, 2))[:, :, None].expand(-1, -1, 25, -1)
    expected = windows.merge(torch.cat([patches, context], -1)).flatten(0, 1)
    torch.testing.assert_close(windows(fine, coarse, b, token), expected)
    assert windows(fine, coarse, b[:0], token[:0]).shape == (0, 25, 4)


def test_expected_position_finds_a_peak():
    windows0, windows1 = torch.zeros(3, 25, 4), torch.zeros(3, 25, 4)
    windows0[:, 12] = 100
    for match, place in enumerate((12, 4, 21)):  # centre, top right, bottom second from the left
        windows1[match, place] = 100
    got = expected_position(heat_map(windows0, windows1))
    torch.testing.assert_close(got[:, :2], torch.tensor([[0.0, 0.0], [1.0, -1.0], [-0.5, 1.0]]), rtol=0, atol=1e-5)
    assert (got[:, 2] < 1e-2).all()
    flat = expected_position(heat_map(torch.zeros(1, 25, 4), torch.zeros(1, 25, 4)))
    torch.testing.assert_close(flat, torch.tensor([[0, 0, 2 * 0.5**0.5]]), rtol=0, atol=1e-5)


def published_transport(scores, bin_score, iterations):
    """The published formula, for one image: uniform shares that add up to 1, the result times their number."""
    m, n = scores.shape
    couplings = torch.full((m + 1, n + 1), float(bin_score), dtype=scores.dtype)
    couplings[:m, :n] = scores
    norm = -torch.tensor(float(m + n), dtype=scores.dtype).log()
    mu = torch.cat([norm.expand(m), (norm + torch.tensor(float(n)).log())[None]])
    nu = torch.cat([norm.expand(n), (norm + torch.tensor(float(m)).log())[None]])
    u, v = torch.zeros_like(mu), torch.zeros_like(nu)
    for _ in range(iterations):
        u = mu - torch.logsumexp(couplings + v[None], 1)
        v = nu - torch.logsumexp(couplings + u[:, None], 0)
    return couplings + u[:, None] + v[None] - norm


def test_optimal_transport_is_the_published_formula():
    scores = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    got = log_optimal_transport(scores, torch.tensor(0.7), 3)
    for one, alone in zip(scores, got, strict=True):
        torch.testing.assert_close(alone, published_transport(one, 0.7, 3), rtol=1e-6, atol=1e-6)
    long = log_optimal_transport(scores, torch.tensor(0.7), 500).exp()
    torch.testing.assert_close(long[:, :-1].sum(2), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close(long[:, :, :-1].sum(1), torch.ones(2, 7, dtype=torch.float64))


def test_transport_of_a_padded_batch_is_that_of_its_parts():
    scores = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    mask0, mask1 = torch.arange(6) < torch.tensor([[4], [6]]), torch.arange(5) < torch.tensor([[5], [2]])
    masked = scores.masked_fill(~(mask0[:, :, None] & mask1[:, None]), -1e9)
    shares = log_optimal_transport(masked, torch.tensor(1.0), 3, mask0, mask1).exp()
    for k, (rows, columns) in enumerate(((4, 5), (6, 2))):
        alone = log_optimal_transport(scores[k, :rows, :columns], torch.tensor(1.0), 3).exp()
        torch.testing.assert_close(shares[k, :rows, :columns], alone[:-1, :-1])
        torch.testing.assert_close(shares[k, :rows, -1], alone[:-1, -1])
        assert shares[k, rows:].sum() - shares[k, -1].sum() < 1e-6
    shares[:, :-1, :-1].square().sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[0, 4:] == 0).all()
