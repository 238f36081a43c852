import csv
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention import Geometry, Matcher, Matches
from quadtree_attention.data.images import read_image
from quadtree_attention.models.loftr import LOFTR_PRESETS


class Cells(torch.nn.Module):
    """Stands for a network: matches each cell of the smaller image with the same cell of the other; confidence falls from 1 to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LOFTR_PRESETS["tiny"]

    def forward(
        self,
        image0: torch.Tensor,
        image1: torch.Tensor,
        mask0: None = None,
        mask1: None = None,
        threshold: float | None = None,
    ) -> dict[str, torch.Tensor]:
        assert image0.dtype == torch.float32
        assert image0.shape[:2] == (1, 1)
        rows, columns = (min(a, b) // 8 for a, b in zip(image0.shape[2:], image1.shape[2:], strict=True))
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1) * 8.0
        confidence = torch.linspace(1, 0, len(cells)) * image0.mean()
        kept = confidence > (self.config.threshold if threshold is None else threshold)
        owner = torch.zeros(len(cells), dtype=torch.int64)
        return {
            "keypoints0": cells[kept],
            "keypoints1": cells[kept] + 0.5,
            "confidence": confidence[kept],
            "batch_indexes": owner[kept],
        }

    def encode(self, *images_and_masks):
        return SimpleNamespace(coarse0=torch.ones(1), coarse1=torch.ones(1), given=images_and_masks)

    def matches(self, features, threshold):
        return self(*features.given, threshold=threshold)


@pytest.fixture
def matcher() -> Matcher:
    return Matcher(Cells(), "cpu")


def planar(count: int = 200, wrong: int = 60) -> tuple[Matches, np.ndarray]:
    """Matches on a plane, the last ``wrong`` of them at random."""
    random = np.random.default_rng(0)
    homography = np.array([[0.9, 0.1, 20], [-0.1, 1.1, 5], [1e-4, 2e-4, 1]])
    points0 = random.uniform(0, 500, (count, 2))
    points1 = np.c_[points0, np.ones(count)] @ homography.T
    points1 = points1[:, :2] / points1[:, 2:] + random.normal(0, 0.3, (count, 2))
    points1[count - wrong :] = random.uniform(0, 500, (wrong, 2))
    return Matches(np.float32(points0), np.float32(points1), np.ones(count, np.float32)), homography


ROTATION = np.array([[np.cos(0.2), 0, np.sin(0.2)], [0, 1, 0], [-np.sin(0.2), 0, np.cos(0.2)]])
TRANSLATION = np.array([1, 0.1, 0.2])


def rigid(intrinsics0: np.ndarray, intrinsics1: np.ndarray) -> tuple[Matches, np.ndarray]:
    """Matches of 200 points in space, the last 50 at random; and the essential matrix."""
    random = np.random.default_rng(0)
    points = random.uniform([-2, -2, 4], [2, 2, 8], (200, 3))
    rotation, (x, y, z) = ROTATION, TRANSLATION
    pixels = []
    for in_camera, camera in ((points, intrinsics0), (points @ rotation.T + TRANSLATION, intrinsics1)):
        projected = in_camera @ camera.T
        pixels.append(projected[:, :2] / projected[:, 2:] + random.normal(0, 0.2, (200, 2)))
    pixels[1][150:] = random.uniform(0, 600, (50, 2))
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    return Matches(np.float32(pixels[0]), np.float32(pixels[1]), np.ones(200, np.float32)), essential


K0 = np.array([[500, 0, 320], [0, 510, 240], [0, 0, 1.0]])
K1 = np.array([[700, 0, 300], [0, 690, 260], [0, 0, 1.0]])


def test_keypoints_are_in_pixels_of_the_images_as_given(matcher):
    image0, image1 = np.full((240, 320, 3), 255, np.uint8), np.full((120, 160, 3), 255, np.uint8)
    matches = matcher.match(image0, image1, max_size=80, threshold=0.0)
    assert len(matches) == (60 // 8) * (80 // 8) - 1
    assert matches.scale == 4
    for array in (matches.keypoints0, matches.keypoints1):
        assert array.shape == (len(matches), 2)
        assert array.dtype == np.float32
    assert matches.confidence.dtype == np.float32
    # pixel 8 of an image shrunk to a quarter covers pixels 32..35, whose centre is 33.5
    np.testing.assert_allclose(matches.keypoints0[:3], [[1.5, 1.5], [33.5, 1.5], [65.5, 1.5]])
    np.testing.assert_allclose(matches.keypoints1[:3], [[1.5, 1.5], [17.5, 1.5], [33.5, 1.5]])


def test_scale_of_each_axis_is_its_own(matcher):
    image = np.full((203, 101, 3), 255, np.uint8)  # becomes 100 x 50
    matches = matcher.match(image, image, max_size=100, threshold=0.0)
    np.testing.assert_allclose(matches.keypoints0[1], (8.5 * 101 / 50 - 0.5, 0.5 * 203 / 100 - 0.5), rtol=1e-6)
    assert matches.scale == pytest.approx(203 / 100)


def test_a_network(photo):
    matcher = Matcher.from_pretrained("tiny", device="cpu")
    part = photo[:100, :144]
    matches = matcher.match(photo, part, threshold=0.0)
    assert len(matches)
    for keypoints, (height, width) in ((matches.keypoints0, (120, 160)), (matches.keypoints1, (100, 144))):
        assert (keypoints > -4).all()
        assert (keypoints < (width + 4, height + 4)).all()
    assert not matcher.model.training
    sure = matcher.match(photo, part, threshold=0.99, refine=False)
    assert len(sure) < len(matches)
    assert (sure.confidence > 0.99).all()


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def street() -> list[np.ndarray]:
    """Two photographs of a street, 320x240."""
    return [
        cv2.resize(read_image(EXAMPLES / f"leuven_{name}.jpg"), (320, 240), interpolation=cv2.INTER_AREA)
        for name in "ab"
    ]


@pytest.fixture(scope="module")
def tiny() -> Matcher:
    return Matcher.from_pretrained("tiny", device="cpu")


def agree(ours: Matches, theirs: Matches) -> None:
    """The same matches, but for what another batch makes of the last digits, which may move a few across the threshold."""
    common = {tuple(point) for point in ours.keypoints0.round(1)} & {tuple(p) for p in theirs.keypoints0.round(1)}
    assert len(common) > 0.97 * max(len(ours), len(theirs)) > 30
    assert ours.scale == theirs.scale


def test_a_list_of_pairs(tiny, street):
    a, b = street
    calls = []
    encode = tiny.model.encode
    tiny.model.encode = lambda *given: calls.append(given[0].shape[0]) or encode(*given)
    try:
        many = tiny.match([(a, b), (b, a[:, :256]), (b, a)], align=False)
    finally:
        del tiny.model.encode
    assert calls == [2, 1]  # the two of one size run together
    for found, pair in zip(many, [(a, b), (b, a[:, :256]), (b, a)], strict=True):
        agree(found, tiny.match(*pair, align=False))
    assert tiny.match([]) == []


def test_bad_lists(matcher, photo):
    with pytest.raises(ValueError, match=r"pair 1 is a ndarray, expected \(image 0, image 1\)"):
        matcher.match([(photo, photo), photo])
    with pytest.raises(ValueError, match="expected a list of pairs"):
        matcher.match([photo], [photo])
    with pytest.raises(ValueError, match="mask1 is not a list of 2"):
        matcher.match([(photo, photo)] * 2, mask1=[None])
    with pytest.raises(ValueError, match="image1 of pair 1 is too small"):
        matcher.match([(photo, photo), (photo, photo[:8])])


@pytest.mark.parametrize("options", [{}, {"align": False}, {"refine": False, "pad_to": 320}])
def test_nothing_is_matched_where_masks_are_false(tiny, street, options):
    a, b = street
    mask0, mask1 = np.ones((240, 320), bool), torch.ones(240, 320, dtype=torch.bool)
    mask0[:, :130] = False
    mask1[150:] = False
    found = tiny.match(a, b, mask0=mask0, mask1=mask1, **options)
    assert len(found) > 30
    assert (found.keypoints0[:, 0] > 129).all()
    assert (found.keypoints1[:, 1] < 150).all()
    without = tiny.match(a, b, **options)
    assert (without.keypoints0[:, 0] < 129).any()
    assert (without.keypoints1[:, 1] > 150).any()


def test_masks_of_shrunk_and_aligned_images(tiny, street):
    a, b = street
    large = cv2.resize(b, (900, 675), interpolation=cv2.INTER_CUBIC)
    mask = np.ones((675, 900), bool)
    mask[:, :450] = False
    found = tiny.match(a, large, mask1=mask)
    assert len(found) > 100
    assert (found.keypoints1[:, 0] > 449).all()
    assert (tiny.match(a, large).keypoints1[:, 0] < 449).any()
    turned = np.ascontiguousarray(np.rot90(large))  # what was at the right is at the top
    found = tiny.match(a, turned, mask1=np.ascontiguousarray(np.rot90(mask)))
    assert len(found) > 100
    assert (found.keypoints1[:, 1] < 450).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((120, 160)), "mask1 has dtype float64, expected bool, True = valid; convert it with mask1 != 0"),
        (np.ones((160, 120), bool), r"mask1 has shape \(160, 120\), expected \(120, 160\)"),
    ],
)
def test_bad_masks(matcher, photo, mask, message):
    with pytest.raises(ValueError, match=message):
        matcher.match(photo, photo, mask1=mask)


def test_kinds_of_images_agree(matcher, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    want = matcher.match(photo, photo, threshold=0.0)
    for source in (tmp_path / "a.png", Image.fromarray(photo), torch.from_numpy(photo).permute(2, 0, 1) / 255):
        got = matcher.match(source, photo, threshold=0.0)
        np.testing.assert_array_equal(got.confidence, want.confidence)  # depends on the image


def test_threshold_keeps_what_is_above_it(matcher, photo):
    everything = matcher.match(photo, photo, threshold=0.0)
    middle = float(np.median(everything.confidence))
    some = matcher.match(photo, photo, threshold=middle)
    assert len(some) == (everything.confidence > middle).sum()
    assert matcher.model.config.threshold == 0.2
    assert len(matcher.match(photo, photo, threshold=1.0)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 16}, "max_size is 16, expected at least 32"),
        ({"max_size": -640}, "max_size is -640"),
        ({"threshold": 1.5}, "threshold is 1.5, expected 0..1"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_bad_options(matcher, photo, options, message):
    with pytest.raises(ValueError, match=message):
        matcher.match(photo, photo, **options)


def test_too_small_an_image_is_named(matcher, photo):
    with pytest.raises(ValueError, match="image1 is too small: 1x1 pixels, expected at least 32 on each side"):
        matcher.match(photo, np.zeros((1, 1), np.uint8))


def test_unknown_device(random_weights):
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}' (cannot be used|is unknown)") as caught:
            Matcher.from_pretrained(random_weights, device=device)
        assert "\n" not in str(caught.value)


def test_homography():
    matches, homography = planar()
    found = matches.geometry("homography")
    assert found.inliers[:140].mean() > 0.95
    assert found.inliers[140:].mean() < 0.1
    np.testing.assert_allclose(found.model / found.model[2, 2], homography, atol=1e-4, rtol=0.05)
    again = matches.geometry("homography")
    np.testing.assert_array_equal(found.inliers, again.inliers)
    assert found.R is found.t is None


def test_warp_shows_image_0_as_image_1_sees_it(photo):
    true = np.array([[0.9, 0.1, 12], [-0.05, 1.1, 3], [2e-4, 1e-4, 1]])
    height, width = photo.shape[:2]
    image1 = cv2.warpPerspective(photo, true, (width + 20, height + 10))
    nothing = np.zeros(0, bool)
    warped = Geometry("homography", true, nothing).warp(photo, image1.shape[:2])
    assert warped.dtype == np.uint8
    assert warped.shape == image1.shape
    assert abs(warped.astype(int) - image1).max() <= 2
    assert Geometry("homography", true, nothing).warp(photo).shape == photo.shape
    with pytest.raises(ValueError, match="geometry is 'fundamental', expected a homography"):
        Geometry("fundamental", true, nothing).warp(photo)
    with pytest.raises(ValueError, match="no homography fits the matches"):
        Geometry("homography", None, nothing).warp(photo)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        Geometry("homography", true, nothing).warp(photo, (0, 10))


def test_threshold_of_geometry_grows_with_shrinking():
    matches, _ = planar()
    shaken = matches.keypoints1 + np.random.default_rng(1).normal(0, 4, (200, 2)).astype(np.float32)
    strict, lax = (
        Matches(matches.keypoints0, shaken, matches.confidence, scale).geometry("homography") for scale in (1.0, 6.0)
    )
    assert lax.inliers.sum() > 1.5 * strict.inliers.sum()


def test_fundamental():
    matches, essential = rigid(K0, K1)
    found = matches.geometry("fundamental")
    assert found.inliers[:150].mean() > 0.95
    assert found.inliers[150:].mean() < 0.1
    want = np.linalg.inv(K1).T @ essential @ np.linalg.inv(K0)
    cosine = (found.model * want).sum() / np.linalg.norm(found.model) / np.linalg.norm(want)
    assert abs(cosine) > 0.999


@pytest.mark.parametrize("form", ["matrices", "numbers"])
def test_essential_with_two_cameras(form):
    matches, want = rigid(K0, K1)
    cameras = (K0, K1) if form == "matrices" else ((500, 510, 320, 240), (700, 690, 300, 260))
    found = matches.geometry("essential", intrinsics=cameras)
    assert found.inliers[:150].mean() > 0.8
    assert found.inliers[150:].mean() < 0.1
    cosine = (found.model * want).sum() / np.linalg.norm(found.model) / np.linalg.norm(want)
    assert abs(cosine) > 0.999
    degrees = np.rad2deg(np.arccos(np.clip((np.trace(found.R.T @ ROTATION) - 1) / 2, -1, 1)))
    assert degrees < 1
    assert np.linalg.norm(found.t) == pytest.approx(1)
    assert found.t @ TRANSLATION / np.linalg.norm(TRANSLATION) > 0.998  # to 3.6 degrees, and not the other way


def test_essential_with_one_camera():
    matches, _ = rigid(K0, K0)
    for intrinsics in (K0, (500, 510, 320, 240)):
        assert matches.geometry("essential", intrinsics=intrinsics).inliers.sum() > 120


@pytest.mark.parametrize("kind", ["homography", "fundamental", "essential"])
def test_nothing_to_fit(kind):
    options = {"intrinsics": K0} if kind == "essential" else {}
    for points in (np.zeros((0, 2)), np.ones((3, 2)), np.ones((20, 2))):
        points = points.astype(np.float32)
        found = Matches(points, points, points[:, 0]).geometry(kind, **options)
        assert found.inliers.shape == (len(points),)
        assert found.inliers.dtype == bool
        assert found.model is None or np.isfinite(found.model).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("affine", {}, "geometry is 'affine', expected one of homography"),
        ("essential", {}, "intrinsics are missing"),
        ("homography", {"intrinsics": K0}, "'essential' alone takes them"),
        ("essential", {"intrinsics": (1, 2, 3)}, "expected a \\[3, 3\\] matrix"),
        ("essential", {"intrinsics": (0, 500, 1, 1)}, "focal lengths above 0"),
        ("homography", {"threshold": -1}, "threshold is -1"),
    ],
)
def test_bad_geometry(kind, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        planar()[0].geometry(kind, **options)
    assert "\n" not in str(caught.value)


def test_saved_files_hold_the_same(tmp_path):
    matches, _ = planar()
    found = matches.geometry("homography")
    for suffix in (".npz", ".json", ".csv"):
        matches.save(tmp_path / f"plain{suffix}")
        matches.save(tmp_path / f"fitted{suffix}", found)
    with np.load(tmp_path / "plain.npz") as data:
        assert set(data) == {"keypoints0", "keypoints1", "confidence"}
        np.testing.assert_array_equal(data["keypoints1"], matches.keypoints1)
    with np.load(tmp_path / "fitted.npz") as data:
        np.testing.assert_array_equal(data["inliers"], found.inliers)
        np.testing.assert_array_equal(data["homography"], found.model)
    data = json.loads((tmp_path / "plain.json").read_text())
    assert set(data) == {"keypoints0", "keypoints1", "confidence"}
    np.testing.assert_allclose(data["keypoints0"], matches.keypoints0, atol=1e-3)
    data = json.loads((tmp_path / "fitted.json").read_text())
    assert data["inliers"] == found.inliers.tolist()
    np.testing.assert_array_equal(data["homography"], found.model)
    with (tmp_path / "fitted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["x0", "y0", "x1", "y1", "confidence", "inlier"]
    np.testing.assert_allclose([float(row["y1"]) for row in rows], matches.keypoints1[:, 1], atol=1e-3)
    assert [row["inlier"] == "1" for row in rows] == found.inliers.tolist()
    assert "inlier" not in (tmp_path / "plain.csv").read_text()


def test_saved_pose(tmp_path):
    matches, _ = rigid(K0, K1)
    found = matches.geometry("essential", intrinsics=(K0, K1))
    matches.save(tmp_path / "a.npz", found)
    matches.save(tmp_path / "a.json", found)
    with np.load(tmp_path / "a.npz") as data:
        np.testing.assert_array_equal(data["R"], found.R)
        np.testing.assert_array_equal(data["t"], found.t)
    data = json.loads((tmp_path / "a.json").read_text())
    np.testing.assert_allclose(data["R"], found.R)
    np.testing.assert_allclose(data["t"], found.t)


def test_tensors():
    matches, homography = planar()
    tensors = matches.to_tensors()
    assert set(tensors) == {"keypoints0", "keypoints1", "confidence"}
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor.numpy(), getattr(matches, name))
    tensors["confidence"].zero_()
    assert matches.confidence.all()
    assert set(Geometry("homography", homography, np.ones(3, bool)).to_tensors("cpu")) == {"model", "inliers"}


def test_no_match_can_be_saved(tmp_path):
    empty = np.zeros((0, 2), np.float32)
    for suffix in (".npz", ".json", ".csv"):
        Matches(empty, empty, empty[:, 0]).save(tmp_path / f"m{suffix}")
    assert (tmp_path / "m.csv").read_text().split() == ["x0,y0,x1,y1,confidence"]
    with np.load(tmp_path / "m.npz") as data:
        assert data["keypoints0"].shape == (0, 2)
    with pytest.raises(ValueError, match=r"unknown suffix '\.txt'"):
        Matches(empty, empty, empty[:, 0]).save(tmp_path / "m.txt")
