"""How the tokens of an answer are chosen, as a visitor asks for it; checked before a model is touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from frankenlm.trainer_ext.common.cli import LARGEST_NUMBER, UserError
from frankenlm.trainer_ext.generation.sampling import LARGEST_PENALTY, SMALLEST_TEMPERATURE

LARGEST_TEMPERATURE = 100.0
LARGEST_COUNT_PENALTY = 2.0  # of frequency and presence, as the OpenAI API has it
LARGEST_BIAS = 100.0
MOST_STOPS = 16
LONGEST_STOP = 200  # characters; the end of a text is compared with every beginning of every stop string
MOST_BEAMS = 16
MOST_ALTERNATIVES = 20
LARGEST_SEED = 2**63 - 1


class BadOption(UserError):
    """A value out of range; `name` is the option's, as the visitor wrote it."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Options:
    """How the tokens of one answer are chosen. temperature 0: the likeliest each time. None: that filter is off.

    repetition_penalty: as in trainer_ext/generation/sampling.py, of prompt and answer; 1: off.
    frequency_penalty, presence_penalty: taken off a token's logit for each time it stands in the answer so far, and
        once where it stands there at all.
    no_repeat_ngram_size: no n tokens in a row twice, prompt included; 0: off.
    logit_bias: token id -> what is added to its logit.
    logprobs: how many of the likeliest tokens are told beside each token that was chosen; None: none are told.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def check(self) -> "Options":
        """Return the options themselves.

        Raises:
            BadOption: a value out of range, or values that contradict each other.
        """
        self._whole("max_new_tokens", 1, LARGEST_NUMBER)
        self._number("temperature", 0, LARGEST_TEMPERATURE)
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise BadOption(
                "temperature",
                f"temperature {self.temperature}: logits divided by it overflow; use 0 for the likeliest token each "
                f"time, or at least {SMALLEST_TEMPERATURE}.",
            )
        if self.top_k is not None:
            self._whole("top_k", 1, LARGEST_NUMBER)
        for name in ("top_p", "min_p", "typical_p"):
            if getattr(self, name) is not None:
                self._number(name, 0, 1)
        if self.typical_p == 0:
            raise BadOption("typical_p", "typical_p 0: must lie above 0; for the likeliest token each time: top_p 0.")
        self._number("repetition_penalty", 1 / LARGEST_PENALTY, LARGEST_PENALTY)
        for name in ("frequency_penalty", "presence_penalty"):
            self._number(name, -LARGEST_COUNT_PENALTY, LARGEST_COUNT_PENALTY)
        self._whole("no_repeat_ngram_size", 0, LARGEST_NUMBER)
        self._whole("num_beams", 1, MOST_BEAMS)
        if self.num_beams > 1 and self.temperature > 0:
            raise BadOption("num_beams", f"num_beams {self.num_beams} searches and does not sample: set temperature 0.")
        if self.num_beams > 1 and self.logprobs is not None:
            raise BadOption("logprobs", f"logprobs: are not told of a search; num_beams {self.num_beams} must be 1.")
        if self.logprobs is not None:
            self._whole("logprobs", 0, MOST_ALTERNATIVES)
        for token, bias in self.logit_bias.items():
            if not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
                raise BadOption(
                    "logit_bias", f"logit_bias of token {token}: {_shown(bias)} must lie within ±{LARGEST_BIAS:g}."
                )
        return self

    def _whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadOption(name, f"{name} {_shown(value)}: must be a whole number.")
        if not least <= value <= most:
            raise BadOption(name, f"{name} {_shown(value)}: must lie between {least} and {most}.")

    def _number(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadOption(name, f"{name} {_shown(value)}: must be a number.")
        if not least <= value <= most:  # NaN is not either
            raise BadOption(name, f"{name} {_shown(value)}: must lie between {least:g} and {most:g}.")


def check_stops(stop: Sequence[str]) -> None:
    """Raises BadOption for stop strings that nothing can be done with."""
    if len(stop) > MOST_STOPS:
        raise BadOption("stop", f"stop: {len(stop)} strings; give at most {MOST_STOPS}.")
    for string in stop:
        if not string:
            raise BadOption("stop", "stop: the empty string stands everywhere; give at least one character.")
        if len(string) > LONGEST_STOP:
            raise BadOption("stop", f"stop: a string of {len(string):,} characters; give at most {LONGEST_STOP}.")


def check_answer_seed(seed: int) -> None:
    """Raises BadOption for a number that seeds no answer."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise BadOption("seed", f"seed {_shown(seed)}: must be a whole number.")
    if not -LARGEST_SEED - 1 <= seed <= LARGEST_SEED:
        raise BadOption("seed", f"seed {_shown(seed)}: must lie between -2^63 and 2^63 - 1.")


def _shown(value: object) -> str:
    """A visitor's value in a message: never long."""
    # Python refuses to write out whole numbers of thousands of digits
    if isinstance(value, int) and abs(value) >= 10**30:
        return "of more than 30 digits"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
