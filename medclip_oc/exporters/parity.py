"""Whether an export gives the features of the checkpoint, on real images and texts.

N images, M texts, D embedding size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..errors import WorkError

LIMIT = 1e-4
"""Largest difference of a number in the normalised features."""
Features = dict[str, Tensor]
""""images": (N, D), "texts": (M, D); float32, normalised."""


class Pairs(NamedTuple):
    """What both sides embed."""

    pictures: list[Image.Image]
    """RGB, decoded by our rules."""
    texts: list[str]


class Side(NamedTuple):
    """A model with its own preprocessing: the checkpoint, or an export that was opened anew."""

    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Any]
    embed_images: Callable[[Tensor], Tensor]
    """(N, 3, H, W) -> (N, D)."""
    embed_texts: Callable[[Any], Tensor]
    """What the tokenizer gives for M texts -> (M, D)."""

    @torch.inference_mode()
    def features(self, pairs: Pairs) -> Features:
        """Embed the pairs."""
        pixels = torch.stack([self.preprocess(picture) for picture in pairs.pictures])
        texts = self.embed_texts(self.tokenizer(pairs.texts))  # (M, D)
        return {"images": self.embed_images(pixels), "texts": texts}


def check(expected: Features, exported: Features, command: str) -> float:
    """The largest difference.

    Raises:
        WorkError: it is above LIMIT, or the shapes differ. Says which `command` exports nothing.
    """
    largest = 0.0
    for name, ours in expected.items():
        theirs = exported[name].float()
        if ours.shape != theirs.shape:
            shapes = f"{tuple(theirs.shape)}, the checkpoint's {tuple(ours.shape)}"
            raise WorkError(f"{command}: its features of {name} are {shapes}; nothing is exported")
        difference = float((ours - theirs).abs().max())
        if not difference <= LIMIT:  # NaN too
            raise WorkError(
                f"{command}: its features of {name} differ from the checkpoint's by "
                f"{difference:.1e}, more than {LIMIT:g}; nothing is exported"
            )
        largest = max(largest, difference)
    return largest
