"""The next token of one answer, whatever stands beside it.

The filters are transformers' own, in the order in which its generate() applies them. What is random is Gumbel noise,
added to the filtered scores, whose argmax is then a draw from their softmax exactly (as in
degradation/answers/sampling.py, which has the sources). The noise of a token is a function of (seed, position, token),
by a counter-based generator (Philox): no generator is shared, so an answer belongs to its prompt, options and seed
alone, one at a time or with others in a batch; what a batch changes is rounding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from frankenlm.degradation.damage.noise import derive_key
from frankenlm.trainer_ext.common.cli import Failed

from .options import Options


@dataclass(frozen=True)
class ChosenToken:
    """A token, and where asked for what the model thought of it and of the likeliest ones, before any filter.

    logprob: in nats; None where not asked for. alternatives: (token, logprob), likeliest first.
    """

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class CountPenalties(LogitsProcessor):
    """frequency_penalty and presence_penalty, of the tokens behind the prompt.

    score of a token - frequency * (times it stands in the answer) - presence * (whether it does), as the OpenAI API
    documents them.
    """

    def __init__(self, frequency: float, presence: float, prompt_length: int):
        self.frequency, self.presence, self.prompt_length = frequency, presence, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids (B, L), scores (B, V) -> (B, V)."""
        answer = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class AddedBias(LogitsProcessor):
    """logit_bias: a number added to the scores of single tokens."""

    def __init__(self, bias: dict[int, float]):
        self.tokens, self.values = list(bias), list(bias.values())

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """scores (B, V) -> (B, V)."""
        changed = scores.clone()
        changed[:, self.tokens] += torch.tensor(self.values, dtype=scores.dtype, device=scores.device)
        return changed


def processors(options: Options, prompt_length: int) -> LogitsProcessorList:
    """What changes scores whether or not tokens are drawn."""
    found = LogitsProcessorList()
    if options.logit_bias:
        found.append(AddedBias(dict(options.logit_bias)))
    if options.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.frequency_penalty or options.presence_penalty:
        found.append(CountPenalties(options.frequency_penalty, options.presence_penalty, prompt_length))
    if options.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    return found


def warpers(options: Options) -> LogitsProcessorList:
    """What is left to draw from, and how likely each is; nothing is drawn at temperature 0."""
    found = LogitsProcessorList()
    if options.temperature == 0:
        return found
    if options.temperature != 1:
        found.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k is not None:
        found.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None and options.top_p < 1:
        found.append(TopPLogitsWarper(float(options.top_p)))
    if options.min_p is not None and options.min_p > 0:
        found.append(MinPLogitsWarper(float(options.min_p)))
    if options.typical_p is not None and options.typical_p < 1:
        found.append(TypicalLogitsWarper(float(options.typical_p)))
    return found


class TokenChoice(LogitsProcessor):
    """Chooses the tokens of one answer; `chosen` is the last one.

    As the last processor of generate(do_sample=False) it leaves one finite score.
    """

    def __init__(self, options: Options, seed: int, prompt_length: int):
        self.options, self.prompt_length = options, prompt_length
        self.filters = LogitsProcessorList([*processors(options, prompt_length), *warpers(options)])
        high, low = derive_key(f"answer|{seed}")
        self.key = high << 32 | low
        self.chosen: ChosenToken | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids (1, L), scores (1, V) -> scores (1, V), all but that of the chosen token -inf."""
        self.choose(input_ids, scores)
        return torch.full_like(scores, -torch.inf).index_fill_(
            1, torch.tensor([self.chosen.token], device=scores.device), 0.0
        )

    def choose(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> ChosenToken:
        """Choose the token behind input_ids (1, L), prompt and answer so far, by the model's scores (1, V).

        Raises:
            Failed: the scores are no numbers.
        """
        scores = scores.float()
        if scores.isnan().any() or not torch.isfinite(scores.max()):
            raise Failed("the model's logits are NaN or infinite, so no token can be chosen: its weights are damaged.")
        filtered = self.filters(input_ids, scores)
        if not torch.isfinite(filtered.max()):
            raise Failed("no token is left to choose from: no_repeat_ngram_size or logit_bias forbids them all.")
        if self.options.temperature == 0:
            token = int(filtered.argmax())
        else:
            token = self._draw(filtered[0], input_ids.shape[1] - self.prompt_length)
        self.chosen = self._described(token, scores[0])
        return self.chosen

    def _draw(self, scores: torch.Tensor, position: int) -> int:
        values = scores.double().cpu().numpy()
        (tokens,) = np.nonzero(values > -np.inf)
        numbers = np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, 0, position]))
        uniform = np.maximum(numbers.random(len(values))[tokens], 2.0**-54)  # of [0, 1), whose 0 has no logarithm
        return int(tokens[(values[tokens] - np.log(-np.log(uniform))).argmax()])

    def _described(self, token: int, scores: torch.Tensor) -> ChosenToken:
        if self.options.logprobs is None:
            return ChosenToken(token)
        logprobs = scores.log_softmax(-1)
        values, tokens = logprobs.topk(min(self.options.logprobs, len(logprobs)))
        return ChosenToken(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
