"""Sampling whose draws belong to the row, not to the batch.

A token is the argmax of score + Gumbel noise, which is a draw from softmax(score) exactly (Gumbel 1954; Maddison,
Tarlow and Minka 2014, "A* Sampling", arXiv:1411.0030). The noise of a token is a hash of (seed, repeat, prompt,
position, token id), so it does not depend on which rows stand in the batch, on their order, or on what was drawn
before. The level is not in the hash: neighbouring levels of a repeat share their noise, and their curves are smoother.

Where every token of the vocabulary may be drawn (top_k 0, top_p 1, no min_p), four tokens share a block of the hash
and only the few that can win are looked at: a token wins with noise g = -log(-log u) only if (1 - u) is at most
exp(score - best), since exp(-x) >= 1 - x. Journals begun before rows said so keep the older words, a block a token.

What is left of the batch is rounding: matrix kernels round differently for different shapes (transformers #25921).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor

from ..configs import ExperimentConfig
from ..damage.noise import derive_key, fill_words, philox4x32

TOKENS = 1 << 24  # words of a position: more than any vocabulary has tokens
SLACK = 0.999  # for what float32 rounds


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is chosen, with every default resolved. top_k 0, top_p 1, min_p None, repetition_penalty 1: off."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None
    repetition_penalty: float

    @property
    def whole_vocabulary(self) -> bool:
        """Whether every token may be drawn."""
        return self.do_sample and self.top_k == 0 and self.top_p >= 1 and self.min_p is None

    def as_row(self, max_new_tokens: int) -> dict[str, Any]:
        """Return the row's `gen_params`."""
        return {
            "temperature": self.temperature,
            "do_sample": self.do_sample,
            "max_new_tokens": max_new_tokens,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "min_p": self.min_p,
        }


def resolve_sampling(config: ExperimentConfig, defaults: GenerationConfig) -> SamplingSettings:
    """Return the experiment's settings; what it leaves open comes from the model's generation config, then is off."""
    top_k = config.top_k if config.top_k is not None else defaults.top_k
    top_p = config.top_p if config.top_p is not None else defaults.top_p
    min_p = config.min_p if config.min_p is not None else defaults.min_p
    return SamplingSettings(
        do_sample=config.do_sample,
        temperature=config.temperature,
        top_k=top_k or 0,
        top_p=1.0 if top_p is None else top_p,
        min_p=min_p,
        repetition_penalty=config.repetition_penalty,
    )


def occurrences(texts: Sequence[str]) -> list[int]:
    """Return, for each text, how many equal ones stand before it: equal prompts get different noise."""
    seen: dict[str, int] = {}
    numbers = []
    for text in texts:
        numbers.append(seen.get(text, 0))
        seen[text] = numbers[-1] + 1
    return numbers


def sampling_key(
    seed_base: int, repeat_index: int, prompt_text: str, occurrence: int, level: str | None = None
) -> tuple[int, int]:
    """Return the Philox key of a row's noise.

    Args:
        occurrence: how many equal prompts stand before this one.
        level: the level's key, to give every level noise of its own; None to share it.
    """
    digest = hashlib.sha1(prompt_text.encode("utf-8")).hexdigest()
    text = f"gen1|{seed_base}|{repeat_index}|{digest}|{occurrence}"
    return derive_key(text if level is None else f"{text}|{level}")


def gumbel(keys: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return standard Gumbel noise, float64 [b, k].

    Args:
        keys: uint32 [b, 2], a row's key; positions: [b], the index of the generated token; tokens: [b, k], token ids.
    """
    key = (keys[:, 0:1], keys[:, 1:2])
    words = philox4x32((positions[:, None].astype(np.uint32), tokens.astype(np.uint32), 0, 0), key)[0]
    uniform = (words.astype(np.float64) + 0.5) / 2.0**32
    return -np.log(-np.log(uniform))


def draw_of_all(scores: torch.Tensor, temperature: float, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the argmax of scores / temperature + Gumbel noise, int64 [b], of equal ones the lowest token.

    Args:
        scores: [b, vocabulary], the largest of each row 0. keys: uint32 [b, 2]; positions: [b].
    """
    chosen = np.empty(len(scores), dtype=np.int64)
    words = np.empty(scores.shape[-1], dtype=np.uint32)
    for row, values in enumerate((scores / temperature).cpu().numpy()):
        fill_words((int(keys[row, 0]), int(keys[row, 1])), int(positions[row]) * TOKENS, words)
        # of each token exp(score) / (1 - u), but for a factor: nearly in the order of the noisy scores
        ratio = np.exp(values) / (np.invert(words).astype(np.float32) + np.float32(0.5))
        best = _noisy(values, words, np.array([ratio.argmax()]))[0]
        able = np.flatnonzero(ratio >= np.float32(math.exp(best) / 2.0**32 * SLACK))
        chosen[row] = able[_noisy(values, words, able).argmax()]
    return chosen


def _noisy(values: np.ndarray, words: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    uniform = (words[tokens].astype(np.float64) + 0.5) / 2.0**32
    return values[tokens].astype(np.float64) - np.log(-np.log(uniform))


@dataclass(frozen=True)
class Choice:
    """The next token of each of b rows, and what the model thought of it (nats, before temperature and filters)."""

    tokens: np.ndarray  # int64 [b]
    logprobs: np.ndarray  # float64 [b]
    entropies: np.ndarray  # float64 [b]
    finite: np.ndarray  # bool [b]; where False, the logits held NaN or Inf and the other entries mean nothing


class Sampler:
    """Chooses tokens: fp32 cast, finite check, penalty, temperature, top-k, top-p, min-p, Gumbel noise, argmax.

    shared_blocks: noise of the whole vocabulary as the module says; False: as in rows that were written before that.
    """

    def __init__(self, settings: SamplingSettings, shared_blocks: bool = True):
        self.settings = settings
        self.shared_blocks = shared_blocks and settings.whole_vocabulary

    @property
    def name(self) -> str:
        """What rows call the noise."""
        return "gumbel_philox4" if self.shared_blocks else "gumbel_philox"

    def choose(
        self,
        logits: torch.Tensor,
        keys: np.ndarray,
        positions: np.ndarray,
        seen: Sequence[Sequence[int]] | None = None,
    ) -> Choice:
        """Choose the next token of every row.

        Args:
            logits: [b, vocabulary], any float type and device.
            keys: uint32 [b, 2]; positions: [b], how many tokens the row has generated.
            seen: the tokens of each row so far, prompt included; needed where a repetition penalty is set.
        """
        scores = logits.float()
        top = scores.amax(dim=-1)
        shifted = scores - top[:, None]
        weights = shifted.exp()
        mass = weights.sum(-1)
        # the entropy of softmax: log Z - E[score]; a token without mass adds nothing, also where its score is -inf and
        # the product no number. A row that holds such logits itself is not finite.
        entropies = mass.log() - weights.mul_(shifted).nansum(-1) / mass
        finite = torch.isfinite(mass) & torch.isfinite(top)
        rows = torch.arange(len(scores), device=scores.device)
        if self.settings.repetition_penalty != 1:
            shifted = self._penalised(scores, seen) - top[:, None]
        if self.settings.do_sample:
            usable = shifted if bool(finite.all()) else torch.where(finite[:, None], shifted, 0)
            chosen = torch.from_numpy(self._draw(usable, keys, positions)).to(scores.device)
        else:
            chosen = shifted.argmax(-1)
        logprobs = scores[rows, chosen] - top - mass.log()
        return Choice(
            *(
                part.double().cpu().numpy() if part.is_floating_point() else part.cpu().numpy()
                for part in (chosen, logprobs, entropies, finite)
            )
        )

    def _penalised(self, scores: torch.Tensor, seen: Sequence[Sequence[int]] | None) -> torch.Tensor:
        """CTRL's penalty (arXiv:1909.05858): logits of tokens that were there are divided, negative ones multiplied."""
        if seen is None:
            raise ValueError("a repetition penalty needs the tokens of every row so far.")
        scores, penalty = scores.clone(), self.settings.repetition_penalty
        for row, tokens in zip(scores, seen, strict=True):
            ids = torch.tensor(sorted(set(tokens)), device=row.device)
            row[ids] = torch.where(row[ids] > 0, row[ids] / penalty, row[ids] * penalty)
        return scores

    def _draw(self, scores: torch.Tensor, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the drawn token ids, int64 [b]. From the survivors of top-k on, in float64 on the CPU."""
        if self.shared_blocks:
            return draw_of_all(scores, self.settings.temperature, keys, positions)
        values, tokens = self._survivors(scores)
        values = values / self.settings.temperature
        keep = self._nucleus(values)
        noisy = np.where(keep, values + gumbel(keys, positions, tokens), -np.inf)
        return np.take_along_axis(tokens, noisy.argmax(-1)[:, None], -1)[:, 0]

    def _survivors(self, scores: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best scores (float64) and their tokens, best first, ties by token id."""
        settings, size = self.settings, scores.shape[-1]
        k = min(settings.top_k or size, size)
        if k == size and settings.top_p >= 1 and settings.min_p is None:
            values = scores.double().cpu().numpy()
            return values, np.broadcast_to(np.arange(size), values.shape)
        # one more than k tells whether equal scores lie across the border
        values, tokens = (part.cpu().numpy() for part in torch.topk(scores, min(k + 1, size)))
        tied = np.flatnonzero(values[:, k - 1] == values[:, k]) if k < size else ()
        values, tokens = values[:, :k], tokens[:, :k]
        order = np.lexsort((tokens, -values))
        values, tokens = np.take_along_axis(values, order, -1), np.take_along_axis(tokens, order, -1)
        for row in tied:
            # topk keeps any of several equal scores at its border; the promise is the lowest ids
            border = values[row, -1]
            kept = int((values[row] == border).sum())
            at_border = (scores[row] == float(border)).nonzero()[:kept, 0]
            tokens[row, k - kept :] = at_border.cpu().numpy()
        return values.astype(np.float64), tokens

    def _nucleus(self, values: np.ndarray) -> np.ndarray:
        """Return which survivors top-p and min-p keep; the likeliest always stays."""
        settings = self.settings
        keep = np.ones(values.shape, dtype=bool)
        if settings.top_p >= 1 and settings.min_p is None:
            return keep
        weights = np.exp(values - values[:, :1])
        before = np.cumsum(weights, axis=-1) - weights
        if settings.top_p < 1:
            # Holtzman et al. 2020, arXiv:1904.09751: the smallest set of likeliest tokens that holds the mass p
            keep &= before < settings.top_p * weights.sum(-1, keepdims=True)
        if settings.min_p is not None:
            keep &= weights >= settings.min_p
        return keep


class RowSampling(LogitsProcessor):
    """The sampler as the last processor of `generate(do_sample=False)`: all but the chosen token become -inf.

    It also writes down what `generate` forgets: log-probabilities, entropies, and rows whose logits were not finite,
    which are ended with `stop_id`.
    """

    def __init__(self, sampler: Sampler, keys: np.ndarray, prompt_lengths: Sequence[int], padded: int, stop_id: int):
        self.sampler, self.keys, self.stop_id = sampler, keys, stop_id
        self.prompt_lengths, self.padded_length = prompt_lengths, padded
        self.choices: list[Choice] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids [b, prompt + generated], scores [b, vocabulary] -> scores with one finite entry a row."""
        positions = np.full(len(scores), input_ids.shape[1] - self.padded_length)
        # prompts are padded on the left, and a pad may be a stop token: it must not count as said
        pads = [self.padded_length - length for length in self.prompt_lengths]
        seen = [row[pad:] for row, pad in zip(input_ids.tolist(), pads, strict=True)]
        choice = self.sampler.choose(scores, self.keys, positions, seen)
        self.choices.append(choice)
        chosen = torch.from_numpy(np.where(choice.finite, choice.tokens, self.stop_id)).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)
