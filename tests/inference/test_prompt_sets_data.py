"""The shipped prompt sets: the classes of their data sets, and texts that every tower can read."""

import open_clip
import pytest

from medclip_oc.config import fields
from medclip_oc.inference import prompt_sets


def test_every_set_has_the_classes_of_its_data_set() -> None:
    classes = {name: len(prompt_sets.load(name).classes) for name in prompt_sets.names()}
    assert [*classes.values()] == [8, 4, 3, 2, 14, 14, 14, 5, 7, 11, 26, 3, 2, 1, 28], classes


@pytest.mark.parametrize("name", prompt_sets.names())
def test_a_set_is_sound(name: str) -> None:
    prompts, tokenizer = prompt_sets.load(name), open_clip.SimpleTokenizer()
    # the loader drops what stands in the file twice
    tree = fields.load(prompt_sets.__file__.removesuffix(".py") + f"/{name}.yaml")
    assert "wordings are ours" in prompts.source
    for each in prompts.classes:
        written = tree["classes"][each.name]
        for side, texts in (("positive", each.positive), ("negative", each.negative)):
            forms = len(tree["templates"].get(side, ())) * len(written.get("names", ()))
            assert len(texts) == forms + len(written.get(side, ())), f"{each.name}: twice"
            assert all(len(tokenizer.encode(text)) <= 75 for text in texts)  # and start, end
