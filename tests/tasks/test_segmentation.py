"""Training of segmenters: loss, scores and rates by hand, learning, resuming, checkpoints."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from tests.tasks.training import LIGHTNING, made, rates, trainer

from quadtree_attention.data.recognition.composites import CompositeData, Pasting
from quadtree_attention.predict.segmentation import Segmenter
from quadtree_attention.tasks.segmentation import SegmentationTask, segmentation_loss, segmentation_scores
from quadtree_attention.weights import load

pytestmark = LIGHTNING
SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Red and green squares over grey."""
    root = tmp_path_factory.mktemp("squares")
    for split in ("train", "validation", "test"):
        for name, color in (("red", (230, 0, 0, 255)), ("green", (0, 230, 0, 255))):
            (root / "cutouts" / split / name).mkdir(parents=True)
            Image.new("RGBA", (20, 20), color).save(root / "cutouts" / split / name / "a.png")
        (root / "photos" / split).mkdir(parents=True)
        Image.new("RGB", (80, 80), (100, 100, 100)).save(root / "photos" / split / "a.png")

    def make(**changes):
        options = {"size": (32, 32), "batch_size": 4, "length": 32, "val_length": 6, "test_length": 6, "num_workers": 0}
        pasting = Pasting(count=(1, 2), scale=(0.5, 0.7), turn=0, noise=2)
        return CompositeData(str(root / "cutouts"), str(root / "photos"), **{**options, "pasting": pasting, **changes})

    return make


def task(options=None, **changes):
    pl.seed_everything(0, verbose=False)
    network = {"options": SMALL, "neck_channels": 16, "head_channels": 16, **(options or {})}
    settings = {"num_classes": 3, "learning_rate": 3e-3, "head_rate": 1.0, "warmup_steps": 4, **changes}
    return made(SegmentationTask, options=network, **settings)


def test_loss_counts_pixels_without_class_as_nothing():
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    masks[0, 0] = 255
    logs = logits.log_softmax(1)
    want = -sum(
        logs[b, masks[b, y, x], y, x] for b in range(2) for y in range(4) for x in range(5) if masks[b, y, x] != 255
    )
    torch.testing.assert_close(segmentation_loss(logits, masks), want / 40)
    assert segmentation_loss(logits.bfloat16(), masks).dtype == torch.float32
    assert segmentation_loss(logits, torch.full_like(masks, 255)) == 0


def test_scores_by_hand():
    confusion = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 4, 0, 0]])
    scores = segmentation_scores(confusion)
    want = [6 / 9, 3 / 10, float("nan"), 0 / 4]  # the third was neither there nor found
    torch.testing.assert_close(scores["iou"], torch.tensor(want, dtype=torch.float64), equal_nan=True)
    assert scores["miou"] == pytest.approx((6 / 9 + 3 / 10) / 3)
    assert scores["accuracy"] == pytest.approx(9 / 16)


def test_rate_is_mmcvs_poly():
    """lr = base * (1 - t / T) ** power; warm-up: times 1 - (1 - t / warmup) (1 - ratio)."""
    total = {"estimated_stepping_batches": 160_000}
    found = rates(task(warmup_steps=1500), (0, 750, 1500), **total)
    assert found == pytest.approx([1e-6, (1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6)), 1 - 1500 / 160_000])
    found = rates(task(power=0.9), (40_000, 160_000, 160_001), **total)
    assert found == pytest.approx([0.75**0.9, 0, 0])


def test_groups_are_as_published(data, tmp_path):
    """mmcv's custom_keys: the head at ten times the rate, names with "norm" do not decay."""
    learner = task(head_rate=10.0, level_rate=3.0, weight_decay=0.02, learning_rate=1e-3)
    train = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    train.fit(learner, data())
    place = {id(p): group for group in train.optimizers[0].param_groups for p in group["params"]}
    for name, p in learner.model.named_parameters():
        group = place[id(p)]
        factor = 10 if name.startswith("head") else 3 if "level_weights" in name else 1
        assert group["initial_lr"] == pytest.approx(factor * 1e-3), name
        assert group["weight_decay"] == (0.0 if ".norm" in name else 0.02), name
    assert any("head.scales.0.0.1" in name for name, _ in learner.model.named_parameters())  # the head's norms decay


def test_it_learns_and_its_checkpoint_segments(data, tmp_path):
    learner = task()
    train = trainer(tmp_path, ModelCheckpoint(tmp_path, "last"), EMAWeightAveraging(decay=0.8), max_epochs=10)
    train.fit(learner, data(size=(48, 48)))
    (result,) = train.test(learner, data(size=(48, 48)), verbose=False)
    assert set(result) == {"test/loss", "test/miou", "test/accuracy"}
    assert result["test/miou"] > 0.6
    assert result["test/accuracy"] > 0.8
    model = load(tmp_path / "last.ckpt", "segmenter")
    assert model.config.labels == ["background", "green", "red"]
    assert (model.config.short_side, model.config.long_side) == (48, 96)
    image = np.full((48, 48, 3), 100, np.uint8)
    image[10:38, 10:38] = (230, 0, 0)
    found = Segmenter(model, "cpu").segment(image)
    assert found.names[found.labels[24, 24]] == "red"
    assert found.names[found.labels[1, 46]] == "background"


def test_a_cut_off_training_goes_on_as_if_it_never_was(data, tmp_path):
    settings = {"options": {"options": {**SMALL, "drop_path_rate": 0.2}, "dropout": 0.3}}
    whole = task(**settings)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    short = {"length": 16, "val_length": 2}
    trainer(tmp_path, every, max_epochs=2).fit(whole, data(**short))
    resumed = task(**settings)
    pl.seed_everything(99, verbose=False)
    again = trainer(tmp_path, ModelCheckpoint(tmp_path / "again", "{step}"), max_epochs=2)
    again.fit(resumed, data(**short), ckpt_path=tmp_path / "step=6.ckpt", weights_only=False)  # amid the second epoch
    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_validation_judges_at_the_size_of_the_masks():
    """Two images of different sizes, the masks twice as large; counts add up over both."""
    learner = task()
    learner.model.eval()
    images = [torch.randn(3, 32, 32), torch.randn(3, 32, 64)]
    with torch.no_grad():
        found = [
            torch.nn.functional.interpolate(learner([x])[0][None], scale_factor=2, mode="bilinear")[0].argmax(0)
            for x in images
        ]
        masks = [x.clone() for x in found]
        masks[0][:10] = 255
        masks[1][:16] = (found[1][:16] + 1) % 3
        learner.validation_step((images, masks), 0)
    scores = segmentation_scores(learner.confusion.compute())
    right, counted = 54 * 64 + 48 * 128, 54 * 64 + 64 * 128
    assert scores["accuracy"] == pytest.approx(right / counted)


def test_mistakes(data, tmp_path):
    with pytest.raises(ValueError, match="the data has 3 classes, expected num_classes, 4"):
        trainer(tmp_path, max_epochs=1).fit(task(num_classes=4), data())
    with pytest.raises(ValueError, match="num_classes is 1, expected at least 2"):
        task(num_classes=1)
    with pytest.raises(ValueError, match="has a label 3, expected labels below num_classes, 3"):
        task().training_step((torch.zeros(1, 3, 32, 32), torch.tensor([[[0, 3, 255]]])), 0)
    with pytest.raises(ValueError, match="outdoor is for matching"):
        task(init_from="outdoor")
