import numpy as np
import pytest
from PIL import Image

from quadtree_attention.data.stereo.calibration import StereoCamera
from quadtree_attention.predict.stereo import Stereo
from quadtree_attention.viz.animation import blend_frames, save_animation, turntable_frames, warp_onto


def test_a_shifted_image_is_laid_over_the_first(photo):
    """B is A without its 16 left columns: laid over A it equals it, and the columns that B lacks are transparent."""
    shift = np.array([[1.0, 0, -16], [0, 1, 0], [0, 0, 1]])
    over = warp_onto(photo, photo[:, 16:], shift)
    assert over.shape == (120, 160, 4)
    np.testing.assert_array_equal(over[:, 16:, :3], photo[:, 16:])
    assert over[:, 16:, 3].min() == 255
    assert over[:, :15, 3].max() == 0


def test_blending_goes_from_one_to_the_other(photo):
    other = np.full_like(photo, 200)
    frames = blend_frames(photo, other, np.eye(3), steps=6)
    assert len(frames) == 12
    np.testing.assert_array_equal(frames[0][:120, :160], photo)
    np.testing.assert_array_equal(frames[6][:120, :160], other)
    np.testing.assert_allclose(frames[3][:120, :160], (photo + 200.0) / 2, atol=1)


def plane(depth_left: float, depth_right: float, size=(60, 80), focal=80.0):
    disparity = np.full(size, focal / depth_left, np.float32)
    disparity[:, size[1] // 2 :] = focal / depth_right
    nothing = np.zeros(size, np.float32)
    return Stereo(disparity, nothing, nothing + 1)


def test_a_scene_turns_about_its_middle():
    """Without a turn the frame is the photograph; turned, near things move against far ones."""
    stereo, camera = plane(1.0, 2.0), StereoCamera(80.0, 1.0)
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, :40], image[:, 40:] = (250, 0, 0), (0, 0, 250)
    frames = turntable_frames(stereo, image, camera, steps=4, degrees=10)
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[0][:60, :80], image)
    np.testing.assert_array_equal(frames[2], frames[0])
    red = [(frame[:60, :80] == (250, 0, 0)).all(-1).nonzero()[1].mean() for frame in frames]
    blue = [(frame[:60, :80] == (0, 0, 250)).all(-1).nonzero()[1].mean() for frame in frames]
    assert abs((red[1] - red[3]) - (blue[1] - blue[3])) > 3  # pixels of parallax


def test_files_move(photo, tmp_path):
    for name in ("a.gif", "a.webp"):
        save_animation(blend_frames(photo, photo[::-1], np.eye(3), steps=4), tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.is_animated
            assert image.n_frames >= 5  # equal neighbours may be one
            assert image.info.get("loop") == 0


def test_mistakes(photo):
    with pytest.raises(ValueError, match="steps is 1"):
        blend_frames(photo, photo, np.eye(3), steps=1)
    hidden = Stereo(*(np.ones((40, 40), np.float32) for _ in range(3)))
    with pytest.raises(ValueError, match="no point in both views"):
        turntable_frames(hidden, photo[:40, :40])
