import numpy as np
import pytest
import torch
from tests.support.geometry import first_hit, project

from quadtree_attention.data.matching.made_scenes import MadeScenes, MadeScenesData, Motion, as_posed, random_cameras
from quadtree_attention.data.matching.render import overlap
from quadtree_attention.tasks.matching.supervision import depth_supervision, homography_supervision

SIZE = (72, 96)


def supervised(sample, **options):
    keys = ("depth0", "depth1", "K0", "K1", "T_0to1")
    return depth_supervision(*(sample[key][None] for key in keys), **options)


def test_supervision_agrees_with_the_geometry(maker):
    """To a tenth of a pixel; and every cell that has a mutual neighbour in sight is among the matches, and no other."""
    rng = np.random.default_rng(1)
    width, height = SIZE[1] // 8, SIZE[0] // 8
    total = 0
    for number in range(3):
        place = maker(number)
        cameras = random_cameras(rng, place, SIZE, Motion(overlap=(0.5, 0.9)))
        poses, rectangles = (cameras.pose0, cameras.pose1), place.scene.rectangles
        views = [place.scene.render(cameras.K, pose, SIZE) for pose in poses]
        sample = {f"depth{k}": torch.from_numpy(view.depth) for k, view in enumerate(views)}
        K = torch.from_numpy(cameras.K)
        truth = supervised({**sample, "K0": K, "K1": K, "T_0to1": torch.from_numpy(cameras.T_0to1)}, tolerance=0.05)

        def through(x, y, one, other, cameras=cameras, rectangles=rectangles):
            """Where the pixel of one image lies in the other, if it is in sight there: the first hit on the way back is the same point."""
            part, at, z = first_hit(rectangles, cameras.K, one, x, y)
            if part < 0:
                return None
            point = rectangles[part].corner + at[0] * rectangles[part].across + at[1] * rectangles[part].down
            ahead = (other[:3, :3] @ point + other[:3, 3])[2]
            if ahead <= 0:
                return None
            x, y = project(point, cameras.K, other)
            if not (-0.5 <= x < SIZE[1] - 0.5 and -0.5 <= y < SIZE[0] - 0.5):
                return None
            # The check in use looks at the nearest pixel's depth; its surface may differ from the point's next to an edge.
            _, _, z = first_hit(rectangles, cameras.K, other, round(x), round(y))
            return np.array([x, y]) if abs(z - ahead) < 0.05 * z else None

        expected = {}
        for i in range(width * height):
            there = through(8 * (i % width), 8 * (i // width), *poses)
            if there is None:
                continue
            c, r = (round(v / 8) for v in there)
            if not (0 <= c < width and 0 <= r < height):
                continue
            back = through(8 * c, 8 * r, *poses[::-1])
            if back is not None and (round(back[0] / 8), round(back[1] / 8)) == (i % width, i // width):
                expected[i] = (r * width + c, there)
        assert truth.i.tolist() == list(expected)
        assert truth.j.tolist() == [j for j, _ in expected.values()]
        np.testing.assert_allclose(truth.warped, np.stack([p for _, p in expected.values()]), atol=0.02)
        pixels = torch.stack([truth.j % width, truth.j // width], 1) * 8
        torch.testing.assert_close(truth.offset * 4 + pixels, truth.warped, rtol=0, atol=1e-3)
        total += len(expected)
    assert total > 40


def test_a_homography_in_terms_of_depth_and_pose(photos):
    dataset = MadeScenes(photos, SIZE, seed=2, homographies=1.0)
    for n in range(6):
        plane = dataset.planes[n]
        posed = dataset[n]
        assert torch.equal(posed["image0"], plane["image0"])
        keys = ("homography", "visible0", "visible1")
        want = homography_supervision(*(plane[key][None] for key in keys))
        got = supervised(as_posed(plane))
        same = set(zip(want.i.tolist(), want.j.tolist(), strict=True)) ^ set(
            zip(got.i.tolist(), got.j.tolist(), strict=True)
        )
        # Where image 0 is hidden at the place of cell j but not at that of cell i, one says so and the other does not.
        assert len(same) <= 0.1 * len(want.i) + 1
        both = dict(zip(want.i.tolist(), want.warped, strict=True))
        for i, w in zip(got.i.tolist(), got.warped, strict=True):
            if i in both:
                torch.testing.assert_close(w, both[i], rtol=0, atol=1e-2)


def test_samples_are_those_of_their_number(photos):
    one, other = (MadeScenes(photos, SIZE, seed=s) for s in (1, 1))
    for n in (5, 0, 4):
        first, second = one[n], other[n]
        assert first.pop("supervision") == second.pop("supervision") == "depth"
        assert first.keys() == {"image0", "image1", "depth0", "depth1", "K0", "K1", "T_0to1"}
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert first["image0"].shape == (1, *SIZE)
        assert first["depth1"].shape == SIZE
    assert not torch.equal(one[0]["image0"], MadeScenes(photos, SIZE, seed=2)[0]["image0"])
    with pytest.raises(IndexError):
        one[-1]


def test_cameras_keep_to_their_motion(maker):
    motion = Motion(overlap=(0.5, 0.8), baseline=(0.1, 0.3), roll=0.0)
    rng = np.random.default_rng(0)
    for number in range(3):
        place = maker(number)
        cameras = random_cameras(rng, place, SIZE, motion)
        depths = [place.scene.depth(cameras.K, pose, SIZE) for pose in (cameras.pose0, cameras.pose1)]
        # judged on small images, hence the room
        assert 0.42 < overlap(*depths, cameras.K, cameras.T_0to1) < 0.88
        assert all(abs(pose[0, 2]) < 1e-9 for pose in (cameras.pose0, cameras.pose1))  # no roll: x stays level
        moved = np.linalg.norm(np.linalg.inv(cameras.T_0to1)[:3, 3])
        assert 0.05 < moved / np.median(depths[0][depths[0] > 0]) < 0.4
    with pytest.raises(ValueError, match="no two cameras found"):
        random_cameras(rng, place, SIZE, Motion(overlap=(1.0, 1.0), baseline=(0.9, 1.0)))


def test_pairs_to_evaluate_with(photos):
    dataset = MadeScenes(photos, SIZE, seed=3)
    pair, sample = dataset.pair(2), dataset[2]
    assert pair.image0.dtype == np.uint8
    np.testing.assert_allclose(pair.image0 / 255, sample["image0"][0], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(pair.T_0to1, sample["T_0to1"], atol=1e-5)
    np.testing.assert_allclose(pair.T_0to1[:3, :3] @ pair.T_0to1[:3, :3].T, np.eye(3), atol=1e-12)


def test_data_module(photos):
    folder = str(photos[0].parent)
    data = MadeScenesData(
        folder, folder, size=SIZE, batch_size=2, length=4, val_length=2, num_workers=0, homographies=0.5
    )
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert [len(batch["image0"]) for batch in batches] == [2, 2, 2]
    with pytest.raises(ValueError, match="length is 1, expected at least one batch of 2"):
        MadeScenesData(folder, folder, batch_size=2, length=1).train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photos": []}, "got no photographs"),
        ({"size": (16, 64)}, "size is 16x64"),
        ({"length": 0}, "length is 0"),
        ({"pairs": 0}, "pairs is 0"),
        ({"homographies": 1.5}, "homographies is 1.5"),
        ({"difficulty": -1}, "difficulty is -1"),
    ],
)
def test_bad_arguments(photos, options, message):
    with pytest.raises(ValueError, match=message):
        MadeScenes(**{"photos": photos, **options})
