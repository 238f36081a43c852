"""Folders matched for hloc and COLMAP: keypoints that pairs share, files as those tools read them, runs cut off."""

import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageOps

from quadtree_attention import Matches
from quadtree_attention.__main__ import main
from quadtree_attention.data.lists import image_pairs
from quadtree_attention.errors import InputError
from quadtree_attention.predict import folder as folder_module
from quadtree_attention.predict.folder import Tracks, all_pairs, match_folder
from quadtree_attention.predict.match_store import MatchStore, PairMatches

SIZE = (640, 480)
FOCAL = 1.2 * 640  # what COLMAP guesses
CENTRE = np.array([(SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2])  # pixel centres at integers
GREYS = {"a.png": 10, "b.png": 20, "c.png": 30, "d.png": 40, "e.png": 50, "sub/f.png": 60}


class Scene:
    """Points in space, and a matcher that knows where each image sees them; images are told by their grey."""

    def __init__(self, noise=0.0):
        rng = np.random.default_rng(0)
        self.points = rng.uniform([-2, -1.5, 5], [2, 1.5, 8], (300, 3))
        self.poses = {}
        for k, name in enumerate(GREYS):
            centre = np.array([0.7 * k - 1.75, 0.25 * (k % 3), 0.1 * k])
            ahead = np.array([0, 0, 6.5]) - centre
            across = np.cross([0, 1, 0.02 * k], ahead)
            R = np.stack([v / np.linalg.norm(v) for v in (across, np.cross(ahead, across), ahead)])
            self.poses[name] = R, -R @ centre
        self.noise, self.calls, self.stop_at = noise, [], None

    def seen(self, name):
        R, t = self.poses[name]
        x = self.points @ R.T + t
        return x[:, :2] / x[:, 2:] * FOCAL + CENTRE

    def match(self, image0, image1, *, max_size, threshold, align, refine):
        names = [next(n for n, grey in GREYS.items() if grey == image[0, 0, 0]) for image in (image0, image1)]
        self.calls.append(tuple(names))
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng(sum(map(ord, "".join(names))))
        points0, points1 = (self.seen(name) for name in names)
        points1 = points1 + rng.uniform(-self.noise, self.noise, points1.shape)
        inside = (
            (np.concatenate([points0, points1], 1) > 0) & (np.concatenate([points0, points1], 1) < [*SIZE, *SIZE])
        ).all(1)
        return Matches(
            *(p[inside].astype(np.float32) for p in (points0, points1)), np.full(inside.sum(), 0.9, np.float32)
        )


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for name, grey in GREYS.items():
        Image.new("RGB", SIZE, (grey, grey, grey)).save(root / name)
    return root


def run(folder, out, scene, names=tuple(GREYS), **options):
    return match_folder(folder, all_pairs(names), out, matcher=lambda: scene, **options)


def hloc_matches(path, name0, name1):
    """As hloc's get_matches reads them."""
    with h5py.File(path) as file:
        group = file["/".join(name.replace("/", "-") for name in (name0, name1))]
        matches, scores = group["matches0"][:], group["matching_scores0"][:]
    rows = np.nonzero(matches != -1)[0]
    return np.stack([rows, matches[rows]], 1), scores[rows]


class TestHloc:
    def test_a_track_through_three_images(self, folder, tmp_path):
        scene = Scene(noise=0.5)
        found = run(folder, tmp_path / "matches.h5", scene, ["a.png", "b.png", "sub/f.png"], radius=2.0)
        assert (found.images, found.pairs, found.verified, found.broken) == (3, 3, None, [])
        with h5py.File(tmp_path / "features.h5") as file:
            keypoints = {name: file[name]["keypoints"][:] for name in ("a.png", "b.png", "sub/f.png")}
        ab, bf, af = (
            hloc_matches(tmp_path / "matches.h5", *pair)[0]
            for pair in (("a.png", "b.png"), ("b.png", "sub/f.png"), ("a.png", "sub/f.png"))
        )
        assert found.matches == len(ab) + len(bf) + len(af)
        to_b, b_to_f, to_f = (dict(pairs.tolist()) for pairs in (ab, bf, af))
        closed = [a for a in to_b if a in to_f and b_to_f.get(to_b[a]) == to_f[a]]
        crossed = [a for a in to_b if a in to_f and b_to_f.get(to_b[a], to_f[a]) != to_f[a]]
        assert len(closed) > 0.8 * len(to_f) > 50
        assert len(crossed) < 0.05 * len(closed)
        for a in closed:  # one point in space: all three keypoints are near its images
            places = [keypoints[name][k] for name, k in (("a.png", a), ("b.png", to_b[a]), ("sub/f.png", to_f[a]))]
            errors = [np.linalg.norm(scene.seen(n) - p, axis=1) for n, p in zip(keypoints, places, strict=True)]
            assert np.max(errors, 0).min() < 3.5

    def test_scores_and_what_is_left_unmatched(self, folder, tmp_path):
        pairs = [("a.png", "b.png"), ("a.png", "c.png")]
        match_folder(folder, pairs, tmp_path / "m.h5", matcher=Scene, features=tmp_path / "f.h5")
        with h5py.File(tmp_path / "m.h5") as file, h5py.File(tmp_path / "f.h5") as features:
            group = file["a.png/b.png"]
            assert group["matches0"].dtype == np.int32
            assert len(group["matches0"]) == len(group["matching_scores0"]) == len(features["a.png/keypoints"])
            assert set(features) == {"a.png", "b.png", "c.png"}
            unmatched = group["matches0"][:] == -1
            assert (group["matching_scores0"][:][unmatched] == 0).all()
        np.testing.assert_allclose(hloc_matches(tmp_path / "m.h5", "a.png", "b.png")[1], 0.9, atol=1e-3)

    def test_names_that_are_one_in_hlocs_files(self, folder, tmp_path):
        Image.new("RGB", SIZE, (20, 20, 20)).save(folder / "sub-f.png")
        names, scene = ["a.png", "sub-f.png", "sub/f.png"], Scene()
        with pytest.raises(
            ValueError, match=r"^sub-f.png and sub/f.png are both called sub-f.png in hloc's matches; rename"
        ):
            run(folder, tmp_path / "m.h5", scene, names)
        assert scene.calls == []
        assert run(folder, tmp_path / "d.db", scene, names).images == 3

    def test_both_files_or_neither(self, folder, tmp_path, monkeypatch):
        """What ends while the second is written leaves the first as it was."""
        run(folder, tmp_path / "m.h5", Scene(), ["a.png", "b.png"])
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.h5")}
        assert set(before) == {"m.h5", "features.h5"}
        monkeypatch.setattr(Tracks, "__iter__", lambda tracks: iter([("a.png", "none", np.zeros((0, 3), np.int64))]))
        with pytest.raises(InputError, match=r"no matches of a\.png and none"):
            run(folder, tmp_path / "m.h5", Scene(), ["a.png", "c.png"])
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.h5")} == before
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_a_run_killed_between_its_two_files_can_be_repeated(self, folder, tmp_path, monkeypatch):
        """Were the keypoints there alone, they would be taken for those of other matches."""
        replaced, replace = [], Path.replace
        monkeypatch.setattr(Path, "replace", lambda old, new: replaced.append(new.name) or replace(old, new))
        run(folder, tmp_path / "m.h5", Scene(), ["a.png", "b.png"])
        assert replaced == ["m.h5", "features.h5"]

    def test_keypoints_of_other_matches_stay(self, folder, tmp_path):
        two = ["a.png", "b.png"]
        run(folder, tmp_path / "m.h5", Scene(), two)
        before, scene = (tmp_path / "features.h5").read_bytes(), Scene()
        with pytest.raises(
            ValueError, match=r"features.h5 exists and .*other.h5 does not: it belongs to other matches"
        ):
            run(folder, tmp_path / "other.h5", scene, ["c.png", "d.png"])
        assert scene.calls == []
        assert (tmp_path / "features.h5").read_bytes() == before
        run(folder, tmp_path / "other.h5", scene, ["c.png", "d.png"], features=tmp_path / "f.h5")
        run(folder, tmp_path / "m.h5", scene, ["c.png", "d.png"])  # its own

    def test_keypoints_that_came_while_matching_stay(self, folder, tmp_path):
        features = tmp_path / "features.h5"

        class Slow(Scene):
            def match(self, *images, **options):
                features.write_text("of another run")
                return super().match(*images, **options)

        with pytest.raises(ValueError, match=r"features.h5 exists and"):
            run(folder, tmp_path / "m.h5", Slow(), ["a.png", "b.png"])
        assert features.read_text() == "of another run"
        scene = Scene()
        run(folder, tmp_path / "m.h5", scene, ["a.png", "b.png"], features=tmp_path / "f.h5")
        assert scene.calls == []  # nothing is lost


class TestColmap:
    def test_the_mapper_finds_the_cameras(self, folder, tmp_path):
        """COLMAP's incremental mapper reconstructs the scene from the database, to its shape and scale."""
        scene = Scene(noise=0.3)
        found = run(folder, tmp_path / "d.db", scene, cameras="single", radius=1.0)
        assert found.verified > 0.9 * found.matches > 500
        options = pycolmap.IncrementalPipelineOptions(
            min_model_size=3, random_seed=0, num_threads=1, extract_colors=False
        )
        (tmp_path / "model").mkdir()
        models = pycolmap.incremental_mapping(tmp_path / "d.db", folder, tmp_path / "model", options)
        assert len(models) == 1
        images = {image.name: image for image in models[0].images.values()}
        assert set(images) == set(GREYS)
        names = list(GREYS)
        centres = np.array([images[n].projection_center() for n in names])
        truth = np.array([-R.T @ t for R, t in (scene.poses[n] for n in names)])
        distances, true = (np.linalg.norm(c[:, None] - c, axis=2)[np.triu_indices(6, 1)] for c in (centres, truth))
        np.testing.assert_allclose(distances / true, np.median(distances / true), rtol=0.03)
        for one, other in all_pairs(names):
            found_R = (
                images[other].cam_from_world().rotation.matrix() @ images[one].cam_from_world().rotation.matrix().T
            )
            true_R = scene.poses[other][0] @ scene.poses[one][0].T
            assert np.rad2deg(np.linalg.norm(cv2.Rodrigues(found_R @ true_R.T)[0])) < 0.5
        assert models[0].compute_mean_reprojection_error() < 0.6
        assert models[0].compute_mean_track_length() > 3

    def test_what_the_database_holds(self, folder, tmp_path):
        scene = Scene()
        run(folder, tmp_path / "d.db", scene, ["a.png", "sub/f.png", "b.png"])
        base = pycolmap.Database.open(tmp_path / "d.db")
        try:
            ids = {image.name: image.image_id for image in base.read_all_images()}
            assert set(ids) == {"a.png", "sub/f.png", "b.png"}
            camera = base.read_camera(1)
            assert (camera.width, camera.height, camera.focal_length) == (*SIZE, FOCAL)
            # Matched keypoints are images of one point; COLMAP's pixel centres are at halves.
            keypoints = {name: base.read_keypoints(i)[:, :2] - 0.5 for name, i in ids.items()}
            for pair in all_pairs(["a.png", "sub/f.png", "b.png"]):
                matches = base.read_matches(*(ids[n] for n in pair))
                away = [
                    np.linalg.norm(scene.seen(n) - keypoints[n][matches[:, k], None], axis=2)
                    for k, n in enumerate(pair)
                ]
                nearest = [distances.argmin(1) for distances in away]
                assert max(np.median(distances.min(1)) for distances in away) < 0.01
                assert np.mean(nearest[0] == nearest[1]) > 0.97
                assert len(base.read_two_view_geometry(*(ids[n] for n in pair)).inlier_matches) > 0.9 * len(matches)
        finally:
            base.close()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or "partial" in path.name]

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8, 2, 4, 5, 7])
    def test_points_of_a_turned_photograph_are_where_the_file_has_them(self, tmp_path, orientation):
        """COLMAP and hloc do not turn images as EXIF says; the bright pixel must be found where the file stores it."""
        from quadtree_attention.data.images import read_image, stored_pixels

        pixels = np.zeros((40, 60), np.uint8)
        pixels[10:14, 20:28] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "t.png", exif=exif)
        upright = read_image(tmp_path / "t.png")[..., 0]
        with Image.open(tmp_path / "t.png") as image:
            np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(image)))
        found = np.argwhere(upright > 128)[:, ::-1].mean(0)[None]
        np.testing.assert_allclose(stored_pixels(tmp_path / "t.png", found, upright.shape), [[23.5, 11.5]])

    def test_images_that_colmap_cannot_read(self, folder, tmp_path, capfd):
        Image.new("RGB", SIZE, (70, 70, 70)).save(folder / "g.webp", lossless=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(GREYS, "g.webp", 70)
            scene = Scene()
            found = run(folder, tmp_path / "d.db", scene, ["a.png", "b.png", "g.webp"])
        if found.broken:  # this COLMAP does not read WebP
            assert found.broken == [
                f"{folder / 'g.webp'}: COLMAP cannot read images of this kind; convert it to PNG or JPEG"
            ]
            assert (found.images, found.pairs, len(scene.calls)) == (2, 1, 1)  # it is told before matching
            assert capfd.readouterr().err == ""
        base = pycolmap.Database.open(tmp_path / "d.db")
        try:
            assert {image.name for image in base.read_all_images()} >= {"a.png", "b.png"}
            assert base.num_matched_image_pairs() == (1 if found.broken else 3)
        finally:
            base.close()

    def test_turned_images_in_a_folder(self, folder, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3  # by half a turn
        Image.new("RGB", SIZE, (10, 10, 10)).save(folder / "a.png", exif=exif)

        class One(Scene):
            def match(self, image0, image1, **options):
                return Matches(np.float32([[10, 20]]), np.float32([[30, 40]]), np.ones(1, np.float32))

        run(folder, tmp_path / "m.h5", One(), ["a.png", "b.png"])
        with h5py.File(tmp_path / "features.h5") as file:
            assert file["a.png/keypoints"][:].tolist() == [[629, 459]]
            assert file["b.png/keypoints"][:].tolist() == [[30, 40]]


class TestCutOff:
    def test_goes_on_and_gives_the_same(self, folder, tmp_path):
        scene, whole = Scene(noise=0.4), Scene(noise=0.4)
        (tmp_path / "w").mkdir()
        run(folder, tmp_path / "w" / "m.h5", whole)
        scene.stop_at = 8
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "m.h5", scene)
        assert not (tmp_path / "m.h5").exists()
        scene.stop_at = None
        run(folder, tmp_path / "m.h5", scene)
        assert len(scene.calls) == len(whole.calls) + 1 == 16
        assert not (tmp_path / "m.h5.partial").exists()
        for name in ("m.h5", "features.h5"):
            with h5py.File(tmp_path / name) as one, h5py.File(tmp_path / "w" / name) as other:
                seen = []
                one.visititems(
                    lambda key, item, seen=seen: seen.append(key) if isinstance(item, h5py.Dataset) else None
                )
                assert seen
                for key in seen:
                    np.testing.assert_array_equal(one[key][:], other[key][:])

    def test_killed_amid_a_write(self, tmp_path):
        """What was kept before a SIGKILL is there, what was being written is not."""
        script = f"""
import os, signal, sqlite3, numpy as np
from functools import partial
from pathlib import Path
from quadtree_attention.predict.match_store import MatchStore, PairMatches
class Killed(sqlite3.Connection):
    def execute(self, sql, values=()):
        if values[:2] != ("a", "c"):
            return super().execute(sql, values)
        super().execute("BEGIN")
        super().execute(sql, values)
        os.kill(os.getpid(), signal.SIGKILL)
sqlite3.connect = partial(sqlite3.connect, factory=Killed)
store = MatchStore(Path({str(tmp_path / "s")!r}), {{"model": "m"}})
store.add(("a", "b"), "1", PairMatches(np.ones((5, 2)), np.zeros((5, 2)), np.ones(5)))
store.add(("a", "c"), "1", PairMatches(np.ones((5000, 2)), np.zeros((5000, 2)), np.ones(5000)))
"""
        assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
        store = MatchStore(tmp_path / "s", {"model": "m"})
        assert store.has(("a", "b"), "1")
        assert not store.has(("a", "b"), "2")
        assert not store.has(("a", "c"), "1")
        assert store.get(("a", "b")).points0.tolist() == [[1, 1]] * 5
        store.remove()
        assert not (tmp_path / "s").exists()

    def test_other_settings_are_refused_and_nothing_is_lost(self, tmp_path):
        store = MatchStore(tmp_path / "s", {"max_size": 640, "align": True})
        store.add(("a", "b"), "", PairMatches(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1)))
        store.close()
        with pytest.raises(
            ValueError, match=r"s holds 1 pair matched with other settings \(max_size, version\); remove it"
        ):
            MatchStore(tmp_path / "s", {"max_size": 320, "align": True, "version": "1"})
        again = MatchStore(tmp_path / "s", {"align": True, "max_size": 640})
        assert again.has(("a", "b"), "")
        again.close()

    def test_a_store_without_matches_leaves_nothing(self, tmp_path):
        MatchStore(tmp_path / "s", {"max_size": 640}).close()
        assert not list(tmp_path.iterdir())

    def test_one_run_at_a_time(self, tmp_path):
        store = MatchStore(tmp_path / "s", {})
        script = f"""
from pathlib import Path
from quadtree_attention.predict.match_store import MatchStore
try:
    MatchStore(Path({str(tmp_path / "s")!r}), {{}})
except OSError as error:
    print(error)
"""

        def other():
            return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

        refused = f"{tmp_path / 's'} is in use by another run; wait until it ends, or choose another --out\n"
        assert other() == refused
        store.add(("a", "b"), "", PairMatches(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1)))
        assert other() == refused
        assert store.has(("a", "b"), "")
        store.close()
        assert other() == ""
        assert [path.name for path in tmp_path.iterdir()] == ["s"]

    def test_an_image_that_changed_is_matched_anew(self, folder, tmp_path):
        scene = Scene()
        scene.stop_at = 3
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "m.h5", scene, ["a.png", "b.png", "c.png"])
        os.utime(folder / "b.png", ns=(1, 1))
        scene.stop_at = None
        run(folder, tmp_path / "m.h5", scene, ["a.png", "b.png", "c.png"])
        assert scene.calls[3:] == [("a.png", "b.png"), ("b.png", "c.png")]


class TestPairs:
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                ("a.png", "../outside.png"),
                r"'../outside.png' is not in .*images, expected names of images in that folder",
            ),
            (("a.png", "/outside.png"), r"'/outside.png' is not in"),
            (("a.png", "sub/.."), r"'sub/..' is not in"),
            (("a.png", "./a.png"), r"'a.png' and './a.png' are the same image, expected a pair of two"),
        ],
    )
    def test_names_that_will_not_do(self, folder, tmp_path, names, message):
        Image.new("RGB", SIZE).save(tmp_path / "outside.png")
        with pytest.raises(ValueError, match=message):
            match_folder(folder, [names], tmp_path / "m.h5", matcher=Scene)
        assert not list(tmp_path.glob("m.h5*"))

    def test_an_image_has_one_name(self, folder, tmp_path):
        scene = Scene()
        pairs = [("a.png", "b.png"), ("./b.png", "a.png"), ("sub/../a.png", str(folder / "sub" / "f.png"))]
        found = match_folder(folder, pairs, tmp_path / "m.h5", matcher=lambda: scene)
        assert (found.images, found.pairs) == (3, 2)
        assert scene.calls == [("a.png", "b.png"), ("a.png", "sub/f.png")]
        with h5py.File(tmp_path / "features.h5") as file:
            assert set(file) == {"a.png", "b.png", "sub"}
            assert set(file["sub"]) == {"f.png"}

    def test_images_of_a_large_folder_are_read_a_few_times(self, tmp_path, monkeypatch):
        """A pass over all others for each image would read them anew each time, as they do not fit into memory together."""
        monkeypatch.setattr(folder_module, "BLOCK", 2)
        read, most = [], []

        class Nothing:
            def match(self, image0, image1, **options):
                most.append(sum(image() is not None for image in read))
                return Matches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.float32))

        def read_image(path):
            image = np.zeros((32, 32, 3), np.uint8)
            read.append(weakref.ref(image))
            return image

        monkeypatch.setattr(folder_module, "read_image", read_image)
        names = [f"{n}.png" for n in range(10)]
        for name in names:
            Image.new("L", (32, 32)).save(tmp_path / name)
        assert match_folder(tmp_path, all_pairs(names), tmp_path / "m.h5", matcher=Nothing).pairs == 45
        assert len(read) <= 2 * (5 + 4 + 3 + 2 + 1)  # each of 5 blocks of 2 with itself and the later ones
        assert max(most) <= 3 * 2 + 1

    def test_progress_tells_what_this_run_matched(self, folder, tmp_path):
        scene, told = Scene(), []
        names = ["a.png", "b.png", "c.png"]
        scene.stop_at = 2
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "m.h5", scene, names)
        scene.stop_at = None
        run(folder, tmp_path / "m.h5", scene, names, progress=lambda *numbers: told.append(numbers))
        assert told == [(0, 3, 0), (1, 3, 0), (2, 3, 1), (3, 3, 2)]


class TestMistakes:
    def test_a_broken_image_is_left_out(self, photo, tmp_path, capsys):
        images = tmp_path / "images"
        images.mkdir()
        for name, part in (("a.png", photo[:, :140]), ("b.png", photo[:, 16:])):
            Image.fromarray(part).save(images / name)
        (images / "broken.jpg").write_bytes(b"not an image")
        (tmp_path / "list.txt").write_text("a.png b.png\nb.png broken.jpg\nb.png a.png\n")
        for out in ("m.h5", "d.db"):
            status = main(
                ["match-folder", str(images), "--out", str(tmp_path / out), "--pairs", str(tmp_path / "list.txt")]
            )
            printed = capsys.readouterr()
            assert status == 1
            assert f"{out}" in printed.out
            assert "2 images, 1 pair, " in printed.out
            last = printed.err.splitlines()[-1]
            assert last.startswith("quadtree: left out: ")
            assert "broken.jpg" in last
            assert "2/2 pairs" in printed.err
        (images / "broken.jpg").unlink()
        assert main(["match-folder", str(images), "--out", str(tmp_path / "m.h5")]) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(out="m.txt"), "unknown suffix '.txt', expected .h5 or .db"),
            (dict(out="m.h5", cameras="single"), "cameras is single, which belongs to a .db"),
            (dict(out="d.db", cameras="two"), "cameras is 'two', expected one of auto, single"),
            (dict(out="d.db", features="f.h5"), "features is f.h5, which belongs to .h5"),
            (dict(out="features.h5"), "cannot hold both matches and features"),
            (dict(out="m.h5", radius=-1.0), "radius is -1.0, expected 0 or more pixels"),
            (dict(out="m.h5", max_size=20), "max_size is 20, expected at least 32 pixels"),
            (dict(out="d.db", threshold=5.0), r"threshold is 5.0, expected 0..1"),
        ],
    )
    def test_options(self, folder, tmp_path, monkeypatch, options, message):
        monkeypatch.chdir(tmp_path)
        options = dict(options)
        with pytest.raises(ValueError, match=message):
            run(folder, options.pop("out"), Scene(), **options)
        assert [path.name for path in tmp_path.iterdir()] == ["images"]

    def test_nothing_to_match(self, folder, tmp_path):
        with pytest.raises(ValueError, match="no pairs to match, expected at least two images"):
            run(folder, tmp_path / "d.db", Scene(), ["a.png"])
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"no pair of images that can both be read; the first: .*a\.png"):
            run(folder, tmp_path / "d.db", Scene(), ["a.png", "b.png"])
        assert [path.name for path in tmp_path.iterdir()] == ["images"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("a.png", "list.txt:2: 'a.png', expected the names of two images"),
            ("a.png a.png", "expected the names of two images"),
            ("a.png none.png", r"list.txt:2: .*none.png does not exist"),
        ],
    )
    def test_lists(self, folder, tmp_path, line, message):
        (tmp_path / "list.txt").write_text(f"a.png b.png\n{line}\n")
        with pytest.raises((ValueError, OSError), match=message):
            image_pairs(tmp_path / "list.txt", folder)

    def test_a_store_that_is_none(self, tmp_path):
        (tmp_path / "s").write_text("something else entirely" * 100)
        with pytest.raises(ValueError, match="is not a file of matches, or is damaged"):
            MatchStore(tmp_path / "s", {})

    @pytest.mark.parametrize(("out", "package"), [("m.h5", "h5py"), ("d.db", "pycolmap"), ("m.h5", "scipy")])
    def test_a_missing_package_is_named(self, folder, tmp_path, monkeypatch, out, package):
        monkeypatch.setitem(sys.modules, "scipy.spatial" if package == "scipy" else package, None)
        with pytest.raises(ImportError, match=rf"{package}.* not installed; install it with: pip install .*\[sfm\]"):
            run(folder, tmp_path / out, Scene())


def test_a_journal_of_a_killed_run_goes_with_the_file(tmp_path):
    """SQLite deletes its journal when it writes; a run that only reads what a killed one matched does not."""
    path = tmp_path / "m.h5.partial"
    store = MatchStore(path, {"topk": 8})
    store.add(("a", "b"), "", PairMatches(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1)))
    store.close()
    journal = path.with_name("m.h5.partial-journal")
    journal.write_bytes(bytes(512))  # a header of zeros, as in exclusive mode
    again = MatchStore(path, {"topk": 8})
    assert again.count() == 1
    again.remove()
    assert list(tmp_path.iterdir()) == []
