"""The steps that all exports share: load, write, open anew, compare, describe."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from ..config.inference import ExportConfig
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..imaging import decode
from ..inference import image_inputs
from ..models import checkpoint, factory
from ..runtime.atomic import atomic_folder
from . import model_card, parity, to_hf, to_onnx, to_open_clip

_FORMATS: dict[str, Any] = {"open_clip": to_open_clip, "onnx": to_onnx, "hf": to_hf}
_NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "hf": ("transformers",)}
"""Packages of the extra of that name."""
_TEXTS = [
    "normal chest radiograph",
    "Axial CT of the abdomen shows a 3 cm mass in the right kidney (arrow).",
    "left pleural effusion",
    "MRI, T2-weighted: no abnormal signal",
]


def export_checkpoint(settings: ExportConfig) -> tuple[int, int, float]:
    """Write a checkpoint as a folder for another program.

    Returns:
        The numbers of images and texts that both sides embedded, and the largest difference of
        their normalised features.

    Raises:
        InputError: the folder is there already, a package is missing, the model has no counterpart
            in the format, or there is nothing to compare features on.
        WorkError: the features differ, or the folder can't be written. It is not there then.
    """
    out, form, file = Path(settings.out), settings.to, Path(settings.checkpoint)
    if out.exists() and not (settings.overwrite and (out / "README.md").is_file()):
        raise InputError(f"--out: {out} is there already; --overwrite replaces an earlier export")
    content = checkpoint.load(file)
    clip = factory.restore(content, str(file))
    towers = clip.towers.eval()
    if missing := [name for name in _NEEDS.get(form, ()) if not find_spec(name)]:
        raise InputError(f"--to {form}: needs {missing[0]}: pip install 'medclip_oc[{form}]'")
    pictures, texts = _pairs(settings, content)
    ours = parity.Side(clip.preprocess, clip.tokenizer, towers.embed_images, towers.embed_texts)
    expected = ours.features(pictures, texts)
    card = model_card.render(content, file, form, out)
    with atomic_folder(out, replace=settings.overwrite) as partial:
        try:
            _FORMATS[form].write(clip, partial)
        except Exception as error:
            if "(os error " in str(error):  # of a full disk, as safetensors and tokenizers say it
                raise WorkError(f"{out}: can't be written ({error})") from error
            raise
        exported = _FORMATS[form].read(clip, partial).features(pictures, texts)
        difference = parity.check(expected, exported, f"--to {form}")
        (partial / "README.md").write_text(f"{card}\n", encoding="utf-8")
        if form == "open_clip":
            to_open_clip.prepare_rename(partial, out)
    return len(pictures), len(texts), difference


def _pairs(settings: ExportConfig, content: dict[str, Any]) -> tuple[list[Image.Image], list[str]]:
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
        images = image_inputs.ImageSet([(shards, n) for n in range(len(shards))])
        texts = [shards.read(n).caption for n in range(min(settings.pairs, len(shards)))]
    pictures = []
    for n in range(min(settings.pairs, len(images))):
        try:
            pictures.append(decode.decode(images.read(n)).convert("RGB"))
        except InputError as error:
            raise InputError(f"{images.name(n)}: {error}") from None
    return pictures, texts
