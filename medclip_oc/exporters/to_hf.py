"""A checkpoint as a Hugging Face folder: `transformers.CLIPModel.from_pretrained(DIR)`. Of
open_clip's models those of OpenAI's build alone map (see models/transformers_clip.py).
"""

from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch.nn.functional import normalize

from ..errors import InputError
from ..models import transformers_clip
from ..models.clip import Clip
from . import tokenizer_files
from .parity import Side, quiet


def write(clip: Clip, folder: Path) -> None:
    """Write configuration, weights, tokenizer and image processor of a model on the CPU.
    InputError: CLIPModel doesn't have the architecture; says what doesn't map.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    _check(clip)
    weights = transformers_clip.to_clip_model(clip.towers.clip.state_dict())
    with quiet():
        model = CLIPModel(CLIPConfig(**_config(clip)))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise _no_counterpart(clip, str(error).splitlines()[-1].strip()) from error
        model.save_pretrained(folder)
    tokenizer_files.write(clip.tokenizer, folder, clip.description["context_length"])
    CLIPImageProcessor(**processor(clip)).save_pretrained(folder)


def read(_: Clip, folder: Path) -> Side:
    """Open it anew as a user of transformers would."""
    from transformers import CLIPModel, CLIPProcessor

    with quiet():
        model = CLIPModel.from_pretrained(folder).eval()
        reader = CLIPProcessor.from_pretrained(folder, trust_remote_code=False)
        as_tensors = partial(reader, return_tensors="pt")
    return Side(
        lambda picture: as_tensors(images=picture)["pixel_values"][0],
        lambda texts: as_tensors(text=texts, padding="max_length", truncation=True)["input_ids"],
        lambda pixels: normalize(model.visual_projection(model.vision_model(pixels).pooler_output)),
        lambda tokens: normalize(model.text_projection(model.text_model(tokens).pooler_output)),
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
    text_config |= {"max_position_embeddings": about["context_length"], "pad_token_id": 0}
    return {"projection_dim": width, "vision_config": image_config, "text_config": text_config}


def processor(clip: Clip) -> dict[str, Any]:
    """Settings of a CLIPImageProcessor."""
    preprocess, (height, width) = clip.description["preprocess"], clip.image_size
    whole = {"height": height, "width": width}
    squash = preprocess["resize_mode"] == "squash"
    return {
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
        "size": whole if squash else {"shortest_edge": height},
        "resample": Image.Resampling[preprocess["interpolation"].upper()],
        "do_center_crop": not squash,
        "crop_size": whole,
        "rescale_factor": 1 / 255,
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }
