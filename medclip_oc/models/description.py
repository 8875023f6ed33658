"""The schema of every description of a model: of a checkpoint, of `open_clip_config.json`, and of
`model.definition` and `model.preprocess`.

Keys and types are those of open_clip's own dataclasses. Here are the bounds that they leave open,
so that a description is data, and nothing is built, opened or run that a model doesn't need.
"""

from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any, Literal

from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ..config.fields import shorten
from ..errors import InputError


def _mapping(keys: dict[str, Any], *, closed: bool = True) -> Any:
    """A type of mapping, of (type, default) by key; ... is no default. Closed: no other keys."""
    how = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid" if closed else "ignore")
    return create_model("Mapping", __config__=how, **keys)


def _section(config: type, *, without: tuple[str, ...] = (), **bounded: Any) -> Any:
    """A section with open_clip's keys; and its types, where none stands in _BOUNDED."""
    types, own = _BOUNDED | bounded, [f for f in fields(config) if f.name not in without]
    return _mapping({f.name: (types.get(f.name, f.type), f.default) for f in own})


# what becomes a file's name in open_clip's registry, or timm's name of a model (no hf-hub: or path)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.@+-]*$", max_length=200)]
Text = Annotated[str, Field(max_length=1000)]
Texts = Text | list[Text] | None
Count = Annotated[int, Field(ge=1, le=2**20)]  # the largest vocabulary of open_clip has 901,629
Layers = Annotated[int, Field(ge=1, le=1000)]
Token = Annotated[int, Field(ge=0, lt=2**20)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Size = Count | Annotated[list[Count], Field(min_length=2, max_length=2, strict=False)]
_THREE = Field(min_length=3, max_length=3, strict=False)  # a tuple will do too
_POOLER = Literal["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"]
_TOKENIZER = _mapping(  # what neither runs, downloads nor opens anything
    {
        "clean": (Literal["lower", "whitespace", "canonicalize"], "lower"),
        "strip_sep_token": (bool, False),
        "language": (Text | None, None),
        "additional_special_tokens": (list[Text] | None, None),
        "reduction_mask": (Literal["", "simple", "random", "shuffle"], ""),
    },
)
_BOUNDED: dict[str, Any] = {
    **dict.fromkeys(("width", "head_width", "heads", "dim_head", "n_queries"), Count),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads"), Count),
    **dict.fromkeys(("context_length", "vocab_size"), Count),
    **dict.fromkeys(("pad_id", "eos_id"), Token),
    **dict.fromkeys(("patch_dropout", "timm_drop"), Share),
    **dict.fromkeys(("hf_tokenizer_name", "hf_model_name"), Text | None),
    **dict.fromkeys(("image_size", "size"), Size),
    "layers": Layers,
    "patch_size": Size | None,
    "mlp_ratio": Positive,
    "act_kwargs": dict[Literal["approximate"], Literal["none", "tanh"]] | None,
    "norm_kwargs": dict[Literal["eps"], Positive] | None,
    "block_type": Literal["default", "custom"] | None,
    "attentional_pool": bool | Literal["parallel", "cascade"],
    "pos_embed_type": Literal["learnable", "sin_cos_2d"],
    "pool_type": Literal["first", "last", "argmax", "eos"],
    "proj_type": Literal["linear", "none"],
    "timm_model_name": Name | None,
    "timm_proj": Literal["", "none", "linear", "mlp"] | None,
    "timm_drop_path": Share | None,
    "tokenizer_mode": Literal["", "clips"] | None,
    "tokenizer_kwargs": _TOKENIZER,
    "hf_proj_type": Literal["linear", "mlp"] | None,
    "hf_pooler_type": _POOLER | None,
    "mode": Literal["RGB"],
    "mean": Annotated[list[float], _THREE],
    "std": Annotated[list[Positive], _THREE],
    "interpolation": Literal["bicubic", "bilinear"],
    "resize_mode": Literal["shortest", "longest", "squash"],
    "fill_color": Annotated[int, Field(ge=0, le=255)],
}


_VISION = _section(
    CLIPVisionCfg,
    layers=Layers | Annotated[list[Layers], Field(min_length=4, max_length=4)],  # of a ResNet
    pool_type=Literal["tok", "avg"],
)
PREPROCESS = _section(PreprocessCfg)
OWN_PREPROCESS = _section(PreprocessCfg, without=("size", "mode", "fill_color"))
"""`model.preprocess`: what doesn't follow from the model."""
DEFINITION = _mapping(
    {
        "embed_dim": (Count, ...),
        "vision_cfg": (_VISION, ...),
        "text_cfg": (_section(CLIPTextCfg), ...),
        "multimodal_cfg": (_section(MultimodalCfg), None),
        "quick_gelu": (bool, False),
        "custom_text": (bool, False),
        "init_logit_scale": (float, 0.0),
        "init_logit_bias": (float | None, None),
        "nonscalar_logit_scale": (bool, False),
    },
)
FOLDER = _mapping(
    {
        "model_cfg": (DEFINITION, ...),
        "preprocess_cfg": (PREPROCESS, None),
    },
    closed=False,
)
_DESCRIPTION = _mapping(
    {
        "arch": (Text, ...),
        "name": (Name, ...),
        "definition": (DEFINITION, ...),
        "preprocess": (PREPROCESS, ...),
        "tokens": (list[int] | None, None),
        "files": (dict[Annotated[str, Field(pattern=r"^\w+/\w[\w.-]*$")], bytes], {}),
    },
    closed=False,
)
_CONFIG = _mapping(  # of its run: what is read besides being compared with that of another run
    {
        "model": (_mapping({"arch": (str, ...)}, closed=False), None),
        "data": (_mapping({"train": (Texts, None), "valid": (Texts, None)}, closed=False), None),
        "run": (_mapping({"seed": (int, ...)}, closed=False), None),
    },
    closed=False,
)
CHECKPOINT = _mapping(
    {
        "state_dict": (dict[str, Any], ...),
        "model": (_DESCRIPTION, ...),
        "config": (_CONFIG | None, None),
    },
    closed=False,
)


def check(kind: Any, value: object, where: str) -> None:
    """Refuse a description that isn't of a kind, one of the above.

    `where` stands before the names of its keys, such as "model.definition.".

    Raises:
        InputError: the first fault: the key, what is allowed, what is there.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as caught:
        error = caught.errors(include_url=False)[0]
        place, inside, fault = list[str](), value, error["type"]
        for key in error["loc"]:
            with suppress(LookupError, TypeError):  # an alternative that was tried is no key
                inside = inside[key]  # type: ignore[index]
                place.append(str(key))
        message = f"{error['msg'].removeprefix('Input ')}, not {shorten(error['input'])}"
        if fault == "missing":
            place, message = [*place, str(error["loc"][-1])], "is missing"
        elif fault == "extra_forbidden":
            allowed = getattr(kind, "model_fields", ()) if len(place) == 1 else ()
            message = "no such setting" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
        elif fault in ("model_type", "dict_type"):
            message = f"should be a mapping, not {shorten(error['input'])}"
        elif fault == "string_pattern_mismatch":
            message = f"{error['input']!r} can't be a name; use letters, digits, . @ + - _"
        named = f"{where}{'.'.join(place)}".rstrip(". :")
        raise InputError(f"{named}: {message}") from None
