"""The steps that all exports share: load, write, open anew, compare, describe."""

from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..config.inference import ExportConfig
from ..config.vocabulary import DIRECTIONS
from ..data.shards import ShardSet
from ..errors import InputError
from ..imaging.jpeg import Picture
from ..inference import image_inputs
from ..models import checkpoint, factory
from ..reporting import run_files
from ..runtime.atomic import atomic_folder
from . import parity, to_hf, to_onnx, to_open_clip
from .parity import Pairs

_FORMATS = {
    "open_clip": (to_open_clip.write, to_open_clip.read),
    "onnx": (to_onnx.write, to_onnx.read),
    "hf": (to_hf.write, to_hf.read),
}
_NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "hf": ("transformers",)}
"""Packages of the extra of that name."""
_TEXTS = [
    "normal chest radiograph",
    "Axial CT of the abdomen shows a 3 cm mass in the right kidney (arrow).",
    "left pleural effusion",
    "MRI, T2-weighted: no abnormal signal",
]


def export_checkpoint(settings: ExportConfig) -> tuple[Pairs, float]:
    """Write a checkpoint as a folder for another program.

    Returns:
        What both sides embedded, and the largest difference of their normalised features.

    Raises:
        InputError: the folder is there already, a package is missing, the model has no counterpart
            in the format, or there is nothing to compare features on.
        WorkError: the features differ, or the folder can't be written. It is not there then.
    """
    out, form = Path(settings.out), settings.to
    if out.exists() and not (settings.overwrite and (out / "README.md").is_file()):
        raise InputError(f"--out: {out} is there already; --overwrite replaces an earlier export")
    content = checkpoint.load(settings.checkpoint)
    clip = factory.restore(content, settings.checkpoint)
    towers = clip.towers.eval()
    _check_installed(form)
    pairs = _pairs(settings, content)
    ours = parity.Side(clip.preprocess, clip.tokenizer, towers.embed_images, towers.embed_texts)
    expected = ours.features(pairs)
    write, read = _FORMATS[form]
    with atomic_folder(out, replace=settings.overwrite) as partial:
        write(clip, partial)
        exported = read(clip, partial).features(pairs)
        difference = parity.check(expected, exported, f"--to {form}")
        evaluations = _evaluations(Path(settings.checkpoint))
        (partial / "README.md").write_text(_card(content, form, evaluations, out), encoding="utf-8")
        if form == "open_clip":
            to_open_clip.prepare_rename(partial, out)
    return pairs, difference


def _card(
    content: dict[str, Any], form: str, evaluations: list[run_files.Evaluated], folder: Path
) -> str:
    """The model card, as Markdown: what it is, what it was trained on, how well it did."""
    environment = Environment(
        loader=PackageLoader("medclip_oc.exporters"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2").render(
        content=content,
        model=content["model"],
        config=content.get("config") or {},
        form=form,
        evaluations=evaluations,
        directions=DIRECTIONS,
        folder=folder,
    )


def _check_installed(form: str) -> None:
    try:
        for package in _NEEDS.get(form, ()):
            import_module(package)
    except ImportError as error:
        raise InputError(
            f"--to {form}: needs {error.name}: pip install 'medclip_oc[{form}]'"
        ) from error


def _pairs(settings: ExportConfig, content: dict[str, Any]) -> Pairs:
    """What both sides embed: images given, or else pairs that the run validated on."""
    if settings.images:
        images, texts = image_inputs.find(settings.images, None), _TEXTS
    else:
        shard_folders = (content.get("config") or {}).get("data", {}).get("valid")
        try:
            if not shard_folders:
                raise InputError("the checkpoint names no validation pairs")
            shards = ShardSet.open(shard_folders, "valid")
        except InputError as error:
            raise InputError(f"--images: name some to compare features on ({error})") from None
        images = image_inputs.ImageSet([shards])
        texts = [shards.read(n).caption for n in range(min(settings.pairs, len(shards)))]
    pictures = []
    for n in range(min(settings.pairs, len(images))):
        try:
            pictures.append(Picture(images.read(n), exact=True).image()[0].convert("RGB"))
        except InputError as error:
            raise InputError(f"{images.name(n)}: {error}") from None
    return Pairs(pictures, texts)


def _evaluations(file: Path) -> list[run_files.Evaluated]:
    """Those of this checkpoint, where it lies in its run folder."""
    if file.parent.name != "checkpoints":
        return []
    every = run_files.evaluations(file.parent.parent)
    return [evaluated for evaluated in every if evaluated.name.startswith(f"{file.stem}-")]
