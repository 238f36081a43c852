import pickle
import shutil

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.geometry import first_hit, project
from tests.support.scenes import shots, write_colmap, write_megadepth, write_scannet

from quadtree_attention.data.arrays import read_arrays
from quadtree_attention.data.matching.colmap import ColmapScene
from quadtree_attention.data.matching.layouts import MegaDepthScene, ScanNetScene
from quadtree_attention.data.matching.made_scenes import Motion
from quadtree_attention.data.matching.posed import posed_image, resize_depth
from quadtree_attention.data.warp import resize_matrix
from quadtree_attention.tasks.matching.supervision import depth_supervision, point_supervision

SIZE = (96, 128)
PAIRS = 3


@pytest.fixture(scope="module")
def scannet(maker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scannet")
    write_scannet(folder, maker, 2, PAIRS, SIZE)
    return folder


@pytest.fixture(scope="module")
def megadepth(maker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("megadepth")
    write_megadepth(folder, maker, 1, 2 * PAIRS, SIZE)
    return folder


def scannet_scene(folder, number=0, **options):
    scene = f"scene{number:04d}_00"
    index = folder / "index"
    options = {"min_overlap": 0.0, "size": (128, 96), **options}
    return ScanNetScene(
        folder / "train", index / "scene_data" / "train" / f"{scene}.npz", index / "intrinsics.npz", **options
    )


def megadepth_scene(folder, **options):
    return MegaDepthScene(folder / "train", folder / "index" / "scene_info_0.1_0.7" / "0000.npz", **options)


def supervised(sample):
    masks = {key: sample[key][None, ::8, ::8] for key in ("mask0", "mask1") if key in sample}
    cameras = [sample[key][None] for key in ("K0", "K1", "T_0to1")]
    if "points0" in sample:
        sizes = [tuple(sample[key].shape[-2:]) for key in ("image0", "image1")]
        return point_supervision(sample["points0"][None], sample["points1"][None], *cameras, *sizes, **masks)
    return depth_supervision(sample["depth0"][None], sample["depth1"][None], *cameras, **masks)


def errors(sample, shot, sizes):
    """How far matches that are not next to an edge lie from where the scene's own geometry says, in pixels."""
    truth = supervised(sample)
    width = sample["image0"].shape[2] // 8
    stored = shot.views[0].image.shape[::-1]
    K0, K1 = (resize_matrix(stored, size) @ shot.cameras.K for size in sizes)
    rectangles, distances = shot.place.scene.rectangles, []
    for i, warped in zip(truth.i.tolist(), truth.warped.double().numpy(), strict=True):
        x, y = 8 * (i % width), 8 * (i // width)
        around = [first_hit(rectangles, K0, shot.poses[0], x + dx, y + dy)[0] for dx in (-2, 2) for dy in (-2, 2)]
        number, at, _ = first_hit(rectangles, K0, shot.poses[0], x, y)
        if set(around) != {number}:
            continue
        part = rectangles[number]
        exact = project(part.corner + at[0] * part.across + at[1] * part.down, K1, shot.poses[1])
        distances.append(float(np.abs(warped - exact).max()))
    return distances


def test_scannet(scannet, maker):
    dataset, off = scannet_scene(scannet), []
    assert len(dataset) == PAIRS
    for sample, shot in zip(dataset, shots(maker, 0, PAIRS, SIZE), strict=False):
        assert sample["image0"].shape == (1, *SIZE)
        np.testing.assert_allclose(sample["image1"][0] * 255, shot.views[1].image, atol=40)  # JPEG
        np.testing.assert_allclose(sample["K0"], shot.cameras.K, atol=1e-4)
        np.testing.assert_allclose(sample["depth0"], shot.views[0].depth, atol=5.1e-4)
        np.testing.assert_allclose(sample["T_0to1"], shot.cameras.T_0to1, atol=1e-5)
        off += errors(sample, shot, [(128, 96)] * 2)
    assert len(off) > 60
    assert max(off) < 0.1


def test_scannet_at_another_size(scannet, maker):
    sample, shot = scannet_scene(scannet, size=(80, 64))[1], list(shots(maker, 0, 2, SIZE))[1]
    assert sample["image0"].shape == (1, 64, 80)
    off = errors(sample, shot, [(80, 64)] * 2)
    assert len(off) > 3
    assert max(off) < 0.1


def test_scannet_pairs_by_overlap(scannet, tmp_path):
    scores = np.load(scannet / "index" / "scene_data" / "train" / "scene0001_00.npz")["score"]
    assert len(scannet_scene(scannet, 1, min_overlap=float(np.sort(scores)[0]))) == PAIRS - 1
    with pytest.raises(ValueError, match=r"scene0001_00\.npz: no pair with an overlap above 1"):
        scannet_scene(scannet, 1, min_overlap=1)
    np.savez(tmp_path / "test.npz", name=np.uint16([[0, 0, 0, 10]] * 5))  # without scores, as for validation
    index = scannet / "index" / "intrinsics.npz"
    assert len(ScanNetScene(scannet / "train", tmp_path / "test.npz", index)) == 5


@pytest.mark.parametrize("undistorted", [True, False])
def test_megadepth(megadepth, maker, tmp_path, undistorted):
    if not undistorted:
        megadepth = tmp_path
        write_megadepth(tmp_path, maker, 1, 2, SIZE, undistorted=False)
    dataset = megadepth_scene(megadepth, longest=104)
    wide, upright = shots(maker, 0, PAIRS, SIZE), shots(maker, 0, PAIRS, SIZE[::-1])
    off = []
    for k in range(len(dataset)):
        sample, shot = dataset[k], next(upright if k % 2 else wide)
        size = (72, 104) if k % 2 else (104, 72)
        for side in "01":
            assert sample[f"image{side}"].shape == (1, 104, 104)
            mask = torch.zeros(104, 104, dtype=torch.bool)
            mask[: size[1], : size[0]] = True
            assert torch.equal(sample[f"mask{side}"], mask)
            assert (sample[f"depth{side}"][~mask] == 0).all()
            assert (sample[f"image{side}"][0][~mask] == 0).all()
        off += errors(sample, shot, [size] * 2)
    assert len(off) > (60 if undistorted else 15)
    assert max(off) < 0.1


def test_shrunk_images_are_interpolated_as_published_or_smooth(tmp_path):
    """The published code decodes the whole image and interpolates, which leaves out every other dot; COLMAP's photographs are averaged."""
    dots = np.zeros((240, 320), np.uint8)
    dots[::3, ::3] = 255
    path, size = tmp_path / "dots.png", (80, 60)
    cv2.imwrite(str(path), dots)
    picked, smooth = (
        posed_image(path, np.eye(3), (320, 240), size, smooth=smooth)["image"][0].numpy() * 255
        for smooth in (False, True)
    )
    np.testing.assert_allclose(picked, cv2.resize(dots, size, interpolation=cv2.INTER_LINEAR), atol=1e-4)
    assert smooth.std() < picked.std() / 2
    cv2.imwrite(
        str(tmp_path / "dots.jpg"), np.repeat(np.repeat(dots, 2, 0), 2, 1)
    )  # large enough to be decoded at a fraction
    whole = posed_image(tmp_path / "dots.jpg", np.eye(3), (640, 480), size)["image"][0].numpy() * 255
    read = cv2.imread(str(tmp_path / "dots.jpg"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_allclose(whole, cv2.resize(read, size, interpolation=cv2.INTER_LINEAR), atol=3)


def test_the_way_back_to_stored_pixels(megadepth, scannet):
    """Validation judges poses there: with the camera as the index has it."""
    sample = megadepth_scene(megadepth, longest=64)[0]
    index = read_arrays(megadepth / "index" / "scene_info_0.1_0.7" / "0000.npz")
    for side, k in zip("01", index["pair_infos"][0][0], strict=True):
        K = sample[f"to_stored{side}"] @ sample[f"K{side}"]
        K[:2, 2] += 0.5  # COLMAP's first pixel
        np.testing.assert_allclose(K, index["intrinsics"][k], rtol=1e-5)
        np.testing.assert_allclose(K[:2, 2], (64, 48), rtol=1e-5)  # the middle of 128 x 96
        corners = sample[f"to_stored{side}"] @ torch.tensor([[-0.5, 63.5], [-0.5, 47.5], [1, 1]])
        np.testing.assert_allclose(corners[:2], [[-0.5, 127.5], [-0.5, 95.5]], atol=1e-4)
    sample = scannet_scene(scannet)[0]
    torch.testing.assert_close(
        sample["to_stored0"], torch.tensor([[5.0, 0, 2], [0, 5, 2], [0, 0, 1]])
    )  # 128 x 96 to 640 x 480


def test_megadepth_sizes(megadepth):
    assert megadepth_scene(megadepth, longest=64, pad=False)[0]["image0"].shape == (1, 48, 64)
    assert "mask0" not in megadepth_scene(megadepth, longest=64, pad=False)[0]


@pytest.mark.parametrize("dense", [True, False])
def test_colmap(maker, tmp_path, dense):
    write_colmap(tmp_path, maker, 0, PAIRS, SIZE, points=400, dense=dense)
    dataset = ColmapScene(tmp_path, longest=128, pad=False, min_overlap=0.05, max_overlap=1)
    assert dataset.dense == dense
    assert set(dataset.pairs) == {(2 * k, 2 * k + 1) for k in range(PAIRS)}
    off = []
    for k, shot in enumerate(shots(maker, 0, PAIRS, SIZE)):
        sample = dataset[dataset.pairs.index((2 * k, 2 * k + 1))]
        assert ("points0" in sample) != dense
        np.testing.assert_allclose(sample["K1"], shot.cameras.K, atol=1e-4)
        np.testing.assert_allclose(sample["T_0to1"], shot.cameras.T_0to1, atol=1e-5)
        off += errors(sample, shot, [(128, 96)] * 2)
    assert len(off) > 40
    if dense:
        assert max(off) < 0.1
    else:  # within half a cell the surface is taken to face the camera, which a floor does not
        assert np.median(off) < 0.3
        assert np.mean(np.array(off) < 1) > 0.9


def test_points_say_nothing_of_other_cells(maker, tmp_path):
    write_colmap(tmp_path, maker, 0, 1, SIZE, points=60)
    sample = ColmapScene(tmp_path, longest=128, pad=True, min_overlap=0.05, max_overlap=1, points=40)[0]
    truth = supervised(sample)
    assert 3 < len(truth.i) <= 40
    assert truth.i.tolist() == sorted(set(truth.i.tolist()))
    assert len(set(truth.j.tolist())) == len(truth.j)
    for known, cells in zip(truth.known, (truth.i, truth.j), strict=True):
        assert known[0].nonzero()[:, 0].tolist() == sorted(cells.tolist())
    # Each cell has its own point within half a cell.
    columns, rows = (sample["points0"][:, k] for k in (0, 1))
    for i in truth.i.tolist():
        x, y = 8 * (i % 16), 8 * (i // 16)
        assert (((columns - x).abs() <= 4) & ((rows - y).abs() <= 4)).any()


def test_resized_depth():
    # A slanted plane: inverse depth is affine in the pixels.
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    inverse = 0.2 + 0.004 * x + 0.002 * y
    depth = np.where(x < 45, 1 / inverse, 0)
    depth[:, :20] *= 2  # another surface
    small = resize_depth(depth, (36, 24))
    xs, ys = np.meshgrid((np.arange(36) + 0.5) * 60 / 36 - 0.5, (np.arange(24) + 0.5) * 40 / 24 - 0.5)
    exact = 1 / (0.2 + 0.004 * xs + 0.002 * ys)
    exact = np.where(xs < 19.5, 2 * exact, exact)
    inside = (np.abs(xs - 19.5) > 1) & (xs < 43.5)
    np.testing.assert_allclose(small[inside], exact[inside], rtol=1e-5)
    np.testing.assert_allclose(small, np.where(xs < 44.5, exact, 0), rtol=0.05)  # edges stay edges
    assert np.array_equal(resize_depth(depth, (60, 40)), depth.astype(np.float32))
    assert (resize_depth(np.array([[np.nan, -1.0], [np.inf, 0]]), (2, 2)) == 0).all()


def test_broken_files(scannet, megadepth, maker, tmp_path):
    pose = scannet / "train" / "scene0001_00" / "pose" / "0.txt"
    text = pose.read_text()
    for content, message in (
        ("-inf " * 16, r"0\.txt: no pose, expected \[4, 4\]"),
        ("0 " * 16, "no pose, .* a rotation and a shift"),
        ("1 2 x", r"0\.txt: not a pose \(.*, expected text with numbers"),
        ("1 2 3", "no pose"),
    ):
        pose.write_text(content)
        with pytest.raises(ValueError, match=message):
            scannet_scene(scannet, 1)[0]
    pose.unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.txt cannot be read"):
        scannet_scene(scannet, 1)[0]
    pose.write_text(text)
    np.savez(tmp_path / "flat.npz", name=np.zeros(4))
    with pytest.raises(ValueError, match=r"'name' has shape \(4,\) of float64, expected whole numbers \[N, 4\]"):
        ScanNetScene(scannet / "train", tmp_path / "flat.npz", scannet / "index" / "intrinsics.npz")
    with pytest.raises(ValueError, match="no entry 'scene0000_00'"):
        ScanNetScene(
            scannet / "train",
            scannet / "index" / "scene_data" / "train" / "scene0000_00.npz",
            tmp_path / "flat.npz",
            0.0,
        )[0]
    dataset = megadepth_scene(megadepth, longest=64)
    depth = megadepth / "train" / dataset.depths[0]
    data = depth.read_bytes()
    with h5py.File(depth, "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match="no data set 'depth'"):
        dataset[0]
    depth.write_bytes(data)
    image = megadepth / "train" / dataset.images[0]
    image.rename(image.with_suffix(".bak"))
    with pytest.raises(FileNotFoundError, match=r"0_o\.jpg does not exist, nor does .*imgs/0_o\.jpg"):
        dataset[0]
    image.with_suffix(".bak").rename(image)
    with pytest.raises(FileNotFoundError, match="no COLMAP model"):
        ColmapScene(tmp_path)
    write_colmap(tmp_path, maker, 0, 1, SIZE)
    with pytest.raises(ValueError, match=r"no pair of images with an overlap above 0\.99"):
        ColmapScene(tmp_path, min_overlap=0.99, max_overlap=1)
    cameras = tmp_path / "sparse" / "cameras.txt"
    cameras.write_text("".join(f"{k} SIMPLE_RADIAL 128 96 100 64 48 0.1\n" for k in (1, 2)))
    with pytest.raises(ValueError, match="camera model SIMPLE_RADIAL, expected PINHOLE or SIMPLE_PINHOLE"):
        ColmapScene(tmp_path)
    (tmp_path / "images" / "0001.jpg").unlink()
    write_colmap(tmp_path / "other", maker, 0, 1, SIZE)
    (tmp_path / "other" / "images" / "0002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"0002\.jpg does not exist, but the model has it"):
        ColmapScene(tmp_path / "other")


def rewritten(index, **changes):
    """An index of MegaDepth with other entries."""
    arrays = {**read_arrays(index), **changes}
    copy = index.with_name("changed.npz")
    copy.write_bytes(pickle.dumps(arrays))
    return copy


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "pair_infos",
            lambda old: [(np.array([0, 99]), 0.5, None)],
            "pair 0 is of images 0 and 99, expected numbers below 12",
        ),
        ("pair_infos", lambda old: [(np.array([0, -1]), 0.5, None)], "pair 0 is of images 0 and -1"),
        ("pair_infos", lambda old: [3, 4], "'pair_infos' is of another form"),
        ("poses", lambda old: [None, *old[1:]], "entry 0 of 'poses': no pose"),
        ("poses", lambda old: [np.full((4, 4), np.nan), *old[1:]], "entry 0 of 'poses': no pose"),
        ("intrinsics", lambda old: [np.eye(4), *old[1:]], "entry 0 of 'intrinsics': no camera"),
        ("depth_paths", lambda old: [None, *old[1:]], "None cannot be read"),
    ],
)
def test_broken_indexes_of_megadepth(megadepth, key, change, message):
    index = megadepth / "index" / "scene_info_0.1_0.7" / "0000.npz"
    changed = rewritten(index, **{key: change(list(read_arrays(index)[key]))})
    with pytest.raises((ValueError, OSError), match=message) as caught:
        MegaDepthScene(megadepth / "train", changed, longest=64)[0]
    assert "\n" not in str(caught.value)


def test_depth_maps_of_another_form(megadepth, scannet):
    dataset = megadepth_scene(megadepth, longest=64)
    depth = megadepth / "train" / dataset.depths[0]
    data = depth.read_bytes()
    for values in (np.ones((4, 4, 3)), np.float32(1), np.ones((0, 4))):
        with h5py.File(depth, "w") as file:
            file["depth"] = values
        with pytest.raises(ValueError, match=r"0_o\.h5: has shape .* expected a depth map \[H, W\]"):
            dataset[0]
    with h5py.File(depth, "w") as file:
        file.create_group("depth")
    with pytest.raises(ValueError, match=r"0_o\.h5: has shape"):
        dataset[0]
    with h5py.File(depth, "w") as file:
        file["depth"] = np.ones(SIZE[::-1])  # of an upright image
    with pytest.raises(
        ValueError, match=r"0_o\.jpg has the shape of 128x96 pixels, expected that of its camera or depth map, 96x128"
    ):
        dataset[0]
    depth.write_bytes(data)
    assert len(dataset[0]["depth0"]) == 64
    with pytest.raises(ValueError, match="multiple is 0"):
        megadepth_scene(megadepth, multiple=0)
    scene = scannet_scene(scannet)
    depth = scannet / "train" / "scene0000_00" / "depth" / "0.png"
    data = depth.read_bytes()
    cv2.imwrite(str(depth), np.ones((480, 640, 3), np.uint8))
    with pytest.raises(ValueError, match=r"0\.png: has shape \(480, 640, 3\)"):
        scene[0]
    depth.write_bytes(data)


def test_scannet_with_parts_elsewhere(scannet, tmp_path):
    """Poses in a folder of their own, and intrinsics that were read before."""
    index = scannet / "index"
    pose = tmp_path / "scene0000_00" / "pose"
    shutil.copytree(scannet / "train" / "scene0000_00" / "pose", pose)
    moved = np.loadtxt(pose / "0.txt")
    moved[0, 3] += 1
    np.savetxt(pose / "0.txt", moved)
    file = index / "scene_data" / "train" / "scene0000_00.npz"
    intrinsics = read_arrays(index / "intrinsics.npz")
    there, elsewhere = (
        ScanNetScene(scannet / "train", file, intrinsics, 0.0, poses, (128, 96))[0] for poses in (None, tmp_path)
    )
    assert torch.equal(there["K0"], elsewhere["K0"])
    assert not torch.equal(there["T_0to1"], elsewhere["T_0to1"])
    for K in (np.full((3, 3), np.nan), np.eye(4), None):
        with pytest.raises(ValueError, match="intrinsics: scene0000_00: no camera"):
            ScanNetScene(scannet / "train", file, {"scene0000_00": K}, 0.0)[0]
    names = np.load(file)["name"]
    np.savez(tmp_path / "short.npz", name=names, score=np.ones(1))
    with pytest.raises(ValueError, match=r"'score' has shape \(1,\), expected \(3,\)"):
        ScanNetScene(scannet / "train", tmp_path / "short.npz", intrinsics)


def test_megadepth_pairs_by_overlap(megadepth):
    overlaps = sorted(
        info[1] for info in read_arrays(megadepth / "index" / "scene_info_0.1_0.7" / "0000.npz")["pair_infos"]
    )
    assert len(megadepth_scene(megadepth)) == len(overlaps) == 2 * PAIRS
    assert len(megadepth_scene(megadepth, min_overlap=overlaps[2])) == len(overlaps) - 3


def test_colmap_sees_pixels_as_stored(maker, tmp_path):
    """COLMAP knows nothing of EXIF, and its undistorter keeps the tag: a photograph of a telephone must not be turned."""
    write_colmap(tmp_path, maker, 0, 1, SIZE)
    plain = ColmapScene(tmp_path, longest=128, max_overlap=1)[0]
    path = tmp_path / "images" / "0001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif, quality=95)
    tagged = ColmapScene(tmp_path, longest=128, max_overlap=1)[0]
    assert (plain["image0"] - tagged["image0"]).abs().mean() < 0.01
    Image.open(path).resize((96, 128)).save(path)
    with pytest.raises(ValueError, match=r"0001\.jpg has the shape of 96x128 pixels, expected that of .* 128x96"):
        ColmapScene(tmp_path, longest=128, max_overlap=1)[0]


def test_colmap_pairs_by_overlap(maker, tmp_path):
    write_colmap(tmp_path, maker, 0, 2, SIZE, points=100)
    images = (tmp_path / "sparse" / "images.txt").read_text().splitlines()
    seen = [set(map(int, line.split()[2::3])) for line in images[1::2]]
    shares = {(i, i + 1): len(seen[i] & seen[i + 1]) / min(len(seen[i]), len(seen[i + 1])) for i in (0, 2)}
    least, most = min(shares.values()), max(shares.values())
    assert least < most
    options = {"longest": 128, "min_overlap": 0.01, "max_overlap": 1}
    assert set(ColmapScene(tmp_path, **options).pairs) == set(shares)
    assert [shares[pair] for pair in ColmapScene(tmp_path, **options | {"min_overlap": least}).pairs] == [most]
    assert [shares[pair] for pair in ColmapScene(tmp_path, **options | {"max_overlap": least}).pairs] == [least]
    assert ColmapScene(tmp_path, pad=False, **options)[0]["image0"].shape == (1, *SIZE)
    assert ColmapScene(tmp_path, **options)[0]["image0"].shape == (1, 128, 128)


def test_colmap_images_without_a_depth_map_are_left_out(maker, tmp_path):
    write_colmap(tmp_path, maker, 0, 2, SIZE, dense=True)
    (tmp_path / "stereo" / "depth_maps" / "0001.jpg.geometric.bin").unlink()
    with pytest.warns(UserWarning, match="1 of 4 images have no depth map and are left out"):
        dataset = ColmapScene(tmp_path, longest=128, min_overlap=0.05, max_overlap=1)
    assert dataset.dense
    assert [dataset.views[k].name for pair in dataset.pairs for k in pair] == ["0003.jpg", "0004.jpg"]


def test_pairs_of_a_maker_are_the_same_each_time(maker):
    first, second = (next(iter(shots(maker, 1, 1, (48, 64), Motion(overlap=(0.3, 0.9))))) for _ in range(2))
    assert np.array_equal(first.views[0].image, second.views[0].image)
    assert cv2.countNonZero(first.views[0].image)
