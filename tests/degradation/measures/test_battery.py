"""Scores of battery answers: perfect and random answerers, and answers that were judged by hand."""

import random
from dataclasses import replace

import pytest

from frankenlm.degradation.measures.battery import (
    ERROR_KINDS,
    JOINED,
    KNOWN,
    SCORES,
    THINGS,
    WORDS,
    edit_distance,
    error_kind,
    forms,
    likeness,
    perseverates,
    score,
)
from frankenlm.degradation.measures.languages import LANGUAGES, language_of
from frankenlm.degradation.measures.measure import measure_row
from frankenlm.degradation.measures.text_words import words
from frankenlm.degradation.prompts import PARTS, LabPrompt, load_prompts

SETS = ("battery_en", "battery_es")
ITEMS = [prompt for name in SETS for prompt in load_prompts(name)]
FRAME = {
    "en": "First I look at the {} in front of me. Then somebody speaks about the {} again. "
    "At last we also think of the {}, and all is well.",
    "es": "Primero miro {} delante de mí. Luego alguien habla de {} otra vez. "
    "Al final pensamos también en {}, y todo va bien.",
}
TEA = {
    "en": "You boil the water in a kettle. Then put a tea bag in the cup and pour the water over it. "
    "Wait a few minutes and add milk or sugar.",
    "es": "Hay que hervir el agua en una tetera. Después se pone la bolsita en la taza y se vierte el agua encima. "
    "Espera unos minutos y añade azúcar o limón.",
}


FIELD = {
    "en": "kettle boil water hot teapot cup bag leaf pour steep milk sugar minute wait drink warm mug spoon lemon "
    "honey stir taste steam kitchen",
    "es": "tetera hervir agua caliente taza bolsita hoja verter reposar leche azúcar minuto esperar beber tomar limón "
    "miel cuchara cocina fuego servir vapor calor plato",
}


def first(part: str, language: str) -> LabPrompt:
    return next(prompt for prompt in ITEMS if prompt.part == part and prompt.language == language)


def perfect(prompt: LabPrompt) -> str:
    """What somebody answers who knows the key and can speak."""
    if prompt.grader != "connected":
        return prompt.answer
    known = language_of(prompt.language).known
    named = [next((word for alias in thing if known(word := alias.rstrip("*"))), None) for thing in prompt.answer]
    return FRAME[prompt.language].format(*[word for word in named if word][:THINGS])


def row(prompt: LabPrompt, completion: str, **more) -> dict:
    return {"prompt_text": prompt.text, "completion": completion, "tokens_generated": 3, **more}


@pytest.mark.parametrize("prompt", ITEMS, ids=lambda p: f"{p.set}-{p.id}")
def test_a_perfect_answerer_scores_1(prompt):
    measured = measure_row(row(prompt, perfect(prompt)))
    assert measured["score"] == 1 and measured["error_kind"] == "none" and measured["correct"] is None
    assert not any(measured[f"error_{kind.replace(' ', '_')}"] for kind in ERROR_KINDS if kind != "none")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("part", PARTS)
def test_a_random_answerer_scores_at_chance(part, name):
    """One that says any of the choices, or what would be perfect for another item of the part."""
    draw = random.Random(f"{part}{name}")
    items = [prompt for prompt in load_prompts(name) if prompt.part == part]
    scores = [
        score(draw.choice(prompt.choices) if prompt.choices else perfect(other), prompt)
        for prompt in items
        for other in items
        if other is not prompt
    ]
    chance = items[0].chance or 0.0
    assert abs(sum(scores) / len(scores) - chance) < (0.1 if chance else 0.07)


@pytest.mark.parametrize("name", SETS)
def test_a_salad_of_the_battery_scores_near_0(name):
    """Words of all of its prompts at random, in sentences of ten: they name a thing now and then, nobody parses."""
    draw = random.Random(name)
    items = [prompt for prompt in load_prompts(name) if prompt.grader == "connected"]
    pool = sorted({word for prompt in ITEMS if prompt.set == name for word in words(prompt.text)})
    salads = [". ".join(" ".join(draw.choices(pool, k=10)) for _ in range(5)) for _ in items]
    assert sum(score(salad, prompt) for salad, prompt in zip(salads, items, strict=True)) / len(items) < 0.25


@pytest.mark.parametrize("language", LANGUAGES)
def test_order_does_not_count(language):
    """What the rules cannot see: a sound answer shuffled is as good, words of the field alone are half as good."""
    prompt, field = first("connected text", language), FIELD[language].split()
    for seed in range(5):
        shuffled = [word.strip(".") for word in TEA[language].split()]
        random.Random(seed).shuffle(shuffled)
        assert score(f"{_parted(shuffled)}.", prompt) == 1
    assert len(field) == 24 and not set(field) & language_of(language).function_words
    assert score(f"{_parted(field)}.", prompt) == 0.5 and score(" ".join(field), prompt) == pytest.approx(1 / 3)


def _parted(found: list[str]) -> str:
    """Return words in three sentences."""
    third = -(-len(found) // 3)
    return ". ".join(" ".join(found[start : start + third]) for start in range(0, len(found), third))


NOTHING = ("", " \n", "...", "?!", "¿¡…")
FOREIGN = "Zuerst kocht man das Wasser, dann gießt man es in die Tasse. Danach wartet man. Fertig ist das Getränk nun."


@pytest.mark.parametrize(
    "prompt", [first(part, language) for part in PARTS for language in LANGUAGES], ids=lambda p: p.set + p.grader
)
def test_bad_answers(prompt):
    for completion in NOTHING:
        assert score(completion, prompt) == 0 and error_kind(completion, prompt, 0.0) == "no answer"
    assert score(FOREIGN, prompt) <= 0.1
    kind = error_kind(FOREIGN, prompt, score(FOREIGN, prompt))
    assert kind in ("neologism", "no answer", "unrelated"), "the English list knows names of the world"
    junk = "xq flerto vunka briml sotap zuq ertol minga posdr talife krum. " * 4
    assert score(junk, prompt) == 0 and error_kind(junk, prompt, 0.0) == "perseveration"
    assert error_kind("xq flerto vunka briml", prompt, 0.0) == "neologism"
    loop = "the bus and the bus and " * 400
    assert score(loop, prompt) == 0 and error_kind(loop, prompt, 0.0) == "perseveration"
    assert score(prompt.text, prompt) < 1 or prompt.grader == "repetition", "an echo is no answer"
    assert score("word " * 20_000, prompt) == 0, "a very long one takes no time"


@pytest.mark.parametrize("language", LANGUAGES)
def test_connected_text(language):
    prompt, tea = first("connected text", language), TEA[language]
    assert score(tea, prompt) == 1
    assert 0 < score(tea.partition(".")[0] + ".", prompt) < 0.5, "one sentence of three"
    assert score(f"{tea} {tea} {tea} {tea}", prompt) < 0.4, "again and again"
    assert score(tea + " and so on" * 4, prompt) == 0, "ends in a loop"
    assert score(FRAME[language].format("tea", "tea", "tea"), prompt) == 0, "speaks, but names nothing"
    names = [thing[0].rstrip("*") for thing in prompt.answer]
    assert 0 < score(" ".join(names), prompt) < 0.35, "names, but does not speak"
    telegram = ". ".join(" ".join(names) for _ in range(2)) + ". " + " ".join(reversed(names)) + "."
    assert 0 < score(telegram, prompt) <= 0.5, "without a function word"
    other = TEA["es" if language == "en" else "en"]
    assert score(other, prompt) < 0.15
    assert error_kind(" ".join(words(tea)), prompt, 0.3) == "incomplete"


def test_forms_by_hand():
    prompt = first("connected text", "en")
    text = "The cat sat. The cat sat."  # 6 words, 2 sentences, 5 pairs of which 3 differ
    assert forms(text, prompt) == pytest.approx(
        {"length": 6 / WORDS, "sentences": 2 / 3, "known": 1.0, "varied": (3 / 5) / 0.7, "joined": 1.0}
    )
    assert forms("Cat sat lamp tree river stone bread the", prompt)["joined"] == pytest.approx((1 + 1 / 8 / JOINED) / 2)
    assert forms("zzqx the", prompt)["known"] == pytest.approx(0.5 / KNOWN)
    assert min(forms("", prompt).values()) == 0


AGAIN = LabPrompt(id=1, text="Again", set="x", skill="repetition", grader="repetition", answer="the old lamp")
ACCENT = replace(AGAIN, answer="¿Dónde está?", language="es")


@pytest.mark.parametrize(
    ("completion", "expected", "kind"),
    [
        ("the old lamp", 1, "none"),
        ("The old lamp.", 1, "none"),
        ("**The old lamp**", 1, "none"),
        ("Sure, here it is: the old lamp", 1, "none"),
        ("Of course!\n", 0, "unrelated"),
        ('You said "the old lamp" to me.', 1, "none"),
        ("The old lamp.\n\nIs there anything else?", 1, "none"),
        ("Here you go:\n\nthe old lamp\nThat was it.", 1, "none"),
        ("the old lump", 1 - 2 / 12, "form"),
        ("the lamp", 1 - 2 * 4 / 12, "form"),
        ("the old lamp the old lamp the old lamp", 0, "perseveration"),
        ("the old lamp\n" * 2, 1, "none"),
        ("the old lamp\n" * 3, 0, "perseveration"),
        ("the old lamp\n" * 4, 0, "perseveration"),
        ('"The old lamp." ' * 3, 0, "perseveration"),
        ("“The old lamp” " * 4, 0, "perseveration"),
        ("I repeat 'the old lamp' again.", 1, "none"),
        ("I repeat ‘the old lamp’ again.", 1, "none"),
        ("«The old lamp», that is all.", 1, "none"),
        ("Say this again: the old lamp", 1, "none"),  # an echo of a prompt
        ("the old lamp\n" * 9, 0, "perseveration"),
        ("lamp lamp lamp", 0, "perseveration"),
        ("yes", 0, "unrelated"),
        ("plork zug vimt", 0, "neologism"),
        ("", 0, "no answer"),
    ],
)
def test_repetition(completion, expected, kind):
    found = score(completion, AGAIN)
    assert found == pytest.approx(expected) and error_kind(completion, AGAIN, found) == kind


def test_quotes_go_in_pairs():
    long = replace(AGAIN, answer="The baker's daughter sold warm bread in the square")
    for said in (f"Sure! “{long.answer}.”", f"Sure! ‘{long.answer}.’ Done.", f"Sure! '{long.answer}.' Done."):
        for apostrophe in "'’":
            assert score(said.replace("r's", f"r{apostrophe}s"), long) == 1
    assert error_kind(f"{long.answer}. " * 3, long, score(f"{long.answer}. " * 3, long)) == "perseveration"
    assert score(" 'a" * 5_000, long) == 0, "quotes that never close take no time"


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_echo_of_the_prompt_repeats(language):
    prompt = first("repetition", language)
    assert score(prompt.text, prompt) == 1


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("¿Dónde está?", 1),
        ("dónde está", 1),
        ("«¿DÓNDE ESTÁ?»", 1),
        ("¿Do\u0301nde esta\u0301?", 1),  # accents as marks of their own
        ("donde esta", 1 - 2 * 2 / 10),
        ("¿¿¿", 0),
    ],
)
def test_accents_are_letters_and_marks_are_not(completion, expected):
    assert score(completion, ACCENT) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        ("Rain.", "form"),
        ("It is the bus.", "semantic"),
        ("a spoon", "unrelated"),
        ("train", "none"),
        ("train, bus, rain or spoon", "no answer"),
        ("I do not know", "no answer"),
        ("brugle snorp", "neologism"),
        ("I I I I I", "perseveration"),
    ],
)
def test_errors_of_word_comprehension(completion, kind):
    prompt = first("word comprehension", "en")
    found = score(completion, prompt)
    assert error_kind(completion, prompt, found) == kind and found == (kind == "none")


def test_errors_of_sentence_comprehension():
    prompt = first("sentence comprehension", "es")
    for completion, expected in (("No.", "wrong"), ("Sí.", "none"), ("si", "none"), ("No sé.", "no answer")):
        assert error_kind(completion, prompt, score(completion, prompt)) == expected


def test_a_row_without_finite_logits_scores_0():
    prompt = first("word comprehension", "en")
    measured = measure_row(row(prompt, prompt.answer, finish_reason="nan"))
    assert measured["score"] == 0 and measured["error_no_answer"] and measured["unparsed"]


@pytest.mark.parametrize(
    ("part", "completion", "expected"),
    [
        ("word comprehension", "blah blah blah blah blah", True),
        ("word comprehension", "zzgr fnopl qwert", True),
        ("word comprehension", "bus", False),
        ("sentence comprehension", "I do not know", True),
        ("repetition", "zzgr fnopl qwert", False),
        ("connected text", "blah blah blah blah blah", False),
        ("connected text", "...", True),
    ],
)
def test_unparsed(part, completion, expected):
    """No settled choice where there are choices, no word elsewhere; whatever kind of error it is."""
    assert measure_row(row(first(part, "en"), completion))["unparsed"] is expected


def naive_distance(one: str, other: str) -> int:
    """The definition, by recursion."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return naive_distance(one[1:], other[1:])
    return 1 + min(naive_distance(one[1:], other), naive_distance(one, other[1:]), naive_distance(one[1:], other[1:]))


def test_edit_distance_is_the_definition():
    draw = random.Random(0)
    for _ in range(60):
        one, other = ("".join(draw.choices("abc", k=draw.randrange(7))) for _ in range(2))
        assert edit_distance(one, other) == edit_distance(other, one) == naive_distance(one, other)
        longer = max(len(one), len(other))
        expected = max(0.0, 1 - 2 * naive_distance(one, other) / longer) if longer else 0.0
        assert likeness(one, other) == pytest.approx(expected)
    assert edit_distance("kitten", "sitting") == 3


def test_perseveration_needs_three_in_a_row():
    for text, expected in (
        ("a b a b", False),
        ("a b a b a b", True),
        ("x y no no no z", True),
        ("no and no and yes", False),
        ("one two three four five six " * 3, False),  # a run of six is left to the loops
    ):
        assert perseverates(text, words(text)) == expected, text


def test_every_grader_of_a_part_has_a_score():
    assert {prompt.grader for prompt in ITEMS} == set(SCORES)
