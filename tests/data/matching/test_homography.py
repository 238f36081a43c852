import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.data.appearance import Appearance, change_appearance, occlude
from quadtree_attention.data.matching.homography import (
    HomographyData,
    HomographyDataset,
    Warp,
    random_views,
    warped_view,
)

SIZE = (64, 96)
PLAIN = Appearance(
    occluders=0, gamma=1, contrast=1, brightness=0, shade=0, blurred=0, moved=0, noise=0, compressed=0, inverted=0
)


@pytest.fixture
def photos(tmp_path):
    paths = []
    for k in range(4):
        noise = np.random.default_rng(k).normal(size=(150, 200)).cumsum(0).cumsum(1)
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(np.uint8(255 * (noise - noise.min()) / np.ptp(noise))).save(paths[-1])
    return paths


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a if key != "supervision")


def dot(size, x, y):
    """A smooth dot whose centre of mass is (x, y)."""
    columns, rows = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    return np.uint8(np.rint(255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))))


def centre(image):
    weight = image.astype(np.float64)
    columns, rows = np.meshgrid(np.arange(image.shape[1]), np.arange(image.shape[0]))
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.2, 1.9, 3.0])
def test_a_dot_lands_where_the_matrix_says(scale):
    # Scales beyond 1.25 are averaged first; that must not shift anything.
    angle = 0.3
    view = np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle), 40.3],
            [scale * np.sin(angle), scale * np.cos(angle), 12.8],
            [0, 0, 1],
        ]
    )
    x, y, _ = view @ (40.0, 30.0, 1.0)
    seen = warped_view(dot((300, 400), x, y), view, SIZE, cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(centre(seen), (40, 30), atol=0.06)


def test_both_views_show_the_same_point_where_the_homography_says():
    photo = dot((150, 200), 100, 75)
    judged = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        views = random_views(rng, photo.shape, SIZE, Warp(translation=0.1))
        homography = np.linalg.inv(views[1]) @ views[0]
        images = [warped_view(photo, view, SIZE, cv2.BORDER_CONSTANT) for view in views]
        x, y, w = np.linalg.inv(views[0]) @ (100, 75, 1)
        point0 = np.array([x, y]) / w
        x, y, w = homography @ (*point0, 1)
        point1 = np.array([x, y]) / w
        for image, point in zip(images, (point0, point1), strict=True):
            if ((point > 24) & (point < np.array(SIZE[::-1]) - 25)).all():
                # Perspective moves the centre of mass of a dot a little.
                np.testing.assert_allclose(centre(image), point, atol=0.5)
                judged += 1
    assert judged > 20


def test_image1_taken_back_is_image0(photos):
    dataset = HomographyDataset(photos, SIZE, warp=Warp(scale=1.2, tilt=1.2, background=0), appearance=PLAIN, collage=0)
    for n in range(5):
        sample = dataset[n]
        homography = sample["homography"].double().numpy()
        image0, image1 = (sample[f"image{k}"][0].numpy() for k in (0, 1))
        back = cv2.warpPerspective(image1, homography, SIZE[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        visible = sample["visible1"].numpy().astype(np.float32)
        shown = cv2.warpPerspective(visible, homography, SIZE[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        both = (shown > 0.999) & sample["visible0"].numpy()
        assert both.mean() > 0.2
        assert np.abs(back - image0)[both].mean() < 0.01


def test_sample_depends_on_seed_and_number_alone(photos):
    one, two = (HomographyDataset(photos, SIZE, length=5, seed=3) for _ in range(2))
    one[0], one[3]
    assert same(one[7], two[7])
    assert not same(one[7], one[2])
    assert not same(one[7], HomographyDataset(photos, SIZE, seed=4)[7])
    assert len(list(one)) == 5


def test_sample_has_the_promised_form(photos):
    sample = HomographyDataset(photos, SIZE, seed=1)[0]
    assert set(sample) == {"supervision", "image0", "image1", "homography", "visible0", "visible1"}
    assert sample["supervision"] == "homography"
    for k in (0, 1):
        image, visible = sample[f"image{k}"], sample[f"visible{k}"]
        assert image.shape == (1, *SIZE)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1
        assert visible.shape == SIZE
        assert visible.dtype == torch.bool
    assert sample["homography"].dtype == torch.float32
    assert sample["homography"][2, 2] == 1


def test_difficulty_scales_the_strengths_and_rises(photos):
    dataset = HomographyDataset(photos, SIZE, difficulty=(0.0, 1.0), ramp=100, appearance=PLAIN)
    first = dataset[0]["homography"]
    mirror = torch.sign(first[0, 0])
    torch.testing.assert_close(first, torch.diag(torch.tensor([mirror, 1.0, 1.0])) if mirror < 0 else torch.eye(3))
    far = [(dataset[100 + k]["homography"] - torch.eye(3)).abs().max() for k in range(10)]
    near = [(dataset[k]["homography"] - torch.eye(3)).abs().max() for k in range(10)]
    assert max(near) < max(far)
    halfway = HomographyDataset(photos, SIZE, difficulty=0.5, appearance=PLAIN)
    torch.testing.assert_close(dataset[50]["homography"], halfway[50]["homography"])


def test_overlap_is_kept(photos):
    warp = Warp(scale=4, translation=2.0, careless=0, min_overlap=0.5)
    for seed in range(20):
        views = random_views(np.random.default_rng(seed), (150, 200), SIZE, warp)
        x, y = np.meshgrid(np.linspace(0, SIZE[1] - 1, 20), np.linspace(0, SIZE[0] - 1, 20))
        points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        for matrix in (np.linalg.inv(views[1]) @ views[0], np.linalg.inv(views[0]) @ views[1]):
            x1, y1, w = matrix @ points
            x1, y1 = x1 / w, y1 / w
            assert np.mean((x1 >= 0) & (x1 < SIZE[1]) & (y1 >= 0) & (y1 < SIZE[0])) > 0.4


def test_occluders_are_marked():
    image, visible = np.full(SIZE, 7, np.uint8), np.ones(SIZE, bool)
    occlude(np.random.default_rng(0), image, visible, np.full(SIZE, 9, np.uint8), 3, Appearance(occluder_size=0.4))
    assert 0 < (~visible).mean() < 1
    assert (image[visible] == 7).all()
    assert (image[~visible] != 7).any()


def test_appearance_moves_nothing():
    image = dot(SIZE, 40, 30)
    look = Appearance(brightness=0, shade=0, contrast=1, gamma=1, noise=0, blurred=1, moved=1, compressed=0, inverted=0)
    for seed in range(20):
        changed = change_appearance(np.random.default_rng(seed), image, look, 1.0)
        np.testing.assert_allclose(centre(changed), (40, 30), atol=0.05)


def test_options_that_make_no_sense(photos):
    with pytest.raises(ValueError, match="got no photographs"):
        HomographyDataset([])
    with pytest.raises(ValueError, match="size is 16x96"):
        HomographyDataset(photos, (16, 96))
    with pytest.raises(ValueError, match="difficulty is 2"):
        HomographyDataset(photos, difficulty=2)


def test_datamodule(photos):
    folder = str(photos[0].parent)
    data = HomographyData(folder, folder, SIZE, batch_size=2, length=5, val_length=3, num_workers=0)
    assert len(list(data.train_dataloader())) == 2
    first, second = ([batch["homography"] for batch in data.val_dataloader()] for _ in range(2))
    assert [len(batch) for batch in first] == [2, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(ValueError, match="length is 5, expected at least one batch of 8"):
        HomographyData(folder, folder, SIZE, batch_size=8, length=5).train_dataloader()
