"""Errors that are not bugs of this package: bad input, and missing packages.

The command turns these, and errors about files, into one line and exit status 2. Any other exception is a bug, and ends in a traceback.
"""

import errno
from collections.abc import Mapping


class InputError(ValueError):
    """An input or option that cannot be used. The message is one line: what was wrong, what was expected, and what to do."""


class MissingPackageError(ImportError):
    """An optional package is not installed. The message is one line that says how to install it."""


class InputWarning(UserWarning):
    """An input that was changed or only partly used. The message is one line: what is odd, and what was done. The command shows it as a note."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the machine or its GPU has too little memory."""
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # Python's, numpy's, Pillow's; torch's of a GPU
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # Messages of torch's CPU allocator, CUDA, Apple's Metal, cuBLAS and OpenCV.
    said = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "Insufficient memory")
    kinds = ("RuntimeError", "AcceleratorError", "error")
    return type(error).__name__ in kinds and any(words in str(error) for words in said)


def check_range(name: str, value: float, least: float, most: float | None = None, *, above: bool = False) -> None:
    """Check that a number lies between two others, both included; with ``above``, the first is excluded.

    Raises:
        InputError: it does not.
    """
    if not (value > least if above else value >= least) or (most is not None and value > most):
        limit = f"{'above' if above else 'at least'} {least:g}" + (f" and at most {most:g}" if most is not None else "")
        raise InputError(f"{name} is {value}, expected {limit}")


def check_fields(options: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Make sure that fields of a dataclass lie in their ranges, both ends included. A field of two numbers is (least, most) itself, in this order.

    Raises:
        InputError: one does not.
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            check_range(name, number, least, most)
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            raise InputError(f"{name} is {tuple(numbers)}, expected the smaller number first")
