"""Private names of other libraries that this package uses. A release may drop any of them; tests/test_compat.py then says which.

Import a name in `PRIVATE` from here; only then is its library loaded. `OVERRIDDEN` lists the attributes that our classes override in theirs, or read
from their objects. Use a public name wherever there is one, and add no name without a line that says why.
"""

from __future__ import annotations

import ctypes
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PRIVATE = {  # our name: where it is
    # Under torch.func and other transforms, the reference must run instead of the kernels. No public function tells.
    "peek_interpreter_stack": "torch._C:_functorch.peek_interpreter_stack",
    "is_legacy_batchedtensor": "torch._C:_functorch.is_legacy_batchedtensor",
    "len_torch_dispatch_stack": "torch._C:_len_torch_dispatch_stack",
    # Which instructions torch's convolutions have on this processor. torch.cpu.get_capabilities is public, and newer than torch 2.9.
    "is_avx512_bf16_supported": "torch.cpu:_is_avx512_bf16_supported",
    "is_amx_tile_supported": "torch.cpu:_is_amx_tile_supported",
    # The functions in checkpoints of torch.save that rebuild a tensor; the safe reader lets a pickle call only these two.
    "rebuild_tensor": "torch._utils:_rebuild_tensor_v2",
    "rebuild_parameter": "torch._utils:_rebuild_parameter",
    # The unpickler in Python. The one in C allocates as much memory as a damaged or hostile pickle asks for.
    "PythonUnpickler": "pickle:_Unpickler",
    # The function by which timm's own models handle num_classes, pretrained weights and overlays of their configuration.
    "resolve_pretrained_cfg": "timm.models._builder:resolve_pretrained_cfg",
    # torchvision's box coder; its detectors accept no other class.
    "BoxCoder": "torchvision.models.detection._utils:BoxCoder",
    # Numba's cache on disk, extended to notice changed and damaged files. It has no public interface for that.
    "FunctionCache": "numba.core.caching:FunctionCache",
    "CompileResultCacheImpl": "numba.core.caching:CompileResultCacheImpl",
    "numba_dumps": "numba.core.serialize:dumps",
}
OVERRIDDEN = (
    "numba.core.caching:FunctionCache._impl_class",  # a cache whose machine code has a digest
    "numba.core.caching:FunctionCache._index_key",  # all files that a kernel depends on, not only its own
    "numba.core.dispatcher:Dispatcher.enable_caching",  # sets `_cache`, as ops.cpu_cache does with a cache of ours
    "lightning.pytorch.cli:LightningCLI._parse_ckpt_path",  # it would capture the arguments of any task
)


def __getattr__(name: str) -> Any:
    if name not in PRIVATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return pkgutil.resolve_name(PRIVATE[name])
    except AttributeError:
        library = PRIVATE[name].partition(":")[0].partition(".")[0]
        raise ImportError(f"{PRIVATE[name]} is gone in this version of {library}; install an older one") from None


def forward_derivatives() -> bool:
    """Whether forward-mode derivatives are being computed. torch.autograd.forward_ad has no public way to ask."""
    from torch.autograd import forward_ad

    return forward_ad._current_level >= 0


def storage_key(storage: Any) -> int:
    """A number that identifies a storage of torch; meta tensors have one too, but no address."""
    return storage._cdata


def stereo_files(pairs: Any) -> tuple[list[Any], list[Any]]:
    """The files of images and disparities in a torchvision data set. Indexing the set would read them all, with its own readers."""
    return pairs._images, pairs._disparities


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions that multiply bfloat16; without them it is many times slower than float32."""
    return any(bool(__getattr__(name)()) for name in ("is_avx512_bf16_supported", "is_amx_tile_supported"))


@cache
def gomp_parallel(work: type) -> Callable | None:
    """GOMP_parallel of the OpenMP library that torch has loaded, for functions of the ctypes type ``work``: to run kernels on torch's own threads.

    None if there is none (macOS, Windows, other builds of torch): it belongs to the compiler's interface, not to a public API.
    """
    import torch

    maps = Path("/proc/self/maps")
    if not torch.backends.openmp.is_available() or not maps.exists():
        return None
    home = str(Path(torch.__file__).parent)  # in wheels it is in torch/lib or torch.libs
    for path in {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "libgomp" in line}:
        if path.startswith(home):
            start = ctypes.CDLL(path).GOMP_parallel
            start.argtypes = [work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            start.restype = None
            return start
    return None
