"""LeGrad: relevance in a ViT, by the gradients of its attention maps (Bousselham et al. 2024,
arXiv:2404.03214).

The tokens of each layer l are pooled and projected as the tower does with its last ones; s_l is
their cosine with a text, A_l the layer's attention map. The relevance of patch j is the mean over
layers, heads and queries i of max(0, ds_l / dA_l[head, i, j]). The authors' package takes the last
two layers alone, pools by the mean of all tokens, and explains an attention pool by its own map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.clip import Towers


def is_known(towers: Towers) -> bool:
    """Whether a ViT's attentions are plain ones of torch or timm: A V, then one linear layer."""

    def is_plain(own: Any) -> bool:
        between = [getattr(own, name, None) for name in ("norm", "gate")]
        timms = type(own).__name__ == "Attention" and hasattr(own, "qkv")
        return timms and all(isinstance(part, nn.Identity | None) for part in between)

    owns = (getattr(block, "attn", None) for block in towers.image_blocks(stem=False))
    return all(isinstance(own, nn.MultiheadAttention) or is_plain(own) for own in owns)


def legrad(towers: Towers, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (1, 3, height, width) uint8, features of M texts (M, D), normalised -> maps (M, h, w)
    as they come, and the image's features (D,). The towers are in evaluation mode.

    A enters its layer only by the output y = concat(A V) W^T, so that its gradient is (dy W) V^T,
    head by head, and that of y is all it takes. Each layer's input is cut off from the layers
    before: one backward pass over the sum of the scores serves all layers.
    """
    visual = towers.clip.visual
    tower = getattr(visual, "trunk", visual)
    blocks: list[Any] = towers.image_blocks(stem=False)
    values, attended, outputs = list[Tensor](), list[Tensor](), list[Tensor]()

    def watch(attention: Any, args: tuple[Tensor, ...], output: Any) -> Any:
        several = isinstance(output, tuple)  # torch's gives weights as well, or None
        values.append(_values(attention, args[0][0].detach()))
        attended.append((output[0] if several else output).detach().requires_grad_())
        return (attended[-1], None) if several else attended[-1]

    def cut(_block: Any, _args: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.detach()

    hooks = [block.attn.register_forward_hook(watch) for block in blocks]
    hooks += [block.register_forward_hook(cut) for block in blocks]
    try:
        towers.embed_images(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    features = F.normalize(_pooled(visual, torch.cat(outputs)), dim=-1)  # (layers, D)
    size = pixels.shape[2:]
    h, w = getattr(tower, "grid_size", None) or tower.patch_embed.dynamic_feat_size(size)
    maps = list[Tensor]()
    for score in (features @ texts.T).sum(0):
        total = torch.zeros(h * w, device=pixels.device)
        gradients = torch.autograd.grad(score, attended, retain_graph=True)
        for block, value, gradient in zip(blocks, values, gradients, strict=True):
            out = getattr(block.attn, "out_proj", None) or block.attn.proj
            merged = (gradient[0] @ out.weight.detach()).unflatten(-1, value.shape[1:])
            relevance = torch.einsum("ihd,jhd->hij", merged, value).relu()
            total += relevance.mean((0, 1))[-h * w :] / len(blocks)  # patches come last
        maps.append(total.reshape(h, w))
    return torch.stack(maps), features[-1].detach()


def _pooled(visual: Any, tokens: Tensor) -> Tensor:
    """Tokens (layers, tokens, width) as features (layers, D), as open_clip and timm do it."""
    if hasattr(visual, "trunk"):
        return visual.head(visual.trunk.forward_head(visual.trunk.norm(tokens)))
    return visual._pool(tokens)[0] @ visual.proj


@torch.no_grad()
def _values(attention: Any, x: Tensor) -> Tensor:
    """V of the tokens (tokens, width): (tokens, heads, width of a head)."""
    if isinstance(attention, nn.MultiheadAttention):
        projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    else:
        projected = attention.qkv(x)
    return projected.chunk(3, dim=-1)[2].unflatten(-1, (attention.num_heads, -1))
