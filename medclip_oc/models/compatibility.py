"""Does what a checkpoint says of its model hold here? Each error names both sides."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import InputError

_PROBE = "Chest X-ray: 3.5 cm mass, pleural effusion"
_WORDS = {True: "QuickGELU", False: "GELU"}


def tokens(tokenizer: Callable[[list[str]], Tensor]) -> list[int]:
    """What a tokenizer makes of a fixed text: tells it from others."""
    found: list[int] = tokenizer([_PROBE])[0].tolist()
    return found


def check_facts(description: dict[str, Any], where: str) -> None:
    """Refuse a description whose facts contradict the definition that the model is built from.

    Args:
        description: see `model.Clip`.
        where: the file's name, for errors.

    Raises:
        InputError: names the fact and both values.
    """
    definition = description["definition"]
    text = definition["text_cfg"]
    defined = {
        "quick_gelu": bool(definition.get("quick_gelu", False)),
        "tokenizer": text.get("hf_tokenizer_name") or "open_clip",
        "context_length": text.get("context_length", 77),
    }
    for name, value in defined.items():
        if description.get(name, value) != value:
            raise InputError(
                f"{where}: made with {name} {description[name]!r}, but its definition of "
                f"{description['name']} has {value!r}"
            )


def check_activation(clip: nn.Module, description: dict[str, Any], where: str) -> None:
    """Refuse a model that was built with another activation than its weights were trained with.

    Towers from elsewhere (timm, Hugging Face) have their own, whatever the definition says.

    Raises:
        InputError: names both.
    """
    definition = description["definition"]
    foreign = "timm_model_name" in definition["vision_cfg"]
    foreign = foreign or "hf_model_name" in definition["text_cfg"]
    wanted = bool(description.get("quick_gelu", False))
    built = {type(module).__name__ for module in clip.modules()}
    if not foreign and _WORDS[not wanted] in built:
        raise InputError(
            f"{where}: trained with {_WORDS[wanted]}, but {description['name']} is built with "
            f"{_WORDS[not wanted]} here"
        )


def check_tokens(
    tokenizer: Callable[[list[str]], Tensor], description: dict[str, Any], where: str
) -> None:
    """Refuse another tokenizer than the one that the weights were trained with.

    Raises:
        InputError: shows what both make of one text.
    """
    there = description.get("tokens")  # absent from checkpoints of before
    here = tokens(tokenizer)
    if there and here != there:
        raise InputError(
            f"{where}: made with a tokenizer ({description['tokenizer']}) that isn't the one here: "
            f"{_PROBE!r} was {there[:12]}..., and is {here[:12]}..."
        )
