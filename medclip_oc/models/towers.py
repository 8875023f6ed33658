"""The two towers of an open_clip model, as training and embedding use them.

B images or texts in a batch, L context length, D embedding size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError

LN_100 = 4.605170185988092  # upper clamp of the log inverse temperature (CLIP, section 2.5)
# Where towers hold their blocks, and the layers of a stem that come before; the last must be there.
_RESNET_STEM = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")
_BLOCK_PLACES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ("transformer.resblocks",)),  # open_clip's ViT and its text tower
    ((*_RESNET_STEM, "maxpool"), ("layer1", "layer2", "layer3", "layer4")),  # ResNet, timm's too
    (("conv_stem", "bn1"), ("blocks",)),  # timm: EfficientNet, ViT
    (("stem",), ("stages",)),  # timm: ConvNeXt and its kin
    ((), ("encoder.layer",)),  # Hugging Face: BERT and its kin
    ((), ("encoder.layers",)),
    ((), ("layers",)),
)


class Towers(nn.Module):
    """An open_clip model that takes uint8 images and returns normalised float32 features."""

    mean: Tensor
    std: Tensor
    clip: Any  # open_clip's attributes are its own

    def __init__(self, clip: Any, *, freeze_batch_norm: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.freeze_batch_norm = freeze_batch_norm
        cfg = clip.visual.preprocess_cfg
        for name in ("mean", "std"):
            pixels = 255 * torch.tensor(cfg[name]).view(1, -1, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def forward(
        self, images: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Embed one or both sides.

        Args:
            images: (B, 3, H, W) uint8, or None.
            tokens: (B, L) int64, or None.

        Returns:
            image features (B, D) and text features (B, D), normalised float32, None where the
            input was; and the inverse temperature (), which multiplies the cosines.
        """
        image_features = None if images is None else self.embed_images(images)
        text_features = None if tokens is None else self.embed_texts(tokens)
        return image_features, text_features, self.inverse_temperature()

    def inverse_temperature(self) -> Tensor:
        """What the cosines are multiplied by: (), float32."""
        return self.clip.logit_scale.exp().reshape(())

    def logit_bias(self) -> Tensor | None:
        """What is added to them (SigLIP): (), float32; None where the model has no bias."""
        bias = getattr(self.clip, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def image_blocks(self) -> list[nn.Module]:
        """The image tower's blocks in the order in which they run, each feeding the next alone.

        Empty for a tower of another build than open_clip's own and timm's usual ones.
        """
        return _blocks(self._image_tower())

    def text_blocks(self) -> list[nn.Module]:
        """The same of the text tower; of a Hugging Face one too."""
        return _blocks(self._text_tower())

    def image_layers(self) -> list[nn.Module]:
        """The image tower's blocks without the layers of a stem."""
        return _blocks(self._image_tower(), stem=False)

    def text_layers(self) -> list[nn.Module]:
        """The text tower's blocks."""
        return _blocks(self._text_tower(), stem=False)

    def _image_tower(self) -> nn.Module:
        visual: nn.Module = self.clip.visual
        return getattr(visual, "trunk", visual)

    def _text_tower(self) -> nn.Module:
        text = getattr(self.clip, "text", self.clip)
        found: nn.Module = text.transformer if hasattr(text, "config") else text
        return found

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D) normalised float32."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        return self._normalised(self.clip.encode_image(pixels))

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 -> (B, D) normalised float32."""
        return self._normalised(self.clip.encode_text(tokens))

    def _normalised(self, features: Tensor) -> Tensor:
        # out of half precision, whatever autocast did; float64 towers keep float64
        return F.normalize(features.to(self.mean.dtype), dim=-1)

    def train_bias(self) -> None:
        """Let the bias of the logits train, as SigLIP needs it.

        Raises:
            InputError: the model has none.
        """
        bias = getattr(self.clip, "logit_bias", None)
        if bias is None:
            raise InputError(
                "loss.name: siglip needs a model with a bias: an architecture with SigLIP in its "
                "name, or init_logit_bias: -10 and init_logit_scale: 2.3 in model.definition"
            )
        bias.requires_grad_(True)

    def train(self, mode: bool = True) -> "Towers":
        """Switch training mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_batch_norm:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the inverse temperature within [1, 100], as CLIP does."""
        self.clip.logit_scale.clamp_(0, LN_100)


def _blocks(tower: nn.Module, *, stem: bool = True) -> list[nn.Module]:
    """Its blocks in order, from the first of these places that it has."""
    for before, places in _BLOCK_PLACES:
        if _has(tower, places[-1]):
            names = [name for name in (*before, *places) if _has(tower, name)]
            names = names if stem else [name for name in names if name in places]
            return [block for name in names for block in _flat(tower.get_submodule(name))]
    return []


def _has(tower: nn.Module, name: str) -> bool:
    try:
        return isinstance(tower.get_submodule(name), nn.Module)
    except AttributeError:
        return False


def _flat(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [block for child in module.children() for block in _flat(child)]
    return [module]
