"""Our tokenizer remembers words, and gives what open_clip's own gives."""

import open_clip
from hypothesis import example, given
from hypothesis import strategies as st

from medclip_oc.models.tokenizer import tokenizer_of

PLAIN, OURS = open_clip.get_tokenizer("ViT-B-32"), tokenizer_of("ViT-B-32")


def test_remembered_words_give_the_same_tokens() -> None:
    texts = [
        "Axial CT of the chest (Fig. 2). There is a mass of 2.5 cm; no effusion is seen.",
        "AXIAL CT OF THE CHEST",
        "",
        "it's the patient's 3rd x-ray &amp; <end_of_text> é ﬁ … ½ T2-weighted   µCT\n",
        "naïve “quotes” ---- 12.5mm a&b &lt;tag&gt;",
    ]
    for _ in range(2):  # met for the first time, then remembered
        assert OURS(texts).equal(PLAIN(texts))
    assert OURS(texts, context_length=20).equal(PLAIN(texts, context_length=20))


@given(st.text(st.characters(min_codepoint=9, max_codepoint=126), max_size=60))
@example("fish &amp; chips")
@example("&notin; &lt;b&gt; a&nbsp;b")
@example("\x1b[36mred\x1b[0m\r\nnext\x0bline")
@example("  two  blanks \t")
def test_texts_that_need_no_mending_give_the_same_tokens(text: str) -> None:
    assert OURS(text).equal(PLAIN(text))
