import torch

from medclip_oc import model, optim
from medclip_oc.config import ModelConfig, OptimConfig


def test_groups(tiny: ModelConfig) -> None:
    towers = model.build(tiny).towers
    names = {id(p): name for name, p in towers.named_parameters()}
    decay, plain = optim.parameter_groups(towers, 0.1)
    decayed = {names[id(p)] for p in decay["params"]}
    free = {names[id(p)] for p in plain["params"]}
    assert decay["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert decayed | free == set(names.values())
    assert not decayed & free
    assert "clip.logit_scale" in free
    assert all(
        name.endswith("bias") or "ln" in name
        for name in free - {"clip.logit_scale", "clip.visual.class_embedding"}
    )
    assert "clip.transformer.resblocks.0.attn.in_proj_weight" in decayed


def test_frozen_parameters_are_left_out(tiny: ModelConfig) -> None:
    towers = model.build(tiny).towers
    for parameter in towers.clip.visual.parameters():
        parameter.requires_grad_(False)
    groups = optim.adamw(towers, OptimConfig()).param_groups
    kept = sum(len(group["params"]) for group in groups)
    assert kept == sum(p.requires_grad for p in towers.parameters())


def test_clip_reports_the_norm_before() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert optim.clip(layer, None) == 5
    assert layer.weight.grad.norm() == 5
    assert optim.clip(layer, 1.0) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
