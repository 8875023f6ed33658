"""What is searched in: the images and texts of a pool, and which of them belong together.

A pool is drawn from N pairs, each an image and its caption; P of them. As they are, pair i alone
links image i and text i, so that a copy of the right caption counts as wrong; where several pairs
are of one image, all their captions are right for it. Merged, equal images
are one image and equal captions one text: an image then has every caption that came with it, a
caption every image. Links are not followed any further.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pool:
    """n images and m texts, each standing for the first pair that brings it; all int64."""

    images: np.ndarray  # (n,) pair whose image this is, ascending
    texts: np.ndarray  # (m,) pair whose caption this is, ascending
    links: np.ndarray  # (E, 2) number of an image and of a text that is right for it
    image_of: np.ndarray  # (P,) number of each drawn pair's image
    text_of: np.ndarray  # (P,) number of each drawn pair's text


def plain(pairs: np.ndarray, image_of: np.ndarray | None = None) -> Pool:
    """A pool of pairs as they are; `pairs` (P,) int64 ascending, positions in the set.
    `image_of` (N,): number of each pair's image, where some have one together.
    """
    if image_of is not None:
        return merged(pairs, image_of, np.arange(len(image_of)))
    own = np.arange(len(pairs))
    return Pool(pairs, pairs, np.stack([own, own], 1), own, own)


def merged(pairs: np.ndarray, image_hash: np.ndarray, caption_hash: np.ndarray) -> Pool:
    """A pool of `pairs` (P,) in which copies are one, by the hashes (N,) of the whole set."""
    (images, image_of), (texts, text_of) = (_first(h[pairs]) for h in (image_hash, caption_hash))
    links = np.unique(np.stack([image_of, text_of], 1), axis=0)
    return Pool(pairs[images], pairs[texts], links, image_of, text_of)


def _first(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value comes first, ascending; and the number of each entry's value among them."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return np.sort(first), first.argsort().argsort()[inverse]


def draw(seed: int, size: int, pairs: int, number: int) -> np.ndarray:
    """The `number`-th random pool of `size` out of `pairs` pairs: (size,) int64 ascending."""
    rng = np.random.default_rng([seed, size, number])
    return np.sort(rng.choice(pairs, size, replace=False))
