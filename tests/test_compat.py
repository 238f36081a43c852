"""Each test fails when a library has dropped a private name that we use, or has changed what it does."""

import ctypes
import inspect
import io
import pickle
import pickletools
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from quadtree_attention import compat


@pytest.mark.parametrize("place", [*compat.PRIVATE.values(), *compat.OVERRIDDEN])
def test_names_are_still_there(place):
    library = place.partition(":")[0].partition(".")[0]
    try:
        pkgutil.resolve_name(place)
    except (ImportError, AttributeError):
        pytest.fail(f"{place} is gone in this version of {library}; find what took its place and mend compat.py")


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compat.nothing


def test_a_name_that_is_gone_is_named(monkeypatch):
    monkeypatch.setitem(compat.PRIVATE, "BoxCoder", "pickle:_Nothing")
    with pytest.raises(ImportError, match="pickle:_Nothing is gone in this version of pickle; install an older one"):
        from quadtree_attention.compat import BoxCoder  # noqa: F401


def test_importing_it_loads_no_library():
    code = (
        "import sys; before = set(sys.modules); import quadtree_attention.compat; print(*sys.modules.keys() - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "numpy", "timm", "numba", "torchvision", "lightning"}
    assert not {name.partition(".")[0] for name in found} & heavy


def test_torch_tells_of_transforms():
    seen = []

    def look(x):
        seen.append(compat.peek_interpreter_stack() is not None)
        return x.sum()

    assert compat.peek_interpreter_stack() is None
    torch.func.grad(look)(torch.ones(2))
    assert seen == [True]


def test_torch_tells_of_batched_gradients():
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(compat.is_legacy_batchedtensor(gradient))
            return gradient

    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Look.apply(x), x, torch.eye(2), is_grads_batched=True)
    torch.autograd.grad(Look.apply(x), x, torch.ones(2))
    assert seen == [True, False]


def test_torch_tells_of_dispatch_modes():
    from torch.utils._python_dispatch import TorchDispatchMode

    before = compat.len_torch_dispatch_stack()
    with TorchDispatchMode():
        assert compat.len_torch_dispatch_stack() == before + 1


def test_torch_tells_of_forward_derivatives():
    assert not compat.forward_derivatives()
    with forward_ad.dual_level():
        assert compat.forward_derivatives()


def test_torch_saves_tensors_by_these_functions(tmp_path):
    torch.save([torch.ones(2), torch.nn.Parameter(torch.ones(2))], tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        (content,) = (archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    called = {argument for operation, argument, _ in pickletools.genops(content) if operation.name == "GLOBAL"}
    for function in (compat.rebuild_tensor, compat.rebuild_parameter):
        assert f"{function.__module__} {function.__name__}" in called


def test_torch_tells_storages_apart():
    one, other = torch.ones(4, device="meta"), torch.ones(4, device="meta")
    keys = [compat.storage_key(tensor.untyped_storage()) for tensor in (one, one[2:], other)]
    assert keys[0] == keys[1] != keys[2]


def test_the_unpickler_in_python_reads_what_pickle_writes():
    assert compat.PythonUnpickler(io.BytesIO(pickle.dumps({"a": (1, 2.5, None)}))).load() == {"a": (1, 2.5, None)}
    assert inspect.isfunction(compat.PythonUnpickler.load)  # in Python, not in C


def test_timm_resolves_configurations():
    cfg = compat.resolve_pretrained_cfg("resnet18", None, {"num_classes": 7})
    assert (cfg.architecture, cfg.num_classes) == ("resnet18", 7)


def test_torchvision_codes_boxes():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    coder = compat.BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(coder.decode_single(coder.encode_single(boxes, boxes + 5), boxes + 5), boxes)


def test_torchvision_lists_files_of_stereo_pairs(tmp_path):
    from torchvision.datasets import Kitti2012Stereo

    folder = tmp_path / "Kitti2012" / "training"
    for name in ("colored_0", "colored_1", "disp_noc"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1_10.png").touch()
    images, disparities = compat.stereo_files(Kitti2012Stereo(str(tmp_path)))
    assert [str(path) for path in images[0]] == [str(folder / f"colored_{n}" / "1_10.png") for n in (0, 1)]
    assert str(disparities[0][0]) == str(folder / "disp_noc" / "1_10.png")


def test_numba_keeps_the_cache_of_a_kernel_where_we_set_it():
    numba = pytest.importorskip("numba")
    kernel = numba.njit(lambda x: x + 1)
    assert hasattr(kernel, "_cache")


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
def test_torch_brings_gnu_openmp():
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    start = compat.gomp_parallel(work)
    if start is None:
        pytest.skip("this build of torch has no GNU OpenMP of its own; kernels run on a pool of ours")
    ran = []
    start(work(lambda _: ran.append(1)), None, 2, 0)
    assert ran == [1, 1]


def test_bfloat16_is_multiplied_where_the_processor_says_so():
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("the processor's instructions are listed by Linux alone")
    flags = set(info.read_text().partition("flags")[2].partition("\n")[0].split())
    compat.multiplies_bfloat16.cache_clear()
    assert compat.multiplies_bfloat16() == bool(flags & {"avx512_bf16", "amx_tile"})
