"""Retrieval over held-out pairs: `python -m medclip_oc.evaluate --checkpoint FILE`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import command
from .config import EvaluateConfig
from .errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .data import Pairs
    from .distributed import World
    from .model import Clip

NEAREST = 10
"""How many nearest ids are kept per query, for reports."""


class Evaluation(NamedTuple):
    """What was measured over N pairs."""

    record: dict[str, Any]
    """pool, chance, image_to_text and text_to_image (see metrics.retrieval)."""
    ranks: "tuple[Tensor, Tensor]"
    """Image-to-text and text-to-image ranks, (N,) each."""
    nearest: "tuple[Tensor, Tensor]"
    """Row numbers of the nearest texts of each image and images of each text, (N, NEAREST)."""


def evaluate(
    clip: "Clip",
    pairs: "Pairs",
    world: "World",
    *,
    batch_size: int,
    workers: int,
    precision: str,
    stop: "Callable[[], bool]" = lambda: False,
) -> Evaluation:
    """Embed every pair once and rank each image's caption, and each caption's image, among all.

    Raises:
        Stopped: `stop` said so, on any rank.
        InputError, WorkError: a pair can't be read.
    """
    from . import features, metrics

    images, texts = features.embed_pairs(
        clip, pairs, world, batch_size=batch_size, workers=workers, precision=precision, stop=stop
    )
    ranks = metrics.retrieval_ranks(images, texts)
    near = metrics.nearest(images, texts, NEAREST), metrics.nearest(texts, images, NEAREST)
    return Evaluation(metrics.retrieval(*ranks), ranks, near)


def save(evaluation: Evaluation, keys: list[str], file: Path, about: dict[str, Any]) -> None:
    """Write FILE (.json: `about` and the record) and beside it the ranks and nearest ids (.npz)."""
    import json

    import numpy as np

    ids = np.array(keys)
    arrays = {
        "ids": ids,
        "image_to_text_rank": evaluation.ranks[0].cpu().numpy(),
        "text_to_image_rank": evaluation.ranks[1].cpu().numpy(),
        "image_to_text_nearest": ids[evaluation.nearest[0].cpu().numpy()],
        "text_to_image_nearest": ids[evaluation.nearest[1].cpu().numpy()],
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**about, **evaluation.record}, indent=2) + "\n")
        np.savez(file.with_suffix(".npz"), **arrays)
    except OSError as error:
        raise WorkError(f"{file}: can't be written ({error.strerror})") from error


def table(record: dict[str, Any]) -> str:
    """The record as text: a row per direction and one for chance, recalls in per cent."""
    head = f"{'pool of ' + format(record['pool'], ',') + ' pairs':<22}"
    names = ("R@1", "R@5", "R@10", "median_rank", "mean_rank", "mrr")
    lines = [head + "".join(f"{name.replace('_', ' '):>13}" for name in names)]
    for title, way in (
        ("image to text", "image_to_text"),
        ("text to image", "text_to_image"),
        ("chance", "chance"),
    ):
        cells = [
            f"{100 * value:.1f} %" if name.startswith("R@") else f"{value:.4g}"
            for name, value in ((name, record[way][name]) for name in names)
        ]
        lines.append(f"{title:<22}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def brief(record: dict[str, object]) -> str:
    """Both directions' recalls in a few words, in per cent."""
    parts = []
    for title, way in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
        scores = record[way]
        assert isinstance(scores, dict)
        recalls = "/".join(f"{100 * scores[f'R@{k}']:.1f}" for k in (1, 5, 10))
        parts.append(f"{title} R@1/5/10 {recalls} %")
    return ", ".join(parts)


def work(settings: EvaluateConfig) -> None:
    """Evaluate a checkpoint and write the result into its run folder."""
    from . import distributed, feed, setup

    with distributed.started(settings.device) as world:
        clip, trained = setup.trained_clip(settings.checkpoint, world)
        setup.check_precision(settings.precision, world.device)
        where = settings.data if settings.data is not None else trained["data"]["valid"]
        split = _split(settings, where)
        shards = feed.open_shards(where, split, world)
        pairs = feed.pairs(shards, clip, decode=settings.decode)
        evaluation = evaluate(
            clip,
            pairs,
            world,
            batch_size=settings.batch_size,
            workers=settings.workers,
            precision=settings.precision,
        )
        if not world.main:
            return
        print(table(evaluation.record))
        keys = [pairs.shards.key(position) for position in range(len(pairs))]
        about = {
            "checkpoint": settings.checkpoint,
            "data": where,
            "split": split,
            "precision": settings.precision,
            "decode": settings.decode,
            "data_fingerprint": pairs.shards.fingerprint,
        }
        for file in _outputs(settings, split):
            save(evaluation, keys, file, about)
            print(f"written to {file}")


def _split(settings: EvaluateConfig, where: str | list[str] | None) -> str:
    """The split of a shard folder; "tars" for tars, whose pairs are all taken.

    Only a folder has splits: tars named one by one must not be measured under a wrong name.
    """
    if isinstance(where, str) and any(Path(part).is_dir() for part in where.split("::")):
        return settings.split or "test"
    if settings.data is None:
        raise InputError(
            f"--data: name the pairs; the run validated on {where}, which is no shard folder"
        )
    if settings.split is not None:
        raise InputError(f"--split {settings.split}: {where} is not a shard folder with splits")
    return "tars"


def _outputs(settings: EvaluateConfig, split: str) -> list[Path]:
    checkpoint = Path(settings.checkpoint)
    files = [Path(settings.json)] if settings.json else []
    if checkpoint.parent.name == "checkpoints":
        name = f"{checkpoint.stem}-{split}.json"
        files.append(checkpoint.parent.parent / "evaluations" / name)
    return files


if __name__ == "__main__":
    command.main(
        work,
        EvaluateConfig,
        prog="python -m medclip_oc.evaluate",
        description="Recall@1/5/10, median and mean rank and MRR over held-out pairs, both ways.",
    )
