"""What a run measures: validation pairs as it goes, step 0 included; in the end what it gained."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config.evaluation import EvaluateConfig
from ..config.schema import METRICS, Config, ValidConfig
from ..data import loader
from ..errors import InputError
from ..evaluation import metrics, retrieval, sources
from ..inference.embedder import Embedder
from ..models import averaging, checkpoint, definition, factory
from ..models.averaging import State
from ..models.clip import Clip
from ..reporting import results, run_files
from ..runtime import distributed
from ..runtime.distributed import World
from .build import Plan, RunData
from .checkpointer import Progress
from .logger import RunLog
from .run_dir import RunFolder


def measures_start(config: Config) -> bool:
    """Whether the run validates before its first step."""
    model, at_start = config.model, config.valid.at_start
    if at_start is None:
        towers = (model.pretrained_image, model.pretrained_text)
        at_start = definition.weights_of(model.arch, model.pretrained, *towers) != "random weights"
    return at_start and config.data.valid is not None


def due(settings: ValidConfig, plan: Plan, step: int) -> bool:
    """Whether to validate after this step: the last one, and as often as the settings say."""
    steps, epochs = settings.every_steps, settings.every_epochs
    if step == plan.steps or (steps is not None and step % steps == 0):
        return True
    period = plan.steps_per_epoch * (epochs or math.inf)
    return step // period > (step - 1) // period


def alphas(config: Config) -> list[float]:
    """What is validated between start and best.pt; none where the start isn't."""
    given = config.wise.alphas if measures_start(config) else None
    return [0.25, 0.5, 0.75] if given == "auto" else sorted({*(given or ())} - {0.0, 1.0})


def likely_causes(records: list[dict[str, Any]], config: Config) -> str:
    """Why no validation of a run was above step 0's, as its curves show it."""
    steps, names = [r for r in records if "loss" in r], ("loss", "grad_norm", "temperature")
    loss, norm, temperature = (np.array([r[name] for r in steps], float) for name in names)
    key, clip = f"valid/{config.valid.metric}", config.optim.clip_norm or 0
    scores = {r["step"]: r[key] for r in records if key in r and r["step"]}
    worst = min(scores, key=scores.__getitem__)
    guess, rose = math.log(config.train.global_batch_size), "learning rate ({} {:.3g}, then {:.3g})"
    usual = "augmentation, model.preprocess, captions of other images"
    guesses = f"learning rate, {usual} (loss {loss[-1]:.3g}, guessing has {guess:.3g})"
    rules = {
        guesses: config.loss.name == "clip" and loss[-1] > 0.99 * guess,
        rose.format("loss", loss[0], loss.mean()): loss.mean() > 1.1 * loss[0],
        rose.format("gradient", norm[0], norm.mean()): norm.mean() > max(2 * norm[0], clip),
        f"too short a warm-up (step {worst} was the worst)": worst <= max(scores) / 10,
        "temperature at its clamp": temperature[-1] < 0.0101,
    }
    found = [words for words, holds in rules.items() if holds]
    if not any([*rules.values()][:4]):  # OpenAI's models begin at the clamp
        found.append(usual)
    return "; ".join(found)


@dataclass
class Validation:
    """Retrieval on the validation pairs, logged; and the end of a run."""

    config: Config
    clip: Clip
    data: RunData
    world: World
    log: RunLog
    folder: RunFolder
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        train, workers = self.config.train, self.config.data.workers
        self.how: dict[str, Any] = {"batch_size": train.micro_batch_size, "workers": workers}
        self.how["precision"] = train.precision

    def measure(self, step: int, name: str = "valid", **facts: float) -> dict[str, float]:
        """The scores (see metrics.flat) of the model as it is, logged under `name`; {} without
        pairs. InputError, Stopped, WorkError: see features.embed_pairs.
        """
        if self.data.valid is None:
            return {}
        pairs = loader.evaluation_pairs(self.data.valid, self.clip, decode=self.config.valid.decode)
        found = retrieval.evaluate(self.clip, pairs, self.world, stop=self.stop, **self.how)
        record, scores = found.record, metrics.flat(found.record)
        if self.data.zeroshot is not None:
            embedder = Embedder(self.clip, self.world.device, **self.how)
            scores |= self.data.zeroshot.measure(embedder, found.embedded)
        self.log.record(step, {f"{name}/{key}": v for key, v in (facts | scores).items()})
        about = {"valid_ema": " of the average", "wise": " at {alpha:g}"}.get(name, "")
        pool = f"{record['pool']:,} {results.units(record)}"
        about = f"{about.format(**facts)} over {pool}, {results.brief(record)}"
        if "zeroshot/auroc" in scores:
            about += f", zero-shot AUROC {scores['zeroshot/auroc']:.3f}"
        self.log.message(f"step {step}: validation{about}")
        return scores

    def conclude(self, progress: Progress, steps: int) -> str:
        """Where the result lies, what was gained, and what comes next. Stopped: see `measure`."""
        best, last, at = self.folder.best, self.folder.last, progress.step
        score = f"best valid/{self.config.valid.metric} {progress.best:.4f}"
        why = f"{score} came before this folder" if self.data.valid else "no validation data"
        told, file, early = f"{last} ({why}, so no best.pt)", last, ""
        distributed.barrier()  # the main rank may have been writing
        seen = distributed.all_gather_objects(best.exists())
        if self.data.valid and seen[0]:
            told, file = f"{score} in {best}", best
            if measures_start(self.config):
                unseen = ", which not every node sees"
                told += self._against_start(progress) if all(seen) else unseen
        elif not last.exists():
            return f"no step was left ({why}, so no best.pt)"
        if at < steps:
            early = f"step {at} of {steps}, after {progress.stale} validations without gain; "
        data = "" if self.data.valid else " --data SHARDS"
        return f"{early}{told}; next: python -m medclip_oc.evaluate --checkpoint {file}{data}"

    def _against_start(self, progress: Progress) -> str:
        """What best.pt gained over the start, and what lies between, in words."""
        records = run_files.records(self.folder.path)
        content = checkpoint.read(self.folder.best, mmap=True)
        if not content["step"]:
            above = "above it" + ", and no wise.pt" * bool(alphas(self.config))
            why = likely_causes(records, self.config)
            return f", the start: no gain, as no later validation was {above}; likely: {why}"
        first = next((record for record in records if not record["step"]), {})
        try:
            with distributed.errors_together():
                start = factory.baseline_clip("start", content["config"]).towers.clip.state_dict()
                if not averaging.is_of_size(start, progress.start_size):
                    raise InputError("model.pretrained has other weights than when the run began")
        except InputError as error:  # the run itself is sound
            return f"; no comparison with the start: {error}"
        ends = start, content["state_dict"]
        swept = self._sweep(progress.step, content, ends, first) if alphas(self.config) else ""
        return swept + self._gain()

    def _sweep(
        self, step: int, content: dict[str, Any], ends: tuple[State, State], first: dict[str, float]
    ) -> str:
        """WiSE-FT: the best between the start, whose record is `first`, and best.pt is wise.pt."""
        metric, best, file = self.config.valid.metric, str(self.folder.best), self.folder.wise
        clip = factory.restore(content, best).on(self.world.device)
        between = replace(self, clip=clip)
        scores = {0.0: first.get(f"valid/{metric}"), 1.0: content["metrics"][metric]}
        for alpha in (0.0, *alphas(self.config)):
            if scores.get(alpha) is None:
                clip.towers.clip.load_state_dict(averaging.interpolated(*ends, alpha))
                scores[alpha] = between.measure(step, "wise", alpha=alpha)[metric]
        alpha = max(scores, key=lambda each: (scores[each], -each))
        clip.towers.clip.load_state_dict(averaging.interpolated(*ends, alpha))
        about = {"zero_shot": "start", "fine_tuned": [best], "alpha": alpha}
        content |= {"metrics": {metric: scores[alpha]}, "interpolation": about}
        if self.world.main:
            checkpoint.save(file, content | {"state_dict": clip.towers.clip.state_dict()})
        return f"; {scores[alpha]:.4f} in {file.name} (alpha {alpha:g})"

    def _gain(self) -> str:
        """What best.pt gained, as `evaluate` measures it, on a test split where there is one."""
        data, metric = self.config.data, self.config.valid.metric
        metric = metric if metric in METRICS else METRICS[0]  # `evaluate` measures retrieval
        what: dict[str, Any] = {"checkpoint": str(self.folder.best), "baseline": "start"}
        what |= self.how | {"decode": self.config.valid.decode}
        tests: list[Any] = [data.valid, *[data.train] * (data.train != data.valid)]
        tests = [(where, "test") for where in tests]
        for where, split in [*tests, (data.valid, "valid"), (data.valid, None)]:
            try:
                settings = EvaluateConfig(**what, data=where, split=split)
                record = sources.evaluate(settings, self.world)[0].record
            except InputError as error:  # the run itself is sound
                self.log.message(f"no comparison with the start on {split or 'tars'}: {error}")
                continue
            return "; " + gained(record, metric, split)
        return ""


def gained(record: dict[str, Any], metric: str, split: str | None) -> str:
    """The difference to the baseline that a record has, in words."""
    difference = record["baseline"]["difference"]
    intervals, gain = difference.get("intervals", {}), metrics.flat(difference)[metric]
    known: dict[str, Any] = metrics.flat(intervals) if "mean_recall" in intervals else {}
    low, high = known.get(metric, (gain, gain))
    ends = f" [{low:+.4f}, {high:+.4f}]" if low < high else ""
    chance = " that can be told from chance" if high >= 0 else ""
    pairs = f"{record['pool']:,} {split or 'validation'} {results.units(record)}"
    chose = "" if split == "test" else ", the pairs that chose the checkpoint"
    sure = "" if low > 0 else f"no gain{chance}: "
    return f"{sure}{metric} {gain:+.4f}{ends} over the start on {pairs}{chose}"
