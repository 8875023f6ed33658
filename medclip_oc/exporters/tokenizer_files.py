"""A model's tokenizer as files of Hugging Face's formats.

open_clip mends a text (ftfy, HTML entities) before it tokenizes. The files' normaliser does of that
what captions need, so that other programs make the same tokens; of mojibake they don't.
"""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftfy.chardata import LIGATURES

_ENTITIES = "amp lt gt quot apos #39 nbsp deg plusmn times micro mu alpha beta ndash mdash le ge"
_QUOTES = {"[\u02bc\u2018-\u201b]": "'", "[\u201c-\u201f]": '"'}
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of open_clip, lower case
_START, _END = "<|startoftext|>", "<|endoftext|>"
_RENAMED = {"<start_of_text>": _START, "<end_of_text>": _END}
"""open_clip's names of the two; other programs know OpenAI's."""


def write(tokenizer: Callable[..., Any], folder: Path, context: int) -> None:
    """Write tokenizer.json, which cuts and pads to `context` tokens, and its settings."""
    from tokenizers import Regex, Tokenizer, normalizers

    owner: Any = getattr(tokenizer, "tokenizer", None)  # of Hugging Face
    config = folder / "tokenizer_config.json"
    if owner:
        owner.save_pretrained(folder)
        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        about = json.loads(config.read_text(encoding="utf-8"))
    else:
        fast = _clip_tokenizer(tokenizer)
        # open_clip fills with zeros, which is "!"
        about = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": "!"}
    # as a tokenizer of one model, transformers would take that one's normaliser
    about |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    config.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    entities = {f"&{name};": html.unescape(f"&{name};") for name in _ENTITIES.split()}
    letters = {chr(letter): text for letter, text in LIGATURES.items()} | {"\ufeff": ""}
    mended = [normalizers.Replace(old, new) for old, new in (entities | letters).items()]
    mended += [normalizers.Replace(Regex(marks), mark) for marks, mark in _QUOTES.items()]
    fast.normalizer = normalizers.Sequence([*mended, *filter(None, [fast.normalizer])])
    fast.enable_truncation(context)
    pad = about["pad_token"]
    fast.enable_padding(length=context, pad_id=fast.token_to_id(pad), pad_token=pad)
    fast.save(str(folder / "tokenizer.json"))


def _clip_tokenizer(simple: Any) -> Any:
    """open_clip's own."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {_RENAMED.get(word, word): number for word, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    fast = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END))
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    ends = [(word, vocabulary[word]) for word in (_START, _END)]
    fast.post_processor = processors.TemplateProcessing(f"{_START} $A {_END}", special_tokens=ends)
    return fast
