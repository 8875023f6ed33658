"""The errors that a command shows as one line. Anything else is a bug, with a traceback."""

from typing import Literal


class InputError(ValueError):
    """What the user gave is wrong: says what, where (file, key, row), what is allowed."""

    exit_code = 2


class WorkError(RuntimeError):
    """The work failed, or a check did not hold, for a cause that can be named."""

    exit_code = 1


class Stopped(RuntimeError):
    """A signal asked the work to stop, and what resuming needs was saved."""

    exit_code = 75


class DamagedCheckpoint(InputError):
    """A checkpoint file that is cut, changed, or none at all."""


class ShardChanged(WorkError):
    """A shard went away, or changed, while it was in use."""


BadImageReason = Literal[
    "empty", "no picture", "undecodable", "truncated", "blank", "over max pixels", "unusable volume"
]


class BadImage(InputError):
    """An image that can't be used: a `reason`, as it stands in rejects.csv, and what was found."""

    def __init__(self, reason: BadImageReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})"
