"""Weights for one tower alone, loaded strictly.

open_clip loads such files with `strict=False` and keeps silent about what didn't fit, so a file
with other names leaves the tower random. Here every tensor of the tower comes from the file, but
for the projection that joins the tower to the shared space, and a final comparison proves it.
"""

import re
from importlib import resources
from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError

_PACKAGE = "package:"
# What a CLIP tower has no place for: classifier, unused pooler, index buffers.
_LEFT_OUT = re.compile(r"(classifier|fc|head\.fc|head)\.(weight|bias)$|pooler\.|.*position_ids")


def resolve(reference: str) -> str:
    """Turn `package:NAME/PATH` into the path of that file or folder inside an installed package.

    Anything else (a path, a hub name) is returned as it is. The reference, not the path, goes into
    checkpoints, so they open on another machine.
    """
    if not reference.startswith(_PACKAGE):
        return reference
    package, _, inner = reference.removeprefix(_PACKAGE).partition("/")
    try:
        path = Path(str(resources.files(package))) / inner
    except ModuleNotFoundError as error:
        raise InputError(f"{reference}: the Python package {package} is not installed") from error
    if not path.exists():
        raise InputError(f"{reference}: the package {package} holds no {inner}")
    return str(path)


def load_image_tower(visual: nn.Module, state: dict[str, Tensor], reference: str) -> None:
    """Load an image classifier's weights into `visual` (an open_clip image tower), in place.

    Args:
        visual: the image tower.
        state: the weights, under the names of open_clip's tower, of a bare timm model, or of
            EfficientNet-PyTorch.
        reference: where they come from, for errors.

    Raises:
        InputError: a tensor of the tower is missing from the file, or has another shape, or the
            file holds tensors that belong nowhere.
    """
    tower: nn.Module = getattr(visual, "trunk", visual)  # timm's stands in a trunk
    if tower is not visual and "_conv_stem.weight" in state:
        # EfficientNet-PyTorch has timm's tensors in the same order, then those of the classifier
        state = dict(zip(tower.state_dict(), state.values(), strict=False))
    _load(
        tower,
        {n.removeprefix("visual.").removeprefix("trunk."): t for n, t in state.items()},
        reference,
    )


def load_text_tower(text: nn.Module, reference: str) -> None:
    """Load a Hugging Face encoder's weights into `text` (an open_clip HFTextEncoder), in place.

    Args:
        text: the text tower; its pooling and projection are left as they are.
        reference: folder, hub name, or `package:NAME/FOLDER`.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    transformer = getattr(text, "transformer", None)
    if not hasattr(text, "config") or not isinstance(transformer, nn.Module):
        raise InputError(
            "model.pretrained_text: only a Hugging Face text tower (text_cfg.hf_model_name) can "
            "start from other weights; for open_clip's own towers give model.pretrained"
        )
    try:
        source = AutoModel.from_pretrained(resolve(reference), config=text.config)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{reference}: no Hugging Face model there ({reason})") from error
    source = source.get_encoder() if source.config.is_encoder_decoder else source
    _load(transformer, source.state_dict(), reference)


def _load(module: nn.Module, state: dict[str, Tensor], reference: str) -> None:
    tower = module.state_dict()
    problems = {
        "lacks": [name for name in tower if name not in state],
        "holds other": [n for n in state if n not in tower and not _LEFT_OUT.match(n)],
        "has other sizes of": [n for n in tower if n in state and state[n].shape != tower[n].shape],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise InputError(f"{reference}: {problem} {len(names)} tensors of the tower: {shown}")
    module.load_state_dict({name: state[name] for name in tower})
    for name, tensor in module.state_dict().items():
        assert tensor.equal(state[name].to(tensor)), f"{name} did not take the file's values"
