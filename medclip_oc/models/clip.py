"""A CLIP model as the rest uses it: the towers of an open_clip model, and what belongs to them.

B images or texts in a batch, C of a chunk, M texts, L context length, D embedding size.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms import Compose, PILToTensor

from ..config.schema import ModelConfig
from ..errors import InputError
from . import definition

OpenClip = open_clip.CLIP | open_clip.CustomTextCLIP
LN_100 = 4.605170185988092  # upper clamp of the log inverse temperature (CLIP, section 2.5)
SORTED = 1024
"""Texts that are put in order of length at once: of ROCOv2's captions (35 of 77 tokens on average)
chunks of 64 are then cut to 37, of all captions in order to 35, and in no order to 77."""
_SAME = 5e-6  # largest difference of features whose texts are padded, and are not
_ALIGNED = 8  # on CUDA lengths are multiples of this: tensor cores multiply in such tiles
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
    """An open_clip model that takes uint8 images and returns normalised float32 features.

    `padded` (K, L): tokens of some texts as the tokenizer pads them, the empty one first, on which
    `cuts_text` tries whether padding can be left out; None: it can't.
    """

    mean: Tensor
    std: Tensor
    clip: Any  # open_clip's attributes are its own

    def __init__(
        self, clip: Any, *, freeze_batch_norm: bool = True, padded: Tensor | None = None
    ) -> None:
        super().__init__()
        self.clip = clip
        self.freeze_batch_norm = freeze_batch_norm
        self._padded = padded
        self._cuts: bool | None = None  # not tried yet
        cfg = clip.visual.preprocess_cfg
        for name in ("mean", "std"):
            pixels = 255 * torch.tensor(cfg[name], dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def forward(
        self, images: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Embed one or both sides: (B, 3, H, W) uint8 and (B, L) int64, or None -> features (B, D)
        of both, normalised float32, None where the input was; and the inverse temperature (), which
        multiplies the cosines.
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

    def image_blocks(self, *, stem: bool = True) -> list[nn.Module]:
        """The image tower's blocks in the order in which they run, each feeding the next alone;
        with stem, its layers first. Empty where it is neither open_clip's nor one of timm's usual.
        """
        visual = self.clip.visual
        return _blocks(getattr(visual, "trunk", visual), stem=stem)

    def text_blocks(self, *, stem: bool = True) -> list[nn.Module]:
        """The same of the text tower; of a Hugging Face one too."""
        text = getattr(self.clip, "text", self.clip)
        return _blocks(text.transformer if hasattr(text, "config") else text, stem=stem)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D) normalised float32."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        return self._normalised(self.clip.encode_image(pixels))

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) int64, or fewer columns where `cuts_text` -> (B, D) normalised float32."""
        length, text = tokens.shape[1], getattr(self.clip, "text", self.clip)
        if not _causal(text) or length >= len(text.attn_mask):
            return self._normalised(self.clip.encode_text(tokens))
        # open_clip's own towers take every position and all of the mask. A copy shares the weights
        # and finds what is in its __dict__ first; the tower, which other threads use, stays whole.
        short = object.__new__(type(text))
        positions, mask = text.positional_embedding[:length], text.attn_mask[:length, :length]
        vars(short).update(vars(text), positional_embedding=positions, attn_mask=mask)
        return self._normalised((short if text is not self.clip else short.encode_text)(tokens))

    def by_length(self, tokens: Tensor, size: int) -> tuple[Tensor, list[Tensor]]:
        """(M, L) int64 -> an order of the rows (M,), on the CPU, and the chunks of up to C = `size`
        rows that they then make: the longest first, each without the columns in which all its rows
        are padded. Where padding can't be left out (`cuts_text`), as they are.
        """
        lengths = self._lengths(tokens)
        if lengths.min() < tokens.shape[1] and not self.cuts_text():
            lengths.fill_(tokens.shape[1])
        order = lengths.argsort(descending=True, stable=True)
        return order, [tokens[rows, : lengths[rows[0]]] for rows in order.split(size)]

    def _lengths(self, tokens: Tensor) -> Tensor:
        """(M, L) -> (M,) on the CPU: the columns of each row, at least one, before its padding."""
        if self._padded is None:
            return torch.full((len(tokens),), tokens.shape[1])
        columns = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        lengths = (columns * (tokens != self._padded[0, -1].item())).amax(1).clamp(min=1).cpu()
        if self.mean.device.type == "cuda":
            lengths = (-(-lengths // _ALIGNED) * _ALIGNED).clamp(max=tokens.shape[1])
        return lengths

    @torch.no_grad()
    def cuts_text(self) -> bool:
        """Whether padding can be left out: it changes no feature of a causal tower, nor of one of
        Hugging Face, which masks it. Tried once, in evaluation mode: no random number is drawn.
        """
        if self._padded is None:
            return False
        if self._cuts is None:
            text = getattr(self.clip, "text", self.clip)
            modes = [(module, module.training) for module in self.modules()]
            self.eval()
            tokens = self._padded.to(self.mean.device)
            rows = zip(tokens.split(1), self._lengths(tokens).tolist(), strict=True)
            # of open_clip's own towers only causal ones, however little the weights show
            self._cuts = (_causal(text) or hasattr(text, "config")) and torch.allclose(
                torch.cat([self.embed_texts(row[:, :length]) for row, length in rows]),
                self.embed_texts(tokens),
                rtol=0,
                atol=_SAME,
            )
            for module, mode in modes:
                module.training = mode
        return self._cuts

    def _normalised(self, features: Tensor) -> Tensor:
        # out of half precision, whatever autocast did; float64 towers keep float64
        return F.normalize(features.to(self.mean.dtype), dim=-1)  # (B, D)

    def train_bias(self) -> None:
        """Let the bias of the logits train, as SigLIP needs it; an InputError if there is none."""
        if self.logit_bias() is None:
            raise InputError(
                "loss.name: siglip needs a model with a bias: an architecture with SigLIP in its "
                "name, or init_logit_bias: -10 and init_logit_scale: 2.3 in model.definition"
            )
        self.clip.logit_bias.requires_grad_(True)

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


@dataclass
class Clip:
    """A model with what belongs to it."""

    towers: Towers
    tokenizer: Callable[[list[str]], Tensor]  # M texts -> (M, L) int64
    description: dict[str, Any]  # what a checkpoint says of the model: plain values
    caption_key: str = "caption"  # see `DataConfig`, of the run that made it
    run: dict[str, Any] = field(default_factory=dict)  # step and config of the checkpoint

    def __post_init__(self) -> None:
        *geometry, _to_tensor, _normalize = self.open_clip_preprocess().transforms
        self.preprocess: Callable[[Image.Image], Tensor] = Compose([*geometry, PILToTensor()])
        """Image -> (3, H, W) uint8: open_clip's own geometry; normalising is the towers' work."""

    def open_clip_preprocess(self) -> Any:
        """Image -> (3, H, W) float32, normalised: what `towers.clip` itself takes."""
        cfg = PreprocessCfg(**self.towers.clip.visual.preprocess_cfg)
        return image_transform_v2(cfg, is_train=False)

    def on(self, device: torch.device) -> "Clip":
        """Itself, ready to embed there."""
        self.towers.to(device).eval()
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input, in pixels."""
        size = self.description["preprocess"]["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def _causal(text: Any) -> bool:
    """Whether it is open_clip's own text tower, with a causal mask; not CoCa's, whose last token is
    its own.
    """
    own = getattr(text, "attn_mask", None) is not None
    return own and getattr(text, "cls_emb", None) is None


def _blocks(tower: nn.Module, *, stem: bool = True) -> list[nn.Module]:
    """Its blocks in order, from the first of these places that it has."""
    modules = dict(tower.named_modules())
    for before, places in _BLOCK_PLACES:
        if places[-1] in modules:
            names = (*before, *places) if stem else places
            return [block for name in names if name in modules for block in _flat(modules[name])]
    return []


def _flat(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [block for child in module.children() for block in _flat(child)]
    return [module]


def tokenizer_of(name: str, where: str = "model") -> Callable[[list[str]], Tensor]:
    """The tokenizer of a model that open_clip knows: M texts -> (M, L) int64. InputError,
    WorkError: its folder holds none, or it can't be downloaded.
    """
    # Loader processes are forked after the tokenizer's first use; its own threads would deadlock.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with definition.quiet():
            text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
            own = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
            tokenizer = open_clip.get_tokenizer(name, **own)
    except Exception as error:  # transformers' are of many kinds
        remedy = "without network, hf_tokenizer_name takes a folder with its files"
        raise definition.unreachable(f"{where}: tokenizer of {name}", error, remedy) from error
    plain = type(tokenizer) is open_clip.SimpleTokenizer
    return _CachingTokenizer(tokenizer) if plain else tokenizer


def token_counter(arch: str) -> tuple[Callable[[str], int], int]:
    """What counts a text's tokens, start and end included, as the tokenizer of an architecture does
    before it cuts them; and the context length, beyond which it cuts. InputError, WorkError: no
    such architecture, or as `tokenizer_of`.
    """
    definition.identify(ModelConfig(arch=arch))
    tokenizer: Any = tokenizer_of(arch)
    length = tokenizer.context_length
    if hasattr(tokenizer, "sot_token_id"):  # open_clip's own
        return lambda text: len(tokenizer.encode(text)) + 2, length
    inner = tokenizer.tokenizer  # of Hugging Face
    # open_clip cleans before it tokenizes; SigLIP's tokenizer has a way of its own
    clean = getattr(tokenizer, "clean_fn", None) or open_clip.tokenizer.get_clean_fn("canonicalize")
    return lambda text: len(inner(clean(text), truncation=False, verbose=False).input_ids), length


class _CachingTokenizer(open_clip.SimpleTokenizer):
    """The same tokens in a third of the time: words met before are looked up, and a text that has
    nothing to be mended isn't searched for it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.__dict__.update(vars(tokenizer))
        self._lowers = tokenizer.clean_fn is open_clip.tokenizer.get_clean_fn("lower")
        self._tokens = dict[str, list[int]]()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without its start and end."""
        # printable ASCII without HTML entities has no mojibake, ligatures or escapes for ftfy
        sound = text.isascii() and text.isprintable() and "&" not in text
        ready = self._lowers and sound
        words = self.pat.findall(" ".join(text.split()).lower() if ready else self.clean_fn(text))
        for word in words:
            if word not in self._tokens:
                letters = "".join(self.byte_encoder[byte] for byte in word.encode())
                self._tokens[word] = [self.encoder[part] for part in self.bpe(letters).split(" ")]
        return [token for word in words for token in self._tokens[word]]
