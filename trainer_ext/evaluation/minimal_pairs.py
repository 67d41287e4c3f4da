"""Minimal pairs: two English sentences that differ in one point of grammar, of which a model should prefer the first.

The idea is that of BLiMP (Warstadt et al. 2020, arXiv:1912.00582); sentences, words and templates are our own, made
from a seed. A phenomenon has two frames or four, and each form is the right one in as many of them as it is the wrong
one: a liking for a word, or for the shorter of two, is then right half of the time. The words are everyday ones, as a
small model of English text has met them.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

PAIRS = 20  # of each phenomenon, unless asked otherwise


class Pair(NamedTuple):
    """Two sentences of one phenomenon; the first is grammatical."""

    phenomenon: str
    good: str
    bad: str


class Noun(NamedTuple):
    """Forms: one, many, and for people the reflexive of one."""

    one: str
    many: str
    self: str = "itself"


class Verb(NamedTuple):
    """Forms: base, he ..., past, has ...; those of irregular verbs all differ."""

    base: str
    third: str
    past: str
    done: str


@dataclass(frozen=True)
class Frame:
    """Format strings of both sentences over the names in `slots`."""

    good: str
    bad: str


PEOPLE = (
    *(Noun(word, f"{word}s", "herself") for word in ("girl", "mother", "sister", "queen", "daughter")),
    *(Noun(word, f"{word}s", "himself") for word in ("boy", "father", "brother", "king", "son")),
)
THINGS = tuple(Noun(word, f"{word}s") for word in ("book", "letter", "picture", "song", "name", "table"))
PLACES = tuple(Noun(word, f"{word}s") for word in ("house", "garden", "river", "road", "school", "town"))
VERBS = (
    Verb("write", "writes", "wrote", "written"),
    Verb("take", "takes", "took", "taken"),
    Verb("give", "gives", "gave", "given"),
    Verb("know", "knows", "knew", "known"),
    Verb("see", "sees", "saw", "seen"),
    Verb("choose", "chooses", "chose", "chosen"),
    Verb("forget", "forgets", "forgot", "forgotten"),
)
# that ask for an object
MAKING = (
    Verb("make", "makes", "made", "made"),
    Verb("find", "finds", "found", "found"),
    Verb("take", "takes", "took", "taken"),
    Verb("bring", "brings", "brought", "brought"),
    Verb("buy", "buys", "bought", "bought"),
)
ALONE = tuple(
    Verb(*forms)
    for forms in (
        ("sleep", "sleeps", "slept", "slept"),
        ("work", "works", "worked", "worked"),
        ("live", "lives", "lived", "lived"),
        ("wait", "waits", "waited", "waited"),
        ("arrive", "arrives", "arrived", "arrived"),
    )
)
# of those, what cannot be done to anything, and has no "is arrived"; and what somebody cannot do a something
RESTING = tuple(verb for verb in ALONE if verb.base not in ("work", "arrive"))
WAITING = tuple(verb for verb in ALONE if verb.base != "live")
SLOTS: Mapping[str, Sequence[Any]] = {
    "who": PEOPLE,
    "other": PEOPLE,
    "thing": THINGS,
    "place": PLACES,
    "verb": VERBS,
    "making": MAKING,
    "alone": ALONE,
    "resting": RESTING,
    "waiting": WAITING,
    "old": ("old", "new", "small", "large", "good", "long"),
    "often": ("often", "always", "never", "now"),
}
PHENOMENA: Mapping[str, tuple[Frame, ...]] = {
    "subject_verb_agreement": (
        Frame(
            "The {who.one} {often} {alone.third} in the {place.one}.",
            "The {who.one} {often} {alone.base} in the {place.one}.",
        ),
        Frame(
            "The {who.many} {often} {alone.base} in the {place.one}.",
            "The {who.many} {often} {alone.third} in the {place.one}.",
        ),
    ),
    "agreement_across_a_phrase": (
        Frame("The {thing.one} of the {who.many} is {old}.", "The {thing.one} of the {who.many} are {old}."),
        Frame("The {thing.many} of the {who.one} are {old}.", "The {thing.many} of the {who.one} is {old}."),
    ),
    "agreement_across_a_clause": (
        Frame(
            "The {who.one} that the {other.many} saw was {old}.", "The {who.one} that the {other.many} saw were {old}."
        ),
        Frame(
            "The {who.many} that the {other.one} saw were {old}.", "The {who.many} that the {other.one} saw was {old}."
        ),
    ),
    "determiner_noun_agreement": (
        Frame("The {who.one} has this {old} {thing.one}.", "The {who.one} has these {old} {thing.one}."),
        Frame("The {who.one} has these {old} {thing.many}.", "The {who.one} has this {old} {thing.many}."),
    ),
    "reflexive_number": (
        Frame("The {who.one} saw {who.self} in the {place.one}.", "The {who.one} saw themselves in the {place.one}."),
        Frame("The {who.many} saw themselves in the {place.one}.", "The {who.many} saw {who.self} in the {place.one}."),
    ),
    "participle_after_have": (
        Frame(
            "The {who.one} has {verb.done} the {old} {thing.one}.",
            "The {who.one} has {verb.past} the {old} {thing.one}.",
        ),
        Frame("The {who.one} {verb.past} the {old} {thing.one}.", "The {who.one} {verb.done} the {old} {thing.one}."),
    ),
    "base_form_after_do": (
        Frame(
            "The {who.one} did not {verb.base} the {thing.one}.", "The {who.one} did not {verb.past} the {thing.one}."
        ),
        Frame(
            "The {who.one} {often} {verb.past} the {thing.one}.", "The {who.one} {often} {verb.base} the {thing.one}."
        ),
    ),
    "negative_polarity": (
        Frame(
            "They know that no {who.one} has ever {verb.done} the {thing.one}.",
            "They know that the {who.one} has ever {verb.done} the {thing.one}.",
        ),
        Frame(
            "They know that all the {who.many} have {verb.done} the {thing.one}.",
            "They know that all no {who.many} have {verb.done} the {thing.one}.",
        ),
        Frame(
            "The {who.one} has often {verb.done} the {thing.one}.",
            "The {who.one} has ever {verb.done} the {thing.one}.",
        ),
        Frame(
            "The {who.one} hardly ever {verb.past} the {thing.one}.",
            "The {who.one} hardly often {verb.past} the {thing.one}.",
        ),
    ),
    "passive_needs_an_object": (
        Frame(
            "The {thing.one} was {making.done} by the {who.one}.",
            "The {thing.one} was {resting.done} by the {who.one}.",
        ),
        Frame(
            "The {who.one} has {resting.done} in the {place.one}.",
            "The {who.one} has {making.done} in the {place.one}.",
        ),
        Frame(
            "The {who.one} has {resting.done} in the {place.one}.",
            "The {who.one} was {resting.done} in the {place.one}.",
        ),
        Frame(
            "The {thing.one} was {making.done} by the {who.one}.",
            "The {thing.one} has {making.done} by the {who.one}.",
        ),
    ),
    "gap_needs_a_filler": (
        Frame("They know what the {who.one} {making.past}.", "They know that the {who.one} {making.past}."),
        Frame("They know that the {who.one} {waiting.past}.", "They know what the {who.one} {waiting.past}."),
    ),
    "there_is_no_the": (
        Frame("There is a {thing.one} in the {place.one}.", "There is each {thing.one} in the {place.one}."),
        Frame("They know that each of the {thing.many} is {old}.", "They know that a of the {thing.many} is {old}."),
        Frame("There are many {thing.many} in the {place.one}.", "There are most {thing.many} in the {place.one}."),
        Frame("The {who.one} saw most of the {place.one}.", "The {who.one} saw many of the {place.one}."),
    ),
    "pronoun_case": (
        Frame("The {who.one} saw him in the {place.one}.", "The {who.one} saw he in the {place.one}."),
        Frame("He saw the {who.one} in the {place.one}.", "Him saw the {who.one} in the {place.one}."),
    ),
    "many_and_much": (
        Frame("The {who.one} had many {old} {thing.many}.", "The {who.one} had much {old} {thing.many}."),
        Frame("The {who.one} had much water in the {place.one}.", "The {who.one} had many water in the {place.one}."),
    ),
}


def make_pairs(count: int = PAIRS, seed: int = 0) -> list[Pair]:
    """Return `count` different pairs of each phenomenon, of its frames in turn.

    Raises:
        ValueError: fewer than one, or more than a phenomenon has.
    """
    if count < 1:
        raise ValueError(f"minimal pairs: {count} of a phenomenon; at least 1.")
    return [pair for name in PHENOMENA for pair in _pairs_of(name, count, seed)]


def _pairs_of(phenomenon: str, count: int, seed: int) -> list[Pair]:
    generator = random.Random(f"{seed} {phenomenon}")
    frames, found = PHENOMENA[phenomenon], {}
    for attempt in range(50 * count):
        if len(found) == count:
            break
        words = {slot: generator.choice(choices) for slot, choices in SLOTS.items()}
        frame = frames[len(found) % len(frames)]
        if words["who"] == words["other"]:
            continue
        pair = Pair(phenomenon, frame.good.format(**words), frame.bad.format(**words))
        found[pair] = attempt
    if len(found) < count:
        raise ValueError(f"minimal pairs: {phenomenon} has fewer than {count} of them; ask for {len(found)} at most.")
    return list(found)
