"""The parts in which the published detectors differ from torchvision's, each against a formula of its own."""

import math

import numpy as np
import pytest
import torch
from tests.models.detection import formulas
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from quadtree_attention.compat import BoxCoder
from quadtree_attention.models.detection.parts import (
    AlignedRoIAlign,
    Anchors,
    ClippedBoxCoder,
    ExtraLevels,
    Preparation,
    paste_masks,
    scaled_size,
)


def test_anchors_have_exact_sizes_and_strides():
    """An image of 800 pixels has 13 cells at stride 64, where torchvision would count with 800 // 13 = 61."""
    sizes = [(13, 7), (7, 4)]
    images = ImageList(torch.zeros(2, 3, 800, 416), [(800, 416), (780, 400)])
    maps = [torch.zeros(2, 1, *size) for size in sizes]
    found = Anchors([64, 128], 4, 3)(images, maps)
    assert len(found) == 2
    want = [
        formulas.anchors(size, stride, [4 * stride * 2 ** (n / 3) for n in range(3)])
        for size, stride in zip(sizes, (64, 128), strict=True)
    ]
    for one in found:
        np.testing.assert_allclose(one.numpy(), np.concatenate(want), rtol=1e-6, atol=1e-3)
    assert (found[0] != found[0].round()).any()  # which torchvision's are
    half = Anchors([64, 128], 4, 3)(images, [one.bfloat16() for one in maps])
    assert half[0].dtype == torch.float32


def test_boxes_shrink_no_further_than_published():
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 50, (40, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 5
    codes = random.normal(0, 8, (40, 8)).astype(np.float32)
    stds, size = (0.1, 0.1, 0.2, 0.2), (10**9, 10**9)
    got = ClippedBoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(torch.from_numpy(codes * 10), torch.from_numpy(boxes))
    for box, code, one in zip(boxes, codes * 10, got.numpy(), strict=True):
        for n in range(2):
            want = formulas.decode(box, code[4 * n : 4 * n + 4], stds, size)
            np.testing.assert_allclose(np.clip(one[4 * n : 4 * n + 4], 0, None), want, rtol=1e-4, atol=1e-2)
    tiny = torch.tensor([[0.0, 0.0, -9.0, -9.0]])
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    torch.testing.assert_close(
        ClippedBoxCoder((1.0,) * 4).decode_single(tiny, box), torch.tensor([[49.2, 49.2, 50.8, 50.8]])
    )
    assert BoxCoder((1.0,) * 4).decode_single(tiny, box)[0, 2] < 50.1  # torchvision's
    assert ClippedBoxCoder((1.0,) * 4).decode_single(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    far = torch.tensor([[1001.0, 0.0, 1003.0, 2.0]])
    assert torch.equal(ClippedBoxCoder((1.0,) * 4).decode_single(torch.zeros(1, 4).bfloat16(), far), far)


def test_regions_are_aligned_and_from_the_right_map():
    random = np.random.default_rng(1)
    strides = (4, 8, 16, 32)
    maps = [random.normal(size=(2, 3, 256 // s, 320 // s)) for s in strides]
    boxes = np.array(
        [
            [3, 5, 60, 47],
            [10.3, 20.7, 121.9, 130.2],
            [112, 0, 224, 112],
            [0, 0, 320, 256],
            [8, 8, 119.9, 119.9],
            [300, 240, 320, 256],
        ]
    )
    x = {str(n): torch.from_numpy(one) for n, one in enumerate(maps)} | {"pool": torch.zeros(2, 3, 4, 5)}
    rois = [torch.from_numpy(boxes[:2]), torch.from_numpy(boxes[2:])]
    got = AlignedRoIAlign(strides, 3)(x, rois, [(256, 320)] * 2)
    assert got.shape == (6, 3, 3, 3)
    for n, box in enumerate(boxes):
        image = int(n >= 2)
        want = formulas.roi_align([one[image] for one in maps], strides, box, 3)
        np.testing.assert_allclose(got[n].numpy(), want, atol=1e-9, err_msg=str(box))
    other = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, 0)(x, rois, [(256, 320)] * 2)
    assert not torch.allclose(other, got, atol=0.1)  # torchvision's
    assert AlignedRoIAlign(strides, 3)(x, [torch.zeros(0, 4)] * 2, [(256, 320)] * 2).shape == (0, 3, 3, 3)


def test_sizes_of_the_levels_of_regions():
    """A box of side 112 leaves the finest map, a little less does not."""
    maps = {str(n): torch.full((1, 1, 64 >> n, 64 >> n), float(n)) for n in range(4)}
    boxes = [
        torch.tensor([[64.0, 64, 64 + side, 64 + side]]) for side in (20.0, 111.9, 112.0, 223.9, 224.0, 448.0, 2000.0)
    ]
    pool = AlignedRoIAlign((4, 8, 16, 32), 1)
    assert [pool(maps, [box], [(256, 256)]).round().item() if box[0, 2] < 200 else None for box in boxes][:2] == [0, 0]
    levels = [math.floor(math.log2(side / 56 + 1e-6)) for side in (112.0, 223.9, 224.0)]
    assert levels == [1, 1, 2]
    assert pool(maps, [boxes[2]], [(256, 256)]).item() == 1


def test_further_maps_begin_at_the_backbone_and_have_no_relu():
    torch.manual_seed(0)
    extra = ExtraLevels(6, 6, 2)  # as many channels as the pyramid's, where torchvision would take the pyramid's map
    c5, p5 = torch.randn(1, 6, 7, 5), torch.randn(1, 6, 7, 5)
    maps, names = extra([p5], [c5], ["2"])
    assert names == ["2", "extra0", "extra1"]
    state = {
        f"{n}.{end}": getattr(conv, end).detach().double().numpy()
        for n, conv in enumerate(extra.convs)
        for end in ("weight", "bias")
    }
    p6 = formulas.conv(c5[0].double().numpy(), state["0.weight"], state["0.bias"], stride=2)
    p7 = formulas.conv(p6, state["1.weight"], state["1.bias"], stride=2)
    assert (p6 < 0).any()
    np.testing.assert_allclose(maps[1][0].detach().numpy(), p6, atol=1e-5)
    np.testing.assert_allclose(maps[2][0].detach().numpy(), p7, atol=1e-5)


def test_masks_are_pasted_at_pixel_centres():
    random = np.random.default_rng(2)
    boxes = np.array([[3.2, 4.7, 17.9, 12.1], [-4, -3, 9, 30], [10, 10, 30.5, 26.4], [5, 5, 5, 9]])
    masks = random.uniform(0, 1, (4, 6, 6))
    got = paste_masks(torch.from_numpy(masks), torch.from_numpy(boxes), (24, 20)).numpy()
    assert got.dtype == bool
    assert got.shape == (4, 24, 20)
    for n in range(3):
        assert (got[n] == formulas.paste(masks[n], boxes[n], (24, 20))).all()
    assert not got[3].any()  # no area
    whole = paste_masks(torch.ones(1, 28, 28), torch.tensor([[2.0, 3.0, 8.0, 9.0]]), (24, 20))[0].numpy()
    assert whole.sum() == 36
    assert whole[3:9, 2:8].all()


@pytest.mark.parametrize(
    ("size", "want"),
    [
        ((480, 640), (800, 1067)),
        ((640, 427), (1199, 800)),
        ((375, 1242), (402, 1333)),
        ((1, 1), (800, 800)),
        ((2, 4000), (1, 1333)),
    ],
)
def test_sizes_are_rounded_as_published(size, want):
    """The scale is min(800 / shorter, 1333 / longer); sides are int(side * scale + 0.5)."""
    assert scaled_size(size, 800, 1333) == want


def test_preparation():
    """RGB in 0..1, less the mean, over the deviation; then padded at the end to multiples of 32 with zeros; in training of any size."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    prepare = Preparation(40, 64, mean, std, size_divisible=32).eval()
    image = torch.rand(3, 20, 25)
    batch, _ = prepare([image, torch.rand(3, 60, 80)])
    assert batch.image_sizes == [(40, 50), (40, 53)]
    assert batch.tensors.shape == (2, 3, 64, 64)
    assert (batch.tensors[0, :, 40:] == 0).all()
    assert (batch.tensors[0, :, :, 50:] == 0).all()
    # Pixel (11, 11) of the doubled image lies a quarter of the way from pixel 5 to pixel 6.
    near = image[:, 5:7, 5:7].flatten(1) @ torch.tensor([0.5625, 0.1875, 0.1875, 0.0625])
    want = (near - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(batch.tensors[0, :, 11, 11], want)
    published = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close((near * 255 - published[0]) / published[1], want)
    assert prepare.train()([image])[0].image_sizes == [(20, 25)]
