"""Dies at every point of a packing where something reaches the disk, and resumes each time.

    python tests/support/crash_points.py SOURCE FOLDER EVERY

A process that packs SOURCE is ended, without a chance to tidy up, at its k-th call that makes
something durable, for every EVERY-th k there is; another one then packs into the same folder.
Prints for each k whether the files are those of an undisturbed packing. Run by test_pack_kills.py:
a process of its own, for it forks.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack

OPTIONS = PackOptions(samples_per_shard=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def die_at(call: int) -> None:
    """End this process at the call of that number, of those that make something durable."""
    made = 0

    def counted(real):  # type: ignore[no-untyped-def]
        def wrapper(*words, **named):  # type: ignore[no-untyped-def]
            nonlocal made
            made += 1
            if made == call:
                os._exit(9)
            return real(*words, **named)

        return wrapper

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]


def main(source: Path, folder: Path, every: int) -> None:
    undisturbed = folder / "undisturbed"
    pack(open_source(source), undisturbed, OPTIONS)
    expected = contents(undisturbed)
    call, died = 1 - every, True
    while died:
        call += every
        out = folder / str(call)
        child = os.fork()
        if child == 0:
            die_at(call)
            pack(open_source(source), out, OPTIONS)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        report = pack(open_source(source), out, OPTIONS)
        same = contents(out) == expected
        print(call, "died" if died else "lived", report.before, "same" if same else "other")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
