"""A checkpoint as a Hugging Face folder: `transformers.CLIPModel.from_pretrained(DIR)`.

CLIPModel is OpenAI's architecture: a ViT and a causal text transformer, whose features are linear
projections of one token. Of open_clip's models those of that build alone map.
"""

from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InputError
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Side, quiet

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


def write(clip: Clip, folder: Path) -> None:
    """Write configuration, weights, tokenizer and image processor of a model on the CPU.

    Raises:
        InputError: CLIPModel doesn't have the architecture; says what doesn't map.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    _check(clip)
    weights: dict[str, Tensor] = {}
    for key, tensor in clip.towers.clip.state_dict().items():
        weights |= _converted(key.removeprefix("text."), tensor)  # of a module of its own
    with quiet():
        model = CLIPModel(CLIPConfig(**_config(clip)))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise _no_counterpart(clip, str(error).splitlines()[-1].strip()) from error
        model.save_pretrained(folder)
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])
    CLIPImageProcessor(**_processor(clip)).save_pretrained(folder)


def read(clip: Clip, folder: Path) -> Side:
    """Open it anew: its own model and tokenizer, on our pixels.

    The image processors of transformers resize a little otherwise than Pillow, each version in its
    way; that is no part of the weights.
    """
    from transformers import AutoTokenizer, CLIPModel

    with quiet():
        model = CLIPModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
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
    if tower != "VisionTransformer":
        raise _no_counterpart(clip, f"its image tower is a {tower}, not a ViT")
    if "hf_model_name" in text or not hasattr(clip.tokenizer, "bpe_ranks"):
        raise _no_counterpart(clip, "its text tower or tokenizer is not CLIP's own")
    if clip.description["preprocess"]["resize_mode"] == "longest":
        raise _no_counterpart(clip, "its images are padded to a square")


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
    model, about = clip.towers.clip, clip.description
    width = about["definition"]["embed_dim"]
    image_config, text_config = (
        {
            "hidden_size": tower.width,
            "intermediate_size": tower.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.resblocks[0].attn.num_heads,
            "hidden_act": "quick_gelu" if about["quick_gelu"] else "gelu",
            "projection_dim": width,
        }
        for tower in (model.visual.transformer, getattr(model, "text", model).transformer)
    )
    patch = model.visual.conv1.kernel_size[0]
    image_config |= {"image_size": clip.image_size[0], "patch_size": patch}
    tokens: Any = clip.tokenizer
    text_config |= {"pad_token_id": tokens.eot_token_id}
    text_config |= {"max_position_embeddings": about["context_length"]}
    return {"projection_dim": width, "vision_config": image_config, "text_config": text_config}


def _processor(clip: Clip) -> dict[str, Any]:
    preprocess, (height, width) = clip.description["preprocess"], clip.image_size
    whole = {"height": height, "width": width}
    squash = preprocess["resize_mode"] == "squash"
    return {
        "size": whole if squash else {"shortest_edge": height},
        "resample": Image.Resampling[preprocess["interpolation"].upper()],
        "do_center_crop": not squash,
        "crop_size": whole,
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }
