import numpy as np
import pytest
import torch

from quadtree_attention.models.loftr.position import sine_encoding

ROUNDING = 2.0**-24  # relative error of a float32 that was rounded once; of a number up to 1, also the absolute one


def frequencies(dim, bug):
    """By their definition, in NumPy's float64."""
    i = np.arange(dim // 4)
    return np.exp(-2.0 * i) if bug else 10000.0 ** (-2 * i / (dim // 2))


@pytest.mark.parametrize("dim", [32, 256])
@pytest.mark.parametrize("bug", [False, True])
def test_numbers_are_those_of_the_definition_rounded_once(dim, bug):
    encoding = sine_encoding(97, 256, dim, bug=bug).double().numpy()
    x, y = (np.arange(1, size + 1)[:, None] * frequencies(dim, bug) for size in (256, 97))
    wanted = np.broadcast_arrays(np.sin(x), np.cos(x), np.sin(y)[:, None], np.cos(y)[:, None])
    # One rounding of a number up to 1 is half an ulp, 2^-25. float64's own errors, a few 2^-53 of an angle up to 256, are far below 1e-12.
    np.testing.assert_allclose(
        encoding, np.stack(wanted, -1).reshape(encoding.shape), rtol=0, atol=ROUNDING / 2 + 1e-12
    )


@pytest.mark.parametrize("dim", [32, 256])
@pytest.mark.parametrize("bug", [False, True])
def test_published_encoding(golden, dim, bug):
    """The original's numbers are float32 arithmetic of one machine; they may be off by as much as that arithmetic allows, and no more.

    The exponent a = log f has the roundings of the step and of the product, hence an absolute error of 2 |a| u, u = 2^-24; exp adds an ulp
    (2 u) and the product with the position a rounding. So the angle f p is off by f p (2 |a| + 3) u; sine and cosine add an ulp of theirs (u
    for a number up to 1), and the rounding of ours is below another u.
    """
    file = golden("pos_enc")
    name = f"pe.d{dim}.fix{int(not bug)}"
    frequency = torch.from_numpy(frequencies(dim, bug))
    y, x = torch.meshgrid(torch.arange(1, 257), torch.arange(1, 257), indexing="ij")
    place = torch.stack([x, x, y, y], -1)[..., None, :]  # [256, 256, 1, 4]
    allowed = ROUNDING * (place * (frequency * (3 - 2 * frequency.log()))[:, None] + 2)  # [256, 256, dim / 4, 4]
    encoding = sine_encoding(256, 256, dim, bug=bug)
    for part, rows, columns, channels in (
        ("first12x14", slice(0, 12, 1 if dim == 32 else 3), slice(0, 14, 1 if dim == 32 else 3), 1 if dim == 32 else 4),
        ("strided", slice(3, None, 50), slice(7, None, 60), 1 if dim == 32 else 8),
    ):
        got, bound = (array[rows, columns, ::channels] for array in (encoding, allowed.flatten(2)))
        error = (got.double() - file[f"{name}.{part}"][0].permute(1, 2, 0)).abs()
        assert (error <= bound).all(), f"{part}: {(error / bound).max()} times what is allowed"


def test_size_is_free_and_a_crop_of_a_larger_one():
    assert torch.equal(sine_encoding(3, 5, 8), sine_encoding(300, 400, 8)[:3, :5])


def test_channels_come_in_fours():
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_encoding(2, 2, 6)
