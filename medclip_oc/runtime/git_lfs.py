"""Files that Git LFS hasn't fetched: a pointer, a few lines of text, lies in their place."""

from contextlib import suppress
from pathlib import Path


def pointer(path: Path) -> str:
    """What to say of a file in whose place a pointer lies; "" of any other one."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return "a Git LFS pointer in place of the file; `git lfs pull` fetches it"
    return ""
