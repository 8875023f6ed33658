"""The adapters of a LoRA run by themselves, to be put on the model that it began from.

`adapters.safetensors` holds A and B of a weight W as W.lora_A and W.lora_B (see models/lora.py),
temperature and bias; its metadata name rank, alpha and base. peft's layout has no place for
open_clip's fused attention.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..errors import InputError
from ..models import factory, lora
from .parity import Side

_OWN = ("definition", "context_length", "pretrained_image", "pretrained_text")


def write(content: dict[str, Any], folder: Path) -> None:
    """Write those of a checkpoint's content. InputError: it has none, or no base with a name."""
    config, parts = content.get("config") or {}, content.get("training", {}).get("parts", {})
    model = config.get("model", {})
    named = model.get("pretrained") or model.get("arch", "").startswith("hf-hub:")
    if "adapters" not in parts or not named or any(map(model.get, _OWN)):
        run = f"from model.pretrained or hf-hub: without {', '.join(_OWN)}"
        raise InputError(f"--to adapters: wanted is last.pt of a run with lora.rank, {run}")
    tensors = {n: t for n, t in content["state_dict"].items() if n.startswith("logit_")}
    for name, tensor in parts["adapters"].items():
        weight, _, side = name.replace(lora.INSIDE, ".").rpartition(".0.")
        if side in ("a", "b"):  # else it is the weight before
            tensors[f"{weight}.lora_{side.upper()}"] = tensor
    about = {"base": model["arch"]} | {k: str(config["lora"][k]) for k in ("rank", "alpha")}
    save_file(tensors, folder / "adapters.safetensors", about)


def read(content: dict[str, Any], folder: Path) -> Side:
    """The model that the run began from, with the adapters put on as the model card does it."""
    clip, about = factory.baseline_clip("start", content["config"]), content["config"]["lora"]
    model, adapters = clip.towers.clip.eval(), load_file(folder / "adapters.safetensors")
    for name, weight in model.state_dict().items():  # the model's own memory
        if name in adapters:
            weight.copy_(adapters[name])
        elif f"{name}.lora_B" in adapters:
            change = adapters[f"{name}.lora_B"] @ adapters[f"{name}.lora_A"]
            weight += about["alpha"] / about["rank"] * change.view_as(weight)
    return Side.of_open_clip(model, clip.open_clip_preprocess(), clip.tokenizer)
