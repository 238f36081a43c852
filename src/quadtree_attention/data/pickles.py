"""Reads untrusted pickles of arrays, such as MegaDepth's indexes: none of their code runs, and none of their bytes become pointers."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, ClassVar

import numpy as np

# Opcodes by what follows them: bytes of an argument; bytes of a length and so many more; lines.
_FIXED = {b"K": 1, b"M": 2, b"J": 4, b"G": 8, b"h": 1, b"q": 1, b"j": 4, b"r": 4, b"\x80": 1}
_FIXED |= {b"\x82": 1, b"\x83": 2, b"\x84": 4, b"\x95": 8}
_COUNTED = {
    b"U": 1,
    b"C": 1,
    b"\x8c": 1,
    b"\x8a": 1,
    b"T": 4,
    b"B": 4,
    b"X": 4,
    b"\x8b": 4,
    b"\x8d": 8,
    b"\x8e": 8,
    b"\x96": 8,
}
_LINES = {**dict.fromkeys((b"I", b"L", b"F", b"S", b"V", b"P", b"g", b"p"), 1), b"c": 2, b"i": 2}
_ARGUMENTS = {
    code[0]: (way, count)
    for way, table in (("fixed", _FIXED), ("counted", _COUNTED), ("lines", _LINES))
    for code, count in table.items()
}
_STOP, _LONG_PUT, _PUT, _FRAME = b"."[0], b"r"[0], b"p"[0], 0x95


# What reading a damaged pickle raises. Nothing but that runs where these are caught.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


def unpickle(data: bytes) -> Any:
    """What a pickle holds, of arrays, numbers, strings and containers of them; raises `PICKLE_ERRORS`."""
    _check_sizes(data)
    return _ArraysOnly(io.BytesIO(data)).load()


def _check_sizes(data: bytes) -> None:
    """Python's reader makes room for as much as a pickle says that it has; UnpicklingError if that is more than the file."""
    place, end = 0, len(data)
    while place < end:
        code = data[place]
        place += 1
        if code == _STOP:
            return
        if code not in _ARGUMENTS:
            continue
        way, count = _ARGUMENTS[code]
        size, begin = 0, place
        if way == "lines":
            for _ in range(count):
                place = data.find(b"\n", place) + 1
                if not place:
                    raise pickle.UnpicklingError("it is cut off")
            if code == _PUT:
                size = int(data[begin : place - 1])
        else:
            place += count
            if way == "counted" or code in (_LONG_PUT, _FRAME):
                size = int.from_bytes(data[begin:place], "little")
            if way == "counted":
                place += size
        if place > end or not 0 <= size <= end:
            raise pickle.UnpicklingError("it is cut off, or says that it has more than it has")


class _ArraysOnly(pickle.Unpickler):
    """Knows arrays, their types, numbers of numpy, and bytes as older pickles spell them; and nothing that could run code."""

    _multiarray: ClassVar = ("numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._multiarray and name == "_reconstruct":
            return _empty
        if module in self._multiarray and name == "scalar":
            return _scalar
        if module == "numpy" and name in ("ndarray", "dtype"):
            return {"ndarray": _Array, "dtype": _Type}[name]
        if (module, name) == ("_codecs", "encode"):
            return _encoded
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


class _Type:
    """A dtype of a pickle: its name and order of bytes. Numpy believes the rest of its state, even where bytes are to be taken for pointers."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not re.fullmatch(
            r"[<>|=]?([biufc][0-9]{1,2}|[SU][0-9]{0,6}|O8?|\?)", text, re.ASCII
        ):
            raise pickle.UnpicklingError(f"it has a type {name!r:.40}, expected numbers, strings or objects")
        self.type = np.dtype(object) if "O" in text else np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has a type with byte order {order!r:.40}")
        if order in "<>":
            self.type = self.type.newbyteorder(order)  # type: ignore[arg-type]


class _Array(np.ndarray):
    """An array of a pickle, whose state is checked before numpy sees it."""

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        _, shape, kind, by_columns, content = state
        if isinstance(kind, _Type):
            kind = kind.type
        good = isinstance(kind, np.dtype) and isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not good or len(shape) > 32 or not isinstance(content, list if kind.hasobject else bytes):
            raise pickle.UnpicklingError("it has an array of another form")
        count = 1
        for n in shape:
            count *= n
        if len(content) != count * (1 if kind.hasobject else kind.itemsize):
            raise pickle.UnpicklingError(f"it has {len(content)} bytes or entries for an array {shape!r:.60} of {kind}")
        super().__setstate__((1, shape, kind, bool(by_columns), content))  # type: ignore[misc,arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)  # pickled again, it is any other array


def _empty(*_: Any) -> _Array:
    return np.empty(0).view(_Array)


def _scalar(kind: Any, content: Any = None) -> Any:
    if (
        not isinstance(kind, _Type)
        or kind.type.hasobject
        or not isinstance(content, bytes)
        or len(content) != kind.type.itemsize
        or not content
    ):
        raise pickle.UnpicklingError("it has a number of another form")
    return np.frombuffer(content, kind.type)[0]


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it has bytes of another form")
    return text.encode("latin1")
