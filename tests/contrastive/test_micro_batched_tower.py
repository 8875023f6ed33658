"""Texts in chunks by their length, cut to it: the step is still that of one big padded batch."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from medclip_oc.contrastive.reference import gradients, plain_step
from tests.support.reference import HF, batch, build, cached, worst_error
from tests.support.tiny_models import TEXT

LENGTHS = {
    "mixed": [1, 32, 3, 9, 31, 2, 14, 1, 5, 8, 20, 6],
    "one length": [7] * 12,
    "a token each": [1] * 12,
}
END, LAST = {**TEXT, "pool_type": "eos", "eos_id": 399}, {**TEXT, "pool_type": "last"}


def partly_frozen() -> Any:
    towers = build()
    for name, parameter in towers.clip.named_parameters():
        if name.startswith(("transformer.resblocks.0.", "token_embedding", "positional")):
            parameter.requires_grad_(False)
    return towers


TOWERS: dict[str, Any] = {
    "CLIP": build,
    "causal tower of its own": lambda: build(text=END, own_text=True),
    "BERT": lambda: build(text=HF),
    "frozen blocks": partly_frozen,
    "gradient checkpointing": lambda: build(grad_checkpointing=True),
}


def texts(lengths: list[int]) -> Tensor:
    """(12, 32): random tokens, the highest one at the end, and padding."""
    rows = batch(12)[1] % 398 + 1
    for row, length in zip(rows, lengths, strict=True):
        row[length - 1], row[length:] = 399, 0
    return rows


def widths(towers: Any, tokens: Tensor, plain: Any = (), **how: Any) -> tuple[list[str], Any]:
    """What is said, and the widths of the text chunks of a step, after a look at its gradients."""
    reference, images = deepcopy(towers), batch(12)[0]
    torch.manual_seed(7)
    wanted = plain_step(reference, "clip", images, tokens, **dict(plain))
    step, seen = cached(towers, text_micro_batch_size=4, **how), list[int]()
    embed = step.texts.embed
    step.texts.embed = lambda rows: seen.append(rows.shape[1]) or embed(rows)
    torch.manual_seed(7)
    torch.testing.assert_close(step(images, tokens), wanted.float())
    assert worst_error(gradients(towers), gradients(reference)) < 1e-10
    return step.notices(), seen


@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", TOWERS)
def test_equals_one_big_padded_batch(name: str, lengths: str, keep: int) -> None:
    """In float64; dropout is off."""
    towers, tokens = TOWERS[name]().eval().double(), texts(LENGTHS[lengths])
    said, seen = widths(towers, tokens, keep_chunks=keep)
    longest = sorted(LENGTHS[lengths], reverse=True)[::4]  # of each chunk, that of all first
    assert seen == longest + longest[keep:]
    assert said == [f"text: cut to length (mean {sum(longest) / 3:.0f} of 32 tokens)"]


@pytest.mark.parametrize("keep", [0, 2])
def test_dropout_draws_for_the_chunks(keep: int) -> None:
    """BERT's own: the plain side embeds the same chunks, which then draw the same numbers."""
    towers = build(text=HF).double()
    plain = {"micro_batches": (5, 4), "split": towers.by_length}
    _, seen = widths(towers, texts(LENGTHS["mixed"]), plain, keep_chunks=keep)
    assert seen[:3] == [32, 9, 3]


def test_texts_that_stay_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda embed, options: embed)
    cases = ((TEXT, True, "train.compile"), (LAST, False, "padding takes part in this tower"))
    for text, compiled, reason in cases:
        towers = build(text=text, own_text=True).double()
        said, seen = widths(towers, texts(LENGTHS["mixed"]), compiled=compiled)
        assert (said, seen) == ([f"text: padded ({reason})"], [32] * 6)
