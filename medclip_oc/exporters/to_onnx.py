"""A checkpoint as two ONNX graphs, one per tower, for batches of any size.

    image_tower.onnx   images uint8 (B, 3, H, W), RGB -> features float32 (B, D), normalised
    text_tower.onnx    tokens int64 (B, L) -> features float32 (B, D), normalised
    preprocess.json    image size, resize mode, interpolation; mean and std are in the graph
    tokenizer files    of a CLIPTokenizer, or of the Hugging Face tokenizer

B images or texts, L context length, D embedding size.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import WorkError
from ..models import definition
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Side, quiet

_TOWERS = {"image_tower.onnx": "images", "text_tower.onnx": "tokens"}
"""Files, and the names of their inputs."""
_LARGEST_FILE = 1_500_000_000
"""Bytes of weights; a file of protobuf ends at 2 GB. Larger ones lie beside it."""


class _Tower(nn.Module):
    """One tower with its normalisation, as a module of one input."""

    def __init__(self, clip: Clip, input_name: str) -> None:
        super().__init__()
        self.towers, self.is_image = clip.towers, input_name == "images"

    def forward(self, batch: Tensor) -> Tensor:
        """(B, ...) -> (B, D)."""
        return (self.towers.embed_images if self.is_image else self.towers.embed_texts)(batch)


def write(clip: Clip, folder: Path) -> None:
    """Write both graphs, the preprocessing and the tokenizer of a model on the CPU.

    Raises:
        WorkError: the exporter can't follow a tower.
    """
    examples = {
        "images": torch.zeros(2, 3, *clip.image_size, dtype=torch.uint8),  # (B, 3, H, W)
        "tokens": clip.tokenizer(["a radiograph", "no finding"]),  # (B, L)
    }
    for file, name in _TOWERS.items():
        tower = _Tower(clip, name).eval()
        size = sum(p.numel() * p.element_size() for p in tower.parameters())
        try:
            with quiet():
                torch.onnx.export(
                    tower,
                    (examples[name],),
                    str(folder / file),
                    input_names=[name],
                    output_names=["features"],
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    external_data=size > _LARGEST_FILE,
                    verbose=False,
                )
        except Exception as error:  # whatever it trips over
            reason = definition.first_lines(error)
            raise WorkError(f"--to onnx: {file}: not exported ({reason})") from error
    about = {**clip.description["preprocess"], "mean_and_std": "in image_tower.onnx"}
    (folder / "preprocess.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])


def read(clip: Clip, folder: Path) -> Side:
    """Both graphs in onnxruntime, on our pixels and tokens, the first alone and then the rest."""
    import onnxruntime

    def embed(file: str, name: str, batch: Tensor) -> Tensor:
        path = str(folder / file)
        graph: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        # batch sizes other than the example's
        parts = [graph.run(None, {name: part.numpy()})[0] for part in (batch[:1], batch[1:])]
        return torch.from_numpy(np.concatenate(parts))  # (B, D)

    embed_towers = (partial(embed, file, name) for file, name in _TOWERS.items())
    return Side(clip.preprocess, clip.tokenizer, *embed_towers)
