"""The schema of all that describes a model: a checkpoint, a folder's JSON, `model.definition` and
`model.preprocess`. Keys and types are those of open_clip's dataclasses; here are the bounds that
they leave open, so that nothing is built, opened or run that a model doesn't need.
"""

import re
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, Literal

from open_clip.coca_model import MultimodalCfg
from open_clip.hf_configs import arch_dict
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ..config.fields import shorten
from ..errors import InputError

PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")  # others follow from the model
TEXT_MODEL = "text_model"  # in a folder: the configuration of a Hugging Face text tower
# of a file in open_clip's registry, or of a timm model: no path, no hub
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.@+-]*$", max_length=200)]
Text = Annotated[str, Field(max_length=255)]  # as of a part of a path
Count = Annotated[int, Field(ge=1, le=2**20)]  # the largest vocabulary of open_clip has 901,629
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Size = Count | Annotated[list[Count], Field(min_length=2, max_length=2, strict=False)]
Three = Field(min_length=3, max_length=3, strict=False)  # a tuple will do too
Reference = Annotated[str, Field(max_length=4095)]  # as of a path
Shards = Reference | list[Reference] | None
_WORDS = {  # of pydantic's errors, what is said here in other words
    "missing": "is missing",
    "extra_forbidden": "no such setting",
    **dict.fromkeys(("model_type", "dict_type"), "should be a mapping"),
    "string_pattern_mismatch": "can't be a name; use letters, digits, . @ + - _",
}


def _mapping(keys: dict[str, Any], extra: Literal["forbid", "ignore"] = "forbid") -> Any:
    """A type of mapping: types by key, those of an inner one as a dict; "key?" may be absent."""
    how = ConfigDict(strict=True, allow_inf_nan=False, extra=extra)
    types = {k: _mapping(t, extra) if isinstance(t, dict) else t for k, t in keys.items()}
    needs: Any = {k.rstrip("?"): (t, None if "?" in k else ...) for k, t in types.items()}
    return create_model("Mapping", __config__=how, **needs)


def _section(config: type, **bounded: Any) -> Any:
    """A section with open_clip's keys; and its types, where none stands in _BOUNDED."""
    types = _BOUNDED | bounded
    return _mapping({f"{f.name}?": types.get(f.name, f.type) for f in fields(config)})


open_mapping = partial(_mapping, extra="ignore")
_BOUNDED: dict[str, Any] = {
    **dict.fromkeys(("width", "head_width", "heads", "dim_head", "n_queries", "vocab_size"), Count),
    **dict.fromkeys(("context_length", "attn_pooler_heads", "attn_pooler_queries"), Count),
    **dict.fromkeys(("pad_id", "eos_id"), Annotated[int, Field(ge=0, lt=2**20)]),
    **dict.fromkeys(("image_size", "size"), Size),
    **dict.fromkeys(("hf_tokenizer_name", "hf_model_name", "hf_pooler_type"), Text | None),
    "layers": Layers,
    "patch_size": Size | None,
    **dict.fromkeys(("patch_dropout", "timm_drop", "timm_drop_path"), Share | None),
    "pool_type": Literal["first", "last", "argmax", "eos"],
    "act_kwargs": dict[Literal["approximate"], Literal["none", "tanh"]] | None,
    "norm_kwargs": dict[Literal["eps"], Positive] | None,
    "timm_model_name": Name | None,
    "timm_proj": Literal["", "none", "linear", "mlp"] | None,
    "hf_proj_type": Literal["linear", "mlp"] | None,
    # open_clip's tokenizers and transformers' know others, which run, download or draw at random
    "tokenizer_kwargs": _mapping(
        {"clean?": Literal["lower", "whitespace", "canonicalize"], "strip_sep_token?": bool}
    ),
    "mode": Literal["RGB"],
    "mean": Annotated[list[float], Three],
    "std": Annotated[list[Positive], Three],
    "interpolation": Literal["bicubic", "bilinear"],
    "resize_mode": Literal["shortest", "longest", "squash"],
}
VISION = _section(CLIPVisionCfg, layers=Layers | list[Layers], pool_type=Literal["tok", "avg"])
PREPROCESS = _section(PreprocessCfg)
OWN_PREPROCESS = _mapping({f"{key}?": _BOUNDED[key] for key in PREPROCESS_KEYS})
DEFINITION = _mapping(
    {"embed_dim": Count, "vision_cfg": VISION, "text_cfg": _section(CLIPTextCfg)}
    | {"multimodal_cfg?": _section(MultimodalCfg), "quick_gelu?": bool, "custom_text?": bool}
    | {"init_logit_scale?": float, "init_logit_bias?": float | None, "nonscalar_logit_scale?": bool}
)
FOLDER = open_mapping({"model_cfg": DEFINITION, "preprocess_cfg?": PREPROCESS})
_CLIP_TOWER = {
    **dict.fromkeys(("hidden_size?", "num_attention_heads?", "intermediate_size?"), Count),
    "hidden_act?": Literal["quick_gelu", "gelu"],
    "layer_norm_eps?": Annotated[float, Field(ge=1e-5, le=1e-5)],
}
CLIP_MODEL = open_mapping(
    {"model_type": Literal["clip"], "vision_config": _CLIP_TOWER, "projection_dim?": Count}
    | {"text_config": _CLIP_TOWER | {"vocab_size?": Literal[49408]}}
)
"""config.json of transformers' CLIPModel, and its preprocessor_config.json."""
CLIP_PROCESSOR = open_mapping(
    {"image_mean?": _BOUNDED["mean"], "image_std?": _BOUNDED["std"], "do_center_crop?": bool}
    | {"resample?": Literal[2, 3]}
)
TEXT_TOWER = open_mapping(
    {"model_type": Literal[tuple(arch_dict)], "auto_map?": None, "num_labels?": Count}
    | {"max_position_embeddings?": Count, "pad_token_id?": Natural}
    | {f"{n}_layers?": Layers for n in ("num", "num_hidden", "num_decoder", "encoder", "decoder")}
    | {f"{name}attn_implementation?": Literal["eager", "sdpa", None] for name in ("", "_")}
)
"""config.json of Hugging Face: an auto_map names Python files, and an attention may be of a hub."""
_FILE = Annotated[str, Field(pattern=rf"^({TEXT_MODEL}/)?\w[\w.-]*$", max_length=200)]
_DESCRIPTION = open_mapping(
    {"arch": str, "name": Name, "definition": DEFINITION, "preprocess": PREPROCESS}
    | {"tokens?": list[int] | None, "files?": dict[_FILE, bytes]}
    | {"quick_gelu?": bool, "tokenizer?": str, "context_length?": Count}
)
_SIZES = dict.fromkeys(("image_size?", "context_length?"), Count | None)
_PRETRAINED = {f"pretrained{tower}?": Reference | None for tower in ("", "_image", "_text")}
_CONFIG = {  # of its run: what is read besides being compared with that of another run
    "model?": {"arch": str, "patch_dropout?": Share | None} | _SIZES | _PRETRAINED,
    "data?": {"train?": Shards, "valid?": Shards},
    "run?": {"seed": Natural},
}
CHECKPOINT = open_mapping(
    {"state_dict": dict[str, Any], "model": _DESCRIPTION, "config?": open_mapping(_CONFIG) | None}
    | {"step?": Natural, "position?": Natural, "epoch?": NotNegative, "versions?": dict[str, str]}
)


def check(kind: Any, value: object, where: str) -> None:
    """Refuse what isn't of a kind above: an InputError of its first fault, after `where`."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as caught:
        error = caught.errors(include_url=False)[0]
        # the place names the alternatives of a type too: str, constrained-int, list[...]
        place = [str(k) for k in error["loc"] if not re.search(r"^str$|constrained|\[", str(k))]
        message = _WORDS.get(error["type"], error["msg"].removeprefix("Input "))
        if error["type"] == "extra_forbidden" and len(place) == 1:
            message += f"; allowed: {', '.join(kind.model_fields)}"
        named = f"{where}{'.'.join(place)}".rstrip(". :")
        raise InputError(f"{named}: {message} (there: {shorten(error['input'])})") from None


def check_equal(one: str, is_so: dict[str, Any], other: str, is_other: dict[str, Any]) -> None:
    """Refuse what one says of itself where the other says something else; names the entries."""
    if is_so != is_other:
        keys = [k for k in is_so | is_other if is_so.get(k) != is_other.get(k)]
        said = [shorten({k: of[k] for k in keys if k in of}) for of in (is_so, is_other)]
        raise InputError(f"{one} {said[0]}, but {other} {said[1]}")
