"""What a run measures as it goes: retrieval on its validation pairs, step 0 included."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..config.schema import Config, ValidConfig
from ..data import loader
from ..data.shards import ShardSet
from ..evaluation import metrics, retrieval
from ..models import definition
from ..models.clip import Clip
from ..reporting import results
from ..runtime.distributed import World
from .build import Plan
from .logger import RunLog


def measures_start(config: Config) -> bool:
    """Whether the run validates before its first step."""
    model, at_start = config.model, config.valid.at_start
    if config.data.valid is None or at_start is not None:
        return config.data.valid is not None and bool(at_start)
    towers = (model.pretrained_image, model.pretrained_text)
    return definition.weights_of(model.arch, model.pretrained, *towers) != "random weights"


def due(settings: ValidConfig, plan: Plan, step: int) -> bool:
    """Whether to validate after this step: the last one, and as often as the settings say."""
    steps, epochs = settings.every_steps, settings.every_epochs
    if step == plan.steps or (steps is not None and step % steps == 0):
        return True
    period = plan.steps_per_epoch * (epochs or math.inf)
    return step // period > (step - 1) // period


@dataclass
class Validation:
    """Retrieval on the validation pairs, by the model as it is."""

    config: Config
    clip: Clip
    shards: ShardSet | None
    world: World
    log: RunLog
    stop: Callable[[], bool]

    def measure(self, step: int, name: str = "valid") -> dict[str, float]:
        """The scores (see metrics.flat), logged under `name`; {} without pairs. InputError,
        Stopped, WorkError: see features.embed_pairs.
        """
        if self.shards is None:
            return {}
        config = self.config
        record = retrieval.evaluate(
            self.clip,
            loader.evaluation_pairs(self.shards, self.clip, decode=config.valid.decode),
            self.world,
            batch_size=config.train.micro_batch_size,
            workers=config.data.workers,
            precision=config.train.precision,
            stop=self.stop,
        ).record
        scores = metrics.flat(record)
        self.log.record(step, {f"{name}/{key}": value for key, value in scores.items()})
        average = " of the average" if name == "valid_ema" else ""
        pairs = f"validation{average} over {record['pool']:,} pairs"
        self.log.message(f"step {step}: {pairs}, {results.brief(record)}")
        return scores
