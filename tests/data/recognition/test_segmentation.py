import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from quadtree_attention.data.recognition.segmentation import PadTo, RandomRescale, SegmentationData, VariedCrop


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    """Eight images of ADE20K's layout: red says the row, green the column, and so does the mask; number n has n in blue."""
    root = tmp_path_factory.mktemp("ade")
    for split, count in (("training", 8), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for n in range(count):
            rows, columns = np.indices((60, 90))
            image = np.stack([4 * rows, 2 * columns, np.full_like(rows, 30 * n)], -1).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"ADE_{n}.png")
            Image.fromarray((1 + rows // 30 + 2 * (columns // 45)).astype(np.uint8)).save(
                root / "annotations" / split / f"ADE_{n}.png"
            )
    return root


def module(root, **changes):
    options = {"crop_size": (48, 64), "long_side": 200, "short_side": 60, "batch_size": 2, "num_workers": 0}
    return SegmentationData(str(root), **{**options, **changes})


def test_training_images_and_masks_go_together(ade):
    """Undistorted, the place of a pixel stands in its colour: the mask must say the same place."""
    images, masks = next(iter(module(ade, batch_size=8, distort=False).train_dataloader()))
    assert images.shape == (8, 3, 48, 64)
    assert (masks.shape, masks.dtype) == ((8, 48, 64), torch.int64)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    colors = (images * std + mean) * 255
    inside = masks != 255
    assert not (images * ~inside[:, None]).any()  # padded with the mean colour
    rows, columns = colors[:, 0] / 4, colors[:, 1] / 2
    clear = inside & ((rows - 30).abs() > 2) & ((columns - 45).abs() > 2)  # resized borders may be off by a pixel
    assert clear.float().mean() > 0.5
    want = (rows > 29.5).long() + 2 * (columns > 44.5).long()
    assert torch.equal(masks[clear], want[clear])


def test_order_depends_on_the_seed_and_goes_on(ade):
    def batches(loader):
        return [images for images, _ in loader]

    first, again, other = (batches(module(ade, seed=seed).train_dataloader()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    loader = module(ade).train_dataloader()
    steps = iter(loader)
    next(steps), next(steps)
    state = loader.state_dict()
    resumed = module(ade).train_dataloader()
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(batches(resumed), first[2:], strict=True))


def test_validation_is_whole_and_judged_at_its_own_size(ade):
    loader = module(ade, val_batch_size=2).val_dataloader()
    (images, masks), *rest = loader
    assert not rest
    assert [tuple(x.shape) for x in images] == [(3, 64, 96)] * 2
    assert [tuple(x.shape) for x in masks] == [(60, 90)] * 2
    assert masks[0].unique().tolist() == [0, 1, 2, 3]  # reduced by one
    assert len(module(ade).class_names()) == 150


def test_plain_folders_with_names(tmp_path):
    for split in ("train", "validation", "test"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        Image.new("RGB", (40, 32)).save(tmp_path / split / "images" / "a.jpg")
        Image.fromarray(np.full((32, 40), 1, np.uint8)).save(tmp_path / split / "masks" / "a.png")
    made = module(tmp_path, layout="folders", batch_size=1)
    with pytest.raises(FileNotFoundError, match=r"classes\.txt does not exist, expected the names of the classes"):
        made.train_dataloader()
    (tmp_path / "classes.txt").write_text("sky\nground\n\n")
    assert made.class_names() == ["sky", "ground"]
    for loader in (made.train_dataloader(), made.val_dataloader(), made.test_dataloader()):
        assert next(iter(loader))[1][0].unique().tolist()[0] == 1
    with pytest.raises(ValueError, match="has 1 training images a device, expected at least one batch of 2"):
        module(tmp_path, layout="folders").train_dataloader()
    with pytest.raises(ValueError, match="layout is 'coco', expected one of ade20k, folders"):
        module(tmp_path, layout="coco")


def test_sizes_are_drawn_as_published():
    torch.manual_seed(0)
    transform, image = RandomRescale(2048, 512, (0.5, 2.0)), tv_tensors.Image(torch.zeros(3, 300, 600))
    heights = [transform.make_params([image])["size"][0] for _ in range(200)]
    assert 256 <= min(heights) < 280
    assert 990 < max(heights) <= 1024
    assert RandomRescale(2048, 512, (1, 1)).make_params([tv_tensors.Image(torch.zeros(3, 100, 800))])["size"] == [
        256,
        2048,
    ]


def test_crops_avoid_one_class():
    """A thin stripe of another class: most crops miss it, and are drawn again."""
    mask = torch.zeros(1, 40, 400, dtype=torch.uint8)
    mask[..., 200:230] = 1
    torch.manual_seed(0)
    crop = VariedCrop((40, 50))
    shares = [(crop(tv_tensors.Mask(mask)) == 1).float().mean() for _ in range(100)]
    assert sum(share >= 0.25 for share in shares) > 50  # a random one has it in 55 of 351
    small = VariedCrop((40, 500))(tv_tensors.Mask(mask))
    assert small.shape == mask.shape


def test_padding_is_no_class():
    image, mask = PadTo((4, 6))(
        tv_tensors.Image(torch.ones(3, 3, 5)), tv_tensors.Mask(torch.ones(3, 5, dtype=torch.uint8))
    )
    assert image.shape == (3, 4, 6)
    assert (image.sum(), mask.long().sum()) == (45, 15 + 9 * 255)
    assert not image[:, 3].any()
    assert not image[..., 5].any()
