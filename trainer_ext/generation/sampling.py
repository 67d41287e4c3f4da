"""How tokens are chosen: the settings of scripts/generate.py, scripts/compare.py and scripts/evaluate.py, checked."""

import math
from dataclasses import dataclass
from typing import Any

from ..common.cli import LARGEST_NUMBER, UserError, check_seed

DEFAULT_TEMPERATURE = 0.8
DEFAULT_EXPLORATION = 0.3
SMALLEST_TEMPERATURE = 1e-6
LARGEST_PENALTY = 1000


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: always the likeliest (greedy), or beam search; None: that filter is off.

    repetition_penalty: logits of tokens that stand in the prompt or the text are divided by it, negative ones
        multiplied (Keskar et al. 2019, "CTRL", arXiv:1909.05858). 1: off.
    explore: at each token, the probability to sample; otherwise the likeliest token is taken. None: off.
    stop: strings that end a text and are cut off. use_memory: None leaves it to the model.
    """

    max_new_tokens: int = 100
    temperature: float = DEFAULT_TEMPERATURE
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    num_return_sequences: int = 1
    seed: int = 42
    explore: float | None = None
    stop: tuple[str, ...] = ()
    use_cache: bool = True
    use_memory: bool | None = None

    def check(self) -> None:
        """Raises UserError for a value out of range, or values that contradict each other."""
        for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
            if not 1 <= getattr(self, name) <= LARGEST_NUMBER:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1, and at most {LARGEST_NUMBER}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"--temperature {self.temperature}: must be 0 (greedy) or a positive number.")
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise UserError(
                f"--temperature {self.temperature}: logits divided by it overflow; use 0 for the likeliest token each "
                f"time, or at least {SMALLEST_TEMPERATURE}."
            )
        if self.top_k is not None and not 1 <= self.top_k <= LARGEST_NUMBER:
            raise UserError(f"--top_k {self.top_k}: must be at least 1; leave it out to keep every token.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p}: must lie above 0 and not above 1.")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UserError(f"--repetition_penalty {self.repetition_penalty}: must be positive; 1 is no penalty.")
        if not 1 / LARGEST_PENALTY <= self.repetition_penalty <= LARGEST_PENALTY:
            raise UserError(
                f"--repetition_penalty {self.repetition_penalty}: must lie between {1 / LARGEST_PENALTY} and "
                f"{LARGEST_PENALTY}; 1 is no penalty."
            )
        check_seed("--seed", self.seed)
        if "" in self.stop:
            raise UserError("--stop: the empty string stands everywhere; give at least one character.")
        if self.explore is not None:
            self._check_exploration()
        if self.temperature == 0:
            self._check_greedy()
        elif self.num_beams > 1:
            raise UserError(f"--num_beams {self.num_beams} searches and does not sample: add --temperature 0.")

    def _check_exploration(self) -> None:
        if not 0 < self.explore <= 1:
            raise UserError(f"--explore {self.explore}: a probability above 0 and not above 1.")
        if self.temperature == 0:
            raise UserError("--explore samples some of the tokens, --temperature 0 none: leave one of them out.")

    def _check_greedy(self) -> None:
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} chooses among sampled tokens and does nothing with --temperature 0.")
        if self.num_return_sequences > self.num_beams:
            raise UserError(
                f"--num_return_sequences {self.num_return_sequences}: --temperature 0 with --num_beams "
                f"{self.num_beams} finds at most {self.num_beams} texts; sample, or raise --num_beams."
            )

    def generate_arguments(self) -> dict[str, Any]:
        """The settings as arguments of transformers' generate()."""
        sampled = {}
        if self.temperature > 0:
            # transformers' default of top_k is 50; 0 turns the filter off
            sampled = {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": self.top_p or 1.0}
        return {
            "do_sample": self.temperature > 0,
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "num_return_sequences": self.num_return_sequences if self.num_beams > 1 else 1,
            "repetition_penalty": self.repetition_penalty,
            "use_cache": self.use_cache,
            **sampled,
        }
