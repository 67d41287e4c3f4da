"""Scores of a language battery, from 0 to 1 and by rules alone, and what kind of error an answer is.

    word comprehension, sentence comprehension
        1 for the right choice (`graders.grade_choice`), else 0; so guessing scores 1 / choices
    repetition
        1 for the text again, word for word; else 1 - 2 d, with d the edit distance in letters / the letters of the
        longer one. More than half of the letters of two other texts differ, so who repeats nothing scores 0. Case,
        punctuation and quotes do not count, accents do. The repetition may stand behind a lead-in that ends in a
        colon, in quotes, or in a line by itself, so an echo of the whole prompt, which ends in the text, counts; said
        three times or more, it counts with all of its words, however parted
    connected text
        the share of the things that an answer may name, of which `THINGS` are enough, times the weakest of its forms:
        words / `WORDS`, sentences / those asked for, known words / `KNOWN` of the words, different word pairs /
        `VARIED` of the pairs, (1 + function words / `JOINED` of the words) / 2, for telegrams leave them out; each at
        most 1. A text that ends in a loop scores 0

A sound answer reaches 1 in each; an empty one, punctuation, loops, another language's words come to 0 or near it. No
parser looks at the order of words: a sound answer with its words shuffled still scores 1, and 24 content words of the
field 0.5 in three sentences, 0.33 in one. What lies between is a rank, not a clinical grade.

Kinds of errors go by what can be told by rule, in this order. The words of aphasiology are borrowed, `-like` is meant:

    no answer       no word at all, or (comprehension) nothing that could be one of the choices
    perseveration   a run of one to five words (repetition: or all of the text) stands three times in a row, or the
                    answer ends in a loop
    semantic, form, unrelated   (word comprehension) the wrong choice, by what the author says of it
    wrong           (sentence comprehension) the other one of yes and no
    form            (repetition) more than half of the letters are right
    neologism       most of the words are in no list, nor in the prompt
    unrelated       (repetition) other words; (connected text) none of the things
    incomplete      (connected text) below 1 for another reason
    none            the answer scores 1
"""

import re
from collections.abc import Callable, Sequence

from frankenlm.trainer_ext.metrics.text import repeated_share

from ..prompts import LabPrompt
from .choices import plain
from .graders import CORRECT, grade_choice, settled_choice
from .languages import language_of
from .loops import find_loop
from .text_words import latin_words, sentences, words

THINGS = 3  # named are enough
WORDS = 20  # of three short sentences
KNOWN = 0.8  # of the words; lists lack some of every text
JOINED = 0.2  # of the words; prose has 0.35 to 0.55
VARIED = 0.7  # of the word pairs; 350 words of prose have 0.8 to 0.9
SAID_AGAIN = 3  # times in a row
LONGEST_RUN = 5  # words
ERROR_KINDS = (
    "none",
    "no answer",
    "perseveration",
    "semantic",
    "form",
    "unrelated",
    "wrong",
    "neologism",
    "incomplete",
)


def score(completion: str, prompt: LabPrompt) -> float:
    """Return the score of an answer to a prompt of a battery (`prompt.part`), from 0 to 1."""
    return SCORES[prompt.grader](completion, prompt)


def score_choice(completion: str, prompt: LabPrompt) -> float:
    return float(grade_choice(completion, prompt) == CORRECT)


# --- repetition


def score_repetition(completion: str, prompt: LabPrompt) -> float:
    key = _spoken(prompt.answer)
    return max(likeness(said, key) for said in _repetitions(completion, key))


def likeness(said: str, key: str) -> float:
    """Return 1 - 2 x edit distance / length of the longer text, at least 0."""
    longer = max(len(said), len(key))
    # no distance is below the difference of lengths: what a loop has written need not be compared
    if not longer or 2 * abs(len(said) - len(key)) >= longer:
        return 0.0
    return max(0.0, 1 - 2 * edit_distance(said, key) / longer)


def edit_distance(one: Sequence, other: Sequence) -> int:
    """Return the fewest insertions, deletions and replacements that turn one sequence into another (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, item in enumerate(one, start=1):
        corner, row[0] = row[0], place
        for column, against in enumerate(other, start=1):
            corner, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, corner + (item != against))
    return row[-1]


def _spoken(text: str) -> str:
    """Return what is compared: the words, casefolded, a space between them."""
    return " ".join(words(text))


# in pairs, single ones at the edges of words: an apostrophe ends no quote
_QUOTED = re.compile(r"“([^“”]+)”|«([^«»]+)»|\"([^\"]+)\"|(?<!\w)‘(.{1,400}?)’(?!\w)|(?<!\w)'(.{1,400}?)'(?!\w)")


def _repetitions(completion: str, key: str) -> list[str]:
    """Return what of an answer may be the repetition: all of it, or the part that is set apart."""
    text = plain(completion).strip()
    whole = _spoken(text)
    # ahead only, for the space between two of them is of both
    if len(re.findall(f"(?= {re.escape(key)} )", f" {whole} ")) >= SAID_AGAIN:
        return [whole]
    first, _, rest = text.partition("\n")
    behind = [text.partition(":")[2]] if ":" in first else []
    lines = [part.partition("\n")[0] for part in (text, *(part.strip() for part in behind))]
    quoted = {_spoken("".join(groups)) for groups in _QUOTED.findall(text)}
    return [whole, *map(_spoken, (*behind, *lines)), *(quoted if len(quoted) == 1 else ())]


# --- connected text


def score_connected(completion: str, prompt: LabPrompt) -> float:
    return things_named(completion, prompt) * min(forms(completion, prompt).values())


def things_named(completion: str, prompt: LabPrompt) -> float:
    """Return the share of `THINGS` (or of all, where there are fewer) that an answer names; at most 1."""
    found = words(completion)
    named = sum(any(_says(word, alias) for word in found for alias in thing) for thing in prompt.answer)
    return min(1.0, named / min(THINGS, len(prompt.answer)))


def _says(word: str, alias: str) -> bool:
    return word.startswith(alias[:-1]) if alias.endswith("*") else word == alias


def forms(completion: str, prompt: LabPrompt) -> dict[str, float]:
    """Return how far an answer has the form of a text, in five ways, each from 0 to 1; all 0 without words."""
    found = words(completion)
    looped = find_loop(completion) is not None
    varied = 1 - (repeated_share(found, 2) or 0)
    joined = sum(word in language_of(prompt.language).function_words for word in found)
    return {
        "length": min(1.0, len(found) / WORDS),
        "sentences": min(1.0, len(sentences(completion)) / prompt.items),
        "known": min(1.0, (1 - unknown_share(found, prompt)) / KNOWN) if found else 0.0,
        "joined": (1 + min(1.0, joined / len(found) / JOINED)) / 2 if found else 0.0,
        "varied": 0.0 if looped else min(1.0, varied / VARIED),
    }


def unknown_share(found: Sequence[str], prompt: LabPrompt) -> float:
    """Return the share of the words that are in no list of the prompt's language, nor in the prompt; 1 without any."""
    known, given = language_of(prompt.language).known, set(words(prompt.text))
    latin = [word for word in latin_words(found) if not word.isdigit()]
    sound = sum(word in given or known(word) for word in latin)
    return 1 - sound / len(found) if found else 1.0


# --- errors


def unparsed(completion: str, prompt: LabPrompt) -> bool:
    """Whether nothing in an answer could be one: no settled choice, or elsewhere no word."""
    if prompt.grader == "choice":
        return settled_choice(completion, prompt) is None
    return not words(completion)


def error_kind(completion: str, prompt: LabPrompt, scored: float) -> str:
    """Return which of `ERROR_KINDS` an answer is that has this score."""
    found = words(completion)
    if scored == 1:
        return "none"
    if not found:
        return "no answer"
    longest = max(LONGEST_RUN, len(words(prompt.answer))) if prompt.grader == "repetition" else LONGEST_RUN
    if perseverates(completion, found, longest):
        return "perseveration"
    if prompt.grader == "choice":
        return _wrong_choice(completion, found, prompt)
    if prompt.grader == "repetition" and scored > 0:
        return "form"
    if unknown_share(found, prompt) > 0.5:
        return "neologism"
    return "incomplete" if prompt.grader == "connected" and things_named(completion, prompt) else "unrelated"


def _wrong_choice(completion: str, found: Sequence[str], prompt: LabPrompt) -> str:
    choice = settled_choice(completion, prompt)
    if choice is None:
        return "neologism" if unknown_share(found, prompt) > 0.5 else "no answer"
    return prompt.kinds[prompt.choices.index(choice)] if prompt.kinds else "wrong"


def perseverates(completion: str, found: Sequence[str], longest: int = LONGEST_RUN) -> bool:
    """Whether a run of up to `longest` words stands `SAID_AGAIN` times in a row, or the text ends in a loop."""
    return find_loop(completion) is not None or any(
        found[start : start + length] * SAID_AGAIN == list(found[start : start + SAID_AGAIN * length])
        for length in range(1, longest + 1)
        for start in range(len(found) - SAID_AGAIN * length + 1)
    )


SCORES: dict[str, Callable[[str, LabPrompt], float]] = {
    "choice": score_choice,
    "repetition": score_repetition,
    "connected": score_connected,
}
