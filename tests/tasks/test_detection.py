"""Training of detectors: learning, resuming, checkpoints, average precision."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from tests.tasks.training import LIGHTNING, made, rates, trainer

from quadtree_attention.data.recognition.detection import DetectionData
from quadtree_attention.predict.detection import Detector
from quadtree_attention.tasks.detection import DetectionTask

pytestmark = LIGHTNING
OPTIONS = {
    "depths": [1, 1, 1, 1],
    "embed_dims": [8, 8, 16, 16],
    "num_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "topk": 4,
}
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bright or a red square somewhere in each image, as VOC has it."""
    root = tmp_path_factory.mktemp("squares")
    for name in ("Annotations", "JPEGImages"):
        (root / name).mkdir()
    names = []
    for n in range(16):
        random = np.random.default_rng(n)
        pixels = random.integers(0, 40, (64, 64, 3)).astype(np.uint8)
        x, y = random.integers(0, 36, 2)
        pixels[y : y + 26, x : x + 26] = (255, 255, 255) if n % 2 else (255, 0, 0)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{n}.png")
        size = "<size><width>64</width><height>64</height></size>"
        square = OBJECT.format("white" if n % 2 else "red", x, y, x + 26, y + 26)
        (root / "Annotations" / f"{n}.xml").write_text(f"<annotation>{size}{square}</annotation>")
        names.append(str(n))
    (root / "train.txt").write_text("\n".join(names[:12]))
    (root / "val.txt").write_text("\n".join(names[12:]))
    return root


def options(**changes):
    defaults = {
        "labels": ["red", "white"],
        "options": OPTIONS,
        "channels": 16,
        "convs": 1,
        "norm": "group",
        "extra_levels": 0,
        "anchor_scale": 3,
        "min_size": 64,
        "max_size": 64,
    }
    return {**defaults, **changes}


def task(preset="retinanet_quadtree_b0", network=None, **changes):
    pl.seed_everything(0, verbose=False)
    settings = {"learning_rate": 5e-3, "schedule": "cosine", "warmup_steps": 4}
    return made(DetectionTask, preset, network or options(), **{**settings, **changes})


def data(folder, **changes):
    reading = {
        "layout": "voc",
        "train_split": "train",
        "val_split": "val",
        "test_split": "val",
        "batch_size": 4,
        "num_workers": 0,
    }
    return DetectionData(str(folder), **{**reading, "min_sizes": [64], "max_size": 64, **changes})


def test_it_learns_and_its_checkpoint_detects(folder, tmp_path):
    learner = task()
    train = trainer(
        tmp_path,
        ModelCheckpoint(tmp_path, "last"),
        EMAWeightAveraging(decay=0.8),
        max_epochs=30,
        check_val_every_n_epoch=30,
        gradient_clip_val=1.0,
    )
    train.fit(learner, data(folder))
    metrics = train.callback_metrics
    assert metrics["val/AP50"] > 0.8
    assert set(metrics) >= {"val/AP", "val/AP75", "val/AP/red", "val/AP/white", "train/loss", "train/classification"}
    detector = Detector.from_pretrained(tmp_path / "last.ckpt", device="cpu")
    assert detector.config == learner.config
    assert list(detector.config.labels) == ["red", "white"]
    found = detector.detect(folder / "JPEGImages" / "15.png")
    assert found.labels[0] == "white"
    random = np.random.default_rng(15)
    random.integers(0, 40, (64, 64, 3))
    x, y = random.integers(0, 36, 2)
    assert np.abs(found.boxes[0] - (x, y, x + 26, y + 26)).max() < 5


def test_a_cut_off_training_goes_on_as_if_it_never_was(folder, tmp_path):
    changing = {"min_sizes": [48, 64], "vflip": 0.5, "distort": 0.5}
    dropping = options(options={**OPTIONS, "drop_path_rate": 0.2})
    whole = task(network=dropping)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer(tmp_path, every, max_epochs=2, limit_val_batches=0).fit(whole, data(folder, **changing))
    resumed = task(network=dropping)
    pl.seed_everything(99, verbose=False)
    again = trainer(tmp_path, ModelCheckpoint(tmp_path / "again", "{step}"), max_epochs=2, limit_val_batches=0)
    again.fit(
        resumed, data(folder, **changing), ckpt_path=tmp_path / "step=4.ckpt", weights_only=False
    )  # amid the second epoch
    for (name, expected), got in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def targets(count):
    boxes = torch.tensor([[10.0, 10, 30, 40], [35, 5, 60, 30]])[:count]
    masks = torch.zeros(count, 64, 64, dtype=torch.uint8)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    return {
        "boxes": boxes,
        "labels": torch.arange(count),
        "masks": masks,
        "iscrowd": torch.zeros(count, dtype=torch.int64),
        "area": masks.sum((1, 2)).float(),
        "image_id": torch.tensor(0),
    }


def test_average_precision_of_boxes_and_masks(folder, tmp_path):
    """Everything right but the second mask, of which the upper half is missing: an IoU of 0.5, right at one of ten thresholds."""
    small = {"labels": ["red", "white"], "options": OPTIONS, "channels": 8, "features": 8}
    learner = task("mask_rcnn_quadtree_b0", small)
    target = targets(2)
    masks = target["masks"].bool()
    masks[1, :18] &= False
    masks[1, 17] = target["masks"][1, 17].bool()  # 13 of 25 rows stay
    learner.forward = lambda images: [
        {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.tensor([0.9, 0.8]), "masks": masks}
    ]
    loader = torch.utils.data.DataLoader([([torch.zeros(3, 64, 64)], [target])], batch_size=None)
    (result,) = trainer(tmp_path, max_epochs=1).test(learner, loader, verbose=False)
    assert result["test/AP"] == pytest.approx(1)
    assert result["test/mask_AP/red"] == pytest.approx(1)
    assert result["test/mask_AP/white"] == pytest.approx(0.1)
    assert result["test/mask_AP"] == pytest.approx(0.55)
    assert result["test/mask_AP50"] == pytest.approx(1)


def test_rates():
    learner = task(schedule="multistep", milestones=[8, 11], warmup_steps=500)
    found = rates(learner, (0, 250, 7999, 8000, 10_999, 11_000), num_training_batches=1000)
    assert found == pytest.approx([0.001, 0.5005, 1, 0.1, 0.1, 0.01])


def test_what_decays(folder, tmp_path):
    for everything, groups in ((True, 1), (False, 2)):
        learner = task(weight_decay=0.05, decayed="all" if everything else "matrices")
        train = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        train.fit(learner, data(folder))
        found = train.optimizers[0].param_groups
        assert len(found) == groups
        assert found[0]["weight_decay"] == 0.05
        assert sum(len(group["params"]) for group in found) == len(list(learner.model.parameters()))
        if not everything:
            assert found[1]["weight_decay"] == 0
            assert all(p.dim() <= 1 for p in found[1]["params"])


def test_mistakes(folder):
    with pytest.raises(ValueError, match="schedule is 'poly', expected one of cosine, multistep, polynomial"):
        task(schedule="poly")
    with pytest.raises(ValueError, match="the data has a label 1, expected labels below 1, the number of classes"):
        task(network=options(labels=["red"])).training_step(([torch.zeros(3, 64, 64)], [targets(2)]), 0)
    with pytest.raises(ValueError, match="outdoor is for matching"):
        task(init_from="outdoor")
