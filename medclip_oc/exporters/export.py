"""The steps that all exports share: load, write, open anew, compare, describe."""

from importlib.util import find_spec
from pathlib import Path
from shutil import copymode
from typing import Any

from PIL import Image

from ..config.inference import ExportConfig
from ..data.index import CAPTION
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..imaging import decode
from ..inference import image_inputs
from ..models import checkpoint, factory
from ..runtime.atomic import atomic_folder
from . import model_card, parity, to_adapters, to_clip_benchmark, to_hf, to_onnx, to_open_clip

_FORMATS = {"open_clip": to_open_clip, "onnx": to_onnx, "hf": to_hf, "adapters": to_adapters}
_NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript", "tokenizers"), "hf": ("transformers",)}
"""Packages of the extra of that name."""
_TEXTS = [
    "left pleural effusion",
    "the patient\u2019s \u201cmass\u201d (arrow), 3&nbsp;cm &lt; 5 \u00b5m, is \ufb01brous",
    "MRI, T2-weighted:\n\n\tno  abnormal signal \u2013 \u00c5ngstr\u00f6m",
    "axial CT of the abdomen shows a mass in the right kidney, and " * 20,
]
_MOST_CAPTIONS = 200


def export(settings: ExportConfig) -> str:
    """Write a folder for another program; returns what is to be said of it. InputError: the folder
    is there, a package is missing, the model has no counterpart in the format, there is nothing to
    compare on, or see `to_clip_benchmark.write`. WorkError: features differ, or it can't be
    written; it isn't there.
    """
    out, form, file = Path(settings.out), settings.to, Path(settings.checkpoint or "")
    if out.exists() and not (settings.overwrite and (out / "README.md").is_file()):
        raise InputError(f"--out: {out} is there already; --overwrite replaces an earlier export")
    if form == "clip_benchmark":
        with atomic_folder(out, replace=settings.overwrite) as partial:
            return to_clip_benchmark.write(settings, partial)
    content = checkpoint.load(file)
    clip = factory.restore(content, str(file))
    model = clip.towers.eval().clip
    if missing := [name for name in _NEEDS.get(form, ()) if not find_spec(name)]:
        raise InputError(f"--to {form}: needs {missing[0]}: pip install 'medclip_oc[{form}]'")
    pictures, texts = _pairs(settings, content)
    ours = parity.Side.of_open_clip(model, clip.open_clip_preprocess(), clip.tokenizer)
    expected = ours.features(pictures, texts)
    exported = content if form == "adapters" else clip
    with atomic_folder(out, replace=settings.overwrite) as partial:
        try:
            _FORMATS[form].write(exported, partial)
        except Exception as error:
            if "(os error " in str(error):  # of a full disk, as safetensors and tokenizers say it
                raise WorkError(f"{out}: can't be written ({error})") from error
            raise
        theirs = _FORMATS[form].read(exported, partial)
        alike = theirs._replace(preprocess=ours.preprocess, tokenizer=ours.tokenizer)
        difference = parity.check(expected, alike.features(pictures, texts), f"--to {form}")
        sides = {"what lies in this folder": theirs}
        if settings.quantize:
            to_onnx.quantize(partial)
            sides["that, with weights of 8 bits"] = to_onnx.read(clip, partial, to_onnx.QUANTIZED)
        made = {name: side.features(pictures, texts) for name, side in sides.items()}
        close = {name: parity.closeness(expected, given) for name, given in made.items()}
        card = model_card.render(content, file, form, out, close)
        (partial / "README.md").write_text(f"{card}\n", encoding="utf-8")
        for weights in partial.glob("*.safetensors"):  # which are written for their owner alone
            copymode(partial / "README.md", weights)
        if form == "open_clip":
            to_open_clip.prepare_rename(partial, out)
    compared = f"features of {len(pictures)} images and {len(texts)} texts"
    return f"{compared} differ from the checkpoint's by at most {difference:.1e}"


def _pairs(settings: ExportConfig, content: dict[str, Any]) -> tuple[list[Image.Image], list[str]]:
    """What both sides embed: images given, or else pairs that the run validated on."""
    if settings.images:
        images, texts = image_inputs.find(settings.images, None), _TEXTS
    else:
        data = (content.get("config") or {}).get("data", {})
        try:
            if not data.get("valid"):
                raise InputError("the checkpoint names no validation pairs")
            shards = ShardSet.open(data["valid"], "valid", data.get("caption_key", CAPTION))
        except InputError as error:
            raise InputError(f"--images: name some to compare features on ({error})") from None
        images = image_inputs.ImageSet([(shards, n) for n in range(len(shards))])
        captions = [shards.read(n).caption for n in range(min(_MOST_CAPTIONS, len(shards)))]
        texts = [*_TEXTS, *captions]
    pictures = []
    for n in range(min(settings.pairs, len(images))):
        try:
            pictures.append(decode.decode(images.read(n)).convert("RGB"))
        except InputError as error:
            raise InputError(f"{images.name(n)}: {error}") from None
    return pictures, texts
