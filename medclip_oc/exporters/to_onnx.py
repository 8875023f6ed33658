"""A checkpoint as two ONNX graphs, one per tower, laid out as transformers.js takes them.

    onnx/vision_model.onnx    pixel_values float32 (B, 3, H, W), normalised -> image_embeds (B, D)
    onnx/text_model.onnx      input_ids int64 (B, L) -> text_embeds (B, D)
    onnx/*_quantized.onnx     the same with weights of 8 bits, where asked for
    config.json               logit_scale and logit_bias: the logits are scale * cosine + bias
    preprocessor_config.json  size, mean, std
    tokenizer.json            and tokenizer_config.json

Embeddings are float32, normalised. B images or texts, L tokens up to the context length, D
embedding size.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WorkError
from ..models import definition
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Side, quiet
from .to_hf import processor

_TOWERS = {"vision_model": "pixel_values", "text_model": "input_ids"}
"""Files, and the names of their input."""
QUANTIZED = "_quantized"  # ends the names of graphs with weights of 8 bits
_LARGEST_FILE = 1_500_000_000
"""Bytes of weights; a file of protobuf ends at 2 GB. Larger ones lie beside it."""


class _Tower(nn.Module):
    """One tower as a module of one input; texts are filled up as the tokenizer does it."""

    def __init__(self, clip: Clip, is_image: bool) -> None:
        super().__init__()
        self.clip, self.is_image = clip.towers.clip, is_image
        [empty] = clip.tokenizer([""])
        self.length, self.fill = len(empty), int(empty[-1])

    def forward(self, batch: Tensor) -> Tensor:
        """(B, ...) -> (B, D)."""
        if self.is_image:
            return self.clip.encode_image(batch, normalize=True)
        missing = self.length - batch.shape[1]
        return self.clip.encode_text(F.pad(batch, (0, missing), value=self.fill), normalize=True)


def write(clip: Clip, folder: Path) -> None:
    """Write the graphs, the preprocessing and the tokenizer of a model on the CPU; WorkError: the
    exporter can't follow a tower.
    """
    (folder / "onnx").mkdir()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    pixels = torch.zeros(2, 3, *clip.image_size)  # (B, 3, H, W)
    tokens = clip.tokenizer(["a radiograph", "no finding"])[:, :-1].contiguous()  # (B, L)
    examples = (pixels, {0: batch}), (tokens, {0: batch, 1: length})
    for (name, takes), (example, shape) in zip(_TOWERS.items(), examples, strict=True):
        tower = _Tower(clip, name == "vision_model").eval()
        try:
            with quiet():
                torch.onnx.export(
                    tower,
                    (example,),
                    str(folder / "onnx" / f"{name}.onnx"),
                    input_names=[takes],
                    output_names=["image_embeds" if tower.is_image else "text_embeds"],
                    dynamo=True,
                    dynamic_shapes=(shape,),
                    external_data=sum(w.nbytes for w in tower.parameters()) > _LARGEST_FILE,
                )
        except Exception as error:  # whatever it trips over
            reason = definition.first_lines(error)
            raise WorkError(f"--to onnx: {name}: not exported ({reason})") from error
    with torch.no_grad():
        scale, bias = clip.towers.inverse_temperature(), clip.towers.logit_bias()
    facts = {"logit_scale": float(scale), "logit_bias": 0.0 if bias is None else float(bias)}
    files = {"config.json": {"model_type": "clip", **facts}}
    mode, (height, width) = clip.description["preprocess"]["resize_mode"], clip.image_size
    if mode == "squash" or (mode == "shortest" and height == width):  # no others are known there
        settings = {"image_processor_type": "CLIPImageProcessor", **processor(clip)}
        files["preprocessor_config.json"] = settings
    for file_name, content in files.items():
        (folder / file_name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])


def read(clip: Clip, folder: Path, kind: str = "") -> Side:
    """Both graphs in onnxruntime (of a `kind` that ends their names), and tokenizer.json."""
    import onnxruntime
    from tokenizers import Tokenizer

    def embed(tower: str, batch: Tensor) -> Tensor:
        file, name = str(folder / "onnx" / f"{tower}{kind}.onnx"), _TOWERS[tower]
        graph: Any = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        # batch sizes other than the example's
        parts = [graph.run(None, {name: part.numpy()})[0] for part in (batch[:1], batch[1:])]
        return torch.from_numpy(np.concatenate(parts))  # (B, D)

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Side(
        clip.open_clip_preprocess(),
        lambda texts: torch.tensor([text.ids for text in tokenizer.encode_batch(texts)]),
        *(partial(embed, tower) for tower in _TOWERS),
    )


def quantize(folder: Path) -> None:
    """Write the graphs with weights of 8 bits beside them."""
    from onnxruntime.quantization import quantize_dynamic

    for tower in _TOWERS:
        file, out = (folder / "onnx" / f"{tower}{kind}.onnx" for kind in ("", QUANTIZED))
        with quiet():
            quantize_dynamic(file, out, per_channel=True, op_types_to_quantize=["MatMul", "Gather"])
