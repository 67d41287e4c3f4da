"""The prompt sets: their sizes, their keys recomputed, nothing given away; the drawn picture and its units."""

import ast
import hashlib
import itertools
import json
import operator
import re
from collections import Counter
from fractions import Fraction

import pytest

from frankenlm.degradation.measures.graders import grade, has_letters
from frankenlm.degradation.measures.measure import named_units
from frankenlm.degradation.measures.numerals import numbers
from frankenlm.degradation.measures.text_words import words
from frankenlm.degradation.prompts import (
    FOLDER,
    PARTS,
    PROMPT_SETS,
    LabPrompt,
    find_prompt,
    load_prompts,
    picture_path,
    picture_units,
    shipped_units,
)

COUNTS = {"dreams_it": 38, "iq_it": 65, "cookie_theft_it": 20, "battery_en": 80, "battery_es": 80, "smoke": 4}
SKILLS = {
    "dreams_it": {"bare": 8, "detailed": 8, "person": 6, "theme": 6, "emotion": 4, "sense": 3, "listener": 3},
    "iq_it": {"math": 25, "language": 15, "logic": 12, "factual": 8, "creativity": 5},
    "cookie_theft_it": {
        "plain": 3,
        "exhaustive": 3,
        "list": 3,
        "actions": 3,
        "people": 2,
        "space": 2,
        "causes": 2,
        "blind reader": 2,
    },
}
PROFILE = dict.fromkeys(PARTS, 20)
SKILLS |= {"battery_en": PROFILE, "battery_es": PROFILE}
ALL = [prompt for name in PROMPT_SETS for prompt in load_prompts(name)]
# their items are test_battery_items.py's
OTHERS = [prompt for prompt in ALL if prompt.part is None]
GRADED = [prompt for prompt in OTHERS if prompt.grader in ("number", "choice", "alias")]
IQ = load_prompts("iq_it")


def records(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_table_names_every_file():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(PROMPT_SETS) == set(COUNTS)


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_set_by_its_numbers(name):
    prompts = load_prompts(name)
    assert [prompt.id for prompt in prompts] == list(range(1, COUNTS[name] + 1))
    assert all(prompt.set == name for prompt in prompts)
    assert all(record["license"] == "CC0-1.0" and record["note"] for record in records(name))
    if name in SKILLS:
        assert Counter(prompt.skill for prompt in prompts) == SKILLS[name]


def test_texts():
    assert len({" ".join(words(prompt.text)) for prompt in ALL}) == len(ALL)
    for prompt in ALL:
        assert prompt.text.isascii() or prompt.language == "es", prompt.text
        assert len(prompt.text) <= 200, prompt.text
        assert prompt.text == prompt.text.strip() and prompt.text.lstrip("¿")[0].isupper() and "  " not in prompt.text
        assert prompt.text[-1] in ".?" or has_letters(prompt), prompt.text
    for prompt in load_prompts("dreams_it"):
        assert "dream" in prompt.text.casefold()
        assert len(re.findall(r"[.?!](?:\s|$)", prompt.text)) == 1, "one sentence each"


def test_the_first_dreams_suggest_nothing():
    """Apart from the words for asking, none of the bare and detailed requests brings a thing to dream of."""
    asking = words(
        """dream tell describe write down recount hear account relate beginning end report please detail detailed
        thoroughly leaving nothing long step every full careful length first moment last precisely reader picture
        completely small details seem give like i would could you me a an the of in as much can to with one and out
        so that all it its at by from however may"""
    )
    for prompt in load_prompts("dreams_it")[:16]:
        assert set(words(prompt.text)) <= set(asking), prompt.text


# --- keys


def evaluate(expression: str) -> Fraction:
    """Evaluate + - * / and powers of whole numbers exactly."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        return operators[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(expression, mode="eval").body)


def test_math_keys_recomputed():
    found = [record for record in records("iq_it") if record["skill"] == "math"]
    assert Counter(record["band"] for record in found) == {"easy": 8, "medium": 8, "hard": 9}
    assert {record["topic"] for record in found} == {
        "precedence",
        "fractions",
        "percentages",
        "sequences",
        "units",
        "rate",
        "geometry",
        "equation",
        "word problem",
    }
    for record in found:
        assert evaluate(record["expression"]) == Fraction(str(record["answer"])), record["text"]


def test_math_expressions_use_the_prompts_numbers():
    """Every number of the expression stands in the prompt, except for conversions and rules of geometry."""
    constants = {1, 2, 10, 60, 100, 180, 1000}
    for record in records("iq_it"):
        if record["skill"] == "math":
            given = set(numbers(re.sub(r"[-/()^]|(?<=\d)[xy]", " ", record["text"]))) | constants
            used = {Fraction(found) for found in re.findall(r"\d+", record["expression"])}
            whole = {part for number in given for part in (number, number * 10)}
            assert used <= whole, record["text"]


def test_equations_by_substitution():
    """The two equations hold for their keys, and for no other whole number near."""
    equations = {"3x + 19 = 52": lambda x: 3 * x + 19 == 52, "5(y - 2) = 2y + 17": lambda y: 5 * (y - 2) == 2 * y + 17}
    for text, holds in equations.items():
        [prompt] = [prompt for prompt in IQ if text in prompt.text]
        assert [x for x in range(-100, 100) if holds(x)] == [prompt.answer]


def key_of(beginning: str):
    [prompt] = [prompt for prompt in IQ if prompt.text.startswith(beginning)]
    return prompt.answer


def test_orderings_by_trying_all():
    tall = [
        p for p in itertools.permutations(["Ana", "Ben", "Carl"]) if p.index("Ana") < p.index("Ben") < p.index("Carl")
    ]
    assert {p[0] for p in tall} == {key_of("Ana is taller")}
    race = [
        p
        for p in itertools.permutations(["Mia", "Tom", "Lea", "Jan"])
        if p.index("Mia") < p.index("Tom") < p.index("Lea") < p.index("Jan")
    ]
    assert {p[2] for p in race} == {key_of("Mia finishes")}
    row = [
        p
        for p in itertools.permutations(["red", "green", "blue", "yellow"])
        if p.index("red") < p.index("green") < p.index("blue") and p.index("yellow") < p.index("red")
    ]
    assert {p[-2] for p in row} == {key_of("Red is left")}


def test_truth_tellers_by_trying_all():
    """A world is possible if everybody's statement is true just when they never lie."""
    both = list(itertools.product((True, False), repeat=2))
    worlds = [(max_, paul) for max_, paul in both if max_ == (not max_ and not paul)]
    assert worlds == [(False, True)] and key_of("Max and Paul") == "Paul"
    worlds = [(rita, sam) for rita, sam in both if rita == (not sam) and sam == (rita and sam)]
    assert worlds == [(True, False)] and key_of("Rita and Sam") == "Rita"
    assert [full for full in (True, False) if (not full) is False] == [True] and key_of("Kim always") == "yes"


def must(premises, conclusion, variables: int) -> str:
    """Whether a conclusion holds in every world of truth values that fits the premises, as yes or no."""
    worlds = [w for w in itertools.product((True, False), repeat=variables) if premises(*w)]
    assert worlds
    return "yes" if all(conclusion(*w) for w in worlds) else "no"


def test_conditionals_by_truth_tables():
    assert key_of("If it snows") == must(lambda s, c: (not s or c) and c, lambda s, c: s, 2) == "no"
    assert must(lambda b, d: (not b or d) and not d, lambda b, d: not b, 2) == "yes" and key_of("If the bell") == "no"
    chain = must(lambda on, door, cold: (not on or door) and (not door or cold) and on, lambda on, door, cold: cold, 3)
    assert key_of("If the lamp") == chain == "yes"


def test_syllogisms_by_small_worlds():
    """Three things, each with or without three properties; every premise of the form all or some."""

    def holds_always(premises, conclusion) -> str:
        kinds = list(itertools.product((True, False), repeat=3))
        worlds = [w for w in itertools.combinations_with_replacement(kinds, 3) if all(p(w) for p in premises)]
        assert worlds
        return "yes" if all(conclusion(w) for w in worlds) else "no"

    def every(a, b):
        return lambda world: all(thing[b] for thing in world if thing[a])

    def some(a, b):
        return lambda world: any(thing[a] and thing[b] for thing in world)

    assert key_of("All wrens") == holds_always([some(0, 0), every(0, 1), every(1, 2)], every(0, 2)) == "yes"
    assert key_of("Every tile") == holds_always([some(0, 0), every(0, 1), some(1, 2)], some(0, 2)) == "no"
    assert key_of("All pilots") == holds_always([every(0, 1), some(0, 2)], some(1, 2)) == "yes"


def test_sixty_of_sixty_five_are_graded():
    assert sum(prompt.grader in ("number", "choice", "alias") for prompt in IQ) == 60
    assert [prompt.items for prompt in IQ if prompt.grader == "list"] == [10, 8, 6, 7, 9]
    for prompt in IQ:
        if prompt.grader == "list":
            assert numbers(prompt.text) == [prompt.items]


@pytest.mark.parametrize("prompt", GRADED, ids=lambda p: f"{p.set}-{p.id}")
def test_every_key_is_right_by_its_own_grader(prompt):
    keys = prompt.answer if prompt.grader == "alias" else [prompt.answer]
    for key in keys:
        for completion in (f"{key}", f"The answer is {key}.", f"**{key}**\n"):
            assert grade(completion, prompt) == "correct", completion
    for other in prompt.choices or ():
        assert grade(f"The answer is {other}.", prompt) == ("correct" if other == prompt.answer else "wrong")
    if prompt.grader == "number":
        assert grade(f"{Fraction(str(prompt.answer)) + 1}", prompt) == "wrong"
        assert grade("I do not know", prompt) == "unparsed"
    assert grade("", prompt) == "unparsed"


@pytest.mark.parametrize("prompt", GRADED, ids=lambda p: f"{p.set}-{p.id}")
def test_no_prompt_gives_its_answer_away(prompt):
    if prompt.grader == "number":
        assert Fraction(str(prompt.answer)) not in numbers(prompt.text.replace("/", " "))
    elif prompt.grader == "alias":
        assert not {word for alias in prompt.answer for word in words(alias)} & set(words(prompt.text))
    else:
        assert all(len(re.findall(rf"(?<!\w){choice}(?!\w)", prompt.text)) >= 1 for choice in prompt.choices)


def test_choices_and_chance():
    places = Counter()
    for prompt in GRADED:
        if prompt.grader != "choice":
            assert prompt.chance is None and prompt.choices is None
            continue
        assert len(set(prompt.choices)) == len(prompt.choices) >= 2
        assert prompt.chance == pytest.approx(1 / len(prompt.choices), abs=1e-4)
        if has_letters(prompt):
            places[prompt.choices.index(prompt.answer)] += 1
        else:  # in the order of the prompt, at their last place, where they are listed
            listed = [prompt.text.rindex(choice) for choice in prompt.choices if choice not in ("yes", "no")]
            assert listed == sorted(listed)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) <= 2
    yes_no = Counter(prompt.answer for prompt in GRADED if prompt.choices == ("yes", "no"))
    assert sorted(yes_no.values()) == [3, 4]


# --- files


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"text": "Say a."}\n\n{"text": "Which? x or y", "grader": "choice", "choices": ["x", "y"], '
        '"answer": "y", "skill": "pick"}\n',
        encoding="utf-8",
    )
    first, second = load_prompts(path)
    assert first == LabPrompt(id=1, text="Say a.", set="mine", skill="mine")
    assert (second.id, second.choices, second.skill) == (2, ("x", "y"), "pick")
    assert load_prompts(str(path)) == (first, second)


CHOOSE = '{"text": "x or y?", "grader": "choice", "choices": ["x", "y"], "answer": "x", '


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a"}', "line 1: prompt: unknown key 'txt'.*Did you mean 'text'"),
        ('{"id": 1}', "line 1: the key text is missing"),
        ('{"text": " "}', "not empty"),
        ('{"text": "a", "id": 7}', "id=7 must be the prompt's place, 1"),
        ('{"text": "a", "grader": "nummer", "answer": 1}', "grader='nummer'.*number"),
        ('{"text": "a", "grader": "number"}', "needs an answer"),
        ('{"text": "a", "grader": "choice", "answer": "z", "choices": ["x"]}', "must be one of the choices"),
        ('{"text": "a", "grader": "list"}', "needs items"),
        ('{"text": "a", "grader": "connected", "items": 3}', "needs an answer"),
        ('{"text": "a", "grader": "connected", "answer": [["x"]]}', "needs items"),
        ('{"text": "a", "grader": "connected", "items": 3, "answer": ["x"]}', "a list of things"),
        ('{"text": "a", "grader": "repetition", "answer": "?"}', "the text to repeat"),
        ('{"text": "a", "language": "esp"}', "language='esp'.*es"),
        ('{"text": "a", "kinds": ["form"]}', "say what each of the choices"),
        (CHOOSE + '"kinds": ["target", "shape"]}', "kinds='shape'.*semantic"),
        (CHOOSE + '"kinds": ["form", "target"]}', "target must be the kind of 'x' alone"),
        ("[1]", "JSON object"),
        ('{"text": ', r"line 1: not JSON \(Expecting value"),
        ("", "holds no prompt"),
    ],
)
def test_wrong_files(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_unknown_names():
    with pytest.raises(ValueError, match="neither a prompt set nor a file. Did you mean 'dreams_it'"):
        load_prompts("dream_it")
    with pytest.raises(ValueError, match="no such file. Did you mean 'kitchen'"):
        picture_path("kitchn")


def test_a_row_finds_its_prompt():
    assert find_prompt({"prompt_text": IQ[4].text}) == IQ[4]
    assert find_prompt({"prompt_text": "Say something else."}) is None


# --- the picture


def test_the_picture_is_what_the_script_draws():
    image = pytest.importorskip("PIL.Image", reason="the drawing needs Pillow")
    from PIL import ImageChops, ImageStat

    from frankenlm.scripts.pictures.draw_kitchen import draw_kitchen

    drawn, shipped = draw_kitchen(), image.open(picture_path("kitchen"))
    assert drawn.size == shipped.size == (896, 896) and drawn.mode == shipped.mode == "RGB"
    difference = ImageChops.difference(drawn, shipped)
    # versions of Pillow may round an edge another way
    assert max(ImageStat.Stat(difference).mean) < 0.5
    assert len(shipped.convert("P", palette=image.Palette.ADAPTIVE, colors=64).getcolors()) > 40


def test_units_of_the_picture():
    units = picture_units("kitchen")
    kinds = Counter(unit["kind"] for unit in json.loads((FOLDER / "kitchen_units.json").read_text("utf-8"))["units"])
    assert len(units) >= 20 and kinds["person"] == 4 and kinds["animal"] == 2 and kinds["action"] >= 5
    aliases = [alias for names in units.values() for alias in names]
    assert len(set(aliases)) == len(aliases), "an alias names one unit"
    for name, names in units.items():
        for alias in names:
            assert name in named_units(f"There is one: {alias}.", units)
    sha = hashlib.sha256(picture_path("kitchen").read_bytes()).hexdigest()
    assert shipped_units(sha) == units and shipped_units("0" * 64) is None


def test_units_of_a_picture_of_ones_own(tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(b"")
    assert picture_path(path) == path and picture_units(path) is None
    (tmp_path / "mine_units.json").write_text('{"units": [{"name": "sun", "aliases": ["sun", "star"]}]}', "utf-8")
    assert picture_units(path) == {"sun": ("sun", "star")}


def test_no_prompt_names_a_thing_in_the_picture():
    units = picture_units("kitchen")
    for prompt in load_prompts("cookie_theft_it"):
        assert named_units(prompt.text, units) == [], prompt.text
