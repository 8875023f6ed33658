"""Work spread over processes: in order, and never far ahead of who takes the results."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from medclip_oc.errors import WorkError
from medclip_oc.runtime import workers as parallel


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> int:
    warnings.warn("odd metadata", stacklevel=1)
    os._exit(number)


@pytest.mark.parametrize(("workers", "threads"), [(1, False), (2, False), (2, True)])
def test_results_come_in_order_and_items_only_as_they_are_taken(
    workers: int, threads: bool
) -> None:
    """What keeps memory flat."""
    fetched = 0

    def items() -> Iterator[int]:
        nonlocal fetched
        for number in range(1000):
            fetched += 1
            yield number

    for taken, result in enumerate(
        parallel.ordered_map(double, items(), workers, threads=threads), start=1
    ):
        assert result == 2 * (taken - 1)
        assert fetched <= taken + 2 * workers * parallel.BATCH
    assert taken == 1000


def test_a_worker_that_dies_is_an_error_and_its_warnings_reach_nobody(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(WorkError, match="a worker process died"):
        list(parallel.ordered_map(die, range(1, 5), 2))
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from medclip_oc.runtime.workers import ordered_map\n"
        "if __name__ == '__main__':\n"
        "    for _ in ordered_map(abs, range(10**9), 2): print('on', flush=True); time.sleep(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert parent.stdout
    assert parent.stdout.readline() == b"on\n"
    parent.kill()
    # its pipe closes when the last of those that inherited it ends
    assert parent.stdout.read().replace(b"on\n", b"") == b""
    parent.wait()
    parent.stdout.close()
