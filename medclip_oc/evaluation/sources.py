"""What an evaluation works on (a checkpoint and pairs, or a file of features), and its outcome."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..config.evaluation import EvaluateConfig
from ..data import loader
from ..data.balance import read_studies
from ..data.index import CAPTION
from ..data.shards import ShardSet
from ..errors import InputError
from ..models import checkpoint, factory
from ..models.clip import Clip
from ..runtime import devices
from ..runtime.distributed import World
from . import concepts, features, retrieval
from .features import Embedded
from .retrieval import Measured

_CUI = re.compile("C[0-9]{1,9}")


@dataclass
class Source:
    """What is evaluated."""

    model: Clip | Embedded  # what makes the features, or features from a file
    shards: ShardSet | None  # where the pairs lie. None: only a file of features is at hand
    trained: dict[str, Any] | None  # configuration of the checkpoint's run. None: no checkpoint
    about: dict[str, Any]  # what the record says of its origin
    ids: list[str]  # keys of the pairs

    def embed(self, model: Clip | Embedded, settings: EvaluateConfig, world: World) -> Embedded:
        """Features of the pairs by a model; or those given."""
        if isinstance(model, Embedded):
            return model
        assert self.shards is not None  # a model needs them
        how: dict[str, Any] = {"decode": settings.decode, "take": settings.captions}
        return features.embed_pairs(
            model,
            loader.evaluation_pairs(self.shards, model, **how),
            world,
            batch_size=settings.batch_size,
            workers=settings.workers,
            precision=settings.precision,
        )

    def concept_names(self) -> dict[str, str]:
        """Names that were packed with the pairs' concepts, in lower case -> CUI."""
        named: dict[str, str] = {}
        for facts in map(self.shards.facts, range(len(self.shards))) if self.shards else ():
            # other makers' .json may hold anything
            lists = [facts.get(name) for name in ("concepts", "concept_names")]
            cuis, names = (values if isinstance(values, list) else [] for values in lists)
            for cui, name in zip(map(str, cuis), names, strict=False):
                if isinstance(name, str) and name and _CUI.fullmatch(cui):
                    named.setdefault(name.lower(), cui)
        return named


def evaluate(settings: EvaluateConfig, world: World) -> tuple[Measured, list[str]]:
    """Evaluate a checkpoint, or a file of features, and write the result into its run folder; and
    that of the start, where it is the baseline. Returns the figures, and lines about what could not
    be measured and what was written. InputError: see `EvaluateConfig`; nothing of that name, or it
    doesn't fit. WorkError: features that are not finite; a file that can't be written.
    """
    devices.check_precision(settings.precision, world.device)
    source = _open(settings, world)
    files = _outputs(settings, source)
    studies = source.shards and source.shards.studies
    kind, count = ("studies", len(studies.names)) if studies else ("pairs", len(source.ids))
    for size in settings.pool_sizes():
        if size > count:
            raise InputError(f"--pools: {size} {kind}, but the set holds only {count}")
    baseline = _baseline(settings, source, world)
    lines = []
    embedded = source.embed(source.model, settings, world)
    if settings.features_out:  # at once: whatever fails later, they are made
        made_by = source.model if isinstance(source.model, Clip) else None
        features.save(Path(settings.features_out), embedded, world, made_by)
        lines.append(f"written to {settings.features_out}")
    packed, name = source.concept_names() if settings.slices else {}, settings.baseline or ""
    slices, absent = concepts.find_slices(embedded.concepts, settings.slices, packed)
    theirs = None if baseline is None else source.embed(baseline, settings, world)
    measured = retrieval.measure(
        embedded, settings, slices=slices, baseline=theirs, baseline_name=name
    )
    outcomes = [(measured, file, source.about) for file in files]
    if theirs is not None and name == "start" and files:
        file, about = _record_of(source, files[-1].parent, name), {"checkpoint": name}
        start = retrieval.measure(theirs, settings, slices=slices)
        outcomes.append((start, file, source.about | about))
    if studies or embedded.image_of is not None:
        what = "by study" if studies else "--captions all"
        lines.append(f"{what}: no figures by concept, and no nearest ids")
    elif embedded.concepts is None:
        lines.append("no concepts (CUIs) with these pairs: no figures by concept, modality, slice")
    elif absent:
        lines.append(absent)
    if not embedded.hashed:
        lines.append("no hashes with these features: copies are not found")
    for each, file, about in outcomes if world.main else ():
        each.save(file, embedded.ids, about)
        lines.append(f"written to {file}")
    return measured, lines


def _open(settings: EvaluateConfig, world: World) -> Source:
    """A checkpoint or a file of features, and the pairs of --data or of the run's validation."""
    about: dict[str, Any] = {}
    trained: dict[str, Any] | None = None
    model: Clip | Embedded | None = None
    where, shards = settings.data, None
    if settings.features_in:
        about["features"] = settings.features_in
        model = features.load(Path(settings.features_in), world)
    if settings.model:
        about |= {"model": settings.model, "pretrained": settings.pretrained}
        model = factory.named(settings.model, settings.pretrained).on(world.device)
    if settings.checkpoint:
        about["checkpoint"] = settings.checkpoint
        content = checkpoint.load(settings.checkpoint)
        checkpoint.description_of(content, settings.checkpoint)
        trained = content.get("config")
        if model is None:
            model = factory.restore(content, settings.checkpoint).on(world.device)
            where = (trained or {}).get("data", {}).get("valid") if where is None else where
    assert model is not None  # the settings name one
    ran_on = (trained or {}).get("data", {})
    unit = settings.unit or ran_on.get("unit", "image")
    if isinstance(model, Clip):
        about |= {"precision": settings.precision, "decode": settings.decode}
        about |= {"captions": "all"} if settings.captions == "all" else {}
    if where is None:
        if isinstance(model, Clip):
            raise InputError("--data: name the pairs, such as shards/rocov2")
        if unit == "study":
            raise InputError("--unit study: features have none; name the pairs (--data)")
        about["split"] = settings.split or "features"
        ids = model.ids
        about["data_fingerprint"] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    else:
        split = _split(settings, where)
        key = settings.caption_key or ran_on.get("caption_key", CAPTION)
        shards = loader.open_shards(where, split, world, key)
        studies = read_studies(shards, world) if unit == "study" else None
        about |= {"data": where, "split": split, "data_fingerprint": shards.fingerprint}
        about |= {"caption_key": key} if key != CAPTION else {}
        ids = shards.ids()
        if isinstance(model, Embedded):  # they must be of the same pairs
            retrieval.check_ids(ids, model.ids, "--features-in")
            model.study_of = studies and studies.of_pair
    return Source(model, shards, trained, about, ids)


def _split(settings: EvaluateConfig, where: str | list[str]) -> str:
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
        raise InputError(f"--data: name the pairs; {where} of the run is no shard folder")
    if settings.split is not None:
        raise InputError(f"--split {settings.split}: {where} is not a shard folder with splits")
    return "tars"


def _baseline(settings: EvaluateConfig, source: Source, world: World) -> Clip | Embedded | None:
    """What is compared with, for the same pairs: a model, or features from a file."""
    name = settings.baseline
    if name is None:
        return None
    if name.endswith(".npz"):
        embedded = features.load(Path(name), world)
        retrieval.check_ids(source.ids, embedded.ids, "--baseline")
        return embedded
    if source.shards is None:
        raise InputError(f"--baseline {name}: a model needs the pairs; name them with --data")
    try:
        return factory.baseline_clip(name, source.trained).on(world.device)
    except InputError as error:  # in the words of this command
        raise InputError(str(error).replace("model.pretrained", "--baseline")) from error


def _outputs(settings: EvaluateConfig, source: Source) -> list[Path]:
    """Records to write; refuses at once what couldn't be written after all the work."""
    files = [Path(settings.json)] if settings.json else []
    file = Path(settings.checkpoint or "")
    if file.parent.name == "checkpoints":
        files.append(_record_of(source, file.parent.parent / "evaluations", file.stem))
    for file in [*files, *([Path(settings.features_out)] if settings.features_out else [])]:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=file.parent).close()
        except OSError as error:
            raise InputError(f"{file}: can't be written ({error.strerror})") from None
    return files


def _record_of(source: Source, folder: Path, name: str) -> Path:
    """CHECKPOINT-SPLIT.json, with the folder's name between where the run didn't validate there.

    And with the pairs' fingerprint, where a record of other pairs has that name.
    """
    name += "-all_captions" * (source.about.get("captions") == "all")
    name += "-by_study" * bool(source.shards and source.shards.studies)
    about, own = source.about, (source.trained or {}).get("data", {})
    data, split, where = about.get("data"), about["split"], own.get("valid") or own.get("train")
    if not data or not where or split == "tars" or _folders(data) != _folders(where):
        place = _folders(data)[0] if data else Path(about["features"]).with_suffix("")
        name += "-" + re.sub(r"[^\w.]+", "_", place.name)
        file, fingerprint = folder / f"{name}-{split}.json", about["data_fingerprint"]
        if file.exists() and fingerprint not in file.read_text(encoding="utf-8", errors="replace"):
            name += f"-{fingerprint[:8]}"
    return folder / f"{name}-{split}.json"


def _folders(data: str | list[str]) -> list[Path]:
    """Where shards lie, each folder once."""
    parts = "::".join([data] if isinstance(data, str) else data).split("::")
    paths = [Path(part).expanduser().resolve() for part in parts]
    return list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))
