"""Measures of generated text, as pure functions: BLEU, repetition, diversity, use of the vocabulary.

No model is needed, only what it wrote: `tokens` is one text as a sequence of anything hashable (token ids, words),
`texts` several of them. BLEU and self-BLEU take strings, since they come with a tokenisation of their own.

    repetition  within each text: how much of it says again what it has said before; short loops show here
    diversity   across the texts: how much they differ, from each other and within
    vocabulary  how much of what the model could say it does say

A measure of something that is not there, such as the 4-grams of a text of three tokens, is None, not 0 or 1.
Distinct-n, the type-token ratio and the coverage of the vocabulary change with the amount of text: compare them at
equal numbers of tokens only. `unique_per_100` does not.

BLEU and repetition are made of sums over texts (bootstrap.py), and so have intervals; what counts a set of all texts
together has none: a text drawn twice would be a repetition.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import Summed

ORDERS = (1, 2, 3, 4)
RUN = 100  # tokens of unique_per_100


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
    return {
        **summed_repetition(texts).values(),
        "longest_repeat": max((longest_repeat(tokens) for tokens in texts), default=0),
    }


def character_repetition(strings: Sequence[str]) -> dict[str, float | None]:
    """Return character_repetition_1 ... _4: the same over the characters of each text, blanks included.

    The seed of this project counted repetition over characters. Ordinary prose repeats most of its characters and many
    of their pairs: this is no share of tokens, and comparable only with itself.
    """
    return summed_repetition(strings, "character_repetition").values()


def summed_repetition(texts: Sequence[Sequence[Hashable]], name: str = "repetition") -> Summed:
    """Return name_1 ... name_4, see `repetition`, as sums over texts: of shares, and of texts that have one."""
    shares = [[repeated_share(tokens, order) for order in ORDERS] for tokens in texts]
    parts = np.array(
        [[*(share or 0.0 for share in row), *(share is not None for share in row)] for row in shares], dtype=np.float64
    ).reshape(-1, 2 * len(ORDERS))

    def finish(sums: np.ndarray) -> dict[str, float | None]:
        total, count = np.split(sums, 2)
        return {
            f"{name}_{order}": float(total[place] / count[place]) if count[place] else None
            for place, order in enumerate(ORDERS)
        }

    return Summed(parts, finish, upper=1.0)


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


def vocabulary_use(
    texts: Iterable[Sequence[Hashable]], vocab_size: int, unknown: Hashable | None = None
) -> dict[str, float | int | None]:
    """Return how much of a vocabulary the texts use.

    distinct_tokens: different tokens. type_token_ratio: these / all tokens of the texts (Templin 1957; None for no
    token). vocabulary_coverage: these / vocab_size. unique_per_100: see there. unknown_share: see there, for the token
    `unknown`.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be at least 1.")
    counts: Counter[Hashable] = Counter()
    runs = _Runs()
    for text in texts:
        counts.update(text)
        runs.read(text)
    tokens, different = counts.total(), len(counts)
    return {
        "distinct_tokens": different,
        "type_token_ratio": different / tokens if tokens else None,
        "vocabulary_coverage": different / vocab_size,
        "unique_per_100": runs.mean(),
        "unknown_share": counts[unknown] / tokens if tokens and unknown is not None else None,
    }


def unique_per_100(texts: Iterable[Sequence[Hashable]]) -> float | None:
    """Return how many different tokens 100 neighbouring tokens hold, on average over all such runs of the texts.

    The texts are read as one, end to end. That is the moving-average type-token ratio, in percent, of Covington and
    McFall 2010, "Cutting the Gordian Knot", for windows of 100: other than the plain ratio it does not fall with the
    amount of text. None for fewer than 100 tokens.
    """
    runs = _Runs()
    for text in texts:
        runs.read(text)
    return runs.mean()


class _Runs:
    """A window of RUN tokens that moves over texts, and how many different ones it has held."""

    def __init__(self):
        self.window: deque[Hashable] = deque()
        self.inside: Counter[Hashable] = Counter()
        self.total = self.runs = 0

    def read(self, text: Iterable[Hashable]) -> None:
        for token in text:
            self.window.append(token)
            self.inside[token] += 1
            if len(self.window) > RUN:
                gone = self.window.popleft()
                self.inside[gone] -= 1
                if not self.inside[gone]:
                    del self.inside[gone]
            if len(self.window) == RUN:
                self.total += len(self.inside)
                self.runs += 1

    def mean(self) -> float | None:
        return self.total / self.runs * 100 / RUN if self.runs else None


def unknown_share(texts: Iterable[Sequence[Hashable]], unknown: Hashable | None) -> float | None:
    """Return the share of tokens that are the one a tokenizer puts for what it does not know.

    None where there is no such token, or no token at all. A high share makes a perplexity worthless: what the model
    predicts is then that it will not know.
    """
    return vocabulary_use(texts, 1, unknown)["unknown_share"]


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
    metric = _sacrebleu().BLEU(max_ngram_order=ORDERS[-1])
    values = summed_bleu(hypotheses, references).values()
    # the signature tells how many references a text has, which is known once texts have been scored
    metric.corpus_score(list(hypotheses), _columns(references))
    return {**values, "bleu_signature": str(metric.get_signature())}


def summed_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Summed:
    """Return bleu_1 ... bleu_4, see `bleu`, as sums over texts: of lengths, of right n-grams, and of all n-grams."""
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"BLEU needs as many references as texts, at least one; got {len(references)} for {len(hypotheses)}."
        )
    if isinstance(references[0], str) or not all(references):
        raise ValueError("references must hold, for each text, a list of at least one reference.")
    library, most = _sacrebleu().BLEU, ORDERS[-1]
    metric = library(max_ngram_order=most, force=True)
    scores = [
        metric.corpus_score([text], [[each] for each in known])
        for text, known in zip(hypotheses, references, strict=True)
    ]
    parts = np.array([[each.sys_len, each.ref_len, *each.counts, *each.totals] for each in scores], dtype=np.float64)

    def finish(sums: np.ndarray) -> dict[str, float | None]:
        lengths, correct, total = sums[:2], sums[2 : 2 + most], sums[2 + most :]
        return {
            f"bleu_{order}": library.compute_bleu(
                correct[:order].astype(int).tolist(),
                total[:order].astype(int).tolist(),
                *map(int, lengths),
                smooth_method="exp",
                max_ngram_order=order,
            ).score
            for order in ORDERS
        }

    return Summed(parts, finish, upper=100.0)


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """What sacrebleu wants: the first reference of each text, then the second ones, ..., None where there is none."""
    most = max(len(row) for row in references)
    return [[row[index] if index < len(row) else None for row in references] for index in range(most)]


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

    vocab_size: tokens of its vocabulary. references: for each text at least one to compare with, or None. unknown: the
    token that stands for what the tokenizer does not know, or None.
    """

    tokens: Sequence[Sequence[Hashable]]
    strings: Sequence[str]
    vocab_size: int
    references: Sequence[Sequence[str]] | None = None
    unknown: Hashable | None = None


@dataclass(frozen=True)
class TextMeasure:
    """One group of measures. names: as reports name them. of: what takes them of texts, perhaps with more beside.
    summed: those of them that are made of sums over texts."""

    names: tuple[str, ...]
    of: Callable[[Written], Mapping[str, Any]]
    summed: tuple[Callable[[Written], Summed], ...] = ()
    needs_sacrebleu: bool = False


# group, as --metrics names it
TEXT_MEASURES = {
    "bleu": TextMeasure(
        tuple(f"bleu_{order}" for order in ORDERS),
        lambda written: bleu(written.strings, written.references),
        (lambda written: summed_bleu(written.strings, written.references),),
        needs_sacrebleu=True,
    ),
    "repetition": TextMeasure(
        (
            *(f"repetition_{order}" for order in ORDERS),
            "longest_repeat",
            *(f"character_repetition_{order}" for order in ORDERS),
        ),
        lambda written: {**repetition(written.tokens), **character_repetition(written.strings)},
        (
            lambda written: summed_repetition(written.tokens),
            lambda written: summed_repetition(written.strings, "character_repetition"),
        ),
    ),
    "diversity": TextMeasure(
        (*(f"distinct_{order}" for order in ORDERS), "self_bleu"),
        lambda written: {**diversity(written.tokens), "self_bleu": self_bleu(written.strings)},
        needs_sacrebleu=True,
    ),
    "vocabulary": TextMeasure(
        ("distinct_tokens", "type_token_ratio", "vocabulary_coverage", "unique_per_100", "unknown_share"),
        lambda written: vocabulary_use(written.tokens, written.vocab_size, written.unknown),
    ),
}


def measure_written(written: Written, groups: Iterable[str]) -> dict[str, Any]:
    """Return the measures of those `groups` that are of texts, and with BLEU its signature."""
    report: dict[str, Any] = {}
    for group in groups:
        if group in TEXT_MEASURES:
            report |= TEXT_MEASURES[group].of(written)
    return report
