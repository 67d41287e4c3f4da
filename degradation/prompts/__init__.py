"""The prompt sets, the drawn picture and its content units.

A set is a JSONL file, one prompt a line. The shipped ones are our own and in the public domain (CC0):

    dreams_it        38 requests to tell a dream
    iq_it            65 questions: math, language, logic, facts (60 of them graded), and lists to invent
    cookie_theft_it  20 requests to describe a supplied picture, such as the drawn kitchen
    battery_en       80 items in the four parts of a language battery (`PARTS`, 20 each), in English
    battery_es       80 of the same kinds in Spanish
    smoke             4 short ones for trials

The batteries have the structure of the Text Aphasia Battery (Roll et al. 2025, arXiv:2511.20507: connected text, word
comprehension, sentence comprehension, repetition) and items of our own. Unlike there, rules score the answers, not
raters or a model (measures/battery.py). Their items take turns, so that the first n of a set are of all four parts.

A file of your own needs `text` in every line; the other keys are those of `LabPrompt`, apart from `expression` and
`license`, which are for the reader.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from frankenlm.trainer_ext.common.checks import check_choice, check_keys, suggest
from frankenlm.trainer_ext.common.text_files import check_characters, parse_json, read_text, text_lines

FOLDER = Path(__file__).parent
PROMPT_SETS = ("dreams_it", "iq_it", "cookie_theft_it", "battery_en", "battery_es", "smoke")
PICTURES = {"kitchen": "kitchen.png"}
# how an answer is judged (graders.py); a list is counted, not judged
GRADER_NAMES = ("number", "choice", "alias", "list", "repetition", "connected")
# skills whose answers are scored between 0 and 1 and make a profile, of the shipped batteries or of one's own files
PARTS = ("connected text", "word comprehension", "sentence comprehension", "repetition")
LANGUAGES = ("en", "es")  # whose words and ways of answering the measures know
# what a choice of a battery is to the right one: of like meaning, of like form, or neither
CHOICE_KINDS = ("target", "semantic", "form", "unrelated")
FOR_THE_READER = ("expression", "license")


@dataclass(frozen=True)
class LabPrompt:
    """One prompt of a set.

    id: 1-based place in the set. set: name of the set. skill: what it asks for, by which results are grouped;
    topic: finer. grader: one of `GRADER_NAMES`, or None. answer: the key: a number (or a fraction as text), one of
    the choices, a tuple of aliases, the text to repeat, or, for connected text, the things that an answer may name,
    each a tuple of words (`boil*` is every word that begins so). choices: in the order of the prompt. chance: share of
    right guesses, None unless there are choices. kinds: what each choice is to the right one, of `CHOICE_KINDS`.
    tolerance: absolute, for numbers. items: how long a list, or how many sentences, were asked for. band: difficulty.
    language: of the answer, one of `LANGUAGES`; None is English. note: the author's remark.
    """

    id: int
    text: str
    set: str
    skill: str
    grader: str | None = None
    answer: Any = None
    choices: tuple[str, ...] | None = None
    chance: float | None = None
    note: str | None = None
    topic: str | None = None
    band: str | None = None
    tolerance: float = 0.0
    items: int | None = None
    language: str | None = None
    kinds: tuple[str, ...] | None = None

    @property
    def part(self) -> str | None:
        """The part of a battery that the prompt belongs to, None for others."""
        of_battery = self.grader in ("repetition", "connected") or (self.grader == "choice" and self.skill in PARTS)
        return self.skill if of_battery else None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"text={self.text!r} must be a text that is not empty.")
        self._check_types()
        if self.grader is not None:
            check_choice("grader", self.grader, GRADER_NAMES)
        if self.grader not in (None, "list") and self.answer in (None, "", ()):
            raise ValueError(f"grader {self.grader!r} needs an answer.")
        if self.grader == "choice" and (not self.choices or self.answer not in self.choices):
            raise ValueError(f"answer={self.answer!r} must be one of the choices, not of {self.choices}.")
        if self.grader in ("list", "connected") and not (isinstance(self.items, int) and self.items > 0):
            raise ValueError(f"grader {self.grader!r} needs items, the number asked for, not {self.items!r}.")
        if self.language is not None:
            check_choice("language", self.language, LANGUAGES)
        self._check_battery()

    def _check_battery(self) -> None:
        if self.grader == "repetition" and not (isinstance(self.answer, str) and any(map(str.isalnum, self.answer))):
            raise ValueError(f"answer={self.answer!r} must be the text to repeat.")
        if self.grader == "connected" and not _are_things(self.answer):
            raise ValueError(f"answer={self.answer!r} must be a list of things, each a list of words that name it.")
        if self.kinds is None:
            return
        if not isinstance(self.kinds, tuple) or len(self.kinds) != len(self.choices or ()):
            raise ValueError(f"kinds={self.kinds!r} must say what each of the choices {self.choices} is.")
        for kind in self.kinds:
            check_choice("kinds", kind, CHOICE_KINDS)
        if [choice for choice, kind in zip(self.choices, self.kinds, strict=True) if kind == "target"] != [self.answer]:
            raise ValueError(f"kinds={self.kinds!r}: target must be the kind of {self.answer!r} alone.")

    def _check_types(self) -> None:
        for name in ("set", "skill", "note", "topic", "band"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("set", "skill")):
                raise ValueError(f"{name}={value!r} must be a text.")
        if self.choices is not None and not (
            isinstance(self.choices, tuple) and all(isinstance(choice, str) for choice in self.choices)
        ):
            raise ValueError(f"choices={self.choices!r} must be a list of texts.")
        for name in ("tolerance", "chance"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise ValueError(f"{name}={value!r} must be a number that is not negative.")


def _are_things(values: Any) -> bool:
    return isinstance(values, tuple) and all(
        isinstance(thing, tuple) and thing and all(isinstance(word, str) and word.strip("* ") for word in thing)
        for thing in values
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def load_prompts(name_or_path: str | Path) -> tuple[LabPrompt, ...]:
    """Return the prompts of a shipped set, by its name, or of a JSONL file.

    Raises:
        ValueError: there is no such set or file, or a line of the file is wrong; the message names the line.
    """
    if str(name_or_path) in PROMPT_SETS:
        return _read(FOLDER / f"{name_or_path}.jsonl")
    path = Path(name_or_path)
    if not path.is_file():
        near = suggest(str(name_or_path), PROMPT_SETS)
        raise ValueError(
            f"prompts={str(name_or_path)!r} is neither a prompt set nor a file.{near} Sets: {', '.join(PROMPT_SETS)}."
        )
    return _read(path)


def find_prompt(row: Mapping[str, Any]) -> LabPrompt | None:
    """Return the shipped prompt whose text a result row holds, None if it is somebody else's."""
    return _shipped().get(row["prompt_text"])


def picture_path(name_or_file: str | Path) -> Path:
    """Return the file of a picture: `kitchen` is the shipped one, everything else a file.

    Raises:
        ValueError: there is no such file.
    """
    if str(name_or_file) in PICTURES:
        return FOLDER / PICTURES[str(name_or_file)]
    path = Path(name_or_file)
    if not path.is_file():
        near = suggest(str(name_or_file), PICTURES)
        raise ValueError(f"image={str(name_or_file)!r}: there is no such file.{near} Shipped: {', '.join(PICTURES)}.")
    return path


def picture_units(path: str | Path) -> dict[str, tuple[str, ...]] | None:
    """Return the content units of a picture, name -> words or phrases that count as naming it.

    They are those of the shipped picture, or stand in `<name of the picture>_units.json` beside it, in the same form
    as kitchen_units.json. None: nobody has listed any.
    """
    path = picture_path(path)
    listed = path.with_name(f"{path.stem}_units.json")
    if not listed.is_file():
        return None
    content = parse_json(read_text(listed), str(listed))
    try:
        units = {unit["name"]: tuple(unit["aliases"]) for unit in content["units"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{listed}: units, a list of objects with name and aliases, are expected.") from error
    for text in (name for unit in units.items() for name in (unit[0], *unit[1])):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{listed}: {text!r} is no name and no alias: a text is expected.")
    return units


@cache
def shipped_units(sha256: str) -> dict[str, tuple[str, ...]] | None:
    """Return the content units of the shipped picture with that SHA-256 (hex, of the file), None for another one."""
    for name in PICTURES:
        if hashlib.sha256(picture_path(name).read_bytes()).hexdigest() == sha256:
            return picture_units(name)
    return None


@cache
def _shipped() -> dict[str, LabPrompt]:
    return {prompt.text: prompt for name in PROMPT_SETS for prompt in load_prompts(name)}


def _read(path: Path) -> tuple[LabPrompt, ...]:
    prompts: list[LabPrompt] = []
    for number, line in text_lines(path):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        record = parse_json(line, place)
        check_characters(json.dumps(record, ensure_ascii=False), place)
        try:
            prompts.append(_prompt(record, len(prompts) + 1, path.stem))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if not prompts:
        raise ValueError(f"{path.name} holds no prompt.")
    return tuple(prompts)


def _prompt(record: Any, place: int, set_name: str) -> LabPrompt:
    if not isinstance(record, dict):
        raise ValueError("a prompt is a JSON object with at least the key text.")
    check_keys("prompt", record, [*(f.name for f in fields(LabPrompt)), *FOR_THE_READER])
    if "text" not in record:
        raise ValueError("the key text is missing.")
    if record.get("id", place) != place:
        raise ValueError(f"id={record['id']!r} must be the prompt's place, {place}; you may leave it out.")
    values = {key: value for key, value in record.items() if key not in FOR_THE_READER}
    for key in ("choices", "answer", "kinds"):
        if isinstance(values.get(key), list):
            values[key] = tuple(tuple(each) if isinstance(each, list) else each for each in values[key])
    return LabPrompt(**{"set": set_name, "skill": set_name, **values, "id": place})
