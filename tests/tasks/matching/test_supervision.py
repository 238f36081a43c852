import torch

from quadtree_attention.tasks.matching.supervision import homography_supervision, warp_by_homography

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
    assert all(len(part) == 0 for part in truth[:5])
    assert supervised([[1, 0, 0], [0, 1, 0], [0, 0, 1]], visible0=torch.zeros(1, H, W, dtype=torch.bool)).i.numel() == 0


def test_points_beyond_the_horizon_are_infinite():
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]])
    points = torch.tensor([[[5.0, 1], [10, 1], [20, 1]]])
    warped = warp_by_homography(matrix, points)[0]
    torch.testing.assert_close(warped[0], torch.tensor([10.0, 2]))
    assert torch.isinf(warped[1:]).all()
