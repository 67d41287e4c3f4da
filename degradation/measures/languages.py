"""The words of a language, as far as the measures know them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .spanish_words import is_spanish, spanish_function_words, spanish_stem
from .text_words import STOPWORDS, stem, word_frequency


@dataclass(frozen=True)
class Language:
    """known: whether a casefolded word is one. frequency: its log10 per 10^9 words, where counts are shipped."""

    known: Callable[[str], bool]
    frequency: Callable[[str], float | None]
    function_words: frozenset[str]
    stem: Callable[[str], str]

    def content_stems(self, found: Iterable[str]) -> list[str]:
        """Return the stems of the words that are not function words."""
        return [self.stem(word) for word in found if word not in self.function_words]


ENGLISH = Language(lambda word: word_frequency(word) is not None, word_frequency, STOPWORDS, stem)
SPANISH = Language(is_spanish, lambda word: None, spanish_function_words(), spanish_stem)
LANGUAGES = {"en": ENGLISH, "es": SPANISH}


def language_of(name: str | None) -> Language:
    """Return the language of a prompt's answers; None is English."""
    return LANGUAGES[name or "en"]
