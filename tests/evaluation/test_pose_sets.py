import pickle

import cv2
import numpy as np
import pytest
from tests.evaluation.test_lists import image
from tests.support.scenes import shots, write_colmap

from quadtree_attention.data.arrays import read_arrays
from quadtree_attention.data.matching.made_scenes import SceneMaker
from quadtree_attention.evaluation import pose_sets


def pose(seed):
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.random.default_rng(seed).normal(size=3))[0]
    T[:3, 3] = [seed, 1, 2]
    return T


class TestScanNet:
    K = np.array([[577.0, 0, 320], [0, 578, 240], [0, 0, 1]])

    @pytest.fixture
    def root(self, tmp_path):
        for frame in (15, 585):
            image(tmp_path / "scene0707_00" / "color" / f"{frame}.jpg")
        names = np.array([[707, 0, 15, 585], [707, 0, 585, 15]], dtype=np.uint16)
        np.savez(tmp_path / "test.npz", name=names, rel_pose=np.stack([pose(s)[:3].ravel() for s in (5, 6)]))
        np.savez(tmp_path / "intrinsics.npz", scene0707_00=self.K)
        return tmp_path

    def test_relative_poses_of_the_list(self, root):
        first, second = pose_sets.scannet1500(root)
        assert first.image1 == root / "scene0707_00" / "color" / "585.jpg"
        assert first.size0 == (640, 480)
        assert not first.smooth  # as published
        np.testing.assert_array_equal(first.K1, self.K)
        np.testing.assert_allclose(first.T_0to1, pose(5))
        np.testing.assert_allclose(second.T_0to1, pose(6))

    def test_poses_of_the_frames_come_first(self, root):
        world = {}
        for frame in (15, 585):
            world[frame] = pose(frame)  # camera to world
            (root / "scene0707_00" / "pose").mkdir(exist_ok=True)
            np.savetxt(root / "scene0707_00" / "pose" / f"{frame}.txt", world[frame])
        first, _ = pose_sets.scannet1500(root)
        point = np.array([1.0, 2, 3, 1])  # in camera 0
        np.testing.assert_allclose(world[585] @ first.T_0to1 @ point, world[15] @ point)

    def test_a_checkout_of_the_published_code(self, root, tmp_path_factory):
        checkout = tmp_path_factory.mktemp("LoFTR")
        (checkout / "assets" / "scannet_test_1500").mkdir(parents=True)
        for name in ("test.npz", "intrinsics.npz"):
            (root / name).rename(checkout / "assets" / "scannet_test_1500" / name)
        (checkout / "data" / "scannet").mkdir(parents=True)
        (checkout / "data" / "scannet" / "test").symlink_to(root)
        assert len(pose_sets.scannet1500(checkout)) == 2

    def test_missing_parts(self, root):
        (root / "scene0707_00" / "color" / "585.jpg").unlink()
        with pytest.raises(FileNotFoundError, match=r"test\.npz: pair 0: .*585\.jpg does not exist"):
            pose_sets.scannet1500(root)
        np.savez(root / "intrinsics.npz", scene0001_00=self.K)
        image(root / "scene0707_00" / "color" / "585.jpg")
        with pytest.raises(ValueError, match=r"intrinsics\.npz: no entry 'scene0707_00', found scene0001_00"):
            pose_sets.scannet1500(root)
        (root / "test.npz").unlink()
        with pytest.raises(FileNotFoundError, match=r"test\.npz not found, expected it in one of"):
            pose_sets.scannet1500(root)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": np.zeros((0, 4), np.uint16)}, r"'name' has shape \(0, 4\)"),
            ({"name": np.zeros(4, np.uint16)}, r"'name' has shape \(4,\)"),
            ({"name": np.full((2, 4), "a")}, "'name' has shape .* expected whole numbers"),
            ({"rel_pose": np.zeros((1, 12))}, "'rel_pose' has 1 entries, expected 2"),
            ({"rel_pose": np.float64(0)}, "'rel_pose' is .* expected a value for each"),
            ({"rel_pose": np.zeros((2, 5))}, "pair 0 of 'rel_pose': no pose"),
            ({"rel_pose": np.zeros((2, 12))}, "pair 0 of 'rel_pose': no pose"),
        ],
    )
    def test_damaged_parts(self, root, changes, message):
        np.savez(root / "test.npz", **read_arrays(root / "test.npz") | changes)
        with pytest.raises(ValueError, match=rf"test\.npz.*{message}") as error:
            pose_sets.scannet1500(root)
        assert "\n" not in str(error.value)

    def test_frames_without_a_pose(self, root):
        """ScanNet has -inf where tracking was lost: such a pair cannot be judged."""
        for frame in (15, 585):
            (root / "scene0707_00" / "pose").mkdir(exist_ok=True)
            np.savetxt(root / "scene0707_00" / "pose" / f"{frame}.txt", np.full((4, 4), -np.inf))
        with pytest.raises(ValueError, match=r"15\.txt: no pose, expected \[4, 4\] finite numbers"):
            pose_sets.scannet1500(root)
        np.savez(root / "intrinsics.npz", scene0707_00=np.diag([500.0, -500, 1]))
        (root / "scene0707_00" / "pose" / "15.txt").unlink()
        with pytest.raises(ValueError, match=r"intrinsics\.npz: scene0707_00: no camera, .* focal lengths above 0"):
            pose_sets.scannet1500(root)


class TestMegaDepth:
    @pytest.fixture
    def root(self, tmp_path):
        names = [None, "Undistorted_SfM/0015/images/a.jpg", "Undistorted_SfM/0015/images/b.jpg"]
        for name in names[1:]:
            image(tmp_path / name)
        scene = {
            "image_paths": np.array(names, dtype=object),
            "intrinsics": self.objects(None, np.diag([100.0, 100, 1]), np.diag([90.0, 90, 1])),
            "poses": self.objects(None, pose(1), pose(2)),
            "pair_infos": [(np.array([1, 2]), 0.3, np.zeros(4)), (np.array([2, 1]), 0.0, np.zeros(4))],
        }
        (tmp_path / "0015_0.1_0.3.npz").write_bytes(pickle.dumps(scene))  # as published: a pickle, whatever its suffix
        (tmp_path / "megadepth_test_1500.txt").write_text("0015_0.1_0.3\n")
        return tmp_path

    @staticmethod
    def objects(*values):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    def test_pairs(self, root):
        (pair,) = pose_sets.megadepth1500(root)  # the one without overlap is left out
        assert pair.image0 == root / "Undistorted_SfM/0015/images/a.jpg"
        assert (pair.K0[0, 0], pair.K1[0, 0]) == (100, 90)
        np.testing.assert_allclose(pair.T_0to1 @ pose(1), pose(2), atol=1e-12)

    def test_without_the_list_and_as_a_zip(self, root):
        (root / "megadepth_test_1500.txt").unlink()
        path = root / "0015_0.1_0.3.npz"
        scene = read_arrays(path)
        infos = self.objects(*scene.pop("pair_infos"))
        np.savez(path, pair_infos=infos, **scene)
        assert len(pose_sets.megadepth1500(root)) == 1

    def test_missing_image(self, root):
        (root / "Undistorted_SfM/0015/images/b.jpg").unlink()
        with pytest.raises(FileNotFoundError, match=r"0015_0\.1_0\.3\.npz: pair 0: .*b\.jpg does not exist"):
            pose_sets.megadepth1500(root)

    def test_a_list_with_a_scene_that_is_not_there(self, root):
        (root / "megadepth_test_1500.txt").write_text("0099\n")
        with pytest.raises(FileNotFoundError, match=r"megadepth_test_1500\.txt: .*0099\.npz does not exist"):
            pose_sets.megadepth1500(root)

    @pytest.mark.parametrize(
        ("key", "values", "message"),
        [
            ("pair_infos", [3], "'pair_infos' is of another form"),
            ("pair_infos", [(np.array([1, 3]), 0.3)], "pair 0 is of images 1 and 3, expected numbers below 3"),
            ("poses", [None, np.full((4, 4), np.nan), np.eye(4)], "entry 1 of 'poses': no pose"),
            ("poses", [None, np.eye(4), 2 * np.eye(4)], "entry 2 of 'poses': no pose"),
            ("intrinsics", [None, np.eye(3), np.eye(4)], "entry 2 of 'intrinsics': no camera"),
            ("intrinsics", [None, np.diag([100.0, 0, 1]), np.eye(3)], "focal lengths above 0"),
            ("intrinsics", [None, np.diag([100.0, 100, 2]), np.eye(3)], "the last row 0 0 1"),
            ("image_paths", 3, "'image_paths' is 3, expected a value for each image"),
        ],
    )
    def test_damaged_parts(self, root, key, values, message):
        path = root / "0015_0.1_0.3.npz"
        path.write_bytes(pickle.dumps(read_arrays(path) | {key: values}))
        with pytest.raises(ValueError, match=rf"0015_0\.1_0\.3\.npz: .*{message}") as error:
            pose_sets.megadepth1500(root)
        assert "\n" not in str(error.value)


class TestColmap:
    SIZE = (96, 128)

    @pytest.fixture
    def maker(self, tmp_path, photo):
        return SceneMaker([image(tmp_path / "texture.png", (200, 150))], seed=3)

    def test_pairs(self, maker, tmp_path):
        root = tmp_path / "model"
        write_colmap(root, maker, 0, 2, self.SIZE)
        found = pose_sets.colmap_pairs(str(root))
        assert [pair.name for pair in found] == ["0001.jpg 0002.jpg", "0003.jpg 0004.jpg"]
        for pair, shot in zip(found, shots(maker, 0, 2, self.SIZE), strict=True):
            np.testing.assert_allclose(pair.K0, shot.cameras.K, atol=1e-6)
            np.testing.assert_allclose(pair.T_0to1, shot.cameras.T_0to1, atol=1e-6)
            assert pair.size0 == (128, 96)
            assert not pair.upright  # COLMAP's cameras are of pixels as stored
            assert pair.image0.is_file()

    def test_by_overlap(self, maker, tmp_path):
        write_colmap(tmp_path / "model", maker, 0, 1, self.SIZE)
        with pytest.raises(ValueError, match=r"model: no pair of images with an overlap above 1"):
            pose_sets.colmap_pairs(tmp_path / "model", 1.0)
        with pytest.raises(FileNotFoundError, match="no COLMAP model"):
            pose_sets.colmap_pairs(tmp_path)
