"""A checkpoint as a Hugging Face folder: `transformers.CLIPModel.from_pretrained(DIR)`.

CLIPModel is OpenAI's architecture: a ViT and a causal text transformer, whose features are linear
projections of one token. Of open_clip's models those of that build alone map.
"""

import contextlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Found, Inputs, Reader

_NAMES = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOKENS = 49408
"""Of open_clip's own tokenizer; the last two are start and end."""
_RESAMPLING = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""


def check(clip: Clip) -> None:
    """Refuse an architecture that CLIPModel doesn't have.

    Raises:
        InputError: says what doesn't map; or transformers is not installed.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError("--to hf: needs transformers: pip install 'medclip_oc[hf]'") from error
    name, definition = clip.description["name"], clip.description["definition"]
    text = definition["text_cfg"]
    tower = type(clip.towers.clip.visual).__name__
    problem = None
    if tower != "VisionTransformer":
        problem = f"its image tower is a {tower}, not a ViT"
    elif "hf_model_name" in text or not tokenizer_files.is_open_clips_own(clip.tokenizer):
        problem = "its text tower or tokenizer is not CLIP's own"
    elif text.get("vocab_size", _TOKENS) != _TOKENS:
        problem = f"its vocabulary has {text['vocab_size']} tokens, CLIP's {_TOKENS}"
    elif clip.description["preprocess"]["resize_mode"] == "longest":
        problem = "its images are padded to a square"
    else:
        unknown = [key for key in _plain_names(clip) if _renamed(key) is None]
        if unknown:
            problem = f"it has {unknown[0]}"
    if problem:
        raise InputError(f"--to hf: {name} has no counterpart in CLIPModel: {problem}")


def write(clip: Clip, folder: Path) -> None:
    """Write configuration, weights, tokenizer and image processor.

    Args:
        clip: the model, which `check` let pass.
        folder: where to.
    """
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(**_config(clip))
    weights: dict[str, Tensor] = {}
    for key, tensor in _plain_names(clip).items():
        weights |= _converted(key, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CLIPModel(config)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            name = clip.description["name"]
            raise InputError(f"--to hf: {name} has no counterpart in CLIPModel: {first}") from error
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    # save_pretrained of the model would draw a bar
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(clip), indent=2) + "\n")


def read(clip: Clip, folder: Path) -> Reader:
    """Open it anew: its own model and tokenizer, on our pixels.

    The image processors of transformers resize a little otherwise than Pillow, each version in its
    way; that is no part of the weights.
    """
    from transformers import AutoTokenizer, CLIPModel

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        model = CLIPModel.from_pretrained(folder).eval()  # it draws a bar
        tokenizer = AutoTokenizer.from_pretrained(folder)
    transform = clip.open_clip_preprocess()

    @torch.inference_mode()
    def features(inputs: Inputs) -> Found:
        pixels = torch.stack([transform(picture) for picture in inputs.pictures])
        tokens = tokenizer(inputs.texts, padding=True, truncation=True, return_tensors="pt")
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        texts = model.text_projection(model.text_model(**tokens).pooler_output)
        return Found(*(torch.nn.functional.normalize(rows, dim=-1) for rows in (images, texts)))

    return features


def _plain_names(clip: Clip) -> dict[str, Tensor]:
    """The weights, those of a text tower in a module of its own as if it had none."""
    state = clip.towers.clip.state_dict()
    return {key.removeprefix("text."): tensor for key, tensor in state.items()}


def _renamed(key: str) -> str | None:
    """CLIPModel's name; of a joint matrix of q, k, v with {} in their place."""
    if key in _NAMES or key in _TURNED:
        return _NAMES.get(key) or _TURNED[key]
    if not (match := _BLOCK.fullmatch(key)):
        return None
    side, number, rest = match.groups()
    start = f"{'vision' if side else 'text'}_model.encoder.layers.{number}"
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        return f"{start}.self_attn.{{}}_proj.{rest.removeprefix('attn.in_proj_')}"
    inner, _, kind = rest.rpartition(".")
    return f"{start}.{_IN_BLOCK[inner]}.{kind}" if inner in _IN_BLOCK else None


def _converted(key: str, tensor: Tensor) -> dict[str, Tensor]:
    name = _renamed(key)
    assert name is not None
    if "{}" in name:
        return {
            name.format(part): rows.clone()
            for part, rows in zip("qkv", tensor.chunk(3), strict=True)
        }
    return {name: tensor.T.contiguous() if key in _TURNED else tensor}


def _config(clip: Clip) -> dict[str, Any]:
    definition = clip.description["definition"]
    image, text = definition["vision_cfg"], definition["text_cfg"]
    visual = clip.towers.clip.visual
    width = image.get("width", 768)
    activation = "quick_gelu" if clip.description["quick_gelu"] else "gelu"
    size = clip.image_size
    assert size[0] == size[1]
    return {
        "projection_dim": definition["embed_dim"],
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": int(width * image.get("mlp_ratio", 4.0)),
            "num_hidden_layers": image.get("layers", 12),
            "num_attention_heads": width // image.get("head_width", 64),
            "image_size": size[0],
            "patch_size": visual.conv1.kernel_size[0],
            "hidden_act": activation,
            "projection_dim": definition["embed_dim"],
        },
        "text_config": {
            "hidden_size": text.get("width", 512),
            "intermediate_size": int(text.get("width", 512) * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text.get("layers", 12),
            "num_attention_heads": text.get("heads", 8),
            "vocab_size": _TOKENS,
            "max_position_embeddings": clip.description["context_length"],
            "hidden_act": activation,
            "bos_token_id": _TOKENS - 2,
            "eos_token_id": _TOKENS - 1,
            "pad_token_id": _TOKENS - 1,
            "projection_dim": definition["embed_dim"],
        },
    }


def _processor(clip: Clip) -> dict[str, Any]:
    preprocess = clip.description["preprocess"]
    height, width = clip.image_size
    squash = preprocess["resize_mode"] == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": height},
        "resample": _RESAMPLING[preprocess["interpolation"]],
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }
