"""open_clip's tokenizers, faster; and how long a text is to one of them.

M texts, L context length.
"""

import os
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import open_clip
from torch import Tensor

from ..config.schema import ModelConfig
from ..errors import InputError
from . import definition


def tokenizer_of(name: str) -> Callable[[list[str]], Tensor]:
    """The tokenizer of a model that open_clip knows: M texts -> (M, L) int64.

    Raises:
        InputError: it needs transformers, or its folder holds none.
        WorkError: it can't be downloaded.
    """
    # Loader processes are forked after the tokenizer's first use; its own threads would deadlock.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with definition.quiet():
            tokenizer = open_clip.get_tokenizer(name)
    except (OSError, ValueError) as error:
        raise definition.unreachable(f"tokenizer of {name}", error) from error
    except ImportError as error:
        raise InputError(f"{name}: needs transformers: pip install transformers") from error
    plain = type(tokenizer) is open_clip.SimpleTokenizer
    return _CachingTokenizer(tokenizer) if plain else tokenizer


def token_counter(arch: str) -> tuple[Callable[[str], int], int]:
    """How long texts are to the tokenizer of an architecture, before it cuts them.

    Args:
        arch: see `ModelConfig.arch`.

    Returns:
        a function from a text to its number of tokens, start and end included; and the context
        length of the model, beyond which it cuts.

    Raises:
        InputError: no such architecture.
        WorkError: its tokenizer can't be downloaded.
    """
    _, config = definition.identify(ModelConfig(arch=arch))
    tokenizer: Any = tokenizer_of(arch)
    length = config["text_cfg"].get("context_length", 77)
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
        if tokenizer.clean_fn is open_clip.tokenizer.get_clean_fn("lower"):
            self.clean_fn = partial(_clean_lower, mend=tokenizer.clean_fn)
        self._uncached = copy(tokenizer)
        self._uncached.clean_fn = str  # a word of a cleaned text needs no other
        self._tokens = dict[str, list[int]]()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without its start and end."""
        words = self.pat.findall(self.clean_fn(text))
        for word in words:
            if word not in self._tokens:
                self._tokens[word] = self._uncached.encode(word)
        return [token for word in words for token in self._tokens[word]]


def _clean_lower(text: str, mend: Callable[[str], str]) -> str:
    """What open_clip's "lower" cleaning, `mend`, makes of a text.

    Printable ASCII without HTML entities has no mojibake, ligatures or escapes, which ftfy looks
    for at length.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()
    return mend(text)
