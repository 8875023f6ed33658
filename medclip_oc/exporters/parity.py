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


class Side(NamedTuple):
    """A model with its own preprocessing: the checkpoint, or an export that was opened anew."""

    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Any]
    embed_images: Callable[[Tensor], Tensor]
    """(N, 3, H, W) -> (N, D)."""
    embed_texts: Callable[[Any], Tensor]
    """What the tokenizer gives for M texts -> (M, D)."""

    @torch.inference_mode()
    def features(self, pictures: list[Image.Image], texts: list[str]) -> dict[str, Tensor]:
        """Images (N, D) and texts (M, D), float32, normalised; of RGB, decoded by our rules."""
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])  # (N, 3, H, W)
        text_features = self.embed_texts(self.tokenizer(texts))  # (M, D)
        return {"images": self.embed_images(pixels), "texts": text_features}


def check(expected: dict[str, Tensor], exported: dict[str, Tensor], command: str) -> float:
    """The largest difference of features.

    Raises:
        WorkError: it is above LIMIT, or the shapes differ. Says which `command` exports nothing.
    """
    largest = 0.0
    for name, ours in expected.items():
        theirs = exported[name].float()
        where = f"{command}: its features of {name}"
        if ours.shape != theirs.shape:
            shapes = f"{tuple(theirs.shape)}, the checkpoint's {tuple(ours.shape)}"
            raise WorkError(f"{where} are {shapes}; nothing is exported")
        difference = float((ours - theirs).abs().max())
        if not difference <= LIMIT:  # NaN too
            raise WorkError(
                f"{where} differ from the checkpoint's by {difference:.1e}, more than {LIMIT:g}; "
                "nothing is exported"
            )
        largest = max(largest, difference)
    return largest
