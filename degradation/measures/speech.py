"""How answers are worded in a language: what introduces a verdict, what denies, what lists and what gives reasons."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_QUOTES = r"[\"'“”‘’«»¿¡]"
# what a yes or no may stand before that is an answer by itself
_STANDS = r"[^\w\s'’-]|['’](?!\w)|\s*(?:$|\n)|\s+[^\w\s\"'“‘«¿¡]"
SAME_LETTERS = 4  # at the beginning of two forms of a word


@dataclass(frozen=True)
class Speech:
    """The patterns by which `choices.chosen` reads answers.

    Attributes:
        statement: the first choice behind it is the answer.
        conclusion: likewise, where nothing else decides.
        denial: ends right before a choice that is named to be denied; denial_of_all: denies a list behind it.
        listed: joins the items of such a list; goes_on: what stands behind one of them.
        alternative: joins what one denial denies: "not the ant or the beet".
        reason: what follows it gives reasons.
        opening: what may stand before a choice that opens an answer.
        stands_alone: what may follow such a choice: "Ladder." "Yes, since ..." but not "Ana is taller".
        joint: what parts the items of a list of choices; joints: the words among them.
        replies: choice -> how it is written where it answers: "no" by itself or before what was asked ({asked}), for
            "no idea" says neither yes nor no, and Spanish "no entiendo" is no answer either.
        letters: accented letters that count as plain ones, for answers are written without accents too.
        accented: words whose accent tells them apart all the same.
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
    alternative: re.Pattern
    replies: Mapping[str, str] = field(default_factory=dict)
    letters: Mapping[int, str] = field(default_factory=dict)
    accented: re.Pattern | None = None

    def fold(self, text: str) -> str:
        """Return a text of the same length once composed (NFC), without the accents that do not count."""
        if not self.letters:
            return text
        folded = list(self.bare(text))
        text = unicodedata.normalize("NFC", text)
        for match in self.accented.finditer(text) if self.accented else ():
            folded[match.start() : match.end()] = match[0]
        return "".join(folded)

    def bare(self, text: str) -> str:
        """Return a text without any of those accents."""
        return unicodedata.normalize("NFC", text).translate(self.letters) if self.letters else text

    def written(self, choice: str, asked: Iterable[str]) -> str:
        """Return the pattern of a choice (bare, casefolded) where the question asks with these content words."""
        if choice not in self.replies:
            return re.escape(choice)
        bare = {self.bare(word) for word in asked}
        forms = {re.escape(word[:SAME_LETTERS]) + r"\w*" * (len(word) >= SAME_LETTERS) for word in bare}
        return self.replies[choice].replace("{asked}", rf"(?:{'|'.join(sorted(forms)) or '(?!)'})\b")


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
    goes_on=_pattern(r"[\"'”’]*(?:\s*\n|\s*(?:[,.;:!?)]|\b(?:and|or|nor)\b|$))"),
    alternative=_pattern(r"\s*,?\s*\b(?:or|nor)\s+(?:(?:a|an|the)\s+)?[\"'“‘]?"),
    reason=_pattern(r"\b(?:because|since)\b|,\s+as\b"),
    opening=_pattern(r"[\s\"'“‘(\[>#-]*(?:(?:it['’]?s|it is|the|a|an|definitely|clearly)\s+)*[\"'“‘(]*"),
    stands_alone=re.compile(r"[\"'”’)]*\s*(?:$|[.!:;\n–—]|-\s|,\s|\(|(?:because|since|as)\b)"),
    joint=re.compile(r"[\s,;:.!)\"'–—-]*(?:and|or)?\s*"),
    joints=re.compile(r"(?:[\s,;:.!?)\"'–—-]|\b(?:and|or)\b)*"),
    replies={
        "no": r"no(?!\s+(?:one|longer|more|less|such|know\w*)\b)(?="
        + _STANDS
        + r"|\s*\b(?:because|since|as|and|in this|to the|according|based|is|was|would|it|he|she|they)\b"
        r"|\s+(?:or\s+)?(?:yes|no)\b"
        r"|\s+(?:(?:the|an?|was|were|is|are|did|does|has|have|had|been|not)\s+){0,4}{asked})"
    },
)
_CLITIC = r"(?:me|te|se|lo|la|le|los|las|les|nos)"
_TO_BE = r"(?:es|era|fue|son|esta|estaba|estan|hay|habia|habria)"
# everything is matched behind `fold`, so no vowel has an accent here, but for that of "sí"
SPANISH = Speech(
    statement=_pattern(
        r"\b(?:respuesta|responde|solucion|palabra|opcion|eleccion)\b[^.\n]{0,60}?"
        r"(?:(?<!\bno )\b(?:es|seria)\b|:|=)|\\boxed"
    ),
    conclusion=_pattern(r"\b(?:por (?:lo )?tanto|por eso|asi que|en conclusion)\b"),
    denial=_pattern(
        r"(?:\bno\s+(?:es|era|fue|son|seria)|\bno(?=\s+(?:un|una|el|la|los|las)\b)|\bni"
        r"|\ben (?:vez|lugar) de|\bsalvo|\bexcepto|\ba diferencia de)"
        rf"(?:\s+(?:un|una|el|la|los|las))?\s*{_QUOTES}?$"
    ),
    denial_of_all=_pattern(r"\b(?:salvo|excepto|ni|a diferencia de)\b[^.!?\n]*$"),
    listed=_pattern(rf"\s*(?:,|,?\s*\b(?:y|e|o|u|ni)\b)\s*(?:(?:un|una|el|la|los|las)\s+)?{_QUOTES}?"),
    goes_on=_pattern(rf"{_QUOTES}*(?:\s*\n|\s*(?:[,.;:!?)]|\b(?:y|e|o|u|ni)\b|$))"),
    alternative=_pattern(rf"\s*,?\s*\b(?:o|u|ni)\s+(?:(?:un|una|el|la|los|las)\s+)?{_QUOTES}?"),
    reason=_pattern(r"\b(?:porque|pues|ya que|puesto que|dado que)\b"),
    opening=_pattern(
        rf"(?:\s|{_QUOTES}|[(\[>#-])*(?:(?:es|el|la|un|una|claro que|claramente|se trata de)\s+)*(?:{_QUOTES}|\()*"
    ),
    stands_alone=_pattern(rf"(?:{_QUOTES}|\))*\s*(?:$|[.!:;\n–—]|-\s|,\s|\(|(?:porque|pues|ya que)\b)"),
    joint=_pattern(r"(?:[\s,;:.!)–—-]|" + _QUOTES + r")*(?:y|e|o|u)?\s*"),
    joints=_pattern(r"(?:[\s,;:.!?)–—-]|" + _QUOTES + r"|\b(?:y|e|o|u)\b)*"),
    replies={
        "no": r"no(?!\s+(?:solo|solamente|unicamente)\b)(?="
        + _STANDS
        + r"|\s*\b(?:porque|pues|ya que|puesto que|dado que|y|en este|segun|para nada|por supuesto)\b"
        r"|\s+(?:(?:o|u|ni)\s+)?(?:s[ií]|no)\b"
        rf"|\s+(?:{_CLITIC}\s+)*(?:hizo|hicieron)\b(?!\s+falta)"
        rf"|\s+(?:lo\s+)?{_TO_BE}(?:\s+(?:asi|encima|debajo))?\s*(?:$|\n|[.,;:!?])"
        rf"|\s+(?:(?:{_CLITIC}|{_TO_BE}|a|al|del?|el|una?|ella|ha|han)\s+){{0,4}}{{asked}})",
        # without its accent it may be an "if"; with it, "himself"
        "si": r"(?:(?<!\ba )(?<!\bde )(?<!\bpor )(?<!\bpara )(?<!\bentre )(?<!\ben )sí(?!\s+mism[oa]s?\b)"
        rf"|si(?={_STANDS}|\s+(?:porque|pues|ya que)\b|\s+(?:[yeou]\s+)?(?:si|no)\s*(?:$|[.,;:!?\n]|s[ií]\b|no\b)))",
    },
    letters=str.maketrans("áéíóúÁÉÍÓÚ", "aeiouAEIOU"),
    accented=_pattern(r"\bsí\b"),
)
SPEECHES = {"en": ENGLISH, "es": SPANISH}


def speech_of(language: str | None) -> Speech:
    """Return how answers to a prompt are worded; None is English."""
    return SPEECHES[language or "en"]
