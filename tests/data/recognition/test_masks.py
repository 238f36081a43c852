import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.data.recognition.ade20k import ADE20K_LABELS
from quadtree_attention.data.recognition.masks import SegmentationFolder, normalised, preprocess, read_mask
from quadtree_attention.models.segmentation import SegmenterConfig


@pytest.fixture
def folders(tmp_path):
    """Two images and their masks, one of them in a folder."""
    for n, name in enumerate(("a.jpg", "more/b.png")):
        image, mask = tmp_path / "images" / name, (tmp_path / "masks" / name).with_suffix(".png")
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), "red").save(image)
        Image.fromarray(np.full((4, 5), n, np.uint8)).save(mask)
    return tmp_path


def data(folders, classes=3, **options):
    return SegmentationFolder(folders / "images", folders / "masks", classes, **options)


def test_masks_of_all_kinds(tmp_path):
    values = np.array([[0, 1, 2], [3, 255, 4]], np.uint8)
    gray, palette, deep = (tmp_path / f"{name}.png" for name in ("gray", "palette", "deep"))
    Image.fromarray(values).save(gray)
    colored = Image.fromarray(values).convert("P")
    colored.putdata(values.ravel().tolist())
    colored.putpalette([7, 8, 9] * 256)
    colored.save(palette)
    Image.fromarray(values.astype(np.uint16) * 100).save(deep)
    Image.fromarray(values > 1).save(tmp_path / "bits.png")
    for path in (gray, palette):
        assert read_mask(path).dtype == np.uint8
        np.testing.assert_array_equal(read_mask(path), values)
    np.testing.assert_array_equal(read_mask(deep), values.astype(int) * 100)
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), values > 1)


def test_pairs_by_name(folders):
    found = data(folders)
    assert [(int(mask[0, 0]), image.shape) for image, mask in map(found.__getitem__, range(len(found)))] == [
        (0, (4, 5, 3)),
        (1, (4, 5, 3)),
    ]


def test_zero_can_be_no_class(folders):
    mask = np.array([[0, 1, 150, 255, 2]] * 4, np.uint8)
    Image.fromarray(mask).save(folders / "masks" / "a.png")
    found = data(folders, 150, reduce_zero_label=True)[0][1]
    assert found[0].tolist() == [255, 0, 149, 255, 1]
    assert found.dtype == np.uint8
    assert (ADE20K_LABELS[0], ADE20K_LABELS[149], ADE20K_LABELS[12], len(ADE20K_LABELS)) == (
        "wall",
        "flag",
        "person",
        150,
    )


def test_what_is_wrong_names_the_file(folders, tmp_path):
    masks, images = folders / "masks", folders / "images"

    def wrong(error, message, **options):
        with pytest.raises(error, match=message):
            list(map(data(folders, **options).__getitem__, (0, 1)))

    Image.fromarray(np.full((4, 5), 3, np.uint8)).save(masks / "a.png")
    wrong(ValueError, r"a\.png has a label 3, expected 0 to 2 for 3 classes, 255 for none")
    wrong(
        ValueError, r"a\.png has a label 3, expected 1 to 2 for 2 classes, 0 or 255", classes=2, reduce_zero_label=True
    )
    Image.fromarray(np.full((4, 5), 300, np.uint16)).save(masks / "a.png")
    wrong(ValueError, r"a\.png has a label 300")
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(masks / "a.png")
    wrong(ValueError, r"a\.png has 4x5 pixels, but .*a\.jpg has 5x4, expected the same size")
    Image.new("RGB", (5, 4)).save(masks / "a.png")
    wrong(ValueError, r"a\.png has mode RGB, expected one number a pixel")
    (masks / "a.png").write_text("no image")
    wrong(ValueError, r"a\.png is not an image of a kind that Pillow can read")
    (masks / "a.png").unlink()
    wrong(FileNotFoundError, r"a\.jpg has no mask, expected .*a\.png; 1 of the 2 images of .* have none")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(masks / "a.png")
    (images / "a.jpg").write_text("no image")
    wrong(ValueError, r"a\.jpg is not an image")
    masks.rename(tmp_path / "other")
    wrong(FileNotFoundError, r"masks does not exist, expected a folder of masks")
    with pytest.raises(FileNotFoundError, match="none does not exist, expected a folder of photographs"):
        SegmentationFolder(tmp_path / "none", tmp_path / "other", 3)


def test_images_are_prepared_as_published(photo):
    """mmcv: read as BGR, resized bilinearly by OpenCV to keep the ratio, again to multiples of 32, to RGB, less the mean and over the deviation."""
    bgr = photo[..., ::-1]
    for size in ((168, 224), (192, 224)):  # 120x160 with the shorter side 168
        bgr = cv2.resize(bgr, size[::-1], interpolation=cv2.INTER_LINEAR)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    want = (bgr[..., ::-1].astype(np.float64) - mean) / std
    got = preprocess(photo, **SegmenterConfig("quadtree_b0", ["a"], long_side=2000, short_side=168).preprocessing)
    assert got.shape == (3, 192, 224)
    np.testing.assert_allclose(got.permute(1, 2, 0), want, atol=1e-5)
    red = normalised(np.full((1, 1, 3), (255, 0, 0), np.uint8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(red.flatten(), torch.tensor([0.515 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
