"""Fine-tune: `torchrun -m medclip_oc.train --config FILE`, or `python -m` for one process."""

from .runtime import shutdown

if __name__ == "__main__":
    shutdown.note()  # what follows takes time

from .config.schema import TrainCommand
from .runtime import command


def main(settings: TrainCommand) -> int | None:
    """What the command line asks for: to train, or to check the run first."""
    config = settings.config()
    if settings.selfcheck or settings.doctor or settings.lr_range:
        shutdown.note(on=False)
    if settings.selfcheck:
        from .training import gradcheck

        return gradcheck.check(config)
    if settings.doctor or settings.lr_range:
        from .training import preflight

        return preflight.check(config, trials=settings.lr_range)
    from .training import trainer

    trainer.train(config, settings.resume, settings.resume_allow or ())
    return None


if __name__ == "__main__":
    command.run(main, TrainCommand)
