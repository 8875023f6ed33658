"""What of a model trains, and how deep in its tower each parameter stands.

A tower's layers are counted from its input: 0 is what comes before the blocks (patch or word
embedding), 1 to n are the blocks, n + 1 is what comes after them (last norm, projection).
"""

import re
from typing import NamedTuple

from ..config.schema import OptimConfig
from ..errors import InputError
from .clip import Towers

TOWERS = ("image", "text")

# what joins a tower to the shared space: open_clip's ViT, timm's head, ResNet's pooling, the texts'
_PROJECTION = re.compile(
    r"clip\.(visual\.(proj|head\..+|attnpool\.c_proj\..+)"
    r"|(text\.)?(text_projection(\..+)?|proj(\..+)?))"
)
# what comes before the blocks, by the name of any of its modules
_BEFORE = re.compile(
    r"(^|\.)(conv\d|bn\d|class_embedding|cls_token|reg_token|positional_embedding|pos_embed"
    r"|token_embedding|embeddings|patch_embed|conv_stem|stem|ln_pre|norm_pre)(\.|$)"
)
# EfficientNet's second norm and a pooling by attention follow the blocks
_AFTER = re.compile(r"(^|\.)(trunk\.bn2|attnpool|attn_pool)\.")


class Place(NamedTuple):
    """Where a parameter stands."""

    tower: str  # image, text, or both: temperature and bias of the logits
    layer: int
    blocks: int  # n of its tower


def places(towers: Towers) -> dict[str, Place]:
    """The place of each parameter, by its name in `towers`."""
    blocks = {"image": towers.image_blocks(stem=False), "text": towers.text_blocks(stem=False)}
    of_block = {
        block: Place(tower, number, len(own))
        for tower, own in blocks.items()
        for number, block in enumerate(own, 1)
    }
    within = {f"{n}.": of_block[m] for n, m in towers.named_modules() if m in of_block}
    by_name = {}
    for name, _ in towers.named_parameters():
        tower = "image" if name.startswith("clip.visual.") else "text"
        before, count = _BEFORE.search(name) and not _AFTER.search(name), len(blocks[tower])
        outside = Place(tower, 0 if before else count + 1, count)
        by_name[name] = next((p for start, p in within.items() if name.startswith(start)), outside)
        if name in ("clip.logit_scale", "clip.logit_bias"):
            by_name[name] = Place("both", 0, 0)
    return by_name


def frozen(towers: Towers) -> set[str]:
    """Of TOWERS those of which nothing trains."""
    by_name = places(towers)
    trained = {by_name[n].tower for n, p in towers.named_parameters() if p.requires_grad}
    return {*TOWERS} - trained


def freeze(towers: Towers, settings: OptimConfig) -> None:
    """Take the gradient from all parameters that the settings leave as they are. InputError: a
    regular expression that matches nothing, more blocks than there are, or nothing of either tower
    is left to train.
    """
    by_name = places(towers)
    frozen = set[str]()
    for tower in TOWERS:
        last = getattr(settings, f"{tower}_last_blocks")
        if last is None:
            continue
        own = {name: place for name, place in by_name.items() if place.tower == tower}
        blocks = next(iter(own.values())).blocks
        if last > blocks:
            held = f"the {tower} tower has {blocks} blocks that can be told apart"
            raise InputError(f"optim.{tower}_last_blocks: {last}, but {held}")
        frozen |= {name for name, place in own.items() if place.layer <= blocks - last}
    given = settings.freeze or []
    for word in [given] if isinstance(given, str) else given:
        frozen |= _matching(word, by_name)
    for name in frozen:
        towers.get_parameter(name).requires_grad_(False)
    if not any(place.tower != "both" and name not in frozen for name, place in by_name.items()):
        raise InputError(f"optim.freeze: {given} leaves nothing of either tower to train")


def _matching(word: str, by_name: dict[str, Place]) -> set[str]:
    """The parameters that a preset, or a regular expression, stands for."""
    if word in TOWERS:
        return {name for name, place in by_name.items() if place.tower == word}
    if word == "all_but_projections":
        in_towers = {name for name, place in by_name.items() if place.tower != "both"}
        return {name for name in in_towers if not _PROJECTION.fullmatch(name)}
    plain_names = {name: name.removeprefix("clip.") for name in by_name}
    if names := {name for name, plain in plain_names.items() if re.search(word, plain)}:
        return names
    problem = "neither image, text nor all_but_projections, and matches no parameter"
    one = next(iter(plain_names.values()))
    raise InputError(f"optim.freeze: {word!r} is {problem} (one is {one})")
