"""Checkpoints for others: `python -m medclip_oc.export --checkpoint F --to onnx --out DIR`.

The folder appears only after its features were compared with the checkpoint's.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.inference import ExportConfig
from .errors import InputError, WorkError
from .runtime import command

if TYPE_CHECKING:
    from .exporters.parity import Reader
    from .inference.image_inputs import ImageSet
    from .models.clip import Clip
    from .reporting.run_files import Evaluated

_TEXTS = (
    "normal chest radiograph",
    "Axial CT of the abdomen shows a 3 cm mass in the right kidney (arrow).",
    "left pleural effusion",
    "MRI, T2-weighted: no abnormal signal",
)


def main(settings: ExportConfig) -> None:
    """Write the folder, compare, and say by how much the features differ."""
    out = Path(settings.out)
    if out.exists() and not (settings.overwrite and (out / "README.md").is_file()):
        raise InputError(f"--out: {out} is there already; --overwrite replaces an earlier export")
    from .exporters import model_card, parity, to_open_clip
    from .models import checkpoint, factory

    content = checkpoint.load(settings.checkpoint)
    clip = factory.restore(content, settings.checkpoint)
    clip.towers.eval()
    _check(clip, settings.to)
    images, texts = _inputs(settings, content)
    inputs = parity.decode(images, texts)
    wanted = parity.ours(clip, inputs)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        found = _written(clip, settings.to, partial)(inputs)
        worst = parity.check(wanted, found, f"--to {settings.to}")
        card = model_card.text(content, settings.to, _evaluations(Path(settings.checkpoint)))
        (partial / "README.md").write_text(card.replace("FOLDER", str(out)), encoding="utf-8")
        if settings.to == "open_clip":
            to_open_clip.place(partial, out)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        raise WorkError(f"--out: {out} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{out}: features of {len(inputs.pictures)} images and {len(inputs.texts)} texts differ "
        f"from the checkpoint's by at most {worst:.1e}"
    )


def _check(clip: "Clip", form: str) -> None:
    """Refuse what can't be done before anything is written."""
    from .exporters import to_hf, to_onnx

    if form == "onnx":
        to_onnx.check_installed()
    elif form == "hf":
        to_hf.check(clip)


def _written(clip: "Clip", form: str, folder: Path) -> "Reader":
    """Write an export, and open it anew."""
    from .exporters import to_hf, to_onnx, to_open_clip

    if form == "open_clip":
        to_open_clip.write(clip, folder)
        return to_open_clip.read(folder)
    if form == "onnx":
        to_onnx.write(clip, folder)
        return to_onnx.reader(clip, folder)
    to_hf.write(clip, folder)
    return to_hf.read(clip, folder)


def _inputs(settings: ExportConfig, content: dict[str, Any]) -> "tuple[ImageSet, list[str]]":
    """What both sides embed: images given, or else pairs that the run validated on."""
    from .data.shards import ShardSet
    from .inference import image_inputs

    if settings.images:
        parts = image_inputs.find(settings.images, None).parts
        return image_inputs.ImageSet(parts, settings.pairs), [*_TEXTS]
    where = (content.get("config") or {}).get("data", {}).get("valid")
    try:
        if not where:
            raise InputError("the checkpoint names no validation pairs")
        shards = ShardSet.open(where, "valid")
    except InputError as error:
        raise InputError(f"--images: name some to compare features on ({error})") from None
    number = min(settings.pairs, len(shards))
    texts = [shards.read(n).caption for n in range(number)]
    return image_inputs.ImageSet([shards], number), texts


def _evaluations(file: Path) -> "list[Evaluated]":
    """Those of this checkpoint, where it lies in its run folder."""
    from .reporting import run_files

    if file.parent.name != "checkpoints":
        return []
    found = run_files.evaluations(file.parent.parent)
    return [one for one in found if one.name.startswith(f"{file.stem}-")]


if __name__ == "__main__":
    command.run(
        main,
        ExportConfig,
        prog="python -m medclip_oc.export",
        description="A checkpoint as a folder for open_clip, ONNX or Hugging Face transformers.",
    )
