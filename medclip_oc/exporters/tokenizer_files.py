"""A model's tokenizer as files of Hugging Face's formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_START, _END = "<|startoftext|>", "<|endoftext|>"
_RENAMED = {"<start_of_text>": _START, "<end_of_text>": _END}
"""open_clip's names of the two; a CLIPTokenizer's regular expression knows OpenAI's."""


def write(tokenizer: Callable[..., Any], folder: Path, context: int) -> None:
    """Write a tokenizer: a Hugging Face one as it is, open_clip's own as a CLIPTokenizer.

    open_clip's own repairs broken characters (ftfy, HTML entities) first; a CLIPTokenizer doesn't.
    Of other texts both make the same tokens.
    """
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        return
    simple: Any = tokenizer  # open_clip.SimpleTokenizer
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    vocabulary = {_RENAMED.get(word, word): number for word, number in simple.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
