"""Tokens of the exported files are those of open_clip's tokenizers."""

import csv
from pathlib import Path
from typing import Any

import open_clip
import pytest

from medclip_oc.exporters import tokenizer_files
from medclip_oc.models import pretrained
from tests.conftest import REAL_DATA
from tests.support.reference import HF

TEXTS = [
    "a plain text",
    "the patient\u2019s \u201cmass\u201d, \u2018so-called\u2019; don't",
    "a &lt; b &amp;lt; c &gt; d &quot;e&quot; &#39;f&#39;",
    "5&nbsp;mm, 37 &deg;C, 2 &times; 3 &plusmn; 1 &micro;m",
    "\ufb01brous \ufb02uid, di\ufb00use, e\ufb03cient",
    "line\n\nbreaks\r\nand\ttabs  and\u00a0blanks ",
    "\u00c5ngstr\u00f6m, cafe\u0301, 5 \u00b5m \u2265 3 \u2013 2",
    "\ufeffa mark of order",
    "too long " * 90,
    "",
]


@pytest.mark.parametrize("of", ["open_clip", "Hugging Face"])
def test_texts_are_read_alike(of: str, tmp_path: Path) -> None:
    """By the tokenizers package and by transformers, as by the original; ROCOv2's captions too."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    original: Any = open_clip.SimpleTokenizer(context_length=32)
    if of == "Hugging Face":
        place = pretrained.resolve(HF["hf_tokenizer_name"])
        original = open_clip.tokenizer.HFTokenizer(place, context_length=32)
    texts, file = list(TEXTS), REAL_DATA / "rocov2_text" / "valid_captions.csv"
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            texts += [row["Caption"] for row in csv.DictReader(lines)][::10]
    tokenizer_files.write(original, tmp_path, 32)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(texts)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = auto(texts, padding="max_length", truncation=True)["input_ids"]
    for text, ids, encoded, row in zip(texts, original(texts).tolist(), plain, rows, strict=True):
        assert ids == encoded.ids == row, text
