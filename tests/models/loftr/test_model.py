import pytest
import torch

from quadtree_attention.models.loftr.transformer import VitBlock


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("attention", ["quadtree_a", "quadtree_b", "linear", "sr", "full"])
@pytest.mark.parametrize("block", ["vit", "loftr"])
def test_forward_and_backward_with_two_odd_sizes(small, attention, block):
    model = small(attention=attention, block=block).train()
    images = image(2, 1, 33, 47), image(2, 1, 50, 24, seed=1)
    features = model.encode(*images)
    assert features.coarse0.shape == (2, 5, 6, 16)
    assert features.fine0.shape == (2, 8, 20, 24)
    assert features.coarse1.shape == (2, 7, 3, 16)
    confidence = model.confidence(features)
    assert confidence.shape == (2, 30, 21)
    b, i, j, score = model.select(confidence, features)
    assert len(b)
    assert torch.equal(score, confidence[b, i, j])
    expected = model.refine(features, b, i, j)
    assert expected.shape == (len(b), 3)
    (confidence.square().sum() + expected.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_output_has_the_documented_form(small):
    model = small()
    out = model(image(2, 1, 64, 48), image(2, 1, 40, 56, seed=1))
    count = len(out["confidence"])
    assert count > 0
    assert out["keypoints0"].shape == out["keypoints1"].shape == (count, 2)
    assert out["batch_indexes"].dtype == torch.int64
    cell = out["keypoints0"] / 8
    assert torch.equal(cell, cell.round())
    assert (out["keypoints0"] < torch.tensor([48, 64])).all()
    assert (out["keypoints1"].abs() <= torch.tensor([56 + 4, 40 + 4])).all()
    order = out["batch_indexes"] * 10000 + cell[:, 1] * 6 + cell[:, 0]
    assert (order.diff() > 0).all()


class TestDict:
    """The interface of kornia.feature.LoFTR."""

    pair = image(2, 1, 64, 48), image(2, 1, 40, 56, seed=1)

    def test_gives_what_the_images_give(self, small):
        model = small()
        data = dict(zip(("image0", "image1"), self.pair, strict=True))
        found = model({**data, "dataset_name": ["a", "b"], "mask0": None})
        assert set(found) == {"keypoints0", "keypoints1", "confidence", "batch_indexes"}
        for key, value in model(*self.pair).items():
            assert torch.equal(found[key], value)
        assert set(data) == {"image0", "image1"}  # kornia puts more into it

    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
    def test_masks_of_any_dtype(self, small, dtype):
        model = small()
        mask0, mask1 = torch.ones(2, 64, 48, dtype=dtype), torch.ones(2, 5, 7, dtype=dtype)
        mask0[:, 32:] = 0
        mask1[:, :, 3:] = 0
        data = dict(zip(("image0", "image1", "mask0", "mask1"), (*self.pair, mask0, mask1), strict=True))
        found, want = model(data), model(*self.pair, mask0.bool(), mask1.bool())
        assert len(want["confidence"])
        for key, value in want.items():
            assert torch.equal(found[key], value)

    def test_what_is_missing_or_too_much_is_named(self, small):
        image0, image1 = self.pair
        with pytest.raises(ValueError, match="the dict has no image1, only image0"):
            small()({"image0": image0})
        with pytest.raises(ValueError, match="expected all of them in the dict"):
            small()({"image0": image0, "image1": image1}, image1)
        with pytest.raises(ValueError, match="image1 is missing"):
            small()(image0)


def test_threshold_of_one_call(small):
    model = small()
    pair = image(2, 1, 64, 48), image(2, 1, 40, 56, seed=1)
    everything = model(*pair)["confidence"]
    middle = float(everything.median())
    sure = model(*pair, threshold=middle)["confidence"]
    assert torch.equal(sure, everything[everything > middle])
    assert 0 < len(sure) < len(everything)
    assert model.config.threshold == 0


def test_keypoints_are_x_then_y(small):
    model = small()
    features = model.encode(image(1, 1, 16, 80), image(1, 1, 80, 16))
    out = model(image(1, 1, 16, 80), image(1, 1, 80, 16))
    assert features.coarse0.shape[1:3] == (2, 10)
    assert out["keypoints0"][:, 0].max() > 8
    assert out["keypoints0"][:, 1].max() <= 8
    assert out["keypoints1"][:, 0].max() <= 8 + 4


def test_a_batch_is_its_singles(small):
    model = small().double()
    images0, images1 = image(3, 1, 40, 48), image(3, 1, 40, 48, seed=1)
    together = model(images0, images1)
    for index in range(3):
        alone = model(images0[index : index + 1], images1[index : index + 1])
        here = together["batch_indexes"] == index
        for key in ("keypoints0", "keypoints1", "confidence"):
            torch.testing.assert_close(together[key][here], alone[key], rtol=0, atol=1e-9)


def test_sizes_of_the_two_images_do_not_mix(small):
    """The same pair, once as one batch of the backbone and once, one of them padded by hand, as two."""
    model = small().double()
    image0, image1 = image(1, 1, 40, 46), image(1, 1, 40, 48, seed=1)
    by_hand = torch.cat([image0, image0[..., -1:], image0[..., -1:]], -1)
    ours, theirs = model(image0, image1), model(by_hand, image1)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (8, 8), (9, 8), (17, 3)])
def test_tiny_images(small, size):
    out = small()(image(1, 1, *size), image(1, 1, 33, 47))
    assert all(value.isfinite().all() for value in out.values())


def test_no_match_gives_empty_tensors(small):
    out = small(threshold=1.0)(image(1, 1, 32, 32), image(1, 1, 32, 40))
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "keypoints0": (0, 2),
        "keypoints1": (0, 2),
        "confidence": (0,),
        "batch_indexes": (0,),
    }


def test_no_match_still_reaches_every_weight_of_the_fine_level(small):
    model = small().train()
    features = model.encode(image(1, 1, 32, 32), image(1, 1, 32, 32))
    none = torch.zeros(0, dtype=torch.int64)
    model.refine(features, none, none, none).sum().backward()
    for module in (model.windows, model.fine):
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_border_is_left_free(small):
    out = small(border=2)(image(1, 1, 64, 80), image(1, 1, 64, 80, seed=1))
    x, y = out["keypoints0"].T
    assert len(x)
    assert x.min() >= 16
    assert x.max() < 64
    assert y.min() >= 16
    assert y.max() < 48


class TestMasks:
    @staticmethod
    def masks():
        mask = torch.zeros(2, 33, 47, dtype=torch.bool)
        mask[0] = True
        mask[1, :20, :30] = True
        return mask

    def test_at_image_size_and_at_cells_are_the_same(self, small):
        model, images = small(), (image(2, 1, 33, 47), image(2, 1, 40, 40, seed=1))
        mask = self.masks()
        full, cells = (model.encode(*images, m) for m in (mask, mask[:, ::8, ::8]))
        assert full.mask0.shape == (2, 5, 6)
        assert full.mask0[1].sum() == 3 * 4  # a cell is valid if its top left pixel is
        assert torch.equal(full.mask0, cells.mask0)
        assert torch.equal(full.coarse1, cells.coarse1)
        assert full.mask1 is None

    def test_matches_keep_out_of_masked_cells(self, small):
        for respect in (True, False):
            model = small(respect_masks=respect)
            out = model(image(2, 1, 33, 47), image(2, 1, 40, 40, seed=1), self.masks(), None)
            of_second = out["keypoints0"][out["batch_indexes"] == 1]
            assert len(of_second)
            assert (of_second < torch.tensor([30, 20])).all()

    def test_respect_masks(self, small):
        images, mask = (image(2, 1, 33, 47), image(2, 1, 40, 40, seed=1)), self.masks()
        seen, unseen = small(respect_masks=False), small(respect_masks=True)
        plain = seen.encode(*images)
        assert torch.equal(seen.encode(*images, mask).coarse1, plain.coarse1)
        respected = unseen.encode(*images, mask)
        torch.testing.assert_close(respected.coarse1[0], plain.coarse1[0])  # nothing is masked there
        assert (respected.coarse1[1] - plain.coarse1[1]).abs().max() > 1e-4
        assert (seen.confidence(seen.encode(*images, mask)) - seen.confidence(plain)).abs().max() > 1e-4

    def test_nothing_valid(self, small):
        for border in (0, 2):
            model, nothing = small(border=border), torch.zeros(1, 40, 40, dtype=torch.bool)
            out = model(image(1, 1, 40, 40), image(1, 1, 40, 40), nothing, None)
            assert out["confidence"].numel() == 0
            features = model.encode(image(1, 1, 40, 40), image(1, 1, 40, 40), nothing, nothing)
            assert features.coarse0.isfinite().all()
            assert model.confidence(features).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(small, dtype):
    model = small().to(dtype)
    out = model(image(1, 1, 33, 47), image(1, 1, 40, 40, seed=1))
    assert out["keypoints1"].dtype == out["confidence"].dtype == (dtype if dtype == torch.float64 else torch.float32)


def test_autocast_keeps_the_residual_stream_and_the_confidence_in_float32(small):
    model = small()
    images = image(1, 1, 33, 47), image(1, 1, 40, 40, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode(*images)
        confidence = model.confidence(features)
        out = model(*images)
    assert features.coarse0.dtype == confidence.dtype == out["keypoints1"].dtype == torch.float32
    exact = model.encode(*images)
    assert (features.coarse0 - exact.coarse0).abs().max() < 0.1 * exact.coarse0.abs().max()


def test_gradients_of_the_whole_model_do_not_depend_on_the_mode_of_softmax(small):
    model = small()
    images = image(1, 1, 32, 32), image(1, 1, 32, 32, seed=1)
    with torch.no_grad():
        plain = model.confidence(model.encode(*images))
    torch.testing.assert_close(model.confidence(model.encode(*images)).detach(), plain)


def test_exports(small):
    class Encode(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image0, image1):
            features = self.model.encode(image0, image1)
            return features.coarse0, features.coarse1

    module = Encode(small())
    images = image(1, 1, 33, 47), image(1, 1, 40, 40, seed=1)
    exported = torch.export.export(module, images).module()
    for got, want in zip(exported(*images), module(*images), strict=True):
        torch.testing.assert_close(got, want)


def test_position_encodings_differ_and_none_adds_nothing(small):
    images = image(1, 1, 32, 40), image(1, 1, 32, 40, seed=1)
    sine, bug, none = (small(position=kind).encode(*images).coarse0 for kind in ("sine", "sine_bug", "none"))
    assert (sine - bug).abs().max() > 1e-3
    model = small(position="none")
    coarse, _ = model.backbone(torch.cat(images))
    bare = model.coarse(*coarse.permute(0, 2, 3, 1).chunk(2))[0]
    torch.testing.assert_close(none, bare)


def test_layers_start_from_weights_of_their_own(small):
    first, second = small().coarse.layers[:2]
    assert isinstance(first, VitBlock)
    assert not torch.equal(first.attn.q_proj.weight, second.attn.q_proj.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((image(1, 3, 16, 16), image(1, 1, 16, 16)), "image0 has shape .* one channel"),
        ((image(1, 1, 16, 16), image(1, 16, 16)), "image1 has shape"),
        ((image(1, 1, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.uint8)), r"image1.float\(\) / 255"),
        ((image(1, 1, 0, 16), image(1, 1, 16, 16)), "at least one image and one pixel"),
        ((image(0, 1, 16, 16), image(0, 1, 16, 16)), "at least one image and one pixel"),
        ((image(2, 1, 16, 16), image(1, 1, 16, 16)), "got 2 image0 and 1 image1"),
        (
            (image(1, 1, 16, 24), image(1, 1, 16, 16), torch.ones(1, 16, 16).bool()),
            r"mask0 .* \(1, 16, 24\).* \(1, 2, 3\)",
        ),
        ((image(1, 1, 16, 24), image(1, 1, 16, 16), None, torch.ones(1, 16, 16)), r"mask1.bool\(\)"),
    ],
)
def test_bad_input_is_told_in_one_line(small, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        small()(*arguments)
    assert "\n" not in str(error.value)


def test_optimal_transport(small):
    torch.manual_seed(1)
    model = small(matching="optimal_transport")
    images = torch.rand(2, 2, 1, 48, 64)
    features = model.encode(*images)
    shares = model.assignment(features)
    assert shares.shape == (2, 49, 49)
    torch.testing.assert_close(shares[:, :, :-1].sum(1), torch.ones(2, 48))
    assert torch.equal(model.confidence(features), shares[:, :-1, :-1])
    confidence = small(matching="optimal_transport", prefilter=True).confidence(features)
    in_bin = (shares[:, :-1].argmax(2) == 48)[:, :, None] | (shares[:, :, :-1].argmax(1) == 48)[:, None]
    assert in_bin.any()
    assert torch.equal(confidence == 0, in_bin)
    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[:, :4, :5] = True
    found = model(*images, mask, mask)
    assert (found["keypoints0"][:, 0] < 40).all()
    assert (found["keypoints0"][:, 1] < 32).all()
    assert len(found["confidence"])


def test_batch_norms_are_folded_outside_training(small):
    """The same maps as by batch norms on their own, whose statistics are those of no image at hand."""
    model = small().double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    x = image(2, 1, 32, 48).double()
    folded = model.backbone(x)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.forward = lambda x, norm=module: (
                seen.append(norm)
                or torch.nn.functional.batch_norm(
                    x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
                )
            )
    for got, want in zip(folded, model.backbone(x), strict=True):
        torch.testing.assert_close(got, want)
    assert len(seen) > 5


def test_precision_is_of_the_backbone_outside_training(small, monkeypatch):
    images = image(1, 1, 32, 48), image(1, 1, 32, 48, seed=1)
    exact, short = (small(precision=kind).encode(*images) for kind in ("float32", "bfloat16"))
    assert exact.fine0.dtype == exact.coarse0.dtype == short.coarse0.dtype == torch.float32
    assert short.fine0.dtype == torch.bfloat16
    assert 0 < (short.coarse0 - exact.coarse0).abs().max() < 0.05 * exact.coarse0.abs().max()
    assert small(precision="bfloat16")(*images)["keypoints1"].dtype == torch.float32
    assert small(precision="bfloat16").train().encode(*images).fine0.dtype == torch.float32
    assert small(precision="bfloat16").double().encode(*images).fine0.dtype == torch.float64
    for native, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr("quadtree_attention.models.loftr.model.multiplies_bfloat16", lambda native=native: native)
        assert small(precision="auto").encode(*images).fine0.dtype == dtype
        assert (
            small().encode(*images).fine0.dtype == torch.float32
        )  # the same numbers on every machine, unless asked otherwise
    with pytest.raises(ValueError, match="precision is 'half', expected one of auto, float32, bfloat16"):
        small(precision="half")
