"""open_clip's weights and those of transformers' CLIPModel, both ways.

CLIPModel is OpenAI's architecture: a ViT and a causal text transformer, whose features are linear
projections of one token. Most CLIPs on the Hugging Face hub have it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    "conv1": "embeddings.patch_embedding",
    "class_embedding": "embeddings.class_embedding",
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "transformer.resblocks": "encoder.layers",
    "ln_pre": "pre_layrnorm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
    ".attn.": ".self_attn.",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of weights' names in open_clip and CLIPModel."""
_OUTSIDE_TOWERS = {
    "logit_scale": "logit_scale",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_VISION = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_VISION |= {"image_size": 224, "patch_size": 32, "num_hidden_layers": 12}
_TEXT = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
_TEXT |= {"max_position_embeddings": 77, "vocab_size": 49408, "num_hidden_layers": 12}
"""What a config.json may leave out."""


def to_clip_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By CLIPModel's names; a weight that it doesn't have gets a name that it refuses."""
    state: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        key = key.removeprefix("text.")  # of a module of its own
        name = f"text_model.{key}".replace("text_model.visual.", "vision_model.")
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        if key in _OUTSIDE_TOWERS:
            state[_OUTSIDE_TOWERS[key]] = tensor.t().contiguous()
        elif "in_proj_" in name:  # of query, key and value together
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("in_proj_", f"{part}_proj.")] = rows.clone()
        else:
            state[name] = tensor
    return state


def from_clip_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By open_clip's names; what it doesn't have gets a name that it refuses."""
    state: dict[str, Tensor] = {}
    outside = {theirs: ours for ours, theirs in _OUTSIDE_TOWERS.items()}
    for key, tensor in weights.items():
        name = key.removeprefix("text_model.").replace("vision_model.", "visual.")
        for ours, theirs in _NAMES.items():
            name = name.replace(theirs, ours)
        if key in outside:
            state[outside[key]] = tensor.t()
        elif ".q_proj." in name:
            parts = [weights.get(key.replace(".q_", f".{part}_")) for part in "qkv"]
            rows = [part for part in parts if part is not None]
            state[name.replace("q_proj.", "in_proj_")] = torch.cat(rows)
        elif ".k_proj." not in name and ".v_proj." not in name:
            state[name] = tensor
    return state


def definition_of(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's definition of the model that a CLIPModel's config.json describes."""
    image, text = _VISION | config["vision_config"], _TEXT | config["text_config"]
    vision_cfg, text_cfg = (
        {
            "width": tower["hidden_size"],
            "layers": tower["num_hidden_layers"],
            "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"],
        }
        for tower in (image, text)
    )
    vision_cfg |= {name: image[name] for name in ("image_size", "patch_size")}
    vision_cfg["head_width"] = image["hidden_size"] // image["num_attention_heads"]
    text_cfg |= {"heads": text["num_attention_heads"], "vocab_size": text["vocab_size"]}
    text_cfg["context_length"] = text["max_position_embeddings"]
    quick_gelu = image.get("hidden_act", "quick_gelu") == "quick_gelu"
    towers = {"vision_cfg": vision_cfg, "text_cfg": text_cfg, "quick_gelu": quick_gelu}
    return {"embed_dim": config.get("projection_dim", 512), **towers}


def preprocess_of(processor: dict[str, Any]) -> dict[str, Any]:
    """open_clip's preprocessing, by CLIPModel's preprocessor_config.json."""
    known = {"mean": "image_mean", "std": "image_std"}
    crops = processor.get("do_center_crop", True)
    return {ours: processor[theirs] for ours, theirs in known.items() if theirs in processor} | {
        "interpolation": "bilinear" if processor.get("resample") == 2 else "bicubic",  # as Pillow
        "resize_mode": "shortest" if crops else "squash",
    }
