"""Prompt sets: what a file's phrasings are, and every mistake in a line."""

from pathlib import Path

import pytest

from medclip_oc.errors import InputError
from medclip_oc.inference import prompt_sets

FILE = """
multi_label: true
source: ours
templates: {positive: ["{}", "there is {}."], negative: ["no {}"]}
classes:
  Cardiomegaly: {names: [cardiomegaly, a big heart], aliases: [Big Heart]}
  Clear: {positive: [clear lungs, clear lungs], negative: [opacities]}
"""
MISTAKES = {  # what is changed, into what, and what the line says
    "unknown key": ("source:", "sauce:", "sauce: no such setting"),
    "no classes": ("classes:", "names:", "classes: is missing"),
    "no list": ("[opacities]", "opacities", "classes.Clear.negative: should be a valid list"),
    "a bare no": ("[opacities]", "[no]", "classes.Clear.negative.0: should be a valid string (the"),
    "blank": ("[opacities]", "[' ']", "negative.0: String should have at least 1 character"),
    "several labels?": ("multi_label: true", "multi_label: 2", "multi_label: should be a valid"),
    "no place": ('"no {}"', '"no"', "templates: no {} in 'no'"),
    "no negative": (", negative: [opacities]", "", "Clear: no negative phrasing, which multi"),
    "no positive": ("positive: [clear lungs, clear lungs], ", "", "Clear: no positive phrasing"),
    "both": ("[opacities]", "[clear lungs]", "'clear lungs' is both positive and negative"),
    "an alias of two": ("[Big Heart]", "[clear]", "Clear: 'Clear' is a name or alias of Cardio"),
    "twice": ("Clear:", "Cardiomegaly:", "line 7: not valid YAML: Cardiomegaly is given twice"),
    "one class of one label": ("multi_label: true", "multi_label: false", None),
}


def test_phrasings_are_names_in_templates_and_further_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(FILE)
    mine = prompt_sets.load(str(tmp_path / "mine.yaml"))
    assert (mine.name, mine.source, mine.multi_label) == ("mine", "ours", True)
    heart, clear = mine.classes
    texts = "cardiomegaly, there is cardiomegaly., a big heart, there is a big heart."
    assert heart.positive == tuple(texts.split(", "))
    assert heart.negative == ("no cardiomegaly", "no a big heart")
    assert (clear.positive, clear.negative) == (("clear lungs",), ("opacities",))  # each once
    assert (heart.aliases, clear.aliases) == (("Big Heart",), ())


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, tmp_path: Path) -> None:
    old, new, line = MISTAKES[name]
    assert old in FILE
    (tmp_path / "mine.yaml").write_text(FILE.replace(old, new))
    if line is None:  # argmax needs no negative phrasing, and takes those that are there
        assert not prompt_sets.load(str(tmp_path / "mine.yaml")).multi_label
        return
    with pytest.raises(InputError) as refused:
        prompt_sets.load(str(tmp_path / "mine.yaml"))
    assert line in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "mine.yaml"))


def test_a_name_that_is_none() -> None:
    with pytest.raises(InputError, match="no prompt set; did you mean chexpert14"):
        prompt_sets.load("chexprt14")
    with pytest.raises(InputError, match="no prompt set; those are body_part, brain_tumor_mri,"):
        prompt_sets.load("x/y.yaml")
