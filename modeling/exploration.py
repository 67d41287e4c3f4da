"""Exploration: noise on the residual stream while training, and a sampler that is greedy most of the time.

Both draw from generators of their own, so that neither disturbs, nor depends on, torch's global one.
Shapes: B batch, L length, D hidden, V vocabulary.
"""

import math

import torch
from torch import nn
from transformers import LogitsProcessor

from .norms import at_least_float32

# Constants of splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit integers.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST_MIXER = 0xBF58476D1CE4E5B9 - 2**64
SECOND_MIXER = 0x94D049BB133111EB - 2**64


def mix_bits(x: torch.Tensor) -> torch.Tensor:
    """Return int64 x with its bits well mixed: splitmix64's output function; overflow wraps."""
    x = x + GOLDEN_GAMMA
    x = (x ^ _shift_right(x, 30)) * FIRST_MIXER
    x = (x ^ _shift_right(x, 27)) * SECOND_MIXER
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift as if x were unsigned."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


class ExplorationNoise(nn.Module):
    """x + sigma * schedule * rms(x) * noise in training, x itself otherwise.

    sigma is a setting, not a parameter: learned, it would fall to 0. The rms is that of each token, without gradient.
    The n-th call since the progress was told draws from a generator seeded by (seed, progress, n): same seed, same
    noises, whatever else is drawn, and also after training was interrupted and resumed. Processes that train together
    draw different ones.

    Args:
        schedule: "cosine", from 1 at progress 0 down to 0 at progress 1, or "constant".
    """

    def __init__(self, sigma: float, schedule: str, seed: int):
        super().__init__()
        self.sigma = sigma
        self.schedule = schedule
        self.seed = seed
        self.progress = 0.0
        self.calls = 0

    def set_progress(self, progress: float) -> None:
        """Tell how much of the training is done, in [0, 1].

        Raises:
            ValueError: progress lies outside.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress={progress} must lie in [0, 1]: the share of the training that is done.")
        self.progress = float(progress)
        self.calls = 0

    @property
    def strength(self) -> float:
        """Return the noise's present size, relative to the stream's rms."""
        if self.schedule == "constant":
            return self.sigma
        return self.sigma * 0.5 * (1 + math.cos(math.pi * self.progress))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (B, L, D) to the same shape; a token of zeros, as pads are, stays zero."""
        if not self.training or self.strength == 0:
            return x
        return x + (self.strength * token_rms(x.detach()) * self.draw(x)).to(x.dtype)

    @torch.compiler.disable
    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """Return standard normal noise of x's shape, in at least float32."""
        progress = torch.tensor(self.progress, dtype=torch.float64).view(torch.int64)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        seed = mix_bits(mix_bits(mix_bits(torch.tensor(self.seed)) + progress) + self.calls)
        seed = (mix_bits(seed + rank) if rank else seed).item()
        self.calls += 1
        generator = torch.Generator(x.device).manual_seed(seed)
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=at_least_float32(x[:0]).dtype)


def token_rms(x: torch.Tensor) -> torch.Tensor:
    """Return (B, L, 1), the root mean square of each token of x (B, L, D), in at least float32."""
    return at_least_float32(x).square().mean(-1, keepdim=True).sqrt()


class ExplorationSampling(LogitsProcessor):
    """For generate(do_sample=True): now and then a token is sampled with a temperature, else the likeliest is taken.

    Whether a row explores at a step depends on the seed and on the row's own tokens so far, by a hash: not on its
    batch, its place in it, or padding at its left. So there is no state and nothing to reset: the same text meets the
    same decision again, two rows with the same tokens decide alike, and another seed decides otherwise. Which token
    is then drawn is up to generate()'s own sampling.

    Args:
        probability: how often to explore, in [0, 1].
        temperature: of the sampling when exploring, positive.
        seed: of the decisions, not negative.
        pad_token_id: leading tokens of this id are padding and do not enter the hash.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self, probability: float = 0.3, temperature: float = 1.0, seed: int = 0, pad_token_id: int | None = None
    ):
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must lie in [0, 1].")
        if not temperature > 0 or math.isinf(temperature):
            raise ValueError(f"temperature={temperature} must be positive and finite; probability=0 is greedy.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must lie in [0, 2**63).")
        self.probability = probability
        self.temperature = temperature
        self.seed = seed
        self.pad_token_id = pad_token_id

    def explores(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Return (B,) bool for the tokens so far, input_ids (B, L)."""
        chance = self._uniform(input_ids)
        return chance < self.probability

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Map scores (B, V) to tempered ones in rows that explore, and to the best one alone elsewhere."""
        best = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.argmax(1, keepdim=True), True)
        greedy = scores.masked_fill(~best, float("-inf"))
        return torch.where(self.explores(input_ids)[:, None], scores / self.temperature, greedy)

    def _uniform(self, input_ids):
        """Return (B,) float64 in [0, 1): a polynomial in the mixed tokens, counted from the end, mixed once more."""
        tokens = mix_bits(input_ids.long() + self.seed)
        if self.pad_token_id is not None:
            tokens = tokens * ((input_ids != self.pad_token_id).cumsum(1) > 0)
        powers = torch.full_like(input_ids[0], GOLDEN_GAMMA, dtype=torch.int64).cumprod(0).flip(0)
        digest = mix_bits((tokens * powers).sum(1) ^ self.seed)
        return _shift_right(digest, 11).double() * 2.0**-53
