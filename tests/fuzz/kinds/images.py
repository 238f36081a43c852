"""Images of many formats, masks, and maps of numbers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from . import Kind


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """``[H, W, 3]`` uint8, smooth, with some noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / a) + np.cos(columns / b) for a, b in ((5, 9), (7, 4), (11, 6))]
    return np.uint8(np.clip(127 + 50 * np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3)), 0, 255))


def _images(folder: Path) -> list[tuple[Path, str]]:
    from PIL import Image

    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    grey, deep = image.convert("L"), Image.fromarray(picture()[..., 0].astype(np.uint16) << 8)
    made = []
    for name, one, options in (
        ("a.jpg", image, {"exif": exif}),
        ("progressive.jpg", image, {"progressive": True}),
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("a.png", image, {"exif": exif}),
        ("palette.png", image.quantize(16), {}),
        ("alpha.png", image.convert("RGBA"), {}),
        ("deep.png", deep, {}),
        ("a.webp", image, {"exif": exif}),
        ("lossless.webp", image, {"lossless": True}),
        ("a.bmp", image, {}),
        ("a.gif", image, {"save_all": True, "append_images": [image.rotate(9)]}),
        ("a.ppm", image, {}),
        ("a.pgm", grey, {}),
        ("deep.pgm", deep, {}),
        ("plain.tif", grey, {"exif": exif}),
        ("lzw.tif", image, {"compression": "tiff_lzw"}),
        ("deep.tif", deep, {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", image, {"compression": "jpeg"}),
        ("float.tif", Image.fromarray((picture()[..., 0] / np.float32(255)).astype(np.float32)), {}),
        ("fax.tif", image.convert("1"), {"compression": "group4"}),
        ("a.jp2", image, {}),
        ("a.avif", image, {}),
    ):
        try:
            one.save(folder / name, **options)
        except (KeyError, OSError):  # a format that this Pillow was built without
            continue
        made.append((folder / name, "png" if name.endswith("png") else "bytes"))
    return made


def _read_image(folder: Path, path: Path) -> None:
    from quadtree_attention.data.images import read_image

    found = read_image(path)
    assert found.dtype == np.uint8
    assert found.ndim == 3


def _read_gray(folder: Path, path: Path) -> None:
    from quadtree_attention.data.photos import read_gray

    assert read_gray(path, 32, upright=False).dtype == np.uint8


def png_of(width: int, height: int, depth: int = 8, kind: int = 2, content: bytes = b"") -> bytes:
    """A PNG that claims a size, with as much content as is given."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        (b"IDAT", content),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HOSTILE_IMAGES = {
    "empty": b"",
    "text": b"hello\n",
    "huge": png_of(2**31 - 1, 2**31 - 1),
    "wide": png_of(178_000_000, 1),
    "no-size": png_of(0, 0),
    "bomb": png_of(20_000, 20_000, 8, 0, zlib.compress(bytes(10**8), 9)),
    "large": png_of(13_000, 13_000, 8, 2, zlib.compress(bytes(10**6), 9)),
    "ppm": b"P6 999999999 999999999 255\n",
    "ppm-negative": b"P6 -1 5 255\n" + bytes(99),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
}


# ---- masks ---------------------------------------------------------------------------------------


def _masks(folder: Path) -> list[tuple[Path, str]]:
    from PIL import Image

    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    Image.fromarray(picture()).save(folder / "images" / "a.png")
    values = np.uint8(picture()[..., 0] // 64)
    image = Image.fromarray(values)
    image.putpalette(list(range(12)))
    image.save(folder / "masks" / "a.png")
    return [(folder / "masks" / "a.png", "png")]


def _read_masks(folder: Path, path: Path) -> None:
    from quadtree_attention.data.recognition.masks import SegmentationFolder

    image, mask = SegmentationFolder(folder / "images", folder / "masks", 4)[0]
    assert image.shape[:2] == mask.shape


# ---- maps of numbers -----------------------------------------------------------------------------


def pfm_of(values: np.ndarray, scale: bytes = b"-1.0", end: bytes = b"\n") -> bytes:
    """A PFM file."""
    height, width = values.shape[:2]
    head = b"Pf" if values.ndim == 2 else b"PF"
    return head + end + b"%d %d" % (width, height) + end + scale + end + np.flipud(values).astype("<f4").tobytes()


def _maps(folder: Path) -> list[tuple[Path, str]]:
    from PIL import Image

    values = picture()[..., 0].astype(np.float32) / 8 + 1
    (folder / "a.pfm").write_bytes(pfm_of(values))
    np.save(folder / "a.npy", values)
    np.savez_compressed(folder / "a.npz", values)
    Image.fromarray(np.uint16(values * 256)).save(folder / "a.png")
    Image.fromarray(values).save(folder / "a.tif")
    forms = {".npy": "npy", ".npz": "zip", ".png": "png"}
    return [(path, forms.get(path.suffix, "bytes")) for path in sorted(folder.iterdir())]


def _pfm(folder: Path) -> list[tuple[Path, str]]:
    (folder / "a.pfm").write_bytes(pfm_of(picture()[..., 0].astype(np.float32)))
    (folder / "c.pfm").write_bytes(pfm_of(picture().astype(np.float32), b"0.00392", b"\r\n"))
    return [(folder / "a.pfm", "bytes"), (folder / "c.pfm", "bytes"), (folder / "a.pfm", "text")]


def _read_map(folder: Path, path: Path) -> None:
    from quadtree_attention.data.maps import read_map

    assert isinstance(read_map(path), np.ndarray)


def _disparity(folder: Path, path: Path) -> None:
    from quadtree_attention.data.matching.pairs import StereoPair

    disparity = StereoPair(name=str(path), image0="", image1="", disparity=path, scale=256.0).read_disparity()
    assert disparity.dtype == np.float32


HOSTILE_PFM = {
    "huge": b"Pf\n999999999 999999999\n-1\n" + bytes(64),
    "negative": b"Pf\n-1 240\n-1\n" + bytes(64),
    "square": b"Pf\n65536 65536\n-1\n" + bytes(64),
    "overflow": b"Pf\n4294967297 4294967297\n-1\n" + bytes(64),
    "digits": b"Pf\n" + b"9" * 10_000 + b" 2\n-1\n",
    "nan": b"Pf\n2 2\nnan\n" + bytes(16),
    "no-scale": b"Pf\n2 2\n0\n" + bytes(16),
    "no-end": b"P" * 100_000,
    "empty": b"",
}


KINDS = [
    Kind("images", _images, _read_image, HOSTILE_IMAGES, cases=150, memory=3 << 30),
    Kind("gray", _images, _read_gray, HOSTILE_IMAGES, cases=60, memory=3 << 30),
    Kind("masks", _masks, _read_masks, HOSTILE_IMAGES, cases=60, memory=3 << 30),
    Kind("pfm", _pfm, _read_map, HOSTILE_PFM, cases=100),
    Kind("maps", _maps, _read_map, cases=100),
    Kind("disparity", _maps, _disparity, cases=60),
]
