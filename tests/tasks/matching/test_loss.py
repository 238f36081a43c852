import pytest
import torch

from quadtree_attention.models.loftr.matching import expected_position
from quadtree_attention.tasks.matching.loss import (
    coarse_cross_entropy,
    coarse_focal_loss,
    coarse_sparse_focal_loss,
    fine_cross_entropy,
    fine_l2_std_loss,
)


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
    # A positive of a fresh network is far below 1e-6 and must still be pulled up, unless the published floor is asked for.
    for floor, pulled in (({}, True), ({"floor": 1e-6}, False)):
        leaf = torch.full((1, 3, 3), 1e-12, requires_grad=True)
        loss(leaf, one, **floor).backward()
        assert bool(leaf.grad[0, 0, 0] < 0) == pulled
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


@pytest.mark.parametrize("masked", [False, True])
def test_sparse_focal_loss_against_loops(masked):
    p, truth = confidences()
    mask0, mask1 = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    options = {}
    if masked:
        mask0[0, 3:], mask1[1, 4:] = False, False
        options = {"mask0": mask0, "mask1": mask1}

    def mean(values):
        return torch.stack([-0.25 * (1 - v) ** 2 * torch.log(v) for v in values]).mean()

    positives = [(b, i, j) for b, i, j in zip(*(x.tolist() for x in truth), strict=True) if mask0[b, i] and mask1[b, j]]
    want = 2 * mean([p[place] for place in positives])
    got = coarse_sparse_focal_loss(p, truth, dustbins=False, positive_weight=2.0, **options)
    torch.testing.assert_close(got, want)
    # With dustbins: the last row and column belong to them.
    padded = torch.rand(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 0.98 + 0.01
    padded[:, :5, :6] = p
    rows, columns = {(b, i) for b, i, _ in positives}, {(b, j) for b, _, j in positives}
    lost = [padded[b, i, 6] for b in range(2) for i in range(5) if mask0[b, i] and (b, i) not in rows]
    lost += [padded[b, 5, j] for b in range(2) for j in range(6) if mask1[b, j] and (b, j) not in columns]
    got = coarse_sparse_focal_loss(padded, truth, dustbins=True, positive_weight=2.0, negative_weight=3.0, **options)
    torch.testing.assert_close(got, want + 3 * mean(lost))
