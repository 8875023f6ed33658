"""How a command starts and ends: settings in, one exit code out.

Exit codes: 0 done; 1 the work failed, or standard output took no more (closed, disk full: what goes
to files is written first), or a bug (traceback); 2 the user's input was wrong; 75 a signal stopped
the work, and what resuming needs was saved (EX_TEMPFAIL of sysexits.h); 141 the reader of standard
output went away (`| head`). A standard error that takes nothing never ends a command.

What is redirected is UTF-8, whatever the locale; a terminal gets escapes for what it can't show.

No torch here: `--help` pays for this module.
"""

import atexit
import io
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO, TypeVar

from ..config.parse import parse
from ..errors import InputError, Stopped, WorkError

T = TypeVar("T")

# A shell gives 128 + N for a program that signal N ended; these two end quietly by custom.
INTERRUPTED = 130
STDOUT_CLOSED = 141
_GRACE_SECONDS = 1.0


def run(
    main: Callable[[T], int | None],
    config_class: type[T],
    *,
    prog: str = "",
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the settings (see `config.parse.parse`), call `main`, which returns an exit code (None
    is 0), and end the process with the contract's. `prog` begins an error line; empty: the name of
    the script that runs.
    """
    ended = list[int]()
    if arguments is None:  # a process of its own; registered before all others, it runs last
        atexit.register(_leave, ended)
    _prepare_streams()
    _prepare_home()
    script = Path(sys.argv[0])
    ours = script.parent.name == "medclip_oc"
    prog = prog or (f"python -m medclip_oc.{script.stem}" if ours else script.name)
    try:
        code = main(parse(config_class, arguments, prog=prog)) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (InputError, WorkError, Stopped) as error:
        lines = (line.strip() for line in str(error).splitlines())
        _print_error(f"{prog}: {'; '.join(filter(None, lines))}")
        code = error.exit_code
    except Exception as error:
        lost = _lost(sys.stdout, "\n") if isinstance(error, OSError) else None  # or another file is
        if "Too many open files" in str(error):  # torch's error is no OSError
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            _print_error(f"{prog}: the {limit} open files of `ulimit -n` are too few: raise it")
        elif lost is None:
            _print_error(traceback.format_exc().rstrip())
        elif not isinstance(lost, BrokenPipeError):
            _print_error(f"{prog}: standard output can't be written ({lost.strerror})")
        code = STDOUT_CLOSED if isinstance(lost, BrokenPipeError) else 1
    for stream in (sys.stdout, sys.stderr):
        _lost(stream)
    ended.append(code)
    sys.exit(code)


def _leave(ended: list[int]) -> None:
    """End at once: to take apart an interpreter that has torch costs a second."""
    if ended:  # else an exception is on its way out
        for stream in (sys.stdout, sys.stderr):
            _lost(stream)
        os._exit(ended[0])


def _prepare_streams() -> None:
    """Let each standard stream be open, and take any character."""
    # a closed one's number would go to the next file that is opened; writing to it stays an error
    while (null := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            place = os.devnull if name == "stderr" else number  # a lost line ends no work
            setattr(sys, name, open(place, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _print_error(text: str) -> None:
    """Print an error; of torchrun's processes one does, or before torch is imported one a node."""
    speaks = "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"
    if "torch" in sys.modules and "RANK" in os.environ:
        from . import distributed  # needs torch, which --help and a wrong option do without

        speaks = distributed.first_to_report()
    if speaks:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            text += " (what follows is torchrun's)"
        with suppress(OSError):
            sys.stderr.write(text + "\n")  # one write, or two ranks would mix their lines
            sys.stderr.flush()
    else:
        # the launcher ends every process once one has ended: give the one that reports the time
        time.sleep(_GRACE_SECONDS)


def _prepare_home() -> None:
    """Where a bare number in a container has no home, libraries keep their files in one for now."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def _lost(stream: TextIO, more: str = "") -> OSError | None:
    """Why a standard stream doesn't take what waits in it, and `more`; None: it does."""
    try:
        stream.write(more)
        stream.flush()
    except OSError as error:
        # or Python would complain while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None
