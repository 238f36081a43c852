import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.models.segmentation import SegmenterConfig
from quadtree_attention.predict.segmentation import Segmentation, Segmenter, class_colors, likeliest
from quadtree_attention.weights import save

SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "mlp_ratios": (2, 2, 2, 2)}
NAMES = ["background", "cat", "dog", "tree"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SegmenterConfig("quadtree_b0", NAMES, SMALL, 16, 16, long_side=200, short_side=60).build().eval()
    torch.nn.init.normal_(model.head.classify.weight)
    return model


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(model, path)
    return path


@pytest.mark.parametrize("numbers", [1, 2 * 30 * 41, 10**9])
def test_classes_in_parts_are_as_all_at_once(numbers):
    logits = torch.randn(1, 7, 16, 20, generator=torch.Generator().manual_seed(0)) * 5
    whole = F.interpolate(logits, (30, 41), mode="bilinear", align_corners=False)[0].softmax(0)
    labels, probabilities = likeliest(logits, (30, 41), numbers)
    assert torch.equal(labels.long(), whole.argmax(0))
    torch.testing.assert_close(probabilities, whole.max(0)[0])


def test_an_image_is_segmented_as_published(model, photo):
    """Shorter side to 60 and both to multiples of 32 (64x96), logits to that size, then to the image's own."""
    found = Segmenter(model, "cpu").segment(photo)
    assert found.labels.shape == found.probabilities.shape == photo.shape[:2]
    assert (found.labels.dtype, found.probabilities.dtype) == (np.uint8, np.float32)
    assert found.names == tuple(NAMES)
    import cv2

    image = cv2.resize(cv2.resize(photo, (80, 60)), (96, 64)).astype(np.float32)
    image = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.no_grad():
        logits = model(torch.from_numpy(image).float().permute(2, 0, 1)[None])
    assert logits.shape[2:] == (64, 96)
    want = F.interpolate(logits, photo.shape[:2], mode="bilinear", align_corners=False)[0].softmax(0)
    np.testing.assert_allclose(found.probabilities, want.max(0)[0], atol=1e-4)
    assert (found.labels == want.argmax(0).numpy()).mean() > 0.999
    assert len(np.unique(found.labels)) > 1


def test_masks_are_indices_with_a_palette(tmp_path):
    labels = np.array([[0, 1, 1], [3, 3, 3]], np.uint8)
    found = Segmentation(labels, np.ones((2, 3), np.float32), tuple(NAMES))
    assert found.shares() == {
        "tree": pytest.approx(1 / 2),
        "cat": pytest.approx(1 / 3),
        "background": pytest.approx(1 / 6),
    }
    found.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), class_colors(NAMES)[labels])
    with pytest.raises(ValueError, match=r"unknown suffix '\.jpg', expected \.png"):
        found.save(tmp_path / "a.jpg")


def test_colors_tell_classes_apart():
    colors = class_colors([str(n) for n in range(150)]).astype(int)
    assert len({tuple(color) for color in colors.tolist()}) == 150
    few = class_colors([str(n) for n in range(12)]).astype(int)
    assert min(np.abs(a - b).max() for n, a in enumerate(few) for b in few[:n]) > 40
    assert class_colors(NAMES)[0].tolist() == [0, 0, 0]
    assert class_colors(["cat"])[0].any()


def test_the_command(weights, photo, tmp_path, capsys):
    """Folders with a broken file: reported, left out, status 1, all else done."""
    folder, out, pictures = tmp_path / "in", tmp_path / "out", tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(photo).save(folder / "a.jpg")
    Image.fromarray(photo[:50]).save(folder / "more" / "b.png")
    (folder / "broken.jpg").write_text("no image")
    options = ["--model", str(weights), "--out", str(out), "--picture", str(pictures), "--device", "cpu"]
    assert main(["segment", str(folder), *options]) == 1
    captured = capsys.readouterr()
    assert f"left out: {folder / 'broken.jpg'} is not an image" in captured.err
    assert [line for line in captured.out.splitlines() if "%" not in line] == [
        str(folder / "a.jpg"),
        str(folder / "more" / "b.png"),
    ]
    for name, size in (("a.png", (160, 120)), ("more/b.png", (160, 50))):
        with Image.open(out / name) as mask:
            assert (mask.size, mask.mode) == (size, "P")
        with Image.open(pictures / name) as drawn:
            assert drawn.size[0] >= size[0]
            assert drawn.size[1] > size[1]
    assert len(list(out.rglob("*.*"))) == 2
    one = tmp_path / "one.png"
    assert main(["segment", str(folder / "a.jpg"), "--model", str(weights), "--out", str(one)]) == 0
    shares = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert one.is_file()
    for arguments, message in (
        ([str(folder), "--out", str(out), "--picture", str(out)], "--out and --picture are both"),
        ([str(folder / "none.jpg")], "does not exist, expected an image file or a folder"),
        ([str(folder / "a.jpg"), "--out", str(tmp_path / "a.gif")], "unknown suffix '.gif'"),
        ([str(folder / "a.jpg"), "--model", "tree"], "unknown model 'tree', expected one of"),
    ):
        assert main(["segment", "--model", str(weights), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_convert(weights, model, tmp_path, capsys):
    from dataclasses import asdict

    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"segmenter": asdict(model.config), "state_dict": state}, tmp_path / "last.ckpt")
    assert main(["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "a.safetensors"), "--half"]) == 0
    again = Segmenter.from_pretrained(tmp_path / "a.safetensors", device="cpu")
    assert list(again.config.labels) == NAMES
    assert main(["models"]) == 0
    assert "semantic_fpn_quadtree_b2" in capsys.readouterr().out
