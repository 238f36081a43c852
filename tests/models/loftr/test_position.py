import pytest
import torch

from quadtree_attention.models.loftr.position import sine_encoding


@pytest.mark.parametrize("dim", [32, 256])
@pytest.mark.parametrize("bug", [False, True])
def test_published_encoding(golden, dim, bug):
    file = golden("pos_enc")
    name = f"pe.d{dim}.fix{int(not bug)}"
    encoding = sine_encoding(256, 256, dim, bug=bug).permute(2, 0, 1)[None]
    first = encoding[:, :, :12, :14] if dim == 32 else encoding[:, ::4, :12:3, :14:3]
    strided = encoding if dim == 32 else encoding[:, ::8]
    torch.testing.assert_close(first, file[f"{name}.first12x14"], rtol=0, atol=1e-6)
    torch.testing.assert_close(strided[..., 3::50, 7::60], file[f"{name}.strided"], rtol=0, atol=1e-6)


def test_size_is_free_and_a_crop_of_a_larger_one():
    assert torch.equal(sine_encoding(3, 5, 8), sine_encoding(300, 400, 8)[:3, :5])


def test_channels_come_in_fours():
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_encoding(2, 2, 6)
