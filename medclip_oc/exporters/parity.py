"""Whether an export gives the features of the checkpoint, on real images and texts.

N images, M texts, D embedding size.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..errors import WorkError
from ..models import definition

LIMIT = 1e-4
"""Largest difference of a number in the normalised features, for the same pixels and tokens."""
_ALIKE = 0.9999


class Side(NamedTuple):
    """A model with its own preprocessing: the checkpoint, or an export that was opened anew."""

    preprocess: Callable[[Image.Image], Tensor]  # Image -> (3, H, W) float32, normalised
    tokenizer: Callable[[list[str]], Tensor]  # M texts -> (M, L) int64
    embed_images: Callable[[Tensor], Tensor]  # (N, 3, H, W) -> (N, D)
    embed_texts: Callable[[Tensor], Tensor]  # (M, L) -> (M, D)

    @classmethod
    def of_open_clip(cls, clip: Any, preprocess: Any, tokenizer: Any) -> "Side":
        """A model of open_clip."""
        towers = (partial(e, normalize=True) for e in (clip.encode_image, clip.encode_text))
        return cls(preprocess, tokenizer, *towers)

    @torch.inference_mode()
    def features(self, pictures: list[Image.Image], texts: list[str]) -> dict[str, Tensor]:
        """Images (N, D) and texts (M, D), float32, normalised; of RGB, decoded by our rules."""
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])  # (N, 3, H, W)
        tokens = self.tokenizer(texts)  # (M, L)
        return {"images": self.embed_images(pixels), "texts": self.embed_texts(tokens)}


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries that write or open an export narrate on every channel."""
    channels = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    with definition.quiet(), warnings.catch_warnings(action="ignore"), channels[0], channels[1]:
        yield


def check(expected: dict[str, Tensor], exported: dict[str, Tensor], command: str) -> float:
    """The largest difference of features; WorkError: above LIMIT, so `command` exports nothing."""
    differences = {n: float((ours - exported[n]).abs().max()) for n, ours in expected.items()}
    for name, difference in differences.items():
        if not difference <= LIMIT:  # NaN too
            told = f"differ by {difference:.1e}, more than {LIMIT:g}; nothing is exported"
            raise WorkError(f"{command}: its features of {name} {told}")
    return max(differences.values())


def closeness(expected: dict[str, Tensor], exported: dict[str, Tensor]) -> dict[str, str]:
    """The lowest cosines of features, in words, by images and texts."""
    words = {}
    for name, ours in expected.items():
        cosines = (ours * exported[name]).sum(dim=1)  # (N,) or (M,)
        below = f"{(cosines < _ALIKE).sum()} of {len(cosines)} below {_ALIKE}"
        words[name] = f"{cosines.min():.5f} ({below})"
    return words
