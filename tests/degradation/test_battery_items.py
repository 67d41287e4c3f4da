"""The items of the language batteries: well-formed, balanced, nothing given away, and within what the graders know."""

from collections import Counter

import pytest

from frankenlm.degradation.measures.battery import THINGS, edit_distance
from frankenlm.degradation.measures.languages import language_of
from frankenlm.degradation.measures.text_words import words
from frankenlm.degradation.prompts import CHOICE_KINDS, PARTS, load_prompts

SETS = {"battery_en": "en", "battery_es": "es"}
YES = {"en": "yes", "es": "sí"}
ITEMS = [prompt for name in SETS for prompt in load_prompts(name)]


def of(part: str, name: str | None = None):
    return [prompt for prompt in ITEMS if prompt.part == part and name in (None, prompt.set)]


@pytest.mark.parametrize("name", SETS)
def test_parts_take_turns(name):
    items = load_prompts(name)
    assert [prompt.part for prompt in items] == [*PARTS] * 20
    assert {prompt.language for prompt in items} == {SETS[name]}
    assert all(prompt.topic and prompt.note for prompt in items)


@pytest.mark.parametrize("name", SETS)
def test_choices_of_words(name):
    """Every place is the right one as often as the others; every wrong choice has a kind of its own."""
    items = of("word comprehension", name)
    assert set(Counter(prompt.choices.index(prompt.answer) for prompt in items).values()) == {5}
    for prompt in items:
        assert sorted(prompt.kinds) == sorted(CHOICE_KINDS) and prompt.chance == 1 / len(prompt.choices)
        question, _, listed = prompt.text.partition(":")
        assert [word for word in words(listed) if word in prompt.choices] == [*prompt.choices]
        assert not set(words(question)) & set(prompt.choices), "the question names none"


@pytest.mark.parametrize("prompt", of("word comprehension"), ids=lambda p: f"{p.set}-{p.id}")
def test_the_form_is_nearer_than_the_meaning(prompt):
    """The choice of like form differs in fewer letters, by its length, than the others."""
    by_kind = dict(zip(prompt.kinds, prompt.choices, strict=True))
    far = {
        kind: edit_distance(by_kind[kind], prompt.answer) / max(len(by_kind[kind]), len(prompt.answer))
        for kind in CHOICE_KINDS
    }
    assert far["form"] == min(far[kind] for kind in CHOICE_KINDS if kind != "target") < 0.7, by_kind


@pytest.mark.parametrize("name", SETS)
def test_yes_is_as_frequent_as_no(name):
    items = of("sentence comprehension", name)
    assert Counter(prompt.answer for prompt in items) == {YES[SETS[name]]: 10, "no": 10}
    assert len({prompt.topic for prompt in items}) >= 8
    runs = "".join("y" if prompt.answer != "no" else "n" for prompt in items)
    assert "yyyyy" not in runs and "nnnnn" not in runs


@pytest.mark.parametrize("prompt", of("repetition"), ids=lambda p: f"{p.set}-{p.id}")
def test_what_is_repeated_ends_the_prompt(prompt):
    assert words(prompt.text)[-len(words(prompt.answer)) :] == words(prompt.answer)
    known = [language_of(prompt.language).known(word) for word in words(prompt.answer)]
    assert not any(known) if prompt.topic == "pseudoword" else sum(known) >= len(known) - 1, prompt.answer


@pytest.mark.parametrize("name", SETS)
def test_repetition_grows(name):
    items = of("repetition", name)
    assert Counter(prompt.topic for prompt in items) == {"word": 6, "pseudoword": 3, "phrase": 3, "sentence": 8}
    of_sentences = [len(words(prompt.answer)) for prompt in items if prompt.topic == "sentence"]
    assert min(of_sentences) <= 4 and max(of_sentences) >= 13


@pytest.mark.parametrize("prompt", of("connected text"), ids=lambda p: f"{p.set}-{p.id}")
def test_things_to_name(prompt):
    """The prompt names none; an alias names one thing; whole words of enough things are in the lists."""
    assert prompt.items == 3 and len(prompt.answer) >= THINGS + 2
    aliases = [alias for thing in prompt.answer for alias in thing]
    assert len(set(aliases)) == len(aliases)
    for word in words(prompt.text):
        assert not any(word == alias or (alias[-1] == "*" and word.startswith(alias[:-1])) for alias in aliases), word
    for alias in aliases:
        assert words(alias.rstrip("*")) == [alias.rstrip("*")] and len(alias.rstrip("*")) > 1
    sayable = [any(language_of(prompt.language).known(alias.rstrip("*")) for alias in thing) for thing in prompt.answer]
    assert sum(sayable) >= THINGS
