import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from quadtree_attention.data.matching.pairs import HomographyPair, Pair, PosePair, StereoPair
from quadtree_attention.evaluation import layouts
from quadtree_attention.evaluation import run as running
from quadtree_attention.evaluation.matchers import sift_matcher
from quadtree_attention.evaluation.predictions import predict
from quadtree_attention.evaluation.run import Evaluation, evaluate_pairs, run
from quadtree_attention.evaluation.synthetic import SyntheticHomographies
from quadtree_attention.table import Table

H = np.array([[0.9, -0.1, 20], [0.1, 0.95, 5], [1e-4, 5e-5, 1]])
GRID = np.stack(np.meshgrid(np.arange(5.0, 150, 9), np.arange(5.0, 110, 9)), -1).reshape(-1, 2)
BLACK = np.zeros((120, 160, 3), np.uint8)


def measured(protocol, source, models=("sift",), **options):
    """`run` with what is measured, and how, among its arguments."""
    rest = {name: options.pop(name) for name in ("out", "curve", "device", "progress") if name in options}
    return run(Evaluation(protocol=protocol, source=source, **options), models, **rest)


def finds(kpts0, kpts1):
    """A matcher that always finds the same."""
    return lambda image0, image1: (kpts0, kpts1, np.ones(len(kpts0)))


def warped(points, offset=0.0):
    return cv2.perspectiveTransform(points[:, None], H)[:, 0] + [offset, 0]


class TestHomography:
    pair = HomographyPair(name="p", image0=BLACK, image1=BLACK, homography=H)

    def test_right_matches(self):
        result = evaluate_pairs(finds(GRID, warped(GRID)), [self.pair] * 2)
        assert result["auc@3"] > 0.999
        assert (result["right@3px"], result["right"], result["matches"], result["pairs"]) == (
            1,
            len(GRID),
            len(GRID),
            2,
        )

    def test_matches_off_by_four_pixels(self):
        result = evaluate_pairs(finds(GRID, warped(GRID, 4.0)), [self.pair])
        assert (result["auc@3"], result["right@3px"]) == (0, 0)
        assert result["auc@10"] == pytest.approx((2 + 6) / 10, abs=0.01)  # half of 4, then 1, up to 10

    def test_nothing_found(self):
        nothing = np.zeros((0, 2))
        result = evaluate_pairs(finds(nothing, nothing), [self.pair])
        assert (result["auc@10"], result["right@3px"], result["matches"]) == (0, 0, 0)


class TestPose:
    K = np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]])
    T = np.vstack([np.c_[cv2.Rodrigues(np.array([0, 0.2, 0]))[0], [1, 0, 0.2]], [0, 0, 0, 1]])
    pair = PosePair(name="p", image0=BLACK, image1=BLACK, K0=K, K1=K, T_0to1=T)

    def test_right_matches(self):
        X = np.random.default_rng(0).uniform([-2, -2, 4], [2, 2, 9], (100, 3))
        x0, x1 = X @ self.K.T, (X @ self.T[:3, :3].T + self.T[:3, 3]) @ self.K.T
        matcher = finds(x0[:, :2] / x0[:, 2:], x1[:, :2] / x1[:, 2:])
        result = evaluate_pairs(matcher, [self.pair])
        assert result["auc@5"] > 0.99
        assert (result["prec@5e-4"], result["prec@1e-4"]) == (1, 1)

    def test_nothing_found(self):
        nothing = np.zeros((0, 2))
        result = evaluate_pairs(finds(nothing, nothing), [self.pair])
        assert (result["auc@20"], result["prec@5e-4"], result["inliers"]) == (0, 0, 0)


class TestStereo:
    disparity = np.where(np.arange(160) < 40, 0.0, 8.0) * np.ones((120, 1))
    pair = StereoPair(name="p", image0=BLACK, image1=BLACK, disparity=disparity)

    def test_only_known_disparities_count(self):
        left = np.array([[10.0, 10], [60, 10], [60, 20], [60, 30], [60, 40]])
        right = left - [8, 0]
        right[2] += [2.5, 0]
        right[3] += [0, 4]
        result = evaluate_pairs(finds(left, right), [self.pair])
        assert (result["judged"], result["matches"], result["right"], result["right@3px"]) == (4, 5, 3, 0.75)
        assert result["auc@3"] == pytest.approx((2.5 * (0.5 + 0.75) / 2 + 0.5 * 0.75) / 3)

    def test_a_disparity_of_another_size(self):
        pair = StereoPair(name="p", image0=BLACK, image1=BLACK, disparity=self.disparity[:60])
        with pytest.raises(ValueError, match="p: disparity is 160x60, expected the left image's 160x120"):
            evaluate_pairs(finds(GRID, GRID), [pair])


class TestFindMatches:
    """A matcher that finds the middle of the one bright square in each image."""

    @staticmethod
    def middle(image):
        rows, columns = np.nonzero(image[..., 0] > 127)
        return np.array([[columns.mean(), rows.mean()]])

    def match(self, image0, image1):
        self.seen = image0.shape, image1.shape
        return self.middle(image0), self.middle(image1), np.ones(1)

    image = np.zeros((400, 600, 3), np.uint8)
    image[96:112, 200:232] = 255  # its middle is at (215.5, 103.5)

    @pytest.mark.parametrize("turns", [0, 1, 2, 3])
    @pytest.mark.parametrize("max_size", [1000, 300])
    def test_keypoints_come_back_from_turning_and_shrinking(self, turns, max_size):
        pair = Pair(name="p", image0=self.image, image1=self.image, turns1=turns)
        found = predict(self.match, pair, max_size)
        shape = [min(1, max_size / 600) * side for side in ((600, 400) if turns % 2 else (400, 600))]
        assert self.seen[1][:2] == tuple(shape)
        np.testing.assert_allclose(found.keypoints0, [[215.5, 103.5]], atol=0.3)
        np.testing.assert_allclose(found.keypoints1, [[215.5, 103.5]], atol=0.3)
        assert found.scale == pytest.approx(max(1, 600 / max_size))

    def test_keypoints_are_in_the_pixels_of_the_geometry(self):
        pair = Pair(name="p", image0=self.image, image1=self.image, size0=(300, 200))
        found = predict(self.match, pair, 150)
        assert self.seen[0] == (100, 150, 3)
        assert found.size0 == (200, 300)
        np.testing.assert_allclose(found.keypoints0, [[216 / 2 - 0.5, 104 / 2 - 0.5]], atol=0.3)

    @pytest.mark.parametrize("smooth", [True, False])
    def test_an_image_that_shrinks_is_averaged_or_not(self, smooth):
        stripes = np.zeros((96, 192, 3), np.uint8)
        stripes[:, ::2] = 255  # of three pixels in a row one or two
        seen = []
        pair = Pair(name="p", image0=stripes, image1=stripes, size0=(64, 32), size1=(64, 32), smooth=smooth)
        predict(lambda *images: seen.extend(images) or (GRID, GRID, np.ones(len(GRID))), pair, 640)
        assert np.ptp(seen[0]) == (85 if smooth else 255)

    @pytest.mark.parametrize(("turns", "max_size"), [(0, 905), (0, 300), (1, 905)])
    def test_with_a_multiple_small_images_are_enlarged_and_sides_are_rounded_down(self, turns, max_size):
        pair = Pair(name="p", image0=self.image, image1=self.image, turns1=turns)
        found = predict(self.match, pair, max_size, 8)
        sides = {905: (600, 904), 300: (200, 296)}[max_size]
        assert self.seen == ((*sides, 3), (*(sides[::-1] if turns else sides), 3))
        np.testing.assert_allclose(found.keypoints0, [[215.5, 103.5]], atol=0.3)
        np.testing.assert_allclose(found.keypoints1, [[215.5, 103.5]], atol=0.3)


class TestSift:
    def test_finds_a_shift(self, photo):
        big = cv2.resize(photo, (480, 360), interpolation=cv2.INTER_CUBIC)
        kpts0, kpts1, confidence = sift_matcher()(big[:, 20:], big[:, :-20])
        assert len(kpts0) > 20
        assert np.median(np.abs(kpts1 - kpts0 - [20, 0])) < 0.1
        assert ((confidence > 0.2) & (confidence <= 1)).all()

    def test_neighbours_are_mutual(self, photo):
        match, big = sift_matcher(), cv2.resize(photo, (320, 240), interpolation=cv2.INTER_CUBIC)
        twice = np.concatenate([big, big], axis=1)  # each point of big has two as near as can be
        assert len(match(twice, big)[0]) < 1.2 * len(match(big, big)[0])

    def test_nothing_to_find(self):
        kpts0, kpts1, confidence = sift_matcher()(BLACK, BLACK)
        assert (kpts0.shape, kpts1.shape, confidence.shape) == ((0, 2), (0, 2), (0,))


class TestRun:
    @pytest.fixture
    def source(self, tmp_path, photo):
        folder = tmp_path / "photos"
        folder.mkdir()
        Image.fromarray(cv2.resize(photo, (320, 240), interpolation=cv2.INTER_CUBIC)).save(folder / "p.png")
        return folder

    def test_models_side_by_side(self, source, tmp_path, random_weights):
        done = []
        table = measured(
            "homography",
            source,
            models=[str(random_weights), "sift"],
            limit=2,
            out=tmp_path / "t.json",
            progress=lambda *numbers: done.append(numbers),
        )
        assert [row["model"] for row in table.rows] == [str(random_weights), "sift"]
        assert done == [(0, 2, 0), (1, 2, 1), (2, 2, 2)]
        saved = json.loads((tmp_path / "t.json").read_text())
        assert saved["results"] == table.rows
        assert saved["settings"]["layout"] == "synthetic"
        rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()[1:]]
        assert [(row["model"], row["index"]) for row in rows[::2]] == [
            (str(random_weights), 0),
            (str(random_weights), 1),
        ]

    def test_a_run_that_was_cut_off_goes_on(self, source, tmp_path, monkeypatch):
        out, calls = tmp_path / "t.json", []

        def load(name, **options):
            sift = sift_matcher()

            def match(*images):
                calls.append(name)
                if len(calls) == 3:
                    raise KeyboardInterrupt
                return sift(*images)

            return match

        monkeypatch.setattr(running, "load_matcher", load)
        settings = dict(models=["sift"], limit=4, out=out)
        with pytest.raises(KeyboardInterrupt):
            measured("homography", source, **settings)
        assert not out.exists()
        (folder,) = (tmp_path / "t.predictions").iterdir()
        assert sorted(path.name for path in folder.iterdir()) == ["000000.npz", "000001.npz", "settings.json"]
        table = measured("homography", source, **settings)
        assert len(calls) == 3 + 2
        monkeypatch.undo()
        whole = measured("homography", source, models=["sift"], limit=4)
        assert {**table.rows[0], "ms": 0} == {**whole.rows[0], "ms": 0}

    @pytest.mark.parametrize(
        ("layout", "align", "want"),
        [("synthetic", None, True), ("synthetic", False, False), ("hpatches", None, False), ("hpatches", True, True)],
    )
    def test_published_figures_go_without_a_second_look(self, source, monkeypatch, layout, align, want):
        asked = []

        def load(name, **options):
            asked.append(options["align"])
            return sift_matcher()

        monkeypatch.setattr(running, "load_matcher", load)
        pairs = SyntheticHomographies(source, length=1)
        monkeypatch.setitem(layouts.LAYOUTS, layout, layouts.LAYOUTS[layout]._replace(read=lambda source, **_: pairs))
        table = measured("homography", source, models=["tiny"], layout=layout, align=align)
        assert asked == [want]
        assert table.settings["align"] is want

    def test_other_settings_and_weights_lie_side_by_side(self, source, tmp_path, monkeypatch):
        sizes, identity = [], "one"

        def load(name, **options):
            sift = sift_matcher()
            return lambda *images: sizes.append(images[0].shape[1]) or sift(*images)

        monkeypatch.setattr(running, "load_matcher", load)
        monkeypatch.setattr(running, "weights_identity", lambda name: identity)
        settings = dict(models=["sift"], limit=2, out=tmp_path / "t.json")
        for max_size, models in ((100, ["sift"]), (120, ["sift"]), (100, ["sift", "tiny"]), (100, ["tiny"])):
            table = measured("homography", source, **{**settings, "models": models}, max_size=max_size)
            assert [row["model"] for row in table.rows] == models
        assert sizes == [100, 100, 120, 120, 100, 100]
        identity = "two"
        measured("homography", source, **settings, max_size=100)
        assert len(sizes) == 8
        saved = [json.loads(path.read_text()) for path in (tmp_path / "t.predictions").glob("*/settings.json")]
        assert sorted((one["model"], one["max_size"], one["weights"]) for one in saved) == [
            ("sift", 100, "one"),
            ("sift", 100, "two"),
            ("sift", 120, "one"),
            ("tiny", 100, "one"),
        ]

    def test_predictions_with_the_former_name_of_scale_are_read(self, source, tmp_path, monkeypatch):
        settings = dict(limit=1, out=tmp_path / "t.json", max_size=100)
        before = measured("homography", source, **settings)
        (path,) = (tmp_path / "t.predictions").glob("*/000000.npz")
        with np.load(path) as file:
            values = {"pixel" if name == "scale" else name: value for name, value in file.items()}
        assert "pixel" in values
        np.savez(path, **values)
        monkeypatch.setattr(running, "load_matcher", lambda name, **options: None)  # nothing is matched again
        assert measured("homography", source, **settings).rows == before.rows

    def test_a_damaged_prediction_is_named(self, source, tmp_path):
        settings = dict(limit=1, out=tmp_path / "t.json", max_size=100)
        measured("homography", source, **settings)
        (path,) = (tmp_path / "t.predictions").glob("*/000000.npz")
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"000000\.npz is damaged .*; remove it"):
            measured("homography", source, **settings)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(protocol="depth"), "protocol is 'depth', expected homography or pose or stereo"),
            (dict(source="none"), "none does not exist"),
            (dict(layout="scannet"), "layout is 'scannet', expected list or hpatches or synthetic"),
            (dict(models=[]), "models are none"),
            (dict(models=["sift", "sift"]), "each once"),
            (dict(limit=0), "limit is 0"),
            (dict(protocol="stereo"), "is a folder, expected a list"),
            (dict(protocol="pose"), "no pairs with poses found, expected ScanNet-1500"),
            (dict(out="t.xyz"), "unknown suffix"),
            (dict(max_size=0), "max_size"),
            (dict(topk=(8, 8)), "topk is for networks, but models are sift"),
            (dict(padding="masked"), "padding is for networks"),
            (dict(align=False), "align is for networks"),
            (dict(device="cpu"), "device is for networks"),
            (dict(layout="hpatches", seed=1), "seed is for the layout synthetic, got hpatches"),
        ],
    )
    def test_mistakes_end_in_one_line(self, source, options, message):
        options = {"protocol": "homography", "source": source, "models": ["sift"], **options}
        with pytest.raises((ValueError, OSError), match=message) as error:
            measured(**options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("protocol", "files", "layout"),
    [
        ("homography", ["v_wall/1.ppm"], "hpatches"),
        ("homography", ["a.jpg"], "synthetic"),
        ("pose", ["test.npz"], "scannet"),
        ("pose", ["assets/scannet_test_1500/test.npz"], "scannet"),
        ("pose", ["0015.npz"], "megadepth"),
        ("pose", ["sparse/0/cameras.bin"], "colmap"),
    ],
)
def test_layouts_are_told_from_folders(tmp_path, protocol, files, layout):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert layouts.find_layout(protocol, tmp_path) == layout


@pytest.mark.parametrize(("protocol", "layout"), [("homography", "list"), ("pose", "superglue"), ("stereo", "stereo")])
def test_layouts_are_told_from_lists(tmp_path, protocol, layout):
    (tmp_path / "list.txt").touch()
    assert layouts.find_layout(protocol, tmp_path / "list.txt") == layout


class TestTable:
    table = Table([{"model": "tiny", "auc@5": 0.5, "matches": 1234.4, "ms": 2.25, "pairs": 3}], {"seed": 0})

    def test_text(self):
        head, row = self.table.text().splitlines()
        assert head.split() == ["model", "auc@5", "%", "matches", "ms", "pairs"]
        assert row.split() == ["tiny", "50.0", "1234", "2.2", "3"]
        assert len(row) == len(head)

    def test_markdown(self):
        assert self.table.markdown().splitlines()[1:] == [
            "| --- | ---: | ---: | ---: | ---: |",
            "| tiny | 50.0 | 1234 | 2.2 | 3 |",
        ]

    def test_files(self, tmp_path):
        for suffix in ("json", "csv", "md"):
            self.table.save(tmp_path / f"t.{suffix}")
        assert json.loads((tmp_path / "t.json").read_text()) == {"settings": {"seed": 0}, "results": self.table.rows}
        with (tmp_path / "t.csv").open() as file:
            assert next(csv.DictReader(file))["auc@5"] == "0.5"
        assert (tmp_path / "t.md").read_text() == self.table.markdown() + "\n"
        with pytest.raises(ValueError, match="unknown suffix"):
            self.table.save(tmp_path / "t.txt")
