"""Which words are Spanish: those of the shipped list and their regular forms. No tagger, nothing to download.

The list is short (about 1,900 words, of which rules make the plurals, the genders and the tenses), so that some rare
word of a sound text is always missing: shares of unknown words are to be compared with the undamaged model's.
"""

import re
from functools import cache, lru_cache

from .text_words import ASSETS

_PLAIN = str.maketrans("áéíóúü", "aeiouu")  # ñ is a letter of its own
# endings of the three conjugations, without accents; the stem and ar, er or ir make the infinitive
_PERSONS = ("", "s", "mos", "n")
_AFTER_INFINITIVE = ("a", "as", "an", "e", "emos", *(f"ia{person}" for person in _PERSONS))  # future, conditional
_PAST = (*(f"ra{person}" for person in _PERSONS), *(f"se{person}" for person in _PERSONS), "ron")
ENDINGS = {
    "ar": (
        *("o", "a", "as", "amos", "an", "e", "es", "emos", "en", "aste", "ando"),
        *(f"aba{person}" for person in _PERSONS),
        *(f"a{end}" for end in _PAST),
        *(f"ad{end}" for end in ("o", "a", "os", "as")),
        *(f"ar{end}" for end in ("", *_AFTER_INFINITIVE)),
    ),
    "er": (),
    "ir": (),
}
_OF_BOTH = (
    *("o", "e", "es", "en", "a", "as", "amos", "an", "i", "iste", "io", "imos", "iendo", "yendo", "yo"),
    *(f"ia{person}" for person in _PERSONS),
    *(f"{vowel}e{end}" for end in _PAST for vowel in "iy"),
    *(f"id{end}" for end in ("o", "a", "os", "as")),
)
ENDINGS["er"] = (*_OF_BOTH, "emos", *(f"er{end}" for end in ("", *_AFTER_INFINITIVE)))
ENDINGS["ir"] = (*_OF_BOTH, *(f"ir{end}" for end in ("", *_AFTER_INFINITIVE)))
# what a stem's last vowel or consonant may have been in the infinitive: pienso, vuelvo, pido; busque, llegue, crucé
_VOWELS = (("ie", "e"), ("ue", "o"), ("ue", "u"), ("i", "e"), ("u", "o"))
_CONSONANTS = (("qu", "c"), ("gu", "g"), ("c", "z"), ("zc", "c"), ("j", "g"), ("g", "gu"), ("y", ""), ("g", ""))
_PRONOUNS = re.compile(r"(?P<verb>.+(?:[aei]r|ndo))(?:me|te|se|nos)?(?:l[aeo]s?)?$")
_SHORTEST = 2  # letters of a stem


def plain(word: str) -> str:
    """Return a word without accents, which answers and rules may leave out."""
    return word.translate(_PLAIN)


@cache
def spanish_words() -> frozenset[str]:
    """Return the words of the shipped lists, without accents."""
    files = ("words_es.txt", "function_words_es.txt")
    return frozenset(plain(word) for name in files for word in (ASSETS / name).read_text(encoding="utf-8").split())


@cache
def spanish_function_words() -> frozenset[str]:
    return frozenset((ASSETS / "function_words_es.txt").read_text(encoding="utf-8").split())


@lru_cache(maxsize=100_000)
def is_spanish(word: str) -> bool:
    """Whether a casefolded word is one of the lists, or a regular form of one."""
    word = plain(word)
    return _is_noun(word) or _is_verb(word) or _is_verb_with_pronouns(word)


def _is_noun(word: str) -> bool:
    """Whether a word is listed, as it is or as another number, gender or size: luces, rojas, casita, lentamente."""
    known = spanish_words()
    ones = [*_singulars(word), word.removesuffix("mente")]
    return any(form in known for one in ones for form in (*_genders(one), *_larger(one)))


def _singulars(word: str) -> list[str]:
    found = [word]
    if word.endswith("s"):
        found.append(word[:-1])
    if word.endswith("ces"):
        found.append(word[:-3] + "z")
    elif word.endswith("es"):
        found.append(word[:-2])
    return found


def _genders(word: str) -> list[str]:
    """Return a word with another ending of gender: roja -> rojo, doctora -> doctor."""
    return [word, word[:-1] + "o", word[:-1]] if word.endswith("a") else [word]


def _larger(word: str) -> list[str]:
    """Return the words that a diminutive may be of: gatito, florecita, poquito."""
    found = []
    for ending in ("ito", "ita", "cito", "cita", "ecito", "ecita", "illo", "illa", "isimo", "isima"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > _SHORTEST:
            stem = stem[:-2] + "c" if stem.endswith("qu") else stem
            found += [stem, stem + "o", stem + "a", stem + "e"]
    return found


def _is_verb(word: str) -> bool:
    known = spanish_words()
    return any(
        stem + ending in known
        for ending, forms in ENDINGS.items()
        for form in forms
        if word.endswith(form) and len(word) - len(form) >= _SHORTEST
        for stem in _stems(word.removesuffix(form))
    )


def _stems(stem: str) -> set[str]:
    """Return the stems of the infinitive that may have become this one in a form."""
    found = {stem} | {stem.removesuffix(now) + before for now, before in _CONSONANTS if stem.endswith(now)}
    return found | {
        one[:place] + before + one[place + len(now) :]
        for one in found
        for now, before in _VOWELS
        if (place := one.rfind(now)) >= 0
    }


def _is_verb_with_pronouns(word: str) -> bool:
    """Whether a word is an infinitive or gerund with pronouns behind it: lavarse, ponerlo, dándoselas."""
    match = _PRONOUNS.match(word)
    return match is not None and match["verb"] != word and (match["verb"] in spanish_words() or _is_verb(match["verb"]))


def spanish_stem(word: str) -> str:
    """Return a word without the endings of number and gender, so that its forms meet; it only agrees with itself."""
    word = plain(word).removesuffix("s")
    return word.rstrip("aeo") if len(word) > 3 else word
