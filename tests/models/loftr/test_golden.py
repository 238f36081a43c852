"""The published LoFTR and its transformer, number by number."""

import dataclasses

import pytest
import torch

from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig
from quadtree_attention.models.loftr import model as loftr_model
from quadtree_attention.models.loftr.transformer import coarse_transformer
from quadtree_attention.weights import convert_published

RUNS = [("f64", torch.float64), ("f32", torch.float32)]

# Two float32 arithmetics differ by about as much as one of them from float64. The recordings say how much that is: up to 6.7e-6 of coarse features,
# 6.4e-6 of confidences, 3e-6 of positions in a window and 1.4e-5 pixels (``maxdiff``). Other machines add up in another order: allow 7 times that.
FEATURES, CONFIDENCE, WINDOW = 5e-5, 5e-5, 2.5e-5
PIXELS = 4 * WINDOW  # half a window is two tokens of two pixels


def under(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def near(got, want, atol):
    torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=atol)


@pytest.mark.parametrize(("run", "dtype"), RUNS)
def test_transformer_and_its_gradients(golden, run, dtype):
    file = golden("loftr_transformer_B")
    config = LoFTRConfig(block_dims=(8, 8, 32), num_heads=4, num_layers=1, topk=(8, 4))
    transformer = coarse_transformer(config)
    transformer.load_state_dict(convert_published(under(file, "param.")))
    transformer.to(dtype)
    feats = [file[f"in.feat{i}"].to(dtype).permute(0, 2, 3, 1).requires_grad_() for i in (0, 1)]
    outs = [out.flatten(1, 2) for out in transformer(*feats)]
    atol = 1e-9 if dtype == torch.float64 else 2e-5
    loss = 0
    for i, out in enumerate(outs):
        near(out, file[f"{run}.out{i}"], atol)
        loss = loss + (out * file[f"in.cotangent{i}"]).sum()
    loss.backward()
    for i, feat in enumerate(feats):
        near(feat.grad.permute(0, 3, 1, 2), file[f"{run}.grad.feat{i}"], atol)
    if run == "f64":  # recorded in float32
        wanted = convert_published(under(file, "f64.grad.param."))
        for name, parameter in transformer.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted.pop(name).double(), rtol=1e-6, atol=1e-6)
        assert not wanted


def published_loftr(golden, published_keys, recipe, name):
    """The model of one golden file with its weights, and the file."""
    file = golden(name)
    meta, original = file["meta"], file["meta"]["config"]
    if name == "loftr_small":
        state = golden("loftr_small_weights")
        config = LoFTRConfig(
            initial_dim=original["resnetfpn"]["initial_dim"],
            block_dims=original["resnetfpn"]["block_dims"],
            num_heads=original["coarse"]["nhead"],
            fine_heads=original["fine"]["nhead"],
            threshold=0.0,
        )
    else:
        shapes = {key: (tuple(shape), kind) for key, (shape, kind) in published_keys["outdoor"]["keys"].items()}
        arrays = {
            key: recipe.recipe_array(key, s, meta["seed"]) for key, (s, kind) in shapes.items() if kind == "float32"
        }
        assert recipe.state_dict_sha256(arrays) == meta["weights_sha256"]
        state = {
            key: torch.from_numpy(arrays[key]) if key in arrays else torch.zeros(s).long()
            for key, (s, _) in shapes.items()
        }
        config = dataclasses.replace(LOFTR_PRESETS["outdoor"], threshold=0.0)
    model = LoFTR(config).eval()
    model.load_state_dict(convert_published(state))
    assert sum(parameter.numel() for parameter in model.parameters()) == meta["n_params"]
    return model, file


@pytest.fixture
def recorded_encoding(golden):
    """The position encoding with the float32 numbers of the machine that the recordings are from, up to 20x20 tokens.

    They are off from ours by up to 7 ulps of a frequency times the position (see test_position.py), far more than float64 runs may differ by.
    """
    tables = golden("pos_enc_20")

    def encoding(height, width, dim, *, bug, device):
        assert not bug
        x, y = (tables[f"d{dim}"][:size] for size in (width, height))  # [W, dim / 4, 2], [H, dim / 4, 2]
        both = [table.expand(height, width, *table.shape[-2:]) for table in (x, y[:, None])]
        return torch.cat(both, -1).flatten(2)

    return encoding


@pytest.mark.parametrize("name", ["loftr_small", "loftr_outdoor_recipe"])
def test_whole_network(golden, published_keys, recipe, recorded_encoding, monkeypatch, name):
    model, file = published_loftr(golden, published_keys, recipe, name)
    for run, dtype in RUNS:
        want = under(file, f"{run}.")
        model.to(dtype)
        images = [(file[f"in.image{i}_u8"].float() / 255).to(dtype) for i in (0, 1)]
        double = dtype == torch.float64
        with torch.no_grad(), monkeypatch.context() as patch:
            if double:
                patch.setattr(loftr_model, "sine_encoding", recorded_encoding)
            features = model.encode(*images)
            confidence = model.confidence(features)
            b, i, j, score = model.select(confidence, features)
            expected = model.refine(features, b, i, j)
            patch.setattr(model, "encode", lambda *images, features=features: features)  # once is enough
            out = model(*images)
        for side, coarse in (("coarse0", features.coarse0), ("coarse1", features.coarse1)):
            step = (
                1
                if coarse.shape[1] * coarse.shape[2] == want[side].shape[1]
                else coarse.shape[-1] // want[side].shape[2]
            )
            near(coarse.flatten(1, 2)[:, ::step, ::step], want[side], 1e-9 if double else FEATURES)
        near(confidence.amax(2), want["conf.rowmax"], 1e-9 if double else CONFIDENCE)
        near(confidence.amax(1), want["conf.colmax"], 1e-9 if double else CONFIDENCE)
        near(confidence.sum(2), want["conf.rowsum"], 1e-9 if double else CONFIDENCE)
        assert torch.equal(confidence.argmax(2), want["conf.rowargmax"].long())
        for got, key in ((b, "b_ids"), (i, "i_ids"), (j, "j_ids")):
            assert torch.equal(got, want[key].long())
        near(score, want["mconf"], 1e-9 if double else CONFIDENCE)
        near(expected, want["expec_f"], 1e-9 if double else WINDOW)
        assert torch.equal(out["batch_indexes"], want["m_bids"].long())
        near(out["keypoints0"], want["mkpts0_f"], 1e-9 if double else PIXELS)
        near(out["keypoints1"], want["mkpts1_f"], 1e-9 if double else PIXELS)
        near(out["confidence"], want["mconf"], 1e-9 if double else CONFIDENCE)


def test_windows_and_backbone(golden, published_keys, recipe, recorded_encoding, monkeypatch):
    model, file = published_loftr(golden, published_keys, recipe, "loftr_small")
    model.double()
    monkeypatch.setattr(loftr_model, "sine_encoding", recorded_encoding)
    images = [(file[f"in.image{i}_u8"].float() / 255).double() for i in (0, 1)]
    with torch.no_grad():
        coarse, fine = model.backbone(torch.cat(images))
        near(coarse[:, ::4], file["f64.backbone_c"], 1e-9)
        near(fine[:, ::4, ::5, ::5], file["f64.backbone_f"], 1e-9)
        features = model.encode(*images)
        b, i, j = (file[f"f64.{key}"][:6].long() for key in ("b_ids", "i_ids", "j_ids"))
        windows0 = model.windows(features.fine0, features.coarse0, b, i)
        windows1 = model.windows(features.fine1, features.coarse1, b, j)
        near(windows0, file["f64.fine_in0"], 1e-9)
        near(windows1, file["f64.fine_in1"], 1e-9)
        out0, out1 = model.fine(windows0, windows1)
        near(out0, file["f64.fine_out0"], 1e-9)
        near(out1, file["f64.fine_out1"], 1e-9)
