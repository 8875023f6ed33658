"""Low-rank adapters (LoRA, Hu et al. 2022): W + (alpha / r) B A in place of W, with W frozen.

Adapted are the linear layers, the attention (open_clip's keeps query, key and value in one matrix)
and the convolutions inside the blocks that are not frozen. Everything else of the towers is frozen;
temperature and bias of the logits train as they would without adapters.

Each matrix is a parametrization of torch's own, so whatever reads `layer.weight` gets the sum,
fused attention included. (peft 0.21 adds the change of an attention's output matrix twice, see its
pull request 3774.) Dropout of an adapter's input, and DoRA, have no place in that.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config.schema import LoraConfig
from ..errors import InputError
from . import averaging
from .clip import Towers

INSIDE = ".parametrizations."


class LowRank(nn.Module):
    """W -> W + scale * B A, with W (M, ...); what follows its first dimension counts as one, N."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows = weight.shape[0]
        self.scale = alpha / rank
        self.a = nn.Parameter(weight.new_empty(rank, weight.numel() // rows))  # (r, N)
        self.b = nn.Parameter(weight.new_zeros(rows, rank))  # (M, r)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as a linear layer begins

    def forward(self, weight: Tensor) -> Tensor:
        """In the weights' own precision, so that it is what a merged model has."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.b @ self.a).view_as(weight)


def insert(towers: Towers, settings: LoraConfig) -> None:
    """Put adapters into the towers, in place. They begin as no change at all: B is zero.
    InputError: a tower has nothing to adapt.
    """
    assert settings.rank is not None
    matrices = _matrices(towers, settings)
    for name, parameter in towers.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith("clip.logit_"))
    for layer, name in matrices:
        adapter = LowRank(getattr(layer, name), settings.rank, settings.alpha)
        parametrize.register_parametrization(layer, name, adapter)


def _matrices(towers: Towers, settings: LoraConfig) -> list[tuple[nn.Module, str]]:
    """The layers that get an adapter, and the name of its matrix in each."""
    chosen = []
    for tower, blocks in (("image", towers.image_blocks), ("text", towers.text_blocks)):
        if settings.towers not in (tower, "both"):
            continue
        layers = [layer for block in blocks(stem=False) for layer in block.modules()]
        every = [(layer, name) for layer in layers if (name := _adaptable(layer))]
        trained = [(layer, name) for layer, name in every if getattr(layer, name).requires_grad]
        if not trained and not (every and settings.towers == "both"):
            why = "that isn't frozen" if every else "in blocks that can be told apart"
            raise InputError(f"lora.towers: the {tower} tower has no layer to adapt {why}")
        chosen += trained
    if not chosen:
        raise InputError("lora.rank: optim.freeze leaves no layer to adapt")
    return chosen


def _adaptable(layer: nn.Module) -> str | None:
    """The name of a layer's own matrix to adapt, if it has one."""
    convolves = isinstance(layer, nn.Conv2d) and layer.groups == 1
    name = "weight" if convolves or isinstance(layer, nn.Linear) else "in_proj_weight"
    return name if isinstance(getattr(layer, name, None), nn.Parameter) else None


@torch.no_grad()
def plain_state(towers: Towers) -> dict[str, Tensor]:
    """The state dict of open_clip's plain model, any adapters merged."""
    merged: dict[str, Tensor] = {}
    for name, value in towers.clip.state_dict().items():
        owner, inside, rest = name.partition(INSIDE)
        if not inside:
            merged[name] = value
        elif rest.endswith(".original"):
            weight = rest.removesuffix(".original")
            merged[f"{owner}.{weight}"] = getattr(towers.clip.get_submodule(owner), weight)
    return merged


def adapters(towers: Towers) -> averaging.Resumable:
    """What training resumes from: the adapters, and the matrices that they change, unmerged; a
    merged checkpoint can't be taken apart again.
    """
    state: dict[str, Tensor] = towers.clip.state_dict()  # in the towers' own memory
    own = {name: value for name, value in state.items() if INSIDE in name}
    return averaging.Resumable(own, "other layers are adapted, or with another rank")
