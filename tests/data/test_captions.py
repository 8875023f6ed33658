"""Captions longer than the context: noticed, cut, or given as runs of whole sentences."""

import open_clip
import pytest
import torch
from torch import Tensor

from medclip_oc.data.captions import Captions, sentences

TEXT = (
    "Axial CT of the chest (Fig. 2). There is a mass of 2.5 cm in the left lower lobe; no effusion "
    "is seen. Smith et al. described three such cases. Is it malignant? Follow-up was advised."
)
PARTS = [
    "Axial CT of the chest (Fig. 2).",
    "There is a mass of 2.5 cm in the left lower lobe;",
    "no effusion is seen.",
    "Smith et al. described three such cases.",
    "Is it malignant?",
    "Follow-up was advised.",
]


def words(texts: list[str], context_length: int = 12) -> Tensor:
    """A tokenizer of words: 1, the words, 2; cut to the length with 2 at the end."""
    rows = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        tokens = [1, *(100 + len(word) for word in text.split()), 2]
        if len(tokens) > context_length:
            tokens = [*tokens[: context_length - 1], 2]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def ends_in_padding(texts: list[str], context_length: int = 12) -> Tensor:
    """As `words`, but filled up with the token that also ends a text, as SigLIP's."""
    rows = words(texts, context_length)
    return torch.where(rows == 0, 2, rows)


def test_sentences_are_split_where_they_end() -> None:
    assert sentences(TEXT) == PARTS
    assert sentences("  no mark at all ") == ["no mark at all"]
    assert sentences("") == [""]


@pytest.mark.parametrize("tokenizer", [words, ends_in_padding])
def test_what_is_too_long_is_noticed(tokenizer: object) -> None:
    captions = Captions(tokenizer)  # type: ignore[arg-type]
    assert captions.context == 12
    for count in range(16):
        text = " ".join(["word"] * count)
        tokens, long = captions.tokens(text, [0])
        assert long == (count > 10)
        assert tokens.equal(captions.tokenizer([text])[0])


def test_the_real_tokenizer() -> None:
    captions = Captions(open_clip.get_tokenizer("ViT-B-32"))
    assert captions.context == 77
    for count in (1, 74, 75, 76, 90):
        assert captions.tokens("word " * count, [0])[1] == (count > 75)


def test_runs_of_sentences() -> None:
    captions = Captions(words, "sentences")
    whole = " ".join(PARTS[1:2])
    assert captions.tokens("short enough", [0])[0].equal(words(["short enough"])[0])
    runs = {
        " ".join(PARTS[first:last]): words([" ".join(PARTS[first:last])])[0]
        for first in range(6)
        for last in range(first + 1, 7)
    }
    found = set[str]()
    for seed in range(60):
        tokens, long = captions.tokens(TEXT, [5, seed])
        assert long
        assert tokens.equal(captions.tokens(TEXT, [5, seed])[0])
        matching = [text for text, row in runs.items() if row.equal(tokens)]
        assert matching, "whole sentences, one after another"
        found.add(matching[0])
    assert len(found) >= 4
    fitting = [text for text in found if len(text.split()) <= 10]
    for text in fitting:  # there was no room for a neighbour
        first = next(i for i in range(6) if text.startswith(PARTS[i]))
        last = next(i for i in range(6) if text.endswith(PARTS[i]))
        for more in (PARTS[max(0, first - 1) : last + 1], PARTS[first : last + 2]):
            assert " ".join(more) == text or len(" ".join(more).split()) > 10
    assert len(whole.split()) > 10, "a sentence that doesn't fit is cut"
    assert any(text.startswith(PARTS[1]) for text in found)
