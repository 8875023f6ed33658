"""The two errors that a command shows as one line. Anything else is a bug, with a traceback."""


class InputError(ValueError):
    """What the user gave is wrong: says what, where (file, key, row), what is allowed. Exit 2."""


class WorkError(RuntimeError):
    """The work failed, or a check did not hold, for a cause that can be named. Exit 1."""
