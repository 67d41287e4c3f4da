"""Measures of generated text, as pure functions: BLEU, repetition, diversity, use of the vocabulary.

No model is needed, only what it wrote: `tokens` is one text as a sequence of anything hashable (token ids, words),
`texts` several of them. BLEU and self-BLEU take strings, since they come with a tokenisation of their own.

    repetition  within each text: how much of it says again what it has said before; short loops show here
    diversity   across the texts: how much they differ, from each other and within
    vocabulary  how much of what the model could say it does say

A measure of something that is not there, such as the 4-grams of a text of three tokens, is None, not 0 or 1.
Distinct-n and the type-token ratio fall with the amount of text: compare them at equal numbers of tokens only.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ORDERS = (1, 2, 3, 4)


def ngrams(tokens: Sequence[Hashable], order: int) -> list[tuple[Hashable, ...]]:
    """Return the runs of `order` neighbouring tokens, in order, repeated ones included."""
    if order < 1:
        raise ValueError(f"order={order} must be at least 1.")
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]


# --- repetition, within a text


def repeated_share(tokens: Sequence[Hashable], order: int) -> float | None:
    """Return the share of a text's n-grams that are repeats: 1 - different n-grams / n-grams.

    That is rep-n (seq-rep-n) of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training",
    arXiv:1908.04319. 0: nothing twice; near 1: a loop. None for a text of fewer than n tokens.
    """
    found = ngrams(tokens, order)
    return 1 - len(set(found)) / len(found) if found else None


def longest_repeat(tokens: Sequence[Hashable]) -> int:
    """Return the length in tokens of the longest run that stands at two places of a text, word for word; 0 for none.

    The two places may overlap: `a b a b a` holds `a b a` twice. Blocks are named by doubling (Karp, Miller and
    Rosenberg 1972, "Rapid identification of repeated patterns in strings, trees and arrays"): O(n log n).
    """
    # names[k][i] is equal for equal blocks of length 2^k, whatever their place i
    names = [_name(tokens)]
    while len(set(names[-1])) < len(names[-1]):
        shorter, half = names[-1], 1 << (len(names) - 1)
        names.append(_name(list(zip(shorter, shorter[half:], strict=False))))
    # runs of every length below the longest repeat are repeated too: set the bits of its length from the top
    length, current = 0, [0] * (len(tokens) + 1)
    for power in reversed(range(len(names))):
        longer = _name(list(zip(current, names[power][length:], strict=False)))
        if len(set(longer)) < len(longer):
            length, current = length + (1 << power), longer
    return length


def _name(blocks: Sequence[Hashable]) -> list[int]:
    """Number blocks so that equal ones get equal numbers."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(block, len(known)) for block in blocks]


def repetition(texts: Sequence[Sequence[Hashable]]) -> dict[str, float | int | None]:
    """Return repetition_1 ... repetition_4, means of `repeated_share` over the texts that have such n-grams, and
    longest_repeat, the largest over all texts."""
    report: dict[str, float | int | None] = {
        f"repetition_{order}": _mean(repeated_share(tokens, order) for tokens in texts) for order in ORDERS
    }
    return {**report, "longest_repeat": max((longest_repeat(tokens) for tokens in texts), default=0)}


# --- diversity, across texts


def distinct(texts: Iterable[Sequence[Hashable]], order: int) -> float | None:
    """Return distinct-n: different n-grams / n-grams, counted over all texts together; None where there are none.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv:1510.03055,
    except that they divide by the number of tokens, also for n > 1: with n-grams below the line, 1 means
    that nothing occurs twice. No n-gram spans two texts.
    """
    found = [ngram for tokens in texts for ngram in ngrams(tokens, order)]
    return len(set(found)) / len(found) if found else None


def self_bleu(texts: Sequence[str], order: int = 4) -> float | None:
    """Return self-BLEU in percent: the mean BLEU of each text against all the others; 100 when all are the same.

    Zhu et al. 2018, "Texygen", arXiv:1802.01886. The n-gram orders that a short text has decide (effective order).
    The work grows with the square of the number of texts. None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    metric = _sacrebleu().BLEU(max_ngram_order=order, effective_order=True)
    return _mean(
        metric.sentence_score(text, [*texts[:index], *texts[index + 1 :]]).score for index, text in enumerate(texts)
    )


def diversity(texts: Sequence[Sequence[Hashable]]) -> dict[str, float | None]:
    """Return distinct_1 ... distinct_4 of the texts."""
    return {f"distinct_{order}": distinct(texts, order) for order in ORDERS}


# --- use of the vocabulary


def vocabulary_use(texts: Iterable[Sequence[Hashable]], vocab_size: int) -> dict[str, float | int | None]:
    """Return how much of a vocabulary the texts use.

    distinct_tokens: different tokens. type_token_ratio: these / all tokens of the texts (Templin 1957; None for no
    token). vocabulary_share: these / vocab_size.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be at least 1.")
    tokens = [token for text in texts for token in text]
    different = len(set(tokens))
    return {
        "distinct_tokens": different,
        "type_token_ratio": different / len(tokens) if tokens else None,
        "vocabulary_share": different / vocab_size,
    }


# --- BLEU against references


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return corpus BLEU-1 ... BLEU-4 in percent (bleu_1 ... bleu_4), and the signature of the last.

    Papineni et al. 2002, "Bleu: a Method for Automatic Evaluation of Machine Translation", as computed by sacrebleu
    (Post 2018, arXiv:1804.08771): BLEU-n takes the orders 1 ... n, 13a tokenisation, exponential smoothing.
    Args:
        hypotheses: the generated texts.
        references: for each of them, at least one text to compare with; their numbers may differ.
    Raises:
        ValueError: no text, another number of references than hypotheses, or a hypothesis without one.
        ImportError: sacrebleu is missing.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"BLEU needs as many references as texts, at least one; got {len(references)} for {len(hypotheses)}."
        )
    if isinstance(references[0], str) or not all(references):
        raise ValueError("references must hold, for each text, a list of at least one reference.")
    # sacrebleu wants the first references of all texts, then the second ones, ..., None where a text has no more
    most = max(len(row) for row in references)
    columns = [[row[index] if index < len(row) else None for row in references] for index in range(most)]
    report: dict[str, Any] = {}
    for order in ORDERS:
        metric = _sacrebleu().BLEU(max_ngram_order=order)
        report[f"bleu_{order}"] = metric.corpus_score(list(hypotheses), columns).score
        report["bleu_signature"] = str(metric.get_signature())
    return report


def require_sacrebleu() -> None:
    """Raises ImportError, which says what to install, where the library behind BLEU is missing."""
    _sacrebleu()


def _sacrebleu():
    # only who asks for BLEU needs the library
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU needs the library sacrebleu: pip install sacrebleu, or 'frankenlm[train]'.") from error
    return sacrebleu


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- the table: a new measure is a function above and its line here


@dataclass(frozen=True)
class Written:
    """Texts that a model wrote: in its tokens, without end tokens, and as strings.

    vocab_size: tokens of its vocabulary. references: for each text at least one to compare with, or None.
    """

    tokens: Sequence[Sequence[Hashable]]
    strings: Sequence[str]
    vocab_size: int
    references: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class TextMeasure:
    """One group of measures. names: as reports name them. of: what takes them of texts, perhaps with more beside."""

    names: tuple[str, ...]
    of: Callable[[Written], Mapping[str, Any]]
    needs_sacrebleu: bool = False


# group, as --metrics names it
TEXT_MEASURES = {
    "bleu": TextMeasure(
        tuple(f"bleu_{order}" for order in ORDERS),
        lambda written: bleu(written.strings, written.references),
        needs_sacrebleu=True,
    ),
    "repetition": TextMeasure(
        (*(f"repetition_{order}" for order in ORDERS), "longest_repeat"), lambda written: repetition(written.tokens)
    ),
    "diversity": TextMeasure(
        (*(f"distinct_{order}" for order in ORDERS), "self_bleu"),
        lambda written: {**diversity(written.tokens), "self_bleu": self_bleu(written.strings)},
        needs_sacrebleu=True,
    ),
    "vocabulary": TextMeasure(
        ("distinct_tokens", "type_token_ratio", "vocabulary_share"),
        lambda written: vocabulary_use(written.tokens, written.vocab_size),
    ),
}


def measure_written(written: Written, groups: Iterable[str]) -> dict[str, Any]:
    """Return the measures of those `groups` that are of texts, and with BLEU its signature."""
    report: dict[str, Any] = {}
    for group in groups:
        if group in TEXT_MEASURES:
            report |= TEXT_MEASURES[group].of(written)
    return report
