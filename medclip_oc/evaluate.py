"""Retrieval over held-out pairs: `python -m medclip_oc.evaluate --checkpoint FILE`."""

from .config.evaluation import EvaluateConfig
from .runtime import command


def main(settings: EvaluateConfig) -> None:
    """Evaluate a checkpoint, or a file of features, and print the figures."""
    from .evaluation import sources
    from .reporting import results
    from .runtime import distributed

    with distributed.process_group(settings.device) as world:
        measured, lines = sources.evaluate(settings, world)
        if world.main:
            print(results.text(measured.record), *lines, sep="\n")


if __name__ == "__main__":
    command.run(main, EvaluateConfig)
