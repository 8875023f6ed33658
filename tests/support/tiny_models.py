"""Definitions of models that embed a batch in milliseconds."""

from typing import Any

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TINY: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
