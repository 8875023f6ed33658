"""A checkpoint as a Hugging Face folder: `transformers.CLIPModel.from_pretrained(DIR)`.

CLIPModel is OpenAI's architecture: a ViT and a causal text transformer, whose features are linear
projections of one token. Of open_clip's models those of that build alone map.
"""

import contextlib
import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InputError
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Side

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
    "in_proj_": "{}_proj.",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of weights' names in open_clip and CLIPModel; {} is q, k or v, which open_clip joins."""
_OUTSIDE_TOWERS = {
    "logit_scale": "logit_scale",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_TOKENS = 49408
"""Of open_clip's own tokenizer; the last one is the end."""


def write(clip: Clip, folder: Path) -> None:
    """Write configuration, weights, tokenizer and image processor.

    Args:
        clip: the model, on the CPU.
        folder: where to.

    Raises:
        InputError: CLIPModel doesn't have the architecture; says what doesn't map.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    _check(clip)
    config = CLIPConfig(**_config(clip))
    weights: dict[str, Tensor] = {}
    for key, tensor in clip.towers.clip.state_dict().items():
        weights |= _converted(key.removeprefix("text."), tensor)  # of a module of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CLIPModel(config)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise _no_counterpart(clip, str(error).splitlines()[-1].strip()) from error
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    # save_pretrained of the model would draw a bar
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])
    CLIPImageProcessor(**_processor(clip)).save_pretrained(folder)


def read(clip: Clip, folder: Path) -> Side:
    """Open it anew: its own model and tokenizer, on our pixels.

    The image processors of transformers resize a little otherwise than Pillow, each version in its
    way; that is no part of the weights.
    """
    from transformers import AutoTokenizer, CLIPModel

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        model = CLIPModel.from_pretrained(folder).eval()  # it draws a bar
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return Side(
        clip.open_clip_preprocess(),
        partial(tokenizer, padding=True, truncation=True, return_tensors="pt"),
        lambda pixels: normalize(model.visual_projection(model.vision_model(pixels).pooler_output)),
        lambda tokens: normalize(model.text_projection(model.text_model(**tokens).pooler_output)),
    )


def _check(clip: Clip) -> None:
    """Refuse what CLIPModel is not; names of weights that it doesn't have are found at loading."""
    text = clip.description["definition"]["text_cfg"]
    tower = type(clip.towers.clip.visual).__name__
    problem = None
    if tower != "VisionTransformer":
        problem = f"its image tower is a {tower}, not a ViT"
    elif "hf_model_name" in text or not hasattr(clip.tokenizer, "bpe_ranks"):
        problem = "its text tower or tokenizer is not CLIP's own"
    elif text.get("vocab_size", _TOKENS) != _TOKENS:
        problem = f"its vocabulary has {text['vocab_size']} tokens, CLIP's {_TOKENS}"
    elif clip.description["preprocess"]["resize_mode"] == "longest":
        problem = "its images are padded to a square"
    if problem:
        raise _no_counterpart(clip, problem)


def _no_counterpart(clip: Clip, problem: str) -> InputError:
    name = clip.description["name"]
    return InputError(f"--to hf: {name} has no counterpart in CLIPModel: {problem}")


def _converted(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A weight by CLIPModel's name; one that it doesn't have gets a name that it refuses."""
    if key in _OUTSIDE_TOWERS:
        return {_OUTSIDE_TOWERS[key]: tensor.t().contiguous()}
    name = key.replace("visual.", "vision_model.") if "visual." in key else f"text_model.{key}"
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    if "{}" not in name:
        return {name: tensor}
    return {name.format(p): rows.clone() for p, rows in zip("qkv", tensor.chunk(3), strict=True)}


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
            "max_position_embeddings": clip.description["context_length"],
            "hidden_act": activation,
            "pad_token_id": _TOKENS - 1,
            "projection_dim": definition["embed_dim"],
        },
    }


def _processor(clip: Clip) -> dict[str, Any]:
    preprocess = clip.description["preprocess"]
    height, width = clip.image_size
    squash = preprocess["resize_mode"] == "squash"
    return {
        "size": {"height": height, "width": width} if squash else {"shortest_edge": height},
        "resample": Image.Resampling[preprocess["interpolation"].upper()],
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }
