"""How long the scored part of a text is: in bytes, in words, in tokens of another tokenizer.

Nats per byte or word are a sum divided by a length, and both must be of the same text. Two things are never scored: the
first token of a text where no begin or end token could stand before it (causal), and what is never masked, unknown
words and markup (masked). What such a token covers, with the blanks before it, is no part of the length.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from ..data.tokenizers import begin_id, special_token_ids

logger = logging.getLogger("frankenlm.scoring")


@dataclass(frozen=True)
class Lengths:
    """The lengths of N texts, as far as they were scored; None for what is not known or was not asked for."""

    utf8_bytes: list[int] | None
    words: list[int] | None = None
    other_tokens: list[int] | None = None


def scored_lengths(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    method: str,
    reference: PreTrainedTokenizerBase | None = None,
) -> Lengths:
    """Return the lengths of texts as `method` scores them: bytes, and of a causal model words, the runs between blanks,
    and tokens by `reference`."""
    parts = [scored_part(tokenizer, text, method) for text in texts]
    if None in parts:
        logger.warning("the tokenizer does not tell what its tokens cover, and some are never scored: no bits per byte")
        return Lengths(None)
    utf8_bytes = [len(part.encode()) for part in parts]
    if method != "causal":
        return Lengths(utf8_bytes)
    words = [len(part.split()) for part in parts]
    others = None if reference is None else [count_tokens_by(reference, part) for part in parts]
    return Lengths(utf8_bytes, words, others)


def scored_part(tokenizer: PreTrainedTokenizerBase, text: str, method: str) -> str | None:
    """Return what is scored of a text; None where the tokenizer does not tell which part of it that is."""
    if method == "causal":
        if begin_id(tokenizer) is not None:
            return text
        never: frozenset[int] = frozenset()
    else:
        never = frozenset(special_token_ids(tokenizer))
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoded["input_ids"]
    is_scored = [token not in never and (method != "causal" or place > 0) for place, token in enumerate(ids)]
    if all(is_scored):
        return text
    if not tokenizer.is_fast:
        return None
    # from the end of the token before: blanks belong to the word behind them, those at the end to the last word
    ends = list(accumulate((end for _, end in encoded["offset_mapping"]), max))
    ends[-1] = len(text)
    return "".join(text[start:end] for start, end, kept in zip([0, *ends], ends, is_scored, strict=False) if kept)


def count_tokens_by(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """How many tokens a text has by a tokenizer, without special ones."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
