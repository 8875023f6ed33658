"""Which learning rate? `python -m medclip_oc.train --config FILE --lr-range`.

Some steps at each rate of a grid, and the loss of held-out pairs after them: a range test (Smith
2017, section 3.3) whose every rate starts from the run's own weights, over its first batches, by
its own step. Nothing is written but a picture of the curve, beside the run folder.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

from ..config.schema import Config, LossConfig
from ..data import loader
from ..data.dataset import load_batches
from ..errors import InputError
from ..models.clip import Clip
from ..reporting import plots
from ..runtime.distributed import World
from ..runtime.progress import Progress
from . import build, optimizer
from .trainer import take_step

_FACTORS = [10 ** (half / 2) for half in range(-3, 4)]  # of the rates that the settings have
_STEPS = 40  # of a trial: its rate rises and falls as a run's does, or noise would decide


def search(config: Config, world: World, data: build.RunData, clip: Clip) -> None:
    """Try each rate from the weights as they are; print and draw. InputError: no data.valid."""
    if data.valid is None:
        raise InputError("--lr-range: compares rates by validation pairs, but data.valid is null")
    pairs = loader.evaluation_pairs(data.valid, clip, decode=config.valid.decode)
    count = min(len(pairs), data.plan.global_batch) // world.size * world.size
    places = [(0, n * len(pairs) // count) for n in range(world.rank, count, world.size)]
    [held_out] = load_batches(pairs, [places], workers=config.data.workers, pin=False)
    images, tokens = held_out.batch["images"], held_out.batch["tokens"]
    measure = build.cached_step(clip, replace(config, loss=LossConfig(config.loss.name)), world)
    start = {name: value.to("cpu", copy=True) for name, value in clip.towers.state_dict().items()}
    clip.towers.eval()
    before, losses = measure(images, tokens).item(), list[float]()
    steps, usual, clip_norm = min(_STEPS, data.plan.steps), config.optim.lr, config.optim.clip_norm
    with Progress(len(_FACTORS) * steps, "steps", "lr-range", shown=world.main) as bar:
        for factor in _FACTORS:
            clip.towers.load_state_dict(start)
            step = build.cached_step(clip, config, world)
            adamw = optimizer.adamw(clip.towers, config.optim)
            torch.manual_seed(config.run.seed + world.rank)  # as a run does
            batches = loader.training_batches(
                data.train, clip, config, world, lambda _: None, steps=steps
            )
            for number, batch in enumerate(batches, 1):
                now = min(5 * number / steps, 0.5 + 0.5 * math.cos(math.pi * number / steps))
                loss, norm = take_step(step, adamw, batch, clip_norm, factor * now)
                bar.update()
                if not math.isfinite(loss if step.scaler else loss + norm):
                    break  # it diverged
            else:
                clip.towers.eval()
                loss = measure(images, tokens).item()
            losses.append(loss if math.isfinite(loss) else math.inf)
    if not world.main:
        return
    print(f"optim.lr  loss of {count:,} held-out pairs after {steps} steps; {before:.3f} before")
    curve = [(factor * usual, loss) for factor, loss in zip(_FACTORS, losses, strict=True)]
    print("\n".join(f"{lr:<8.2g}  {loss:.3f}" for lr, loss in curve))
    # a model that collapsed guesses; a confident start may be above that
    guess = 0.999 * math.log(count) if config.loss.name == "clip" else math.inf
    best, folder = suggestion(losses, min(before, guess)), Path(config.run.folder)
    advice = "no rate lowers the loss below guessing; look at the pairs and the augmentation"
    if best is not None:
        advice = f"take --optim.lr {best * usual:.2g}, {best:.2g} times each rate of the settings"
    figure = plots.lines(f"{folder.name} lr range", {"held-out loss": curve})
    figure.axes[0].set(xscale="log", xlabel="optim.lr", ylabel="held-out loss")
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = plots.save_png(figure, folder.parent, replace=True)
    print(f"lr-range: {advice}; the curve is in {file}")


def suggestion(losses: list[float], limit: float) -> float | None:
    """The factor of the lowest loss, by the parabola through it and its neighbours (over the rates'
    logarithms); None: no loss is below `limit`.
    """
    place = min(range(len(losses)), key=losses.__getitem__)
    if losses[place] >= limit:
        return None
    near, shift = losses[max(0, place - 1) : place + 2], 0.0
    if len(near) == 3 and math.inf not in near and near[0] != near[2]:
        shift = (near[0] - near[2]) / (near[0] - 2 * near[1] + near[2]) / 4
    return _FACTORS[place] * 10**shift
