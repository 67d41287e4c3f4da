"""Words, sentences, stems and word frequencies of generated text; no tagger, no parser, nothing to download.

Rows carry text only, so what other work counts in tokens is counted in words here.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
# letters and digits, with the vowel signs of scripts that write them as marks; apostrophes inside
_LETTER = r"(?:[^\W_]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0d7f])"
# scripts written without spaces: every character counts as a word
_SINGLE = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_WORD = re.compile(rf"{_SINGLE}|(?:(?!{_SINGLE}){_LETTER})+(?:'(?:(?!{_SINGLE}){_LETTER})+)*")
# a closing quote before a small letter ("Stop!" he said) ends no sentence
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…])[\"'”’)\]*]+\s+(?![a-z])|(?<=[。！？।])|\n+")

STOPWORDS = frozenset((ASSETS / "function_words.txt").read_text(encoding="utf-8").split())


def words(text: str) -> list[str]:
    """Return the words of a text, casefolded, without punctuation; hyphens part words, apostrophes do not.

    In scripts written without spaces (Chinese, Japanese, Thai, ...) every character counts as a word.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.casefold().replace("’", "'")))


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence; a line's end closes a sentence, and one without words is none."""
    return [found for part in _SENTENCE_END.split(text) if (found := words(part))]


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return a word without its commonest English endings, so that its forms meet (dreams, dreamed, dreaming).

    Cruder than Porter's stemmer: it only has to agree with itself.
    """
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "i"  # flies, fly
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith(("ss", "us", "is")):
            word = word.removesuffix(ending)
            if ending in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]  # running, stopped
            break
    if len(word) > 3:
        word = word.removesuffix("e")
    return word[:-1] + "i" if len(word) > 2 and word[-1] == "y" else word


@cache
def word_counts() -> tuple[dict[str, int], int]:
    """Return the shipped counts of English words, and the number of words they were counted in.

    Words of the everyday list that the collection lacks count as seen once.
    """
    first, *lines = (ASSETS / "words_en.txt").read_text(encoding="utf-8").splitlines()
    counts: dict[str, int] = {}
    for line in lines:
        count, _, group = line.partition("\t")
        counts.update(dict.fromkeys(group.split(" "), int(count)))
    for word in (ASSETS / "words_everyday.txt").read_text(encoding="utf-8").split():
        counts.setdefault(word, 1)
    return counts, int(first.partition("\t")[2])


@lru_cache(maxsize=100_000)
def word_frequency(word: str) -> float | None:
    """Return the base-10 logarithm of a word's frequency per 10^9 words, None for a word that is not listed.

    That is the Zipf scale of van Heuven et al. 2014, "SUBTLEX-UK": 3 is rare, 6 frequent. A regular form of a listed
    word (dreamed, hallways, kitchen's) counts as seen once.
    """
    counts, total = word_counts()
    seen = counts.get(word) or (1 if any(base in counts for base in _bases(word)) else 0)
    return math.log10(seen / total * 1e9) if seen else None


_ENDINGS = {
    "'s": ("",), "'ll": ("",), "'d": ("",), "'ve": ("",), "'re": ("",), "n't": ("",), "ies": ("y",), "ied": ("y",),
    "ier": ("y",), "iest": ("y",), "ily": ("y",), "es": ("", "e"), "s": ("",), "ed": ("", "e"), "ing": ("", "e"),
    "er": ("", "e"), "ers": ("", "e"), "est": ("", "e"), "ly": ("", "le"), "ness": ("",), "less": ("",), "y": ("", "e"),
}  # fmt: skip
_DOUBLING = ("ed", "ing", "er", "est", "y")


def _bases(word: str) -> list[str]:
    """Return the words of which this may be a regular form."""
    found = []
    for ending, replacements in _ENDINGS.items():
        rest = word.removesuffix(ending)
        if rest == word or len(rest) < 3:
            continue
        found += [rest + replacement for replacement in replacements]
        if ending in _DOUBLING and len(rest) > 3 and rest[-1] == rest[-2]:
            found.append(rest[:-1])  # stopped
    return found


@lru_cache(maxsize=20_000)
def script(character: str) -> str | None:
    """Return the script of a letter, as the first word of its Unicode name: LATIN, CYRILLIC, CJK; None for others."""
    if not character.isalpha():
        return None
    return unicodedata.name(character, "UNKNOWN").split()[0]


def latin_words(found: Sequence[str]) -> list[str]:
    """Return the words that are letters of the Latin script, which word lists may know."""
    return [word for word in found if (word.isalpha() or "'" in word) and script(word[0]) == "LATIN"]
