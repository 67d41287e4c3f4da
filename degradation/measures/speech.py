"""How answers are worded in a language: what introduces a verdict, what denies, what lists and what gives reasons."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

_QUOTES = r"[\"'“”‘’«»¿¡]"


@dataclass(frozen=True)
class Speech:
    """The patterns by which `choices.chosen` reads answers.

    Attributes:
        statement: the first choice behind it is the answer.
        conclusion: likewise, where nothing else decides.
        denial: ends right before a choice that is named to be denied; denial_of_all: denies a list behind it.
        listed: joins the items of such a list; goes_on: what stands behind one of them.
        reason: what follows it gives reasons.
        opening: what may stand before a choice that opens an answer.
        stands_alone: what may follow such a choice: "Ladder." "Yes, since ..." but not "Ana is taller".
        joint: what parts the items of a list of choices; joints: the words among them.
        not_behind: choice -> what must not follow it ("no idea" says neither yes nor no).
        letters: accented letters that count as plain ones, for answers are written without accents too.
    """

    statement: re.Pattern
    conclusion: re.Pattern
    denial: re.Pattern
    denial_of_all: re.Pattern
    listed: re.Pattern
    goes_on: re.Pattern
    reason: re.Pattern
    opening: re.Pattern
    stands_alone: re.Pattern
    joint: re.Pattern
    joints: re.Pattern
    not_behind: Mapping[str, str] = field(default_factory=dict)
    letters: Mapping[int, str] = field(default_factory=dict)

    def fold(self, text: str) -> str:
        """Return a text of the same length once composed (NFC), without the accents that do not count."""
        return unicodedata.normalize("NFC", text).translate(self.letters) if self.letters else text


def _pattern(text: str) -> re.Pattern:
    return re.compile(text, re.IGNORECASE)


ENGLISH = Speech(
    statement=_pattern(
        r"\b(?:answer|odd one(?: out)?|solution|correct (?:one|choice|option|word))\b[^.\n]{0,60}?"
        r"(?:\bis\b|\bwould be\b|:|=)|\\boxed"
    ),
    conclusion=_pattern(r"\b(?:therefore|thus|hence|consequently)\b|(?:^|[.!?,;\n][ \t]*)so\b"),
    denial=_pattern(
        r"(?:\bnot|n['’]t|\bneither|\bnor|\brather than|\bexcept|\bunlike)(?:\s+(?:a|an|the))?\s*[\"'“‘]?$"
    ),
    denial_of_all=_pattern(r"\b(?:unlike|except|neither)\b[^.!?\n]*$"),
    listed=_pattern(r"\s*(?:,|,?\s*\b(?:and|or|nor)\b)\s*(?:(?:a|an|the)\s+)?[\"'“‘]?"),
    goes_on=_pattern(r"\s*(?:[,.;:!?)]|\b(?:and|or|nor)\b|$)"),
    reason=_pattern(r"\b(?:because|since)\b|,\s+as\b"),
    opening=_pattern(r"[\s\"'“‘(\[>#-]*(?:(?:it['’]?s|it is|the|a|an|definitely|clearly)\s+)*[\"'“‘(]*"),
    stands_alone=re.compile(r"[\"'”’)]*\s*(?:$|[.!:;\n–—]|-\s|,\s|\(|(?:because|since|as)\b)"),
    joint=re.compile(r"[\s,;:.)\"'–—-]*(?:and|or)?\s*"),
    joints=re.compile(r"(?:[\s,;:.)\"'–—-]|\b(?:and|or)\b)*"),
    not_behind={"no": r"(?!\s+(?:idea|one|doubt|matter|longer|more|less|such)\b)"},
)
# everything is matched behind `fold`, so no vowel has an accent here
SPANISH = Speech(
    statement=_pattern(
        r"\b(?:respuesta|solucion|palabra|opcion|eleccion)\b[^.\n]{0,60}?(?:\bes\b|\bseria\b|:|=)|\\boxed"
    ),
    conclusion=_pattern(r"\b(?:por (?:lo )?tanto|por eso|asi que|en conclusion)\b"),
    denial=_pattern(
        r"(?:\bno\s+(?:es|era|fue|son)|\bni|\ben (?:vez|lugar) de|\bsalvo|\bexcepto|\ba diferencia de)"
        rf"(?:\s+(?:un|una|el|la|los|las))?\s*{_QUOTES}?$"
    ),
    denial_of_all=_pattern(r"\b(?:salvo|excepto|ni|a diferencia de)\b[^.!?\n]*$"),
    listed=_pattern(rf"\s*(?:,|,?\s*\b(?:y|e|o|u|ni)\b)\s*(?:(?:un|una|el|la|los|las)\s+)?{_QUOTES}?"),
    goes_on=_pattern(r"\s*(?:[,.;:!?)]|\b(?:y|e|o|u|ni)\b|$)"),
    reason=_pattern(r"\b(?:porque|pues|ya que|puesto que|dado que)\b"),
    opening=_pattern(
        rf"(?:\s|{_QUOTES}|[(\[>#-])*(?:(?:es|el|la|un|una|claro que|claramente|se trata de)\s+)*(?:{_QUOTES}|\()*"
    ),
    stands_alone=_pattern(rf"(?:{_QUOTES}|\))*\s*(?:$|[.!:;\n–—]|-\s|,\s|\(|(?:porque|pues|ya que)\b)"),
    joint=_pattern(r"(?:[\s,;:.)–—-]|" + _QUOTES + r")*(?:y|e|o|u)?\s*"),
    joints=_pattern(r"(?:[\s,;:.)–—-]|" + _QUOTES + r"|\b(?:y|e|o|u)\b)*"),
    not_behind={
        "no": r"(?!\s+(?:lo\s+|la\s+)?(?:se|sabria|puedo|podria|estoy|tengo|hay|obstante)\b)",
        "si": r"(?!\s+(?:fue|era|ha|habia|hay|el|la|los|las|un|una|alguien|estaba)\b)",  # whether, not yes
    },
    letters=str.maketrans("áéíóúÁÉÍÓÚ", "aeiouAEIOU"),
)
SPEECHES = {"en": ENGLISH, "es": SPANISH}


def speech_of(language: str | None) -> Speech:
    """Return how answers to a prompt are worded; None is English."""
    return SPEECHES[language or "en"]
