"""Do relevance maps point at the lesion? Asked of a model that was trained on phantoms.

    python tools/pointing_game.py --checkpoint runs/x/checkpoints/best.pt --phantoms DIR

Pointing game (Zhang et al. 2016, arXiv:1608.00507): how often a map's maximum lies in the lesion's
box. Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421): the area under the cosine as
pixels, those of the largest values first, are made grey (the less the better), or put into a
blurred picture (the more the better). The texts are the findings of boxes.csv.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from tqdm import tqdm

from medclip_oc.config.checks import Natural, Settings
from medclip_oc.errors import InputError
from medclip_oc.runtime import command

STEPS, DRAWS, SEED = 10, 2000, 0  # of a curve; of the bootstrap; of all that is drawn


@dataclass
class PointingConfig(Settings):
    """How often relevance maps point at the lesion of a phantom."""

    checkpoint: str
    """A checkpoint of a run."""
    phantoms: str
    """A folder of make_phantoms.py, whose test pictures are used."""
    tolerance: Natural = 0
    """Pixels by which a point may miss the box (Zhang et al.: 15, in pictures of some 500)."""
    json: bool = False
    """Print the figures as JSON."""


def is_hit(values: np.ndarray, box: Sequence[int], tolerance: int) -> bool:
    """Whether a map (H, W) has its first maximum in a box (left, top, right, bottom), or near."""
    y, x = divmod(int(values.argmax()), values.shape[1])
    left, top, right, bottom = box
    dx, dy = max(left - x, x - right + 1, 0), max(top - y, y - bottom + 1, 0)
    return bool(np.hypot(dx, dy) <= tolerance)


def exchanged(start: np.ndarray, end: np.ndarray, values: np.ndarray, steps: int) -> np.ndarray:
    """Pictures (steps + 1, H, W) from `start` to `end`, the pixels of the largest values first."""
    ranks = np.argsort(np.argsort(-values, axis=None, kind="stable")).reshape(values.shape)
    counts = np.arange(steps + 1)[:, None, None] * values.size // steps
    return np.where(ranks < counts, end, start)


def areas(clip: Any, pixels: np.ndarray, text: str, values: np.ndarray) -> list[float]:
    """Deletion and insertion of a picture (H, W) uint8, for a `Clip`."""
    import torch

    blur = ImageFilter.GaussianBlur(min(pixels.shape) / 16)
    blurred = np.asarray(Image.fromarray(pixels).filter(blur))
    ends = [(pixels, np.full_like(pixels, pixels.mean())), (blurred, pixels)]
    pictures = np.concatenate([exchanged(*pair, values, STEPS) for pair in ends])
    shown = torch.stack([clip.preprocess(Image.fromarray(p).convert("RGB")) for p in pictures])
    with torch.no_grad():
        target = clip.towers.embed_texts(clip.tokenizer([text]))[0]
        cosines = (clip.towers.embed_images(shown) @ target).numpy()
    return [float(np.trapezoid(curve, dx=1 / STEPS)) for curve in np.split(cosines, 2)]


def measure(settings: PointingConfig) -> dict[str, list[float]]:
    """Figures by name, one for each picture."""
    from medclip_oc.models import checkpoint, factory
    from medclip_oc.relevance.maps import explain

    file, folder = settings.checkpoint, Path(settings.phantoms)
    try:
        boxes = pd.read_csv(folder / "boxes.csv", index_col="image").filter(like="test_", axis=0)
        pictures = [np.asarray(Image.open(folder / image)) for image in boxes.index]
    except (OSError, ValueError) as error:
        raise InputError(f"--phantoms {folder}: not of make_phantoms.py ({error})") from None
    rng, models = np.random.default_rng(SEED), {"trained": factory.load(file)}
    models["untrained"] = factory.baseline_clip("start", checkpoint.load(file).get("config"))
    models["shuffled weights"] = shuffled = factory.load(file)  # after Adebayo et al. 2018
    for weight in shuffled.towers.parameters():
        weight.data = weight.data.flatten()[rng.permutation(weight.numel())].view_as(weight)
    models["trained"].towers.eval()
    figures = defaultdict[str, list[float]](list)
    rows = zip(tqdm(pictures, disable=None), boxes.itertuples(index=False), strict=True)
    for pixels, (text, *box) in rows:
        image, centre = Image.fromarray(pixels), np.zeros(pixels.shape)
        centre[pixels.shape[0] // 2, pixels.shape[1] // 2] = 1
        maps = {"centre": centre, "random": rng.random(pixels.shape)}
        maps |= {name: explain(clip, image, [text])[0].values for name, clip in models.items()}
        for name, values in maps.items():
            figures[f"in the box, {name}"].append(is_hit(values, box, settings.tolerance))
            if name in ("trained", "random"):
                deletion, insertion = areas(models["trained"], pixels, text, values)
                figures[f"deletion, {name}"].append(deletion)
                figures[f"insertion, {name}"].append(insertion)
    return figures


def main(settings: PointingConfig) -> None:
    """Print the mean of each figure with its 95 % bootstrap interval."""
    figures = measure(settings)
    from medclip_oc.evaluation import bootstrap

    values = np.array(list(figures.values()), float)  # (figures, n)
    n = values.shape[1]
    drawn = bootstrap.resample(lambda weights: values @ weights / n, n, DRAWS, SEED)
    record = bootstrap.record(list(figures), drawn)
    table = f"| of {n} pictures | mean | 95 % interval |\n|---|---|---|"
    for name, (low, high) in record["intervals"].items():
        table += f"\n| {name} | {record[name]:.3f} | {low:.3f} to {high:.3f} |"
    print(json.dumps(record, indent=2) if settings.json else table)


if __name__ == "__main__":
    command.run(main, PointingConfig)
