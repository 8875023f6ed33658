"""A checkpoint as two ONNX graphs, one per tower, for batches of any size.

    image_tower.onnx   images uint8 (B, 3, H, W), RGB -> features float32 (B, D), normalised
    text_tower.onnx    tokens int64 (B, L) -> features float32 (B, D), normalised
    preprocess.json    image size, resize mode, interpolation; mean and std are in the graph
    tokenizer files    of a CLIPTokenizer, or of the Hugging Face tokenizer

B images or texts, L context length, D embedding size.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, WorkError
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Found, Inputs, Reader

TOWERS = {"image_tower.onnx": "embed_images", "text_tower.onnx": "embed_texts"}
_INPUTS = {"embed_images": "images", "embed_texts": "tokens"}
_LARGEST_FILE = 1_500_000_000
"""Bytes of weights; a file of protobuf ends at 2 GB. Larger ones lie beside it."""
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class _Tower(nn.Module):
    """One tower with its normalisation, as a module of one input."""

    def __init__(self, clip: Clip, name: str) -> None:
        super().__init__()
        self.towers, self.name = clip.towers, name

    def forward(self, batch: Tensor) -> Tensor:
        """(B, ...) -> (B, D)."""
        features: Tensor = getattr(self.towers, self.name)(batch)
        return features


def check_installed() -> None:
    """Refuse at once what would fail at the end.

    Raises:
        InputError: a package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--to onnx: needs {error.name}: pip install 'medclip_oc[onnx]'"
        ) from error


def write(clip: Clip, folder: Path) -> None:
    """Write both graphs, the preprocessing and the tokenizer.

    Args:
        clip: the model, on the CPU.
        folder: where to.

    Raises:
        WorkError: the exporter can't follow a tower.
    """
    height, width = clip.image_size
    examples = {
        "embed_images": torch.zeros(2, 3, height, width, dtype=torch.uint8),
        "embed_texts": clip.tokenizer(["a radiograph", "no finding"]),
    }
    for file, name in TOWERS.items():
        tower = _Tower(clip, name).eval()
        size = sum(p.numel() * p.element_size() for p in tower.parameters())
        with _silence() as said:
            try:
                torch.onnx.export(
                    tower,
                    (examples[name],),
                    str(folder / file),
                    input_names=[_INPUTS[name]],
                    output_names=["features"],
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    external_data=size > _LARGEST_FILE,
                    verbose=False,
                )
            except Exception as error:  # whatever the exporter trips over
                reason = str(error).strip().splitlines() or said.getvalue().splitlines() or [""]
                raise WorkError(f"--to onnx: {file}: not exported ({reason[0][:200]})") from error
    about = {**clip.description["preprocess"], "mean_and_std": "in image_tower.onnx"}
    (folder / "preprocess.json").write_text(json.dumps(about, indent=2) + "\n")
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])


def reader(clip: Clip, folder: Path) -> Reader:
    """Both graphs in onnxruntime, on our pixels and tokens, one by one and all at once."""
    import onnxruntime

    sessions: dict[str, Any] = {
        name: onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        for file, name in TOWERS.items()
    }

    def run(name: str, batch: Tensor) -> Tensor:
        [features] = sessions[name].run(None, {_INPUTS[name]: batch.numpy()})
        return torch.from_numpy(features)

    def features(inputs: Inputs) -> Found:
        pixels = torch.stack([clip.preprocess(picture) for picture in inputs.pictures])
        tokens = clip.tokenizer(inputs.texts)
        found = []
        for name, batch in (("embed_images", pixels), ("embed_texts", tokens)):
            # another batch size than that of the example, twice
            found.append(torch.cat([run(name, batch[:1]), run(name, batch[1:])]))
        return Found(*found)

    return features


@contextlib.contextmanager
def _silence() -> Iterator[io.StringIO]:
    """The exporter narrates on every channel; a failure is told of in our words."""
    said = io.StringIO()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield said
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
