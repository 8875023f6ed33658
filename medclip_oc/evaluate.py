"""Retrieval over held-out pairs: `python -m medclip_oc.evaluate --checkpoint FILE`."""

from pathlib import Path

from .config.evaluation import EvaluateConfig
from .runtime import command


def main(settings: EvaluateConfig) -> None:
    """Evaluate a checkpoint, or a file of features, and print the figures."""
    if settings.probe is not None:
        from .inference import probing

        print(*probing.run(settings), sep="\n")
        return
    from .evaluation import sources
    from .reporting import results
    from .runtime import distributed

    with distributed.process_group(settings.device) as world:
        measured, lines = sources.evaluate(settings, world)
        if world.main:
            folder = Path(settings.checkpoint or "").parent
            if folder.name == "checkpoints":
                lines.append(f"for a page of it: python -m medclip_oc.report {folder.parent}")
            elif not settings.json:
                lines.append("kept nowhere: --json FILE writes these figures to a file")
            print(results.text(measured.record), *lines, sep="\n")


if __name__ == "__main__":
    command.run(main, EvaluateConfig)
