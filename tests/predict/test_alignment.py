from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from quadtree_attention.data.images import read_image
from quadtree_attention.data.warp import warped_view
from quadtree_attention.models.loftr import LOFTR_PRESETS
from quadtree_attention.predict.alignment import (
    aligned_views,
    rotated_view,
    shrunk_view,
    similarity,
    trial_views,
    whole_view,
)
from quadtree_attention.predict.matching import Matcher

STREET = Path(__file__).parents[2] / "examples" / "leuven_a.jpg"


def change(scale: float, turn: float, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    angle = np.deg2rad(turn)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]], [0, 0, 1]])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def about(centre: tuple[float, float], scale: float, turn: float) -> np.ndarray:
    """A change of scale and turn that leaves a point where it is."""
    return change(scale, turn, tuple(np.array(centre) - moved(np.array([centre]), change(scale, turn))[0]))


class TestSimilarity:
    def test_is_found_among_wrong_matches(self):
        random = np.random.default_rng(0)
        true = change(2.1, -25, (40, 90))
        points0 = random.uniform(0, 300, (200, 2))
        points1 = moved(points0, true) + random.normal(0, 2, (200, 2))
        points1[:80] = random.uniform(0, 640, (80, 2))
        found = similarity(points0, points1, 640)
        corners = np.array([[0, 0], [300, 0], [0, 300], [300, 300]], float)
        np.testing.assert_allclose(moved(corners, found), moved(corners, true), atol=5)

    def test_needs_matches_that_agree(self):
        random = np.random.default_rng(0)
        points = random.uniform(0, 300, (7, 2))
        assert similarity(points, points, 300) is None
        assert similarity(np.zeros((0, 2)), np.zeros((0, 2)), 300) is None
        assert similarity(random.uniform(0, 300, (12, 2)), random.uniform(0, 300, (12, 2)), 300) is None
        assert similarity(np.ones((30, 2)), np.ones((30, 2)), 300) is None

    def test_absurd_scales_are_mistakes(self):
        points = np.random.default_rng(0).uniform(0, 600, (50, 2))
        for scale in (0.1, 10):
            assert similarity(points, scale * points, 640) is None


@pytest.mark.parametrize("max_size", [400, 200])
@pytest.mark.parametrize(("scale", "turn"), [(1.7, 20), (0.5, -35), (1.05, 12), (1.3, 0)])
def test_aligned_views_show_the_same_things_in_the_same_places(scale, turn, max_size):
    dots = np.random.default_rng(1).uniform([120, 90], [280, 210], (12, 2)).round()
    true = about((200, 150), scale, turn)
    image0 = np.zeros((300, 400, 3), np.uint8)
    for x, y in dots.astype(int):
        cv2.circle(image0, (int(x), int(y)), 8, (255, 255, 255), -1)
    image0 = cv2.GaussianBlur(image0, (0, 0), 4)
    image1 = cv2.warpAffine(image0, true[:2], (400, 300))
    images = image0, image1
    views = tuple(whole_view(image, max_size) for image in images)
    to_matched = 400 / max_size
    points0, points1 = ((p + 0.5) / to_matched - 0.5 for p in (dots, moved(dots, true)))
    aligned = aligned_views(images, views, points0, points1)
    finer = scale > 1
    assert aligned[finer] is views[finer]
    assert aligned[0].gray.shape == aligned[1].gray.shape
    difference = abs(aligned[0].gray - aligned[1].gray).mean()
    assert difference < 0.1 * aligned[0].gray.mean()
    # From a pixel of both views to the images as given: the true change is between.
    pixels = np.array([[20.0, 30], [90, 70], [150, 20]])
    given0, given1 = (view.map_to_given(pixels) for view in aligned)
    np.testing.assert_allclose(moved(given0, true), given1, atol=0.02 * max(scale, 1) * to_matched + 0.05)


def test_what_a_view_does_not_show_is_marked():
    image0, image1 = np.full((200, 300, 3), 255, np.uint8), np.zeros((200, 300, 3), np.uint8)
    views = whole_view(image0, 300), whole_view(image1, 300)
    points = np.random.default_rng(0).uniform(0, 100, (20, 2))
    warped, _ = aligned_views((image0, image1), views, points, moved(points, change(1.5, 0, (60, 40))))
    assert np.mean(warped.valid != (warped.gray > 0)) < 0.01  # between the two lies half a pixel
    assert not warped.valid[:39].any()
    assert not warped.valid[:, :59].any()
    assert warped.valid[41:, 61:].all()


@pytest.mark.parametrize(("scale", "turn"), [(1.0, 0), (1.15, 8), (0.87, -9)])
def test_images_that_hardly_differ_stay_as_they_are(scale, turn):
    image = np.zeros((200, 300, 3), np.uint8)
    view = whole_view(image, 300)
    points = np.random.default_rng(0).uniform(0, 200, (20, 2))
    assert aligned_views((image, image), (view, view), points, moved(points, change(scale, turn))) is None


def right(matches, true: np.ndarray) -> int:
    return int((np.linalg.norm(moved(matches.keypoints0, true) - matches.keypoints1, axis=1) < 3).sum())


@pytest.mark.parametrize("swap", [False, True])
def test_a_second_look_finds_more(swap):
    street = cv2.resize(read_image(STREET), (320, 240), interpolation=cv2.INTER_AREA)
    true = about((160, 120), 2.0, 15)
    images = street, cv2.warpAffine(street, true[:2], (320, 240))
    if swap:
        images, true = images[::-1], np.linalg.inv(true)
    matcher = Matcher.from_pretrained("tiny", device="cpu")
    once, twice = (matcher.match(*images, align=align) for align in (False, True))
    assert right(twice, true) > 3 * right(once, true)
    assert right(twice, true) > 0.9 * len(twice)
    assert twice.scale == once.scale == 1


class Looks(torch.nn.Module):
    """Stands for a network: what it is given is kept; each look finds the same points, with the next of some confidences."""

    def __init__(self, points0: np.ndarray, points1: np.ndarray, *confidences: float) -> None:
        super().__init__()
        self.config = LOFTR_PRESETS["tiny"]
        self.points = [torch.from_numpy(points) for points in (points0, points1)]
        self.confidences = list(confidences)
        self.given = []

    def forward(self, *images_and_masks):
        self.given.append(images_and_masks)
        confidence = torch.full((len(self.points[0]),), self.confidences.pop(0))
        owner = torch.zeros(len(confidence), dtype=torch.int64)
        points0, points1 = self.points
        return {"keypoints0": points0, "keypoints1": points1, "confidence": confidence, "batch_indexes": owner}

    def encode(self, *images_and_masks):
        return SimpleNamespace(coarse0=torch.ones(1), coarse1=torch.ones(1), given=images_and_masks)

    def matches(self, features, threshold):
        return self(*features.given)


class TestMatcher:
    points = np.random.default_rng(0).uniform(0, 100, (200, 2))  # so many that each has neighbours
    twice = moved(points, change(2, 0, (50, 0)))

    def test_keeps_the_surer_look(self, photo):
        for confidences, second in (((0.5, 0.6), True), ((0.5, 0.4), False)):
            matches = Matcher(Looks(self.points, self.twice, *confidences), "cpu").match(photo, photo, refine=False)
            np.testing.assert_allclose(matches.keypoints1, self.twice, rtol=1e-6)
            want = (self.points - (50, 0)) / 2 if second else self.points
            np.testing.assert_allclose(matches.keypoints0, want, atol=1e-3)
            np.testing.assert_allclose(matches.confidence, max(confidences))

    def test_one_look_if_told_so_or_if_nothing_differs(self, photo):
        for points1, options in ((self.twice, {"align": False}), (self.points, {})):
            matcher = Matcher(Looks(self.points, points1, 0.5))
            matcher.match(photo, photo, refine=False, **options)
            assert len(matcher.model.given) == 1

    @pytest.mark.parametrize("pad_to", [None, 192])
    def test_what_is_not_shown_is_masked(self, photo, pad_to):
        matcher = Matcher(Looks(self.points, self.twice, 0.5, 0.6))
        matcher.match(photo, photo, pad_to=pad_to, refine=False)
        gray, _, mask, other = matcher.model.given[1]
        assert gray.shape[2:] == mask.shape[1:]
        shown = mask[0, :120, :160]
        assert not shown[:, :49].any()
        assert shown[:, 51:].all()
        assert not mask[0, 120:].any()
        if pad_to is None:
            assert other is None
        else:
            assert other[0, :120, :160].all()
            assert other.sum() == 120 * 160


def turned_back(points: np.ndarray, turns: int, size: tuple[int, int]) -> np.ndarray:
    """Pixels of an image ``size`` (height, width) turned by quarters, counterclockwise, in the image before."""
    height, width = size
    x, y = points.T
    return np.stack([(x, y), (width - 1 - y, x), (width - 1 - x, height - 1 - y), (y, height - 1 - x)][turns], 1)


@pytest.mark.parametrize(("turns", "zoom"), [(1, 1), (2, 1), (3, 1), (0, 1 / 3), (0, 3), (1, 1 / 3), (3, 2)])
def test_quarter_turns_and_scales_are_found(turns, zoom):
    street = cv2.resize(read_image(STREET), (400, 300), interpolation=cv2.INTER_AREA)
    true = about((200, 150), zoom, 0)
    image1 = np.rot90(warped_view(street, np.linalg.inv(true), (300, 400), cv2.BORDER_CONSTANT), turns)
    matches = Matcher.from_pretrained("tiny", device="cpu").match(street, np.ascontiguousarray(image1))
    places = moved(matches.keypoints0, true)
    errors = np.linalg.norm(places - turned_back(matches.keypoints1, turns, (300, 400)), axis=1)
    assert len(matches) > 80
    assert np.mean(errors < 2) > 0.9


def test_pairs_that_do_not_belong_together_have_no_sure_matches():
    random = np.random.default_rng(0)
    street = cv2.resize(read_image(STREET), (320, 240), interpolation=cv2.INTER_AREA)
    clouds = cv2.GaussianBlur(random.uniform(0, 255, (240, 320, 3)), (0, 0), 4)
    clouds = np.uint8(255 * (clouds - clouds.min()) / np.ptp(clouds))
    matches = Matcher.from_pretrained("tiny", device="cpu").match(street, clouds, threshold=0.8)
    assert len(matches) < 5


class TestTrials:
    def test_views_of_all_turns_say_where_they_are(self):
        image = np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)
        view = whole_view(image, 200)
        for turns in range(4):
            turned = rotated_view(view, turns)
            for x, y in ((3, 5), (40, 11)):
                given = turned.map_to_given(np.array([[x, y]]))[0].round().astype(int)
                assert turned.gray[y, x] == view.gray[given[1], given[0]]

    def test_smaller_views_too(self):
        view = whole_view(np.zeros((120, 200, 3), np.uint8), 200)
        small = shrunk_view(view, 100)
        assert small.gray.shape == (60, 100)
        np.testing.assert_allclose(small.map_to_given(np.array([[0, 0], [99, 59]])), [[0.5, 0.5], [198.5, 118.5]])

    def test_slim_images_are_not_tried_smaller(self):
        view = whole_view(np.zeros((60, 250, 3), np.uint8), 250)
        assert len(list(trial_views((view, view)))) == 4
