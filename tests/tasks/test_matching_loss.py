import pytest
import torch

from quadtree_attention.models.loftr.matching import expected_position
from quadtree_attention.tasks.matching.loss import (
    coarse_cross_entropy,
    coarse_focal_loss,
    fine_cross_entropy,
    fine_l2_std_loss,
    homography_supervision,
    warp_points,
)

H, W = 64, 96
h, w = 8, 12


def supervised(homography, visible0=None, visible1=None, **options):
    visible = torch.ones(1, H, W, dtype=torch.bool)
    homography = torch.tensor(homography, dtype=torch.float32)[None]
    visible0, visible1 = (visible if v is None else v for v in (visible0, visible1))
    return homography_supervision(homography, visible0, visible1, **options)


def cells(token):
    return torch.stack([token % w, token // w], 1)


def test_identity():
    truth = supervised([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert truth.i.tolist() == truth.j.tolist() == list(range(h * w))
    assert truth.b.unique().tolist() == [0]
    torch.testing.assert_close(truth.warped, cells(truth.i) * 8.0)
    assert (truth.offset == 0).all()


def test_translation():
    truth = supervised([[1, 0, 19], [0, 1, -10], [0, 0, 1]])
    # 19 px are 2 cells and 3 px; -10 px are -1 cell and -2 px: row 1 comes to lie outside. The window's radius is 4 px.
    expected = [(c, r) for r in range(2, h) for c in range(w - 2)]
    assert [tuple(cell) for cell in cells(truth.i).tolist()] == expected
    torch.testing.assert_close(cells(truth.j), cells(truth.i) + torch.tensor([2, -1]))
    torch.testing.assert_close(truth.offset, torch.tensor([[3 / 4, -2 / 4]]).expand(len(truth.i), 2))


def test_offset_of_another_window():
    truth = supervised([[1, 0, 2], [0, 1, 0], [0, 0, 1]], window=9)
    torch.testing.assert_close(truth.offset, torch.tensor([[2 / 8, 0.0]]).expand(len(truth.i), 2))


def test_against_a_loop():
    matrix = torch.tensor([[0.8, -0.3, 20], [0.25, 0.9, -4], [1e-3, -5e-4, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    visible0, visible1 = (torch.rand(1, H, W, generator=generator) < 0.8 for _ in range(2))
    truth = supervised(matrix.tolist(), visible0, visible1)

    def through(m, x, y):
        p = m @ torch.tensor([x, y, 1.0], dtype=torch.float64)
        return (p[:2] / p[2]).tolist()

    expected = []
    for r in range(h):
        for c in range(w):
            x, y = through(matrix, 8 * c, 8 * r)
            c1, r1 = round(x / 8), round(y / 8)
            if not (0 <= c1 < w and 0 <= r1 < h and 0 <= round(x) < W and 0 <= round(y) < H):
                continue
            back = through(torch.linalg.inv(matrix), 8 * c1, 8 * r1)
            if (round(back[0] / 8), round(back[1] / 8)) != (c, r):
                continue
            if visible0[0, 8 * r, 8 * c] and visible1[0, 8 * r1, 8 * c1] and visible1[0, round(y), round(x)]:
                expected.append((r * w + c, r1 * w + c1))
    assert len(expected) > 10
    assert list(zip(truth.i.tolist(), truth.j.tolist(), strict=True)) == expected


def test_zoom_is_mutual():
    # Four cells of image 0 fall into one of image 1: at most one of them matches it.
    truth = supervised([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]])
    assert len(truth.j.unique()) == len(truth.j) == h * w // 4


def test_masks_and_batches():
    eye = torch.eye(3).expand(2, 3, 3)
    visible = torch.ones(2, H, W, dtype=torch.bool)
    mask = torch.ones(2, h, w, dtype=torch.bool)
    mask[1, 4:] = False
    truth = homography_supervision(eye, visible, visible, mask1=mask)
    assert torch.bincount(truth.b).tolist() == [h * w, 4 * w]


def test_nothing_in_common():
    truth = supervised([[1, 0, 1000], [0, 1, 0], [0, 0, 1]])
    assert all(len(part) == 0 for part in truth)
    assert supervised([[1, 0, 0], [0, 1, 0], [0, 0, 1]], visible0=torch.zeros(1, H, W, dtype=torch.bool)).i.numel() == 0


def test_points_beyond_the_horizon_are_infinite():
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]])
    points = torch.tensor([[[5.0, 1], [10, 1], [20, 1]]])
    warped = warp_points(matrix, points)[0]
    torch.testing.assert_close(warped[0], torch.tensor([10.0, 2]))
    assert torch.isinf(warped[1:]).all()


def confidences(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(2, 5, 6, generator=generator, dtype=dtype) * 0.98 + 0.01
    truth = torch.tensor([0, 0, 1]), torch.tensor([0, 3, 2]), torch.tensor([1, 5, 0])
    return p, truth


def loops(p, truth, positive_term, negative_term, valid=None):
    positives = set(zip(*(part.tolist() for part in truth), strict=True))
    terms = {True: [], False: []}
    for b in range(2):
        for i in range(5):
            for j in range(6):
                if valid is None or valid[b, i, j]:
                    known = (b, i, j) in positives
                    terms[known].append((positive_term if known else negative_term)(p[b, i, j]))
    return [torch.stack(terms[known]).mean() for known in (True, False)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gamma", [2.0, 1.0, 3.5])
def test_focal_loss_and_its_gradient_against_loops(gamma, masked):
    p, truth = confidences()
    options, valid = {}, None
    if masked:
        mask0, mask1 = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
        mask0[0, 3:], mask1[1, 4:] = False, False
        options = {"mask0": mask0, "mask1": mask1}
        valid = mask0[:, :, None] & mask1[:, None, :]
    a, b = p.clone().requires_grad_(), p.clone().requires_grad_()
    got = coarse_focal_loss(a, truth, gamma=gamma, positive_weight=2.0, negative_weight=3.0, **options)
    positive, negative = loops(
        b,
        truth,
        lambda x: -0.25 * (1 - x) ** gamma * torch.log(x),
        lambda x: -0.25 * x**gamma * torch.log(1 - x),
        valid,
    )
    want = 2 * positive + 3 * negative
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_cross_entropy_against_loops():
    p, truth = confidences()
    positive, negative = loops(p, truth, lambda x: -torch.log(x), lambda x: -torch.log(1 - x))
    torch.testing.assert_close(coarse_cross_entropy(p, truth), positive + negative)


@pytest.mark.parametrize("loss", [coarse_focal_loss, coarse_cross_entropy])
def test_coarse_losses_at_their_ends(loss):
    nothing = (torch.zeros(0, dtype=torch.int64),) * 3
    one = (torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    for p in (torch.zeros(1, 3, 3), torch.ones(1, 3, 3), torch.full((1, 3, 3), 1e-12)):
        for truth in (nothing, one):
            leaf = p.clone().requires_grad_()
            value = loss(leaf, truth)
            value.backward()
            assert value.isfinite()
            assert leaf.grad.isfinite().all()
    # A positive of a fresh network is far below 1e-6 and must still be pulled up.
    leaf = torch.full((1, 3, 3), 1e-12, requires_grad=True)
    loss(leaf, one).backward()
    assert leaf.grad[0, 0, 0] < 0
    perfect = torch.eye(3)[None]
    diagonal = torch.zeros(3, dtype=torch.int64), torch.arange(3), torch.arange(3)
    assert loss(perfect, diagonal) < 1e-5


def test_gamma_below_one():
    with pytest.raises(ValueError, match=r"gamma is 0\.5, expected at least 1"):
        coarse_focal_loss(*confidences(), gamma=0.5)


def test_fine_loss_against_a_loop():
    generator = torch.Generator().manual_seed(2)
    predicted = torch.rand(7, 3, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.rand(7, 2, generator=generator, dtype=torch.float64) * 2.6 - 1.3
    target[0], target[1] = 0.1, torch.tensor([0.2, 1.0])  # 1 is outside
    inverse = [1 / float(row[2].detach()) for row in predicted]
    terms = [
        ((predicted[k, :2] - target[k]) ** 2).sum() * inverse[k] / (sum(inverse) / 7)
        for k in range(7)
        if max(abs(float(target[k, 0])), abs(float(target[k, 1]))) < 1
    ]
    assert 0 < len(terms) < 7
    want = sum(terms) / len(terms)
    got = fine_l2_std_loss(predicted, target)
    torch.testing.assert_close(got, want)
    got.backward()
    assert (predicted.grad[:, 2] == 0).all()


def test_fine_cross_entropy_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    heat = torch.rand(5, 25, generator=generator, dtype=torch.float64)
    heat = heat / heat.sum(1, keepdim=True)
    target = torch.tensor([[0.0, 0.0], [0.25, -0.6], [-0.99, 0.99], [0.3, 1.0], [2.0, 0.0]], dtype=torch.float64)
    want = 0.0
    for k in range(3):  # the last two lie outside
        for row in range(5):
            for column in range(5):
                x, y = 2 * (float(target[k, 0]) + 1), 2 * (float(target[k, 1]) + 1)
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                want -= share * float(heat[k, 5 * row + column].log()) / 3
    assert float(fine_cross_entropy(heat, target)) == pytest.approx(want, rel=1e-12)


def test_fine_cross_entropy_is_least_where_the_map_has_the_target_as_its_mean():
    target = torch.tensor([[0.25, -0.6]], dtype=torch.float64)
    logits = torch.zeros(1, 25, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        fine_cross_entropy(logits.softmax(1), target).backward()
        optimizer.step()
    torch.testing.assert_close(expected_position(logits.detach().softmax(1))[:, :2], target, rtol=0, atol=1e-2)


@pytest.mark.parametrize("loss_of", [fine_l2_std_loss, fine_cross_entropy])
def test_fine_loss_of_nothing_still_has_a_gradient(loss_of):
    width = 3 if loss_of is fine_l2_std_loss else 25
    for predicted, target in (
        (torch.ones(0, width), torch.ones(0, 2)),
        (torch.ones(2, width), torch.full((2, 2), 2.0)),
    ):
        predicted.requires_grad_()
        loss = loss_of(predicted, target)
        loss.backward()
        assert loss == 0
        assert (predicted.grad == 0).all()
