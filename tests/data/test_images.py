import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from quadtree_attention.data.decoding import MAX_PIXELS
from quadtree_attention.data.images import fitted_size, read_image, resize_longest, stored_pixels, to_gray
from quadtree_attention.errors import InputError, InputWarning


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_file_pil_numpy_torch_give_the_same(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb), "a.png")
    channels_first = torch.from_numpy(rgb).permute(2, 0, 1)
    sources = [
        path,
        str(path),
        Image.fromarray(rgb),
        rgb,
        rgb / 255,
        np.float32(rgb / 255),
        rgb.astype(np.uint16) * 257,
    ]
    sources += [channels_first, channels_first / 255, (channels_first / 255).double(), rgb[::-1][::-1]]
    for source in sources:
        out = read_image(source)
        assert out.dtype == np.uint8
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, rgb)


def test_grey_and_one_channel_are_repeated(rgb):
    grey = rgb[..., 0]
    want = np.repeat(grey[..., None], 3, -1)
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], Image.fromarray(grey)):
        np.testing.assert_array_equal(read_image(source), want)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits(tmp_path, suffix):
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(deep), f"deep{suffix}")
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 1, 128, 255])


def test_sixteen_bits_of_either_byte_order_and_32_bit_modes():
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    big = Image.frombytes("I;16B", (4, 1), deep.astype(">u2").tobytes())
    for image in (big, Image.fromarray(deep.astype(np.int32)), Image.fromarray(np.float32(deep / 65535))):
        np.testing.assert_array_equal(read_image(image)[0, :, 1], [0, 1, 128, 255])


@pytest.mark.parametrize(("mode", "black"), [("RGBA", (0, 0, 0)), ("LA", (0,)), ("PA", (0,))])
def test_transparency_is_laid_over_white(mode, black):
    image = Image.new(mode, (2, 1), (*black, 255))
    image.putpixel((1, 0), (*black, 0))
    assert read_image(image)[0, :, 0].tolist() == [0, 255]


def test_transparency_of_arrays_and_of_one_colour(tmp_path):
    rgba = np.array([[[0, 100, 200, 255], [0, 100, 200, 0], [0, 100, 200, 128]]], np.uint8)
    want = [[[0, 100, 200], [255, 255, 255], [127, 177, 227]]]
    np.testing.assert_array_equal(read_image(rgba), want)
    np.testing.assert_array_equal(read_image(Image.fromarray(rgba)), want)
    np.testing.assert_array_equal(read_image(torch.from_numpy(rgba).permute(2, 0, 1)), want)
    path = saved(
        tmp_path, Image.fromarray(np.array([[[9, 9, 9], [7, 7, 7]]], np.uint8)), "t.png", transparency=(9, 9, 9)
    )
    assert read_image(path)[0, :, 0].tolist() == [255, 7]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "La"])
def test_other_modes(mode):
    white = Image.new("RGB", (3, 2), "white")
    image = {"RGBa": white.convert("RGBA"), "La": white.convert("LA")}.get(mode, white).convert(mode)
    assert read_image(image).min() >= 254


def test_cmyk_jpeg(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK"), "c.jpg")
    assert np.abs(read_image(path)[8, 8].astype(int) - (200, 40, 40)).max() < 8


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_rotation_is_applied(tmp_path, suffix):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees against the clock
    path = saved(tmp_path, Image.fromarray(np.rot90(upright).copy()), f"r{suffix}", exif=exif)
    out = read_image(path)
    assert out.shape == upright.shape
    assert np.abs(out.astype(int) - upright).max() < 40
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image), out)


def test_damaged_exif_is_left_alone(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb), "e.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(read_image(path), rgb)


def test_first_frame_of_gif(tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def test_bad_files(tmp_path, rgb):
    jpeg = io.BytesIO()
    Image.fromarray(np.kron(rgb, np.ones((20, 20, 1), np.uint8))).save(jpeg, "JPEG")
    png = saved(tmp_path, Image.fromarray(np.kron(rgb, np.ones((20, 20, 1), np.uint8))), "whole.png").read_bytes()
    files = {
        "empty.jpg": b"",
        "text.png": b"this is no image",
        "cut.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "cut.png": png[: len(png) // 2],
        "head.png": png[:20],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in (*files, "missing.png", ""):
        with pytest.raises((ValueError, OSError)) as caught:
            read_image(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / name))
        assert "\n" not in message
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


def test_decompression_bomb(tmp_path):
    side = 20_000
    assert side * side > MAX_PIXELS
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    stream.seek(0, io.SEEK_END)
    PngImagePlugin.putchunk(stream, b"IHDR", head)
    PngImagePlugin.putchunk(stream, b"IDAT", b"")
    (tmp_path / "bomb.png").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="pixels; make it smaller first"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels"),
        (np.zeros((3, 4, 4, 3), np.uint8), "expected \\[H, W\\]"),
        (np.zeros(4, np.uint8), "expected \\[H, W\\]"),
        (np.zeros((4, 4), np.int64), "dtype int64"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf), "NaN or infinite"),
        (np.full((4, 4), 255.0), "from 255 to 255, expected 0..1"),
        (np.full((4, 4), -0.5), "expected 0..1"),
        (torch.zeros(5, 4, 3), "\\[C, H, W\\] with 1, 3 or 4"),
        (torch.zeros(1, 3, 4, 4), "one image at a time"),
        (torch.full((3, 4, 4), float("nan")), "NaN"),
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "expected 0..65535"),
        (None, "NoneType, expected a path"),
        ([[0, 1]], "list, expected a path"),
    ],
)
def test_bad_arrays(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


def test_gray_is_luma():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    gray = to_gray(image)
    assert gray.dtype == np.float32
    np.testing.assert_allclose(gray[0], [0.299, 0.587, 0.114, 1], atol=1e-6)


def test_resize_shrinks_only_and_tells_its_scale():
    image = np.zeros((101, 203, 3), np.uint8)
    assert resize_longest(image, 203)[0] is image
    small, (x, y) = resize_longest(image, 100)
    assert small.shape == (50, 100, 3)
    assert (x, y) == (100 / 203, 50 / 101)


def test_resize_averages():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    small, _ = resize_longest(stripes, 50)
    assert np.abs(small[10:-10, 10:-10].astype(int) - 127.5).max() < 8


@pytest.mark.parametrize(
    ("size", "max_size"), [((1, 1), 640), ((1000, 20), 640), ((3000, 100), 640), ((100, 100), 31), ((100, 100), -1)]
)
def test_too_small(size, max_size):
    with pytest.raises(ValueError, match="at least 32"):
        fitted_size(size, max_size)


ORIENTED = np.arange(3 * 5 * 40, dtype=np.uint32).reshape(3, 200) % 251  # no two ways of turning give the same


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("plain.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_rotations_of_all_formats_are_applied_only_if_asked_for(tmp_path, orientation, name, options, channels):
    stored = (
        np.uint8(ORIENTED)[..., None]
        if channels == 1
        else np.uint8(np.stack([ORIENTED, ORIENTED + 1, ORIENTED + 2], -1))
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(stored.squeeze(-1) if channels == 1 else stored), name, exif=exif, **options)
    stored = np.broadcast_to(stored, (*stored.shape[:2], 3))
    # TIFF 6.0, page 36: where row 0 and column 0 are as one sees it
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), upright)
    np.testing.assert_array_equal(read_image(path, upright=False), stored)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image), upright)
    # and a point of it is found again
    y, x = 1, 2
    there = stored_pixels(path, np.array([[x, y]]), upright.shape[:2])[0].astype(int)
    np.testing.assert_array_equal(stored[there[1], there[0]], upright[y, x])


def test_deep_images_that_fill_little_of_their_range_are_stretched_and_say_so(tmp_path):
    levels = np.linspace(0, 1, 4096).reshape(64, 64)
    for name, low, high in (("12-bit.png", 0, 4095), ("thermal.tif", 7000, 8500), ("bright.png", 60_000, 65_535)):
        path = saved(tmp_path, Image.fromarray(np.uint16(low + (high - low) * levels)), name)
        with pytest.warns(InputWarning, match=rf"{name}: values from [0-9.]+ to [0-9.]+ fill little of 0..65535"):
            out = read_image(path)[..., 0]
        assert np.abs(out - 255 * levels).max() < 2
        assert len(np.unique(out)) == 256
    with pytest.warns(InputWarning, match=r"numpy image: values from 0\.400\d* to 0\.499\d* fill little of 0..1"):
        assert np.ptp(read_image(0.4 + 0.1 * levels)) == 255


def test_deep_images_that_are_even_or_fill_their_range_are_left_alone():
    assert set(np.unique(read_image(np.full((40, 40), 514, np.uint16)))) == {2}
    assert read_image(np.full((40, 40), 0.2)).max() == 51
    ramp = np.linspace(0, 20_000, 1600).reshape(40, 40)
    np.testing.assert_array_equal(read_image(np.uint16(ramp))[..., 0], np.rint(np.uint16(ramp) / 257.0))
    # one hot pixel makes no range
    hot = np.full((100, 100), 1000, np.uint16)
    hot[50:] = 2000
    hot[0, 0] = 65_535
    with pytest.warns(InputWarning, match="from 1000 to 2000"):
        assert read_image(hot)[[20, 80], 0, 0].tolist() == [0, 255]


@pytest.mark.parametrize(("suffix", "orientation"), [(".png", 1), (".tif", 1), (".png", 6)])
def test_deep_colours_keep_their_lower_bits(tmp_path, suffix, orientation):
    levels = np.stack([np.linspace(0, 4095, 4800).reshape(60, 80)] * 3, -1)
    levels[..., 2] /= 2
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), np.uint16(levels)[..., ::-1])
    if orientation == 6:
        content = path.read_bytes()
        body = b"eXIf" + Image.Exif.tobytes(_exif(6))[6:]
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        path.write_bytes(content[:33] + chunk + content[33:])
        levels = np.rot90(levels, -1)
    with pytest.warns(InputWarning, match="fill little"):
        out = read_image(path)
    assert out.shape == levels.shape
    assert np.abs(out - levels * (255 / 4095)).max() < 2


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_nothing_of_libtiff_reaches_stderr(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "a.tif", compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200  # libtiff: "Using code not yet in table"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif"):
        read_image(path)
    assert capfd.readouterr() == ("", "")
