"""Detections: what comes out, in which form, as file and as picture, and by the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.models.detection import DetectorConfig, build_detector
from quadtree_attention.predict.detection import Detections, Detector, image_numbers, save_detections
from quadtree_attention.viz.detection import class_color, draw_detections
from quadtree_attention.viz.drawing import BAR
from quadtree_attention.weights import save

TINY = {
    "depths": [1, 1, 1, 1],
    "embed_dims": [8, 8, 16, 16],
    "num_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "topk": 4,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of untrained weights of each kind, which find something everywhere."""
    paths = {}
    for kind in ("retinanet", "mask_rcnn"):
        torch.manual_seed(0)
        config = DetectorConfig(
            kind,
            "quadtree_b0",
            ["cat", "dog"],
            [17, 18],
            options=TINY,
            channels=8,
            features=8,
            min_size=64,
            max_size=96,
            score_threshold=0.1,
        )
        model = build_detector(config)
        last = (
            model.head.classification_head.cls_logits
            if kind == "retinanet"
            else model.roi_heads.box_predictor.cls_score
        )
        torch.nn.init.zeros_(last.bias)
        paths[kind] = tmp_path_factory.mktemp("detectors") / f"{kind}.safetensors"
        save(model, paths[kind])
    return paths


def some(masks=False):
    boxes = np.float32([[10, 20, 60, 70], [50, 10.5, 90.25, 50]])
    pixels = np.zeros((2, 100, 120), bool)
    pixels[0, 30:60, 20:50] = pixels[1, 20:40, 60:80] = True
    return Detections(
        boxes, ("dog", "cat"), np.float32([0.9, 0.5]), np.array([1, 0]), (100, 120), pixels if masks else None
    )


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_detector(weights, photo, kind):
    detector = Detector.from_pretrained(weights[kind], device="cpu")
    found = detector.detect(photo)
    assert 0 < len(found) <= 100
    assert found.boxes.shape == (len(found), 4)
    assert found.size == (120, 160)
    assert set(found.labels) <= {"cat", "dog"}
    assert [detector.config.labels[n] for n in found.indices] == list(found.labels)
    assert (found.masks is None) == (kind == "retinanet")
    if found.masks is not None:
        assert found.masks.shape == (len(found), 120, 160)
    middle = float(np.median(found.scores))
    fewer = detector.detect(torch.from_numpy(photo).permute(2, 0, 1) / 255, score=middle)
    assert len(fewer) == (found.scores >= middle).sum()
    with pytest.raises(ValueError, match="score is 2, expected 0 to 1"):
        detector.detect(photo, score=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, about pycocotools
def test_cocos_result_format(tmp_path):
    first, second = some(masks=True).to_coco(7, [17, 18])
    assert (first["image_id"], first["category_id"], first["bbox"], first["score"]) == (
        7,
        18,
        [10.0, 20.0, 50.0, 50.0],
        0.9,
    )
    assert second["bbox"] == [50.0, 10.5, 40.25, 39.5]
    from pycocotools.mask import decode

    assert (decode(second["segmentation"]) == some(masks=True).masks[1]).all()
    assert "segmentation" not in some().to_coco(7, [17, 18])[0]
    save_detections([first, second], tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == [first, second]
    save_detections([], tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == []
    with pytest.raises(ValueError, match=r"unknown suffix '.csv', expected .json"):
        save_detections([], tmp_path / "b.csv")


def test_counts():
    found = Detections(
        np.zeros((3, 4), np.float32), ("b", "a", "a"), np.ones(3, np.float32), np.array([1, 0, 0]), (4, 4)
    )
    assert list(found.counts().items()) == [("a", 2), ("b", 1)]


def test_picture():
    image = np.zeros((100, 120, 3), np.uint8)
    picture = draw_detections(image, some(masks=True))
    assert picture.shape == (100 + BAR, 320, 3)
    assert picture.dtype == np.uint8
    dog, cat = class_color(1), class_color(0)
    assert tuple(picture[69, 35]) == dog  # the lower edge of its box
    assert tuple(picture[30, 89]) == cat
    inside = picture[50, 30].astype(int)
    assert np.abs(inside - 0.45 * np.array(dog)).max() <= 2  # its mask over black
    assert (picture[80, 30] == 0).all()
    legend = picture[100:].reshape(-1, 3).tolist()
    assert list(dog) in legend
    assert list(cat) in legend
    assert len({class_color(n) for n in range(200)}) == 200
    small = draw_detections(
        np.zeros((1000, 1200, 3), np.uint8),
        Detections(some().boxes, ("a",) * 2, some().scores, some().indices, (1000, 1200)),
        max_side=600,
    )
    assert small.shape == (500 + BAR, 600, 3)
    nothing = Detections(np.zeros((0, 4), np.float32), (), np.zeros(0, np.float32), np.zeros(0, int), (100, 120))
    assert draw_detections(image, nothing).shape == (100 + BAR, 320, 3)
    with pytest.raises(ValueError, match="the image has 120x100 pixels, expected 120x90"):
        draw_detections(image, Detections(nothing.boxes, (), nothing.scores, nothing.indices, (90, 120)))


@pytest.fixture
def folder(tmp_path, photo):
    """Two photographs with numbers as names, one in a folder, and a broken one."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "in" / "000012.png")
    Image.fromarray(photo[:90]).save(tmp_path / "in" / "more" / "odd.jpg")
    (tmp_path / "in" / "broken.jpg").write_text("no image")
    return tmp_path / "in"


def test_command_on_a_folder(folder, weights, tmp_path, capsys):
    out, pictures = tmp_path / "found.json", tmp_path / "pictures"
    arguments = ["detect", str(folder), "--model", str(weights["mask_rcnn"]), "--score", "0.2"]
    assert main([*arguments, "--out", str(out), "--picture", str(pictures)]) == 1
    captured = capsys.readouterr()
    assert f"left out: {folder / 'broken.jpg'} is not an image" in captured.err
    assert "3/3 images" in captured.err
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [
        str(folder / "000012.png"),
        str(folder / "more" / "odd.jpg"),
    ]
    entries = json.loads(out.read_text())
    assert {entry["image_id"] for entry in entries} == {12, str(Path("more", "odd.jpg"))}
    assert {entry["category_id"] for entry in entries} <= {17, 18}
    assert min(entry["score"] for entry in entries) >= 0.2
    assert all(entry["segmentation"]["size"] in ([120, 160], [90, 160]) for entry in entries)
    assert sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png")) == [
        "000012.png",
        str(Path("more", "odd.png")),
    ]
    (folder / "broken.jpg").unlink()
    numbers = tmp_path / "numbers.json"
    numbers.write_text(
        json.dumps({"images": [{"file_name": "000012.png", "id": 5}, {"file_name": "odd.jpg", "id": 6}]})
    )
    assert image_numbers(numbers) == {"000012.png": 5, "odd.jpg": 6}
    assert main([*arguments, "--out", str(out), "--annotations", str(numbers)]) == 0
    assert {entry["image_id"] for entry in json.loads(out.read_text())} == {5, 6}


def test_command_on_one_image(folder, weights, tmp_path, capsys):
    picture = tmp_path / "p.jpg"
    assert (
        main(["detect", str(folder / "000012.png"), "--model", str(weights["retinanet"]), "--picture", str(picture)])
        == 0
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    first, *lines = captured.out.splitlines()
    assert sum(int(part.split()[0]) for part in first.split(", ")) == len(lines) > 0
    assert " to " in lines[0]
    with Image.open(picture) as image:
        assert image.size == (320, 120 + BAR)
    assert main(["detect", str(folder / "000012.png"), "--model", str(weights["retinanet"]), "--score", "1"]) == 0
    assert capsys.readouterr().out == "nothing\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "outdoor"], "outdoor is for matching, expected tiny, detect_tiny, retinanet_quadtree_b0"),
        (["--model", "no.ckpt"], "no.ckpt does not exist"),
        (["--out", "found.csv"], "unknown suffix '.csv', expected .json"),
        (["--annotations", "a.json"], "--annotations is for --out"),
        (["--out", "found.json", "--annotations", "a.json"], "a.json does not exist"),
        (["--picture", "p.gif"], "unknown suffix '.gif'"),
        (["--score", "2"], "--score"),
        (["none.jpg"], "none.jpg does not exist, expected an image file or a folder"),
    ],
)
def test_mistakes(folder, options, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", str(folder / "000012.png"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_convert(weights, tmp_path, capsys):
    model, config = (
        Detector.from_pretrained(weights["retinanet"]).model,
        Detector.from_pretrained(weights["retinanet"]).config,
    )
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "detector": vars(config)}, tmp_path / "last.ckpt")
    assert main(["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "last.safetensors"), "--half"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert Detector.from_pretrained(tmp_path / "last.safetensors").config == config
    assert main(["models"]) == 0
    listing = capsys.readouterr().out
    assert "retinanet_quadtree_b4" in listing
    assert "mask_rcnn_quadtree_b0_1x" in listing
