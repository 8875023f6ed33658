"""How a command starts and ends: settings in, one exit code out.

Exit codes: 0 done; 1 the work failed, or a bug (traceback); 2 the user's input was wrong; 75 a
signal stopped the work, and what resuming needs was saved (EX_TEMPFAIL of sysexits.h).

No torch here: `--help` pays for this module.
"""

import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

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
    """Parse the settings, call `main`, and end the process with the contract's exit code.

    Args:
        main: does everything; takes the settings, returns an exit code or None for 0.
        config_class: dataclass of settings (see `config.parse.parse`).
        prog: name of the command, which begins an error line; empty: that of the script that runs.
        arguments: words of the command line; None: those of this process.
    """
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
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            sys.exit(STDOUT_CLOSED)
        _print_error(traceback.format_exc().rstrip())
        code = 1
    sys.exit(code)


def _print_error(text: str) -> None:
    """Print an error; of torchrun's processes one does, or before torch is imported one a node."""
    if "torch" in sys.modules and "RANK" in os.environ:
        from . import distributed  # needs torch, which --help and a wrong option do without

        speaks = distributed.first_to_report()
    else:
        speaks = "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"
    if speaks:
        sys.stderr.write(text + "\n")  # one write, or two ranks would mix their lines
        sys.stderr.flush()
    else:
        # the launcher ends every process once one has ended: give the one that reports the time
        time.sleep(_GRACE_SECONDS)


def _stdout_is_closed() -> bool:
    """Whether the reader of our standard output is gone (`... | head`), not some other pipe's."""
    out, poll = sys.stdout.fileno(), select.poll()
    poll.register(out, 0)  # errors and hang-ups are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)  # or Python would complain while it exits
    return True
