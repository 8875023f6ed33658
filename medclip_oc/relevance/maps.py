"""Relevance maps of image-text cosines, in the pixels of the image that was given.

M texts, D embedding size; an image has (H, W) pixels, a tower's input (h, w) cells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..imaging import decode
from ..models.clip import Clip, Towers
from ..runtime import extras
from ..runtime.devices import check_finite
from .legrad import is_known, legrad


@dataclass(frozen=True)
class Relevance:
    """Where the score of a text comes from."""

    text: str
    cosine: float
    values: np.ndarray
    """(H, W) float32 from 0 to 1, in the upright image's own pixels; 0 where nothing was seen."""
    words: list[tuple[str, float]] | None
    """Each word, and how much of the cosine goes with it (below 0: it speaks against)."""


def explain(
    clip: Clip, image: Image.Image, texts: Sequence[str], *, words: bool = False
) -> list[Relevance]:
    """Maps of an image for M texts, in float32; the model is left as it was. InputError: a tower of
    no supported kind. WorkError: features that are not finite.
    """
    method, image, towers = method_of(clip), upright(image), clip.towers
    pixels = clip.preprocess(image.convert("RGB"))[None].to(towers.mean.device)

    @torch.no_grad()
    def embed(captions: Sequence[str]) -> Tensor:
        return towers.embed_texts(clip.tokenizer(list(captions)).to(pixels.device))

    with _undisturbed(towers):
        text_features = embed(texts)  # (M, D)
        grids, features = method(towers, pixels, text_features)  # (M, h, w), (D,)
        cosines = text_features @ features  # (M,)
        check_finite(cosines, "image or text")
        shares = [_word_shares(embed, text, features) if words else None for text in texts]
    maps = [_in_pixels(clip, grid.cpu(), image.size) for grid in grids]
    return [Relevance(*it) for it in zip(texts, cosines.tolist(), maps, shares, strict=True)]


def upright(image: Image.Image) -> Image.Image:
    """An image of any mode and orientation as models see it: see imaging/decode.py."""
    return decode.turn(decode.flatten(image, b""), decode.read_orientation(image))


def method_of(clip: Clip) -> Callable[[Towers, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What explains the image tower; InputError: nothing does, or a package is missing."""
    visual = clip.towers.clip.visual
    tower = getattr(visual, "trunk", visual)  # timm's stands in a trunk
    kind = type(tower).__name__
    if kind == "VisionTransformer" and is_known(clip.towers):
        return legrad
    if kind not in ("ModifiedResNet", "ResNet", "ConvNeXt", "EfficientNet"):
        raise InputError(f"relevance maps: of ViT, ResNet, ConvNeXt, EfficientNet; not this {kind}")
    extras.needed("captum.attr", "explain")
    return hires_cam


def hires_cam(towers: Towers, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """HiResCAM (Draelos and Carin 2020, arXiv:2011.08891) of the last stage: gradient times
    activation, cell by cell; see `legrad`. Where the cells' mean is projected it is Grad-CAM; where
    attention pools them, as in CLIP's ResNet, Grad-CAM's mean gradient belongs to no cell.
    """
    cam = extras.needed("captum.attr", "explain").LayerGradientXActivation(
        lambda images: towers.embed_images(images) @ texts.T, towers.image_blocks()[-1]
    )
    inputs = pixels.float().requires_grad_()  # where all parameters are frozen, gradients start
    maps = [cam.attribute(inputs, m)[0].sum(0).relu() for m in range(len(texts))]  # (h, w) each
    with torch.no_grad():
        return torch.stack(maps), towers.embed_images(pixels)[0]


@contextmanager
def _undisturbed(towers: Towers) -> Iterator[None]:
    """Evaluation mode, and gradients in full precision, whatever the caller works under."""
    modes = [(module, module.training) for module in towers.modules()]
    full = torch.autocast(towers.mean.device.type, enabled=False)
    try:
        with torch.inference_mode(False), torch.enable_grad(), full:
            towers.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _word_shares(
    embed: Callable[[Sequence[str]], Tensor], text: str, image: Tensor
) -> list[tuple[str, float]]:
    """Each word, and what the cosine with an image (D,) loses without it: occlusion, one batch."""
    words = text.split()
    without = [" ".join(words[:n] + words[n + 1 :]) for n in range(len(words))]
    whole, *rest = (embed([text, *without]) @ image).tolist()
    return [(word, whole - cosine) for word, cosine in zip(words, rest, strict=True)]


def _in_pixels(clip: Clip, grid: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) of the model's input, scaled to [0, 1] and interpolated, as it lies in an image
    of `size` (width, height): (H, W) float32.
    """
    grid = (grid - grid.min()) / (grid.max() - grid.min()).clamp(min=torch.finfo().tiny)
    shown = clip.image_size[::-1]
    seen = Image.fromarray(grid.numpy()).resize(shown, Image.Resampling.BILINEAR)
    # the model's own resizing; it then crops or pads about the centre, and rounds as here
    resize: Any = clip.preprocess.transforms[0]  # type: ignore[attr-defined]
    whole = Image.new("F", resize(Image.new("L", size)).size)
    spare = [whole.size[axis] - shown[axis] for axis in (0, 1)]
    left, top = (round(side / 2) if side > 0 else -(-side // 2) for side in spare)
    whole.paste(seen, (left, top))
    return np.array(whole.resize(size, Image.Resampling.NEAREST))
