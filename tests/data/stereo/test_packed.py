"""Packed stereo pairs: nothing is lost, crops are right, samples depend on their number alone."""

import numpy as np
import pytest
import torch

from quadtree_attention.data.stereo.packed import PackedCrops, PackedPairs, PackedStereoData, Packs, unpack, write_pack
from quadtree_attention.data.stereo.synthetic import Views

SIZE = (40, 80)
STILL = Views(same_light=1.0, noise=0, blurred=0, light=1.0, spots=0, jpeg=0)


def sample(seed, both=True):
    """A wall 6.5 pixels away, whose left pixels say where they are."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(0, 256, (SIZE[0], SIZE[1] + 6, 3)).astype(np.float32) / 255
    maps = {"disparity": torch.full(SIZE, 6.5), "occluded": torch.arange(SIZE[1]).expand(SIZE) < 6.5}
    if both:
        maps |= {
            "disparity_right": torch.full(SIZE, 6.5),
            "occluded_right": torch.arange(SIZE[1]).expand(SIZE) > SIZE[1] - 7.5,
        }
    views = {"left": wall[:, : SIZE[1]], "right": wall[:, 6:]}
    return {name: torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))) for name, x in views.items()} | maps


@pytest.fixture
def folder(tmp_path):
    for n in range(2):
        write_pack(tmp_path / f"train{n}.npy", (sample(10 * n + k) for k in range(3)), 3)
    write_pack(tmp_path / "real_wall.npy", [sample(99, both=False)], 1)
    write_pack(tmp_path / "val_wall.npy", [sample(98)], 1)
    return tmp_path


def test_what_is_packed_comes_back(folder):
    pairs = PackedPairs([folder / "train0.npy", folder / "train1.npy"])
    assert len(pairs) == 6
    got, want = pairs[4], sample(11)
    for name in ("left", "right"):
        torch.testing.assert_close(got[name], want[name], atol=0, rtol=1e-6)
    assert torch.equal(got["disparity"], want["disparity"])
    assert torch.equal(got["occluded"], want["occluded"])
    with pytest.raises(IndexError):
        pairs[6]


def test_what_16_bits_cannot_hold_is_unknown(tmp_path):
    one = sample(0)
    one["disparity"][0, 0], one["disparity"][0, 1] = 256, 255.99
    write_pack(tmp_path / "a.npy", [one], 1)
    found = unpack(Packs([tmp_path / "a.npy"])[0])["disparity"]
    assert found[0, 0] == 0
    assert found[0, 1] == pytest.approx(255.99, abs=1 / 512)


def test_crops(folder):
    crops = PackedCrops([folder / "train0.npy"], (24, 48), length=5, seed=3, views=STILL)
    kinds = set()
    for n in range(24):
        crop = crops[n]
        assert crop["left"].shape == (3, 24, 48)
        assert torch.equal(crop["disparity"], torch.full((24, 48), 6.5))
        columns = torch.arange(48)
        assert crop["occluded"][:, columns < 6.5].all()
        assert crop["occluded_right"][:, columns > 47 - 6.5].all()
        # The wall is 6 pixels off, for it cannot be moved by half of one; a mirror changes nothing of that.
        torch.testing.assert_close(crop["left"][..., 6:], crop["right"][..., :-6])
        row = [
            (crop["left"] - sample(k)["left"][:, t : t + 24, c : c + 48]).abs().max() < 1e-3
            for k in range(3)
            for t in range(17)
            for c in range(33)
        ]
        kinds.add(any(row))
    assert kinds == {True, False}  # some are as they were, others upside down or in the mirror
    again = PackedCrops([folder / "train0.npy"], (24, 48), length=50, seed=3, views=STILL)[7]
    assert all(torch.equal(again[name], crops[7][name]) for name in again)
    assert not torch.equal(again["left"], crops[8]["left"])


def test_the_share_of_real_pairs(folder):
    crops = PackedCrops([folder / "train0.npy"], (40, 80), [folder / "real_wall.npy"], 0.25, views=STILL)
    want = sample(99)["left"]
    real = [any(torch.allclose(crops[n]["left"], x, atol=1e-3) for x in (want, want.flip(1))) for n in range(60)]
    assert 5 <= sum(real) <= 25  # 15 of 60, and never in the mirror: the right view's disparity is not known


def test_data(folder):
    data = PackedStereoData(str(folder), (24, 48), batch_size=2, length=8)
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    assert batches[0]["left"].shape == (2, 3, 24, 48)
    (whole,) = data.val_dataloader()
    assert whole["left"].shape == (1, 3, *SIZE)


def test_mistakes(folder, tmp_path):
    np.save(folder / "other.npy", np.zeros((2, 3), np.float32))
    (folder / "broken.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"other.npy holds float32 \(2, 3\), expected uint8"):
        Packs([folder / "other.npy"])
    with pytest.raises(ValueError, match=r"broken.npy is no pack of stereo pairs"):
        Packs([folder / "broken.npy"])
    with pytest.raises(ValueError, match="size is 64x48, expected at most the 40x80"):
        PackedCrops([folder / "train0.npy"], (64, 48))
    with pytest.raises(ValueError, match=r"holds no train\*.npy, expected packs"):
        PackedStereoData(str(folder / "nowhere")).train_dataloader()
