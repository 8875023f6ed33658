"""Training processes that start in a moment: this process imports everything, then forks.

A test that kills a run many times would wait for imports otherwise. Each line on stdin is a JSON
list: [words of the command line, number of ranks, port, folder for stderr]. Each answer is a line:
first the process ids, then, once all have ended, their exit codes (-9: killed).
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch

from medclip_oc import train
from medclip_oc.config.schema import TrainCommand
from medclip_oc.runtime import command
from medclip_oc.training import trainer as _imported_before_forking  # noqa: F401


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        words, ranks, port, folder = json.loads(line)
        pids = [start(words, rank, ranks, port, Path(folder)) for rank in range(ranks)]
        print(json.dumps(pids), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def start(words: list[str], rank: int, ranks: int, port: int, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        run(words, rank, ranks, port, folder)
    return pid


def run(words: list[str], rank: int, ranks: int, port: int, folder: Path) -> NoReturn:
    code = 99
    try:
        with (folder / f"rank{rank}.txt").open("w", buffering=1) as log:
            os.dup2(log.fileno(), 2)
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command.run(train.main, TrainCommand, prog="train", description="", arguments=words)
    except SystemExit as end:
        code = int(str(end.code))
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
