"""Stereo datasets, on made-up files in their layouts."""

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.data.stereo.datasets import StereoSet, StereoSetData, hidden_pixels
from quadtree_attention.data.stereo.synthetic import Views
from quadtree_attention.errors import InputError

HEIGHT, WIDTH, SHIFT = 20, 40, 6


def image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def pfm(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    path.write_bytes(head + values[::-1].astype("<f4").tobytes())


def png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(values * 256).astype(np.uint16)).save(path)


@pytest.fixture
def root(tmp_path):
    """Eleven pairs of each set with one disparity everywhere, in the first row unknown."""
    disparity = np.full((HEIGHT, WIDTH), float(SHIFT))
    disparity[0] = 0
    seen = disparity.copy()
    seen[:, :SHIFT] = 0
    for n in range(11):
        for part in ("TRAIN", "TEST"):
            for side in ("left", "right"):
                flying = tmp_path / "SceneFlow" / "FlyingThings3D"
                image(flying / "frames_cleanpass" / part / "A" / f"{n:04d}" / side / "0006.png", n)
                pfm(flying / "disparity" / part / "A" / f"{n:04d}" / side / "0006.pfm", disparity)
        for side in ("left", "right"):
            image(tmp_path / "SceneFlow" / "Monkaa" / "frames_cleanpass" / f"s{n}" / side / "1.png")
            pfm(tmp_path / "SceneFlow" / "Monkaa" / "disparity" / f"s{n}" / side / "1.pfm", disparity)
            image(tmp_path / "SceneFlow" / "Driving" / "frames_cleanpass" / "a" / "b" / f"c{n}" / side / "1.png")
            pfm(tmp_path / "SceneFlow" / "Driving" / "disparity" / "a" / "b" / f"c{n}" / side / "1.pfm", disparity)
        for folder in ("colored_0", "colored_1"):
            image(tmp_path / "Kitti2012" / "training" / folder / f"{n:06d}_10.png")
        png(tmp_path / "Kitti2012" / "training" / "disp_noc" / f"{n:06d}_10.png", seen)
        for folder in ("image_2", "image_3"):
            image(tmp_path / "Kitti2015" / "training" / folder / f"{n:06d}_10.png")
        for folder, values in (("disp_occ_0", disparity), ("disp_occ_1", disparity), ("disp_noc_0", seen)):
            png(tmp_path / "Kitti2015" / "training" / folder / f"{n:06d}_10.png", values)
        for side in (0, 1):
            scene = tmp_path / "Middlebury2014" / "train" / f"{['Adirondack', 'Jadeplant'][n % 2]}{n}-perfect"
            image(scene / f"im{side}.png")
            pfm(scene / f"disp{side}.pfm", np.where(disparity > 0, disparity, np.inf))
            image(tmp_path / "ETH3D" / "two_view_training" / f"s{n}" / f"im{side}.png")
        truth = tmp_path / "ETH3D" / "two_view_training_gt" / f"s{n}"
        pfm(truth / "disp0GT.pfm", np.where(disparity > 0, disparity, np.inf))
        Image.fromarray(np.uint8(255 * (seen > 0))).save(truth / "mask0nocc.png")
    return tmp_path


@pytest.mark.parametrize("name", ["sceneflow", "monkaa", "driving", "kitti2012", "kitti2015", "middlebury", "eth3d"])
def test_layouts(root, name):
    train, validation = StereoSet(name, root), StereoSet(name, root, "validation")
    assert (len(train), len(validation)) == ((11, 11) if name == "sceneflow" else (10, 1))
    sample = train[0]
    assert sample["left"].shape == sample["right"].shape == (3, HEIGHT, WIDTH)
    assert sample["left"].max() <= 1
    known = torch.full((HEIGHT, WIDTH), float(SHIFT))
    known[0] = 0
    hidden = (known > 0) & (torch.arange(WIDTH) < SHIFT)
    if name == "kitti2012":  # its maps leave out what is hidden
        known[hidden], hidden = 0, torch.zeros_like(hidden)
    assert torch.equal(sample["disparity"], known)
    assert torch.equal(sample["occluded"], hidden)
    assert ("occluded_right" in sample) == (name in ("sceneflow", "monkaa", "driving", "middlebury"))
    if "occluded_right" in sample:
        assert torch.equal(sample["occluded_right"], hidden.flip(-1))


def test_crops_depend_on_seed_and_number_alone(root):
    crops = StereoSet("sceneflow", root, size=(16, 24), seed=3, views=Views())
    samples = [crops[n] for n in range(22)]
    again = StereoSet("sceneflow", root, size=(16, 24), seed=3, views=Views())[17]
    assert all(torch.equal(again[name], samples[17][name]) for name in again)
    assert samples[0]["left"].shape == (3, 16, 24)
    assert samples[0]["disparity"].shape == (16, 24)
    beyond = (samples[0]["disparity"] > 0) & (torch.arange(24) < SHIFT)
    assert samples[0]["occluded"][beyond].all()  # the match is out of the crop


def test_small_images_are_padded(root):
    sample = StereoSet("kitti2015", root, size=(32, 64))[0]
    assert sample["left"].shape == (3, 32, 64)
    assert not sample["disparity"][HEIGHT:].any()
    assert not sample["occluded"][:, WIDTH:].any()


def test_datamodule(root):
    data = StereoSetData("middlebury", str(root), (16, 24), batch_size=3, num_workers=0)
    assert [len(batch["left"]) for batch in data.train_dataloader()] == [3, 3, 3]
    assert [batch["left"].shape for batch in data.val_dataloader()] == [(1, 3, HEIGHT, WIDTH)]
    with pytest.raises(ValueError, match="10 pairs to train on, expected a batch of 11"):
        StereoSetData("middlebury", str(root), batch_size=11).train_dataloader()


def test_hidden_pixels():
    left = torch.tensor([[2.0, 2, 2, 2, 5, 5, 2, 0]])
    right = torch.tensor([[5.0, 5, 2, 2, 2, 2, 2, 2]])
    assert hidden_pixels(left, right).tolist() == [[True, True, True, True, True, False, False, False]]


def test_bad_arguments(root, tmp_path):
    with pytest.raises(ValueError, match="name is 'kitti', expected one of sceneflow"):
        StereoSet("kitti", root)
    with pytest.raises(ValueError, match="split is 'test', expected train or validation"):
        StereoSet("eth3d", root, "test")
    with pytest.raises(FileNotFoundError, match=r"eth3d is not below .*see torchvision.datasets"):
        StereoSet("eth3d", tmp_path / "nowhere")
    with pytest.raises(IndexError, match="index is -1"):
        StereoSet("eth3d", root)[-1]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sceneflow", "SceneFlow/FlyingThings3D/disparity/TRAIN/A/0000/right/0006.pfm"),
        ("sceneflow", "SceneFlow/FlyingThings3D/frames_cleanpass/TRAIN/A/0000/left/0006.png"),
        ("kitti2012", "Kitti2012/training/disp_noc/000000_10.png"),
        ("kitti2015", "Kitti2015/training/disp_noc_0/000000_10.png"),
        ("eth3d", "ETH3D/two_view_training_gt/s0/mask0nocc.png"),
    ],
)
def test_damaged_files_are_named(root, name, file):
    path = root / file
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=path.name):
        StereoSet(name, root)[0]


def test_maps_of_another_size_are_named(root):
    pfm(root / "SceneFlow/FlyingThings3D/disparity/TRAIN/A/0000/left/0006.pfm", np.ones((4, 5)))
    with pytest.raises(InputError, match=r"0006\.pfm has shape \(4, 5\), expected \(20, 40\), that of its image"):
        StereoSet("sceneflow", root)[0]
