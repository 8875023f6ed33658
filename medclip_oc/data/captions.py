"""Captions as tokens, also those that are longer than a model's context. L context length."""

import re
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..config.checks import LongCaptions

Tokenizer = Callable[..., Tensor]
"""M texts, and perhaps `context_length` -> (M, L) int64."""

# A sentence ends where white space follows its mark, unless that is the dot of one of these.
_ABBREVIATIONS = ("Fig", "Figs", "No", "Dr", "vs", "al", "ca", "approx", "e.g", "i.e", "cf")
_BREAK = re.compile(
    "".join(rf"(?<!\b{re.escape(a)}\.)" for a in _ABBREVIATIONS) + r"(?<=[.!?;])\s+"
)


class Captions:
    """Turns captions into tokens.

    Args:
        tokenizer: of the model, which cuts what is too long.
        long: "truncate" leaves it at that. "sentences" takes a run of whole sentences that fits,
            another one each time.
    """

    def __init__(self, tokenizer: Tokenizer, long: LongCaptions = "truncate") -> None:
        self.tokenizer, self.long = tokenizer, long
        self.context = len(tokenizer([""])[0])
        self._pad = int(tokenizer([""], context_length=self.context + 1)[0, -1])

    def tokens(self, caption: str, seed: list[int]) -> tuple[Tensor, bool]:
        """Tokens of a caption.

        Args:
            caption: any text.
            seed: of the choice of sentences.

        Returns:
            (L,) int64, and whether the caption is longer than L tokens.
        """
        row = self.tokenizer([caption])[0]  # (L,)
        long = self._too_long(caption, row)
        if long and self.long == "sentences":
            chosen = self._run(sentences(caption), np.random.default_rng(seed))
            row = self.tokenizer([chosen])[0]  # (L,)
        return row, long

    def _run(self, parts: list[str], rng: np.random.Generator) -> str:
        """Consecutive sentences from a random one on, as many as fit; earlier ones if room is left.

        A sentence that doesn't fit alone is cut by the tokenizer.
        """
        first = int(rng.integers(len(parts)))
        last = first + 1
        while last < len(parts) and self._fits(parts[first : last + 1]):
            last += 1
        while first > 0 and self._fits(parts[first - 1 : last]):
            first -= 1
        return " ".join(parts[first:last])

    def _fits(self, parts: list[str]) -> bool:
        text = " ".join(parts)
        return not self._too_long(text, self.tokenizer([text])[0])

    def _too_long(self, text: str, row: Tensor) -> bool:
        """Whether the tokenizer cut the text: with room for one more token, it would differ."""
        if len(text.encode()) + 2 <= self.context:  # a token is a byte or more
            return False
        if row[-2:].tolist() == [self._pad, self._pad]:
            return False
        longer = self.tokenizer([text], context_length=self.context + 1)[0]
        return bool((longer[:-1] != row).any() or longer[-1] != self._pad)


def sentences(text: str) -> list[str]:
    """The sentences of a text, at least one."""
    return [part for part in _BREAK.split(text.strip()) if part] or [text]
