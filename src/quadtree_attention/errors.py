"""What is not a bug of ours: what the caller got wrong, and a package that is missing.

The command turns these, and errors about files, into one line and exit status 2. Any other exception ends in a traceback, because it is a bug.
"""


class InputError(ValueError):
    """An input or option that cannot be used. The message is one line: what was wrong, what was expected, and what to do."""


class MissingPackageError(ImportError):
    """An optional package is not installed. The message is one line that says how to install it."""
