"""The pose protocol on matches whose errors are known, by both estimators; what is published; runs that were cut off."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.data.images import to_gray
from quadtree_attention.data.matching.pairs import PosePair
from quadtree_attention.evaluation import matchers, metrics, protocols
from quadtree_attention.evaluation.rows import Rows
from quadtree_attention.evaluation.run import Evaluation, error_curves, evaluate_pairs, run
from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR
from quadtree_attention.weights import load, save

K0 = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
K1 = np.array([[620.0, 0, 300], [0, 600, 250], [0, 0, 1]])
BLACK = np.zeros((480, 640, 3), np.uint8)
BOTH = ("opencv", "poselib")


def measured(source, models=("sift",), *, protocol="pose", **options):
    """`run` with what is measured, and how, among its arguments."""
    rest = {name: options.pop(name) for name in ("out", "curve", "device", "progress") if name in options}
    return run(Evaluation(protocol=protocol, source=source, **options), models, **rest)


def rotation(axis, degrees):
    axis = np.asarray(axis, float)
    return cv2.Rodrigues(axis / np.linalg.norm(axis) * np.deg2rad(degrees))[0]


def scene(seed, outliers=0.0, turn=0.0, swing=0.0):
    """A pair, and exact matches of another pose: turned by an angle, its translation swung by another, in degrees."""
    rng = np.random.default_rng(seed)
    R, t = rotation(rng.normal(size=3), rng.uniform(5, 25)), np.array([1.0, *rng.uniform(-0.4, 0.4, 2)])
    T = np.vstack([np.c_[R, t], [0, 0, 0, 1]])
    across = np.cross(t, rng.normal(size=3))
    seen_R, seen_t = rotation(rng.normal(size=3), turn) @ R, rotation(across, swing) @ t
    X = rng.uniform([-2.5, -2, 4], [2.5, 2, 9], (200, 3))
    x0, x1 = X @ K0.T, (X @ seen_R.T + seen_t) @ K1.T
    kpts0, kpts1 = x0[:, :2] / x0[:, 2:], x1[:, :2] / x1[:, 2:]
    wrong = int(outliers * len(X))
    kpts1[:wrong] = rng.uniform(0, 600, (wrong, 2))
    pair = PosePair(name=str(seed), image0=BLACK, image1=BLACK, K0=K0, K1=K1, T_0to1=T)
    return pair, (kpts0, kpts1, np.ones(len(X)))


def measure(scenes, estimators=BOTH):
    found = iter([matches for _, matches in scenes])
    return evaluate_pairs(lambda *_: next(found), [pair for pair, _ in scenes], estimators=estimators)


def test_perfect_matches_give_all_there_is():
    result = measure([scene(seed) for seed in range(6)])
    for prefix in ("", "lo_"):
        assert [round(100 * result[f"{prefix}auc@{d}"], 1) for d in (5, 10, 20)] == [100, 100, 100]
        assert result[f"{prefix}inliers"] > 190
    assert (result["prec@5e-4"], result["prec@1e-4"], result["matches"]) == (1, 1, 200)


@pytest.mark.parametrize("prefix", ["", "lo_"])
def test_wrong_matches_are_left_out(prefix):
    result = measure([scene(seed, outliers=0.5) for seed in range(6)])
    assert result[f"{prefix}auc@5"] > 0.98
    assert 95 <= result[f"{prefix}inliers"] < 110
    assert result["prec@5e-4"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("prefix", ["", "lo_"])
def test_errors_that_are_known_give_the_area_by_hand(prefix):
    nothing = scene(4)[0], (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    result = measure([scene(0), nothing, scene(1, swing=8.0), scene(2), scene(3, turn=3.0)])
    # errors 0, 0, 3, 8 and failure; the curve joins (0, 2/5), (3, 3/5), (8, 4/5)
    areas = {
        5: (3 * 0.5 + 2 * 0.6) / 5,
        10: (3 * 0.5 + 5 * 0.7 + 2 * 0.8) / 10,
        20: (3 * 0.5 + 5 * 0.7 + 12 * 0.8) / 20,
    }
    for degrees, area in areas.items():
        assert result[f"{prefix}auc@{degrees}"] == pytest.approx(area, abs=0.005)


@pytest.mark.parametrize("estimate", [metrics.estimate_pose, metrics.estimate_pose_lo])
class TestEstimators:
    def test_the_threshold_is_in_pixels(self, estimate):
        _, (kpts0, kpts1, _) = scene(0)
        shifted = kpts1.copy()
        shifted[::4] += np.random.default_rng(0).choice([-1, 1], (50, 2)) * 3.0
        pose = estimate(kpts0, shifted, K0, K1)
        assert 150 <= pose.inliers.sum() < 175
        assert pose.inliers[np.arange(200) % 4 > 0].all()
        assert estimate(kpts0, shifted, K0, K1, threshold=6.0).inliers.sum() > 190

    def test_too_few_matches(self, estimate):
        _, (kpts0, kpts1, _) = scene(0)
        assert estimate(kpts0[:4], kpts1[:4], K0, K1) is None
        assert estimate(kpts0[:0], kpts1[:0], K0, K1) is None

    def test_the_translation_has_unit_length(self, estimate):
        pose = estimate(*scene(0)[1][:2], K0, K1)
        assert pose.t.shape == (3,)
        assert np.linalg.norm(pose.t) == pytest.approx(1)


@pytest.fixture
def scannet(tmp_path, photo):
    """Two pairs in the layout of the ScanNet-1500 list."""
    root = tmp_path / "scannet"
    color = root / "scene0707_00" / "color"
    color.mkdir(parents=True)
    big = cv2.resize(photo, (640, 480), interpolation=cv2.INTER_CUBIC)
    for frame, shift in ((15, 0), (30, 12), (45, 25)):
        Image.fromarray(np.roll(big, shift, 1)).save(color / f"{frame}.jpg")
    poses = np.stack([scene(seed)[0].T_0to1[:3].ravel() for seed in (5, 6)])
    np.savez(root / "test.npz", name=np.array([[707, 0, 15, 30], [707, 0, 15, 45]]), rel_pose=poses)
    np.savez(root / "intrinsics.npz", scene0707_00=K0)
    return root


@pytest.fixture
def megadepth(tmp_path, photo):
    """A pair in the layout of the MegaDepth-1500 list, of images that are smaller than what networks are shown."""
    root = tmp_path / "megadepth"
    folder = root / "Undistorted_SfM" / "0015" / "images"
    folder.mkdir(parents=True)
    big = cv2.resize(photo, (170, 120), interpolation=cv2.INTER_CUBIC)
    for name, shift in (("a", 0), ("b", 6)):
        Image.fromarray(np.roll(big, shift, 1)).save(folder / f"{name}.jpg")
    np.savez(
        root / "0015_0.1_0.3.npz",
        image_paths=np.array([f"Undistorted_SfM/0015/images/{name}.jpg" for name in "ab"], dtype=object),
        intrinsics=np.stack([K0, K1]),
        poses=np.stack([np.eye(4), scene(5)[0].T_0to1]),
        pair_infos=np.array([(np.array([0, 1]), 0.3, np.zeros(4))], dtype=object),
    )
    return root


def test_megadepth_is_matched_at_the_published_size(megadepth, monkeypatch):
    """A longer side of 832, though the images have 170, both sides multiples of 8; keypoints come back to the images' own pixels."""
    seen = []

    def corners(image0, image1):
        seen.append((image0.shape, image1.shape))
        return *([[-0.5, -0.5], [831.5, 583.5]] * np.ones((1, 1)) for _ in range(2)), np.ones(2)

    judged = []
    monkeypatch.setattr(matchers, "sift_matcher", lambda: corners)
    monkeypatch.setattr(metrics, "symmetric_epipolar_distance", lambda *points: judged.append(points) or np.ones(2))
    measured(megadepth, models=["sift"], estimators=["opencv"])
    assert seen == [((584, 832, 3), (584, 832, 3))]  # 120 * 832 / 170 = 587.3
    for points in judged[0][:2]:
        np.testing.assert_allclose(points, [[-0.5, -0.5], [169.5, 119.5]], atol=1e-9)


def test_published_figures_stand_beneath(scannet):
    table = measured(scannet, models=["sift"], max_size=200)
    sift, paper = table.rows
    assert (sift["model"], sift["pairs"], paper["pairs"]) == ("sift", 2, 1500)
    assert list(paper) == list(sift)
    assert [paper[f"auc@{d}"] for d in (5, 10, 20)] == [0.249, 0.447, 0.618]
    assert table.text().splitlines()[-1].split()[:5] == ["paper,", "indoor", "24.9", "44.7", "61.8"]


def test_only_where_they_are_known():
    rows = [{"model": "m", "auc@5": 0.1, "auc@10": 0.2, "auc@20": 0.3, "pairs": 1}]
    assert protocols.with_published(rows, "superglue") == rows
    outdoor = protocols.with_published(rows, "megadepth")[1]
    assert [outdoor[f"auc@{d}"] for d in (5, 10, 20)] == [0.535, 0.702, 0.822]


def test_a_run_cut_off_anywhere_gives_the_same_table(scannet, tmp_path):
    settings = dict(models=["sift"], out=tmp_path / "t.json", max_size=200)
    whole = measured(scannet, **settings)
    figures = (tmp_path / "t.jsonl").read_text()
    assert len(figures.splitlines()) == 3
    files = sorted((tmp_path / "t.predictions").glob("*/*.npz"))
    for left in (2, 1, 0):
        for path in files[left:]:
            path.unlink(missing_ok=True)
        before = [path.stat().st_mtime_ns for path in files[:left]]
        again = measured(scannet, **settings)
        assert [{**row, "ms": 0} for row in again.rows] == [{**row, "ms": 0} for row in whole.rows]
        assert [path.stat().st_mtime_ns for path in files[:left]] == before, "what was there was matched anew"
        assert ((tmp_path / "t.jsonl").read_text() == figures) == (left == 2)


def test_another_estimator_needs_no_second_run(scannet, tmp_path, monkeypatch):
    both = measured(scannet, max_size=200, estimators=BOTH)
    out = tmp_path / "t.json"
    measured(scannet, out=out, estimators=["opencv"], max_size=200)
    monkeypatch.setattr(Evaluation, "predict", None)
    table = measured(scannet, out=out, estimators=["poselib"], max_size=200)
    assert not {"auc@5", "inliers"} & table.rows[0].keys()
    for name in ("lo_auc@20", "lo_inliers", "matches"):
        assert table.rows[0][name] == pytest.approx(both.rows[0][name])


def test_curve(scannet, tmp_path):
    measured(scannet, models=["sift"], curve=tmp_path / "c.png", limit=1, max_size=200)
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 300
    curves = error_curves(
        Evaluation(protocol="pose", source=scannet, estimators=BOTH),
        {"m": [{"rotation_error": 1, "translation_error": 2, "lo_rotation_error": 4, "lo_translation_error": 3}]},
    )
    assert curves == {"m": [2], "m, poselib": [4]}


def test_without_poselib(scannet, monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    assert protocols.pose_estimators(None) == ("opencv",)
    with pytest.raises(ImportError, match=r"poselib is not installed; install it with: pip install .*\[poses\]"):
        measured(scannet, models=["sift"], estimators=["opencv", "poselib"])
    assert "lo_auc@5" not in measured(scannet, models=["sift"], max_size=200).rows[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(estimators=["ransac"]), "estimators are ransac, expected one or more of opencv, poselib, each once"),
        (dict(estimators=[]), "estimators are none"),
        (dict(padding="left"), "padding is 'left', expected none or masked or attended"),
        (dict(curve="c.xyz"), "unknown suffix"),
        (
            dict(protocol="homography", layout="synthetic", estimators=["opencv"]),
            "estimators are for the protocol pose",
        ),
    ],
)
def test_mistakes_end_in_one_line(scannet, options, message):
    with pytest.raises(ValueError, match=message):
        measured(scannet, **options)


class TestPublishedOptions:
    """Topks and padding of `tiny`, on a photograph and its shifted copy."""

    @pytest.fixture
    def images(self, photo):
        big = cv2.resize(photo, (168, 136), interpolation=cv2.INTER_CUBIC)
        return big[:120, :160], big[8:128, 8:168]

    @staticmethod
    def rows(found):
        return {tuple(np.round([*a, *b]).tolist()): c for a, b, c in zip(*found, strict=True)}

    def test_topk_changes_what_is_attended(self, images):
        own, same, other = (
            self.rows(matchers.load_matcher("tiny", options=options)(*images))
            for options in ({}, {"topk": (8, 8)}, {"topk": (1, 1)})
        )
        assert len(own) > 50
        assert own == same != other

    @pytest.mark.parametrize("padding", ["masked", "attended"])
    def test_padding(self, images, padding):
        model = load("tiny", "matcher", options={"respect_masks": padding == "masked"})
        gray = torch.zeros(2, 1, 192, 192)
        gray[:, 0, :120, :160] = torch.from_numpy(np.stack([to_gray(image) for image in images]))
        mask = torch.zeros(1, 192, 192, dtype=torch.bool)
        mask[:, :120, :160] = True
        with torch.inference_mode():
            found = model(gray[:1], gray[1:], mask, mask)
        got = matchers.load_matcher("tiny", padding=padding, pad_to=192)(*images)
        for name, values in zip(("keypoints0", "keypoints1", "confidence"), got, strict=True):
            np.testing.assert_allclose(values, found[name].numpy(), atol=2e-3)
        other = model(gray[:1], gray[1:])
        assert len(other["confidence"]) != len(got[2]), "masks have no effect"

    def test_padding_must_hold_the_images(self, images):
        with pytest.raises(ValueError, match="pad_to is 128, expected at least the images' longer side, 160 pixels"):
            matchers.load_matcher("tiny", padding="masked", pad_to=128)(*images)

    def test_a_model_without_topk(self, tmp_path):
        path = tmp_path / "linear.safetensors"
        save(LoFTR(replace(LOFTR_PRESETS["tiny"], attention="linear")), path)
        with pytest.raises(ValueError, match="has linear attention, which has no topk; leave it out"):
            load(path, "matcher", options={"topk": (8, 8)})
        with pytest.raises(ValueError, match="options do not fit the model"):
            load("tiny", "matcher", options={"depth": 3})
        with pytest.raises(ValueError, match="weights do not fit the model"):
            load("tiny", "matcher", options={"num_layers": 3})


@pytest.mark.parametrize(
    ("layout", "pairs", "padding", "published"),
    [
        ("scannet", 2, "none", ["indoor", "24.9", "44.7", "61.8"]),
        ("megadepth", 1, "attended", ["outdoor", "53.5", "70.2", "82.2"]),
    ],
)
def test_lightning_measures_the_same(layout, pairs, padding, published, request, capsys, tmp_path, monkeypatch):
    """quadtree test prints what quadtree evaluate pose measures, and the paper's figures, and leaves no file behind."""
    source = request.getfixturevalue(layout)
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--model.max_size", "192"]
    recipe = Path(__file__).parents[2] / "recipes" / f"evaluate_{layout}1500.yaml"
    weights = ["--model.weights", "tiny"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning
        status = main(["test", "--config", str(recipe), "--data.source", str(source), *weights, *options])
    assert status == 0
    assert [path.name for path in tmp_path.iterdir()] == [layout]
    lines = capsys.readouterr().out.splitlines()
    head, figures, paper = (
        line.replace(" %", "").split()
        for line in lines[next(i for i, line in enumerate(lines) if "auc@5" in line) :][:3]
    )
    (expected, _) = measured(source, models=["tiny"], max_size=192, padding=padding).rows
    assert paper[:5] == ["paper,", *published]
    for name, value in zip(head, figures, strict=True):
        if "@" in name:
            assert float(value) == pytest.approx(100 * expected[name], abs=0.06)
    figures = dict(zip(head, figures, strict=True))
    assert (float(figures["matches"]), int(figures["pairs"])) == (pytest.approx(expected["matches"], abs=0.6), pairs)


def test_rows_of_several_devices_count_once():
    rows = Rows(("a", "b"))
    for number, a in ((2, 5.0), (0, 1.0), (2, 5.0), (1, np.inf)):
        rows.update({"a": a, "b": 0.0}, number)
    assert [row["a"] for row in rows.compute()] == [1.0, np.inf, 5.0]
