"""Measures of one answer, and of the answers of one cell (level x repeat). Text in, numbers out; no model.

Rows carry text only, so "tokens" of the literature are words here (`text_words.words`), except for `tokens`, which the
runner counted. A measure of something that is not there (the 3-grams of two words, the grade of a dream) is None, not
0. Rows whose generation failed for lack of memory or by an error measure None throughout; rows that ended in logits
that were not finite count: as text up to there, and as an answer that cannot be read.
"""

import gzip
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from frankenlm.trainer_ext.metrics.text import distinct, ngrams, repeated_share, require_sacrebleu

from ..prompts import LabPrompt, find_prompt, shipped_units
from .battery import ERROR_KINDS, error_kind, score, unparsed
from .graders import CORRECT, UNPARSED, grade, list_items
from .languages import Language, language_of
from .loops import find_loop
from .text_words import ASSETS, latin_words, script, sentences, words

WINDOW = 100  # words, of the moving-window type-token ratio
NOT_MEASURED = ("oom", "error")  # status of rows without an answer


class Measured(NamedTuple):
    """meaning: what it is, with its unit. better: +1 more, -1 less, None neither. share: lies in 0..1."""

    meaning: str
    better: int | None = None
    share: bool = False


ROW_MEASURES: dict[str, Measured] = {
    "tokens": Measured("generated tokens, as the runner counted them"),
    "words": Measured("words"),
    "characters": Measured("characters"),
    "distinct_1": Measured("different words / words", +1, True),
    "distinct_2": Measured("different word pairs / word pairs", +1, True),
    "distinct_3": Measured("different runs of three words / such runs", +1, True),
    "ttr_100": Measured("different words in a window of 100, mean over all windows / 100", +1, True),
    "rep_1": Measured("1 - different words / words", -1, True),
    "rep_2": Measured("1 - different word pairs / word pairs", -1, True),
    "rep_3": Measured("1 - different runs of three words / such runs", -1, True),
    "rep_4": Measured("1 - different runs of four words / such runs", -1, True),
    "looped": Measured("ends in a loop", -1, True),
    "loop_start": Measured("characters before the loop", +1),
    "gzip_ratio": Measured("bytes compressed / bytes"),
    "other_script": Measured("letters of another script than the prompt's / letters", -1, True),
    "unknown_words": Measured("words of the Latin script that no word list knows / such words", -1, True),
    "word_frequency": Measured("mean frequency of the known words, log10 per 10^9 words (Zipf scale)"),
    "lexical_density": Measured("words that are not function words / words", None, True),
    "sentences": Measured("sentences"),
    "sentence_length": Measured("words per sentence"),
    "prompt_overlap": Measured("content words of the prompt that the answer takes up / such words", +1, True),
    "sentence_overlap": Measured("content words shared by neighbouring sentences / of both, mean", None, True),
    "carry_over": Measured("how often a recurring content word of a sentence is in the next one too", +1, True),
    "correct": Measured("the answer is right; what cannot be read is not", +1, True),
    "unparsed": Measured("nothing in the completion could be an answer", -1, True),
    "grade": Measured("correct, wrong or unparsed (text)"),
    "score": Measured("score of an answer of a battery, by rules (measures/battery.py)", +1, True),
    "error_kind": Measured("what kind of error an answer of a battery is, none for none (text)"),
    **{
        f"error_{kind.replace(' ', '_')}": Measured(f"the answer of a battery is an error: {kind}", -1, True)
        for kind in ERROR_KINDS
        if kind != "none"
    },
    "list_items": Measured("items of the list"),
    "list_unique": Measured("different items of the list"),
    "list_fulfilled": Measured("different items / items asked for, at most 1", +1, True),
    "content_units": Measured("content units of the picture that are named", +1),
    "content_unit_share": Measured("content units named / content units of the picture", +1, True),
    "mean_logprob": Measured("mean log-probability (nats) of the generated tokens, from the row"),
    "mean_entropy": Measured("mean entropy (nats) of the distributions they were drawn from, from the row"),
}
CELL_MEASURES: dict[str, Measured] = {
    "self_bleu_4": Measured("mean BLEU-4 (percent) of each answer against the others of the cell", -1),
    "cell_distinct_1": Measured("different words / words, over all answers of the cell", +1, True),
    "cell_distinct_2": Measured("different word pairs / word pairs, over all answers of the cell", +1, True),
    "cell_distinct_3": Measured("different runs of three words / such runs, over all answers", +1, True),
}


def measure_row(row: Mapping[str, Any], prompt: LabPrompt | None = None) -> dict[str, float | int | bool | str | None]:
    """Return every measure of `ROW_MEASURES` for one result row.

    Args:
        row: a row of the result contract; `completion` and `prompt_text` are needed, and of the others those that
            are there: tokens_generated, status, finish_reason, image_sha256, mean_logprob, mean_entropy.
        prompt: the prompt with its key; None looks it up among the shipped ones by the row's text.
    """
    measured: dict[str, Any] = dict.fromkeys(ROW_MEASURES)
    text = row["completion"]
    if text is None or row.get("status") in NOT_MEASURED:
        return measured
    prompt = prompt or find_prompt(row)
    found = words(text)
    for name, field in (("tokens", "tokens_generated"), ("mean_logprob", None), ("mean_entropy", None)):
        measured[name] = row.get(field or name)
    measured |= {"words": len(found), "characters": len(text), "gzip_ratio": gzip_ratio(text)}
    language = language_of(prompt.language if prompt else None)
    measured |= _repetition(found, text) | _vocabulary(found, text, row["prompt_text"], language)
    measured |= _coherence(text, found, row["prompt_text"], language)
    if prompt is not None:
        failed = row.get("status") == "nan_logits" or row.get("finish_reason") == "nan"
        measured |= _answer(text, prompt, failed)
    if row.get("image_sha256") and (units := shipped_units(row["image_sha256"])):
        named = named_units(text, units)
        measured |= {"content_units": len(named), "content_unit_share": len(named) / len(units)}
    return measured


def measure_cell(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return every measure of `CELL_MEASURES` for the rows of one cell: one model, group, method, level and repeat.

    Raises:
        ImportError: sacrebleu is missing.
    """
    texts = [row["completion"] for row in rows if row["completion"] is not None and row.get("status") != "error"]
    found = [words(text) for text in texts]
    across = {f"cell_distinct_{order}": distinct(found, order) for order in (1, 2, 3)}
    return {"self_bleu_4": self_bleu_4(texts), **across}


def perplexity_text() -> str:
    """Return the shipped text for perplexity: our own prose, 845 words, 1,013 tokens of GPT-2, CC0."""
    return (ASSETS / "perplexity_en.txt").read_text(encoding="utf-8")


# --- repetition


def _repetition(found: Sequence[str], text: str) -> dict[str, Any]:
    repeats = {order: repeated_share(found, order) for order in (1, 2, 3, 4)}
    loop = find_loop(text)
    return {
        **{f"distinct_{order}": None if repeats[order] is None else 1 - repeats[order] for order in (1, 2, 3)},
        **{f"rep_{order}": share for order, share in repeats.items()},
        "ttr_100": moving_ttr(found),
        "looped": loop is not None,
        "loop_start": loop.start if loop else None,
    }


def moving_ttr(found: Sequence[str], window: int = WINDOW) -> float | None:
    """Return the moving-average type-token ratio; None for fewer words than the window.

    Covington & McFall 2010, "Cutting the Gordian Knot: The Moving-Average Type-Token Ratio (MATTR)". The plain ratio
    falls with the length of the text; this one does not.
    """
    if len(found) < window:
        return None
    inside = Counter(found[:window])
    total = len(inside)
    for gone, come in zip(found, found[window:], strict=False):
        inside[come] += 1
        inside[gone] -= 1
        if not inside[gone]:
            del inside[gone]
        total += len(inside)
    return total / (window * (len(found) - window + 1))


def gzip_ratio(text: str) -> float | None:
    """Return the size in gzip / the size in UTF-8; None for an empty text.

    Near 0.5 for prose of a few hundred words, near 0 for loops, above 1 for a few words (gzip's frame is 20 bytes).
    """
    data = text.encode("utf-8", "surrogatepass")
    return len(gzip.compress(data, mtime=0)) / len(data) if data else None


# --- vocabulary


def _vocabulary(found: Sequence[str], text: str, prompt_text: str, language: Language) -> dict[str, float | None]:
    latin = latin_words(found)
    frequencies = [language.frequency(word) for word in latin]
    return {
        "other_script": other_script_share(text, main_script(prompt_text) or "LATIN"),
        "unknown_words": mean(not language.known(word) for word in latin),
        "word_frequency": mean(frequency for frequency in frequencies if frequency is not None),
        "lexical_density": mean(word not in language.function_words for word in found),
    }


def main_script(text: str) -> str | None:
    """Return the script of most letters; None where there is no letter."""
    counts = Counter(filter(None, map(script, text)))
    return counts.most_common(1)[0][0] if counts else None


def other_script_share(text: str, target: str = "LATIN") -> float | None:
    """Return the share of letters of another script than `target`; None where there is no letter."""
    return mean(found != target for found in map(script, text) if found)


# --- coherence


def _coherence(text: str, found: Sequence[str], prompt_text: str, language: Language) -> dict[str, float | int | None]:
    parts = sentences(text)
    stems = [set(language.content_stems(part)) for part in parts]
    asked = set(language.content_stems(words(prompt_text)))
    answered = set().union(*stems)
    return {
        "sentences": len(parts),
        "sentence_length": len(found) / len(parts) if parts else None,
        "prompt_overlap": len(asked & answered) / len(asked) if asked else None,
        "sentence_overlap": sentence_overlap(stems),
        "carry_over": carry_over(stems),
    }


def sentence_overlap(stems: Sequence[set[str]]) -> float | None:
    """Return the mean of |A & B| / |A | B| over neighbouring sentences, as sets of content stems."""
    pairs = zip(stems, stems[1:], strict=False)
    return mean(len(one & other) / len(one | other) for one, other in pairs if one | other)


def carry_over(stems: Sequence[set[str]]) -> float | None:
    """Return how often a recurring entity of a sentence stands in the next sentence too; None where none recurs.

    The entity grid of Barzilay & Lapata 2008, "Modeling Local Coherence: An Entity-Based Approach", without a parser:
    every content stem is an entity, the salient ones are those of at least two sentences, and of their transitions
    from a sentence that has them, this is the share to a sentence that has them.
    """
    sentences_of = Counter(entity for entities in stems for entity in entities)
    salient = {entity for entity, count in sentences_of.items() if count >= 2}
    pairs = list(zip(stems, stems[1:], strict=False))
    return mean(entity in after for before, after in pairs for entity in before & salient)


# --- answers


def _answer(text: str, prompt: LabPrompt, failed: bool) -> dict[str, Any]:
    if prompt.grader == "list":
        items = list_items(text)
        unique = len(set(items))
        fulfilled = 0.0 if failed else min(1.0, unique / prompt.items)
        return {"list_items": len(items), "list_unique": unique, "list_fulfilled": fulfilled}
    if prompt.part is not None:
        return _score(text, prompt, failed)
    verdict = grade(text, prompt)
    if verdict is None:
        return {}
    verdict = UNPARSED if failed else verdict
    return {"grade": verdict, "correct": verdict == CORRECT, "unparsed": verdict == UNPARSED}


def _score(text: str, prompt: LabPrompt, failed: bool) -> dict[str, Any]:
    scored = 0.0 if failed else score(text, prompt)
    kind = "no answer" if failed else error_kind(text, prompt, scored)
    kinds = {f"error_{each.replace(' ', '_')}": each == kind for each in ERROR_KINDS if each != "none"}
    return {"score": scored, "unparsed": failed or unparsed(text, prompt), "error_kind": kind, **kinds}


def named_units(text: str, units: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the content units of a picture that a text names by one of their aliases, as whole words or plurals."""
    spaced = _spaced(text)
    return [
        name
        for name, aliases in units.items()
        if any(f" {alias}{ending} " in spaced for alias in map(_unspaced, aliases) for ending in ("", "s", "es"))
    ]


def _spaced(text: str) -> str:
    """Return the words with a space around each, without the ending of possession."""
    return " ".join(["", *(word.removesuffix("'s") for word in words(text)), ""])


@lru_cache(maxsize=2000)
def _unspaced(alias: str) -> str:
    return _spaced(alias).strip()


# --- several answers


def self_bleu_4(texts: Sequence[str]) -> float | None:
    """Return self-BLEU-4 in percent: `trainer_ext.metrics.text.self_bleu` in time that grows with the text only.

    There every text's n-grams are counted again for each of the others. Here they are counted once: what clips an
    n-gram of a text is its largest count in any other text, so the two largest counts are enough.

    Raises:
        ImportError: sacrebleu is missing.
    """
    if len(texts) < 2:
        return None
    require_sacrebleu()
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenise = Tokenizer13a()
    tokens = [tokenise(" ".join(text.split())).split() for text in texts]
    grams = [Counter(gram for order in (1, 2, 3, 4) for gram in ngrams(part, order)) for part in tokens]
    largest: dict[tuple, list[int]] = {}  # n-gram -> [largest count, text that has it, second largest]
    for place, counts in enumerate(grams):
        for gram, count in counts.items():
            top = largest.setdefault(gram, [0, -1, 0])
            if count > top[0]:
                top[:] = [count, place, top[0]]
            elif count > top[2]:
                top[2] = count
    scores = []
    for place, counts in enumerate(grams):
        correct, total = [0] * 4, [max(0, len(tokens[place]) - order) for order in range(4)]
        for gram, count in counts.items():
            top, owner, second = largest[gram]
            correct[len(gram) - 1] += min(count, second if owner == place else top)
        others = [len(part) for index, part in enumerate(tokens) if index != place]
        closest = min(others, key=lambda length: (abs(length - len(tokens[place])), length))
        score = BLEU.compute_bleu(
            correct, total, len(tokens[place]), closest, smooth_method="exp", effective_order=True, max_ngram_order=4
        )
        scores.append(score.score)
    return mean(scores)


def mean(values: Iterable[float]) -> float | None:
    """Return the mean of numbers or truth values; None for none."""
    known = list(values)
    return sum(known) / len(known) if known else None
