"""Files of weights, and checkpoints: what they hold, and what they say of it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

from . import Kind

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


def networks() -> dict:
    """One of each kind, as small as can be."""
    from quadtree_attention.models.classifier import ClassifierConfig
    from quadtree_attention.models.detection import DetectorConfig, build_detector
    from quadtree_attention.models.loftr import LoFTR, LoFTRConfig
    from quadtree_attention.models.segmentation import SegmenterConfig
    from quadtree_attention.models.sttr import STTR, STTRConfig

    return {
        "matching": LoFTR(LoFTRConfig(8, (8, 8, 16), 1, 2, 1, 1.0, fine_heads=2)),
        "stereo": STTR(STTRConfig((4, 4, 4), (8, 8), 1, 4, 4, 4, 16, 4, 4, 2, 1, context_blocks=1, context_dim=4)),
        "classification": ClassifierConfig("quadtree_b0", ["cat", "dog"], SMALL, (3, 64, 64)).build(),
        "detection": build_detector(
            DetectorConfig("retinanet", "quadtree_b0", ["cat"], [17], SMALL, channels=8, features=8)
        ),
        "segmentation": SegmenterConfig("quadtree_b0", ["cat", "dog"], SMALL, 16, 16).build(),
    }


def _files(folder: Path) -> list[tuple[Path, str]]:
    from quadtree_attention.weights import save

    made = []
    for task, model in networks().items():
        path = folder / f"{task}.safetensors"
        save(model, path)
        made.append((path, "safetensors"))
    return made


def _checkpoints(folder: Path) -> list[tuple[Path, str]]:
    import torch

    from quadtree_attention.weights.files import ENTRY, description

    made = []
    for task, model in networks().items():
        content = {
            "epoch": 3,
            "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
            ENTRY: description(model.config),
            "optimizer_states": [{"param_groups": [{"lr": 1e-3, "params": [0, 1]}]}],
            "hyper_parameters": OrderedDict(a=Path("x"), b=(1, 2)),
        }
        for suffix, zipped in (("ckpt", True), ("pth", False)):
            path = folder / f"{task}.{suffix}"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            made.append((path, "zip" if zipped else "bytes"))
    return made


def _load(folder: Path, path: Path) -> None:
    from quadtree_attention import Classifier, Detector, Matcher, Segmenter, StereoMatcher

    kinds = {
        "matching": Matcher,
        "stereo": StereoMatcher,
        "classification": Classifier,
        "detection": Detector,
        "segmentation": Segmenter,
    }
    kinds[path.stem].from_pretrained(path, device="cpu")


def _convert(folder: Path, path: Path) -> int:
    from quadtree_attention.__main__ import main

    return main(["convert", str(path), str(folder / "out.safetensors")])


def _crafted(shape: tuple = (4,), stride: tuple = (1,), offset: int = 0, count: int = 4, pickled: bytes = b"") -> bytes:
    """A checkpoint with one tensor, whose shape and storage are what a stranger says, or with another pickle."""
    import torch

    class Storage:
        pass

    class Weights:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    if not pickled:
        out = io.BytesIO()
        Pickler(out, 2).dump({"state_dict": {"matcher.backbone.conv1.weight": Weights()}})
        pickled = out.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in (
            ("data.pkl", pickled),
            ("byteorder", b"little"),
            ("data/0", bytes(16)),
            ("version", b"3\n"),
        ):
            file.writestr(f"w/{name}", content)
    return archive.getvalue()


def _claims(**config: object) -> bytes:
    """A .safetensors file of a matcher with one tensor."""
    header = {
        "__metadata__": {"format": "pt", "model": "LoFTR", "config": json.dumps(config)},
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


HOSTILE_FILES = {
    "empty": b"",
    "text": b"hello\n",
    "dims": _claims(block_dims=[10**12] * 3),
    "large": _claims(initial_dim=999_999, block_dims=[999_999, 999_999, 999_936]),
    "layers": _claims(num_layers=999_999),
    "nested": _claims(topk=[[[[[[]]]]]]),
    "header": struct.pack("<Q", 2**63) + b"{}",
}
HOSTILE_CHECKPOINTS = {
    "empty": b"",
    "text": b"hello\n",
    "storage": _crafted((10**9,), count=10**9),
    "storage-negative": _crafted(count=-4),
    "repeated": _crafted((10**6, 10**6), (0, 0)),
    "beyond": _crafted((10**12,)),
    "offset": _crafted(offset=10**12),
    "backwards": _crafted(stride=(-1,)),
    "system": _crafted(pickled=b"cposix\nsystem\n(S'touch ran'\ntR."),
    "memo": _crafted(pickled=b"\x80\x02]r\xff\xff\xff\x7f."),
    "long": _crafted(pickled=b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "deep": _crafted(pickled=b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "bare-memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "bare-system": b"cposix\nsystem\n(S'touch ran'\ntR.",
    "build": _crafted(pickled=b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\0\0\0__code__K\x01sb."),
    "numpy-flags": _crafted(
        pickled=b"\x80\x02cnumpy\ndtype\nX\x02\0\0\0V8\x89\x88\x87R" + pickle.dumps((3, "|", None, None, None, 8, 1, 63), 2)[2:-1] + b"b."
    ),
}  # fmt: skip

KINDS = [
    Kind("weights", _files, _load, HOSTILE_FILES, cases=60, needs="torchvision"),
    Kind("checkpoints", _checkpoints, _load, HOSTILE_CHECKPOINTS, cases=60, needs="torchvision"),
    Kind("convert", _checkpoints, _convert, results=("out.safetensors",), cases=20, needs="torchvision"),
]
