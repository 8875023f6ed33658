"""Retrieval over held-out pairs: `python -m medclip_oc.evaluate --checkpoint FILE`."""

from .config import parse
from .config.schema import EvaluateConfig


def work(settings: EvaluateConfig) -> None:
    """Evaluate a checkpoint, or a file of features, and print the figures."""
    from .evaluation import sources
    from .reporting import results
    from .runtime import distributed

    with distributed.started(settings.device) as world:
        measured, lines = sources.evaluate(settings, world)
        if world.main:
            print(results.text(measured.record), *lines, sep="\n")


if __name__ == "__main__":
    parse.main(
        work,
        EvaluateConfig,
        prog="python -m medclip_oc.evaluate",
        description="Retrieval over held-out pairs, both ways: recall, ranks, intervals, concepts.",
    )
