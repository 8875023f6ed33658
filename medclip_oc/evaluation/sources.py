"""What an evaluation works on (a checkpoint and pairs, or a file of features), and its outcome."""

import os
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ..config.evaluation import EvaluateConfig
from ..config.vocabulary import MODALITIES
from ..data import loader
from ..data.shards import ShardSet
from ..errors import InputError
from ..models import checkpoint
from ..models.clip import Clip
from ..models.factory import baseline_clip, trained_clip
from ..runtime import distributed
from ..runtime.distributed import World
from . import concepts, feature_file, features, retrieval
from .features import Embedded
from .retrieval import Measured


def evaluate(settings: EvaluateConfig, world: World) -> tuple[Measured, list[str]]:
    """Evaluate a checkpoint, or a file of features, and write the result into its run folder.

    Returns:
        The figures, and lines about what could not be measured and what was written.

    Raises:
        InputError: see `EvaluateConfig`; nothing of that name, or it doesn't fit.
        WorkError: features that are not finite; a place that can't be written.
    """
    _check_places(settings)
    distributed.check_precision(settings.precision, world.device)
    source = _source(settings, world)
    retrieval.check_pools(settings, len(source.ids()))
    known = _known_concepts(settings, source)
    other = _baseline(settings, source, world)
    embedded = _features(source.features or source.clip, source, settings, world)
    if settings.features_out:  # at once: whatever fails later, they are made
        _write_features(settings.features_out, embedded, world)
    slices = concepts.find_slices(embedded, settings.slices, known)
    baseline = None if other is None else _features(other, source, settings, world)
    measured = retrieval.measure(
        embedded,
        settings,
        slices=slices,
        baseline=baseline,
        baseline_name=settings.baseline or "",
    )
    lines = _notes(embedded)
    if world.main:
        for file in _outputs(settings, source.about["split"]):
            retrieval.save(measured, embedded.ids, file, source.about)
            lines.append(f"written to {file}")
    return measured, lines


class Source(NamedTuple):
    """What is evaluated, before any work."""

    clip: Clip | None
    """The model. None: the features are there."""
    features: Embedded | None
    """Features from a file. None: the model makes them."""
    shards: ShardSet | None
    """Where the pairs lie. None: only a file of features is at hand."""
    trained: dict[str, Any] | None
    """Configuration of the run that made the checkpoint. None: features from a file."""
    about: dict[str, Any]
    """What the record says of its origin."""

    def ids(self) -> list[str]:
        """Keys of the pairs."""
        if self.features is not None:
            return self.features.ids
        assert self.shards is not None
        return self.shards.ids()


def _source(settings: EvaluateConfig, world: World) -> Source:
    """The model and the pairs, or a file of features."""
    if settings.features_in:
        return _from_file(settings, world)
    assert settings.checkpoint is not None
    clip, trained = trained_clip(settings.checkpoint, world.device)
    where = settings.data if settings.data is not None else trained["data"]["valid"]
    split = _split(settings, where)
    shards = loader.open_shards(where, split, world)
    about = {
        "checkpoint": settings.checkpoint,
        "data": where,
        "split": split,
        "precision": settings.precision,
        "decode": settings.decode,
        "data_fingerprint": shards.fingerprint,
    }
    return Source(clip, None, shards, trained, about)


def _from_file(settings: EvaluateConfig, world: World) -> Source:
    """Features from a file; the pairs in --data, if named, must be the same."""
    assert settings.features_in is not None
    found = features.from_file(settings.features_in, world)
    about: dict[str, Any] = {"features": settings.features_in, "split": settings.split}
    trained = None
    if settings.checkpoint:
        about = {"checkpoint": settings.checkpoint, **about}
        trained = checkpoint.load(settings.checkpoint)["config"]
    if settings.data is None:
        about["split"] = settings.split or "features"
        return Source(None, found, None, trained, about)
    split = _split(settings, settings.data)
    shards = loader.open_shards(settings.data, split, world)
    about |= {"data": settings.data, "split": split, "data_fingerprint": shards.fingerprint}
    source = Source(None, found, shards, trained, about)
    retrieval.check_ids(source._replace(features=None).ids(), found.ids, "--features-in")
    return source


def _baseline(settings: EvaluateConfig, source: Source, world: World) -> Clip | Embedded | None:
    """What is compared with, for the same pairs: a model, or features from a file."""
    name = settings.baseline
    if name is None:
        return None
    if name.endswith((".npz", ".parquet")):
        found = features.from_file(name, world)
        retrieval.check_ids(source.ids(), found.ids, "--baseline")
        return found
    if source.shards is None:
        raise InputError(f"--baseline {name}: a model needs the pairs; name them with --data")
    return baseline_clip(name, source.trained, world.device)


def _features(
    what: Clip | Embedded | None, source: Source, settings: EvaluateConfig, world: World
) -> Embedded:
    """Features of the pairs: those given, or made by the model given."""
    if isinstance(what, features.Embedded):
        return what
    assert what is not None
    assert source.shards is not None
    return features.embed_pairs(
        what,
        loader.evaluation_pairs(source.shards, what, decode=settings.decode),
        world,
        batch_size=settings.batch_size,
        workers=settings.workers,
        precision=settings.precision,
    )


def _write_features(file: str, embedded: Embedded, world: World) -> None:
    rows = [distributed.all_gather_ragged(part).cpu() for part in (embedded.images, embedded.texts)]
    if world.main:
        facts = (embedded.image_hash, embedded.caption_hash, embedded.concepts)
        images, texts = (part.numpy() for part in rows)
        content = feature_file.Features(embedded.ids, images, texts, *facts)
        feature_file.save(Path(file), content)
        print(f"written to {file}")


def _known_concepts(settings: EvaluateConfig, source: Source) -> dict[str, str]:
    """CUI of each concept that the samples name: lower case -> CUI. Empty where nobody asks.

    Raises:
        InputError: a slice is asked for that no sample names, said before the model's work.
    """
    known: dict[str, str] = {}
    if not settings.slices or source.shards is None:
        return known
    for position in range(len(source.shards)):
        facts = source.shards.facts(position)
        cuis, names = (_listed(facts.get(name)) for name in ("concepts", "concept_names"))
        for cui, name in zip_longest(cuis, names):
            if isinstance(cui, str):
                known[cui.lower()] = cui
                if name and isinstance(name, str):
                    known.setdefault(name.lower(), cui)
    present = set(known.values())
    known = {cui.lower(): cui for cui in MODALITIES.values()} | known
    for name in settings.slices:
        concepts.resolve(name, known, present)
    return known


def _listed(found: object) -> list[object]:
    """Other makers' .json may hold anything."""
    return found if isinstance(found, list) else []


def _notes(embedded: Embedded) -> list[str]:
    """What could not be measured."""
    notes = []
    if embedded.concepts is None:
        notes.append("no concepts (CUIs) with these pairs: no figures by concept or modality")
    if not embedded.hashed:
        notes.append("no hashes with these features: copies are not found")
    return notes


def _split(settings: EvaluateConfig, where: str | list[str] | None) -> str:
    """The split of a shard folder; "tars" for tars, whose pairs are all taken.

    Only a folder has splits: tars named one by one must not be measured under a wrong name.
    """
    parts = where.split("::") if isinstance(where, str) else []
    folders = sum(Path(part).expanduser().is_dir() for part in parts)
    if folders and folders == len(parts):
        return settings.split or "test"
    if folders:
        raise InputError(f"--data {where}: mixes shard folders, which have splits, and tars")
    if settings.data is None:
        raise InputError(
            f"--data: name the pairs; the run validated on {where}, which is no shard folder"
        )
    if settings.split is not None:
        raise InputError(f"--split {settings.split}: {where} is not a shard folder with splits")
    return "tars"


def _check_places(settings: EvaluateConfig) -> None:
    """Refuse at once what couldn't be written after all the work.

    Raises:
        InputError: the folder of a file can't be made or written.
    """
    for name in ("features_out", "json"):
        if not (value := getattr(settings, name)):
            continue
        folder = Path(value).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--{name} {value}: {folder}: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise InputError(f"--{name} {value}: {folder} can't be written")


def _outputs(settings: EvaluateConfig, split: str) -> list[Path]:
    files = [Path(settings.json)] if settings.json else []
    file = Path(settings.checkpoint or "")
    if file.parent.name == "checkpoints":
        files.append(file.parent.parent / "evaluations" / f"{file.stem}-{split}.json")
    return files
