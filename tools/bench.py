"""Measure medclip_oc against its peers, side by side, in one call.

    python tools/bench.py NAME [options]      # python tools/bench.py NAME --help

Prints one JSON object per line: bench, case, ours, peer (whose figure `theirs` is), theirs, unit,
better (how many times better than the peer, above 1 is better whatever the unit; the median of
`rounds`), rounds (the ratio of each pair of runs), and further figures of the case.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there
sys.path.insert(0, str(Path(__file__).resolve().with_name("bench")))

from medclip_oc.runtime import command

# Each has a Config dataclass and run(config), which yields Comparisons (see side_by_side.py).
BENCHES: dict[str, str] = {
    "pack": "packing, against decoding alone and copying alone",
    "loader": "the training loader, against open_clip's on the same shards",
    "retrieval": "ranking, against bare products and open_clip's ways",
    "rank": "ranking captions for images, against the forward passes alone",
    "step": "the exact cached step, against accumulation and one big batch",
    "run": "whole training runs, against open_clip_train's",
}
USAGE = "usage: python tools/bench.py NAME [options]\n\n" + "\n".join(
    f"  {name:<10} {what}" for name, what in BENCHES.items()
)


def main(name: str = "", *words: str) -> None:
    """Run one benchmark, printing each line as soon as it is measured."""
    if name in ("-h", "--help"):
        print(USAGE)
        return
    if name not in BENCHES:
        print(f"bench.py: {name!r}: no such benchmark ({', '.join(BENCHES)})", file=sys.stderr)
        sys.exit(2)
    module: Any = importlib.import_module(name)

    def run_bench(config: Any) -> None:
        for comparison in module.run(config):
            print(json.dumps(comparison.line()), flush=True)

    command.run(run_bench, module.Config, prog=f"bench.py {name}", arguments=words)


if __name__ == "__main__":
    main(*sys.argv[1:])
