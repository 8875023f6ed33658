"""The shipped prompt sets: the classes of their data sets, and texts that every tower can read."""

import open_clip
import pytest

from medclip_oc.config import fields
from medclip_oc.inference import prompt_sets

CLASSES = {
    "body_part": 8,
    "brain_tumor_mri": 4,
    "breast_ultrasound": 3,
    "breastmnist": 2,
    "chestmnist": 14,
    "chestxray14": 14,
    "chexpert14": 14,
    "chexpert5": 5,
    "modality": 7,
    "organmnist": 11,
    "padchest": 26,
    "plane": 3,
    "pneumoniamnist": 2,
    "rsna_pneumonia": 1,
    "vindr_cxr": 28,
}


def test_every_set_is_known() -> None:
    assert prompt_sets.names() == list(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_a_set_is_sound(name: str) -> None:
    prompts, tokenizer = prompt_sets.load(name), open_clip.SimpleTokenizer()
    # the loader drops what stands in the file twice
    tree = fields.load(prompt_sets.__file__.removesuffix(".py") + f"/{name}.yaml")
    assert len(prompts.classes) == CLASSES[name]
    assert "wordings are ours" in prompts.source
    for each in prompts.classes:
        written = tree["classes"][each.name]
        for side, texts in (("positive", each.positive), ("negative", each.negative)):
            forms = len(tree["templates"].get(side, ())) * len(written.get("names", ()))
            assert len(texts) == forms + len(written.get(side, ())), f"{each.name}: twice"
            assert all(len(tokenizer.encode(text)) <= 75 for text in texts)  # and start, end
