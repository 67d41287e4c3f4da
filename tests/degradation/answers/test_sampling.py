"""Sampling noise: exact in distribution, and a matter of the row alone."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from frankenlm.degradation.answers.sampling import (
    TOKENS,
    Sampler,
    SamplingSettings,
    draw_of_all,
    gumbel,
    occurrences,
    resolve_sampling,
    sampling_key,
)
from frankenlm.degradation.configs import get_config
from frankenlm.degradation.damage.noise import words

OFF = SamplingSettings(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_p=None, repetition_penalty=1.0)
FILTERS = {
    "off": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "all": {"temperature": 1.3, "top_k": 11, "top_p": 0.9, "min_p": 0.02},
}


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(**{**OFF.__dict__, **changes})


def library_distribution(logits: torch.Tensor, chosen: SamplingSettings) -> torch.Tensor:
    """The probabilities transformers' own filters leave, [vocabulary]."""
    scores = TemperatureLogitsWarper(chosen.temperature)(None, logits[None])
    if chosen.top_k:
        scores = TopKLogitsWarper(chosen.top_k)(None, scores)
    if chosen.top_p < 1:
        scores = TopPLogitsWarper(chosen.top_p)(None, scores)
    if chosen.min_p is not None:
        scores = MinPLogitsWarper(chosen.min_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_librarys_distribution(name):
    """Many draws, chi-square against softmax after transformers' filters: within five standard deviations."""
    chosen = settings(**FILTERS[name])
    draws = 10_000 if chosen.whole_vocabulary else 100_000  # a row at a time, or all together
    logits = 2 * torch.randn(40)
    expected = library_distribution(logits, chosen).double().numpy() * draws
    sampler, counts = Sampler(chosen), np.zeros(40)
    keys = np.array([sampling_key(1, 0, "prompt", 0)] * 1000, dtype=np.uint32)
    for start in range(0, draws, 1000):
        choice = sampler.choose(logits.expand(1000, -1), keys, np.arange(start, start + 1000))
        counts += np.bincount(choice.tokens, minlength=40)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    freedom = kept.sum() - 1
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_a_row_draws_the_same_alone_and_in_company():
    logits = torch.randn(8, 300)
    keys = np.array([sampling_key(42, 0, f"prompt {i}", 0) for i in range(8)], dtype=np.uint32)
    positions = np.arange(8) * 3
    sampler = Sampler(settings(top_k=20, top_p=0.9))
    together = sampler.choose(logits, keys, positions).tokens
    order = np.array([5, 0, 7, 2])
    assert (sampler.choose(logits[order], keys[order], positions[order]).tokens == together[order]).all()
    for row in range(8):
        alone = sampler.choose(logits[row : row + 1], keys[row : row + 1], positions[row : row + 1])
        assert alone.tokens[0] == together[row]


def test_the_noise_of_a_token_is_its_own():
    """The same (key, position, token id) gives the same noise, whatever stands beside it."""
    keys = np.array([[1, 2]], dtype=np.uint32)
    some = gumbel(keys, np.array([4]), np.array([[9, 5, 700]]))
    more = gumbel(keys, np.array([4]), np.array([[700, 9]]))
    assert some[0, 2] == more[0, 0] and some[0, 0] == more[0, 1]
    assert gumbel(keys, np.array([5]), np.array([[9]]))[0, 0] != some[0, 0]


@pytest.mark.parametrize(("spread", "temperature"), [(0.0, 1.0), (0.3, 1.0), (4.0, 0.5), (12.0, 2.0)])
def test_of_the_whole_vocabulary_only_those_that_can_win_are_looked_at(spread, temperature):
    """The same token as when the noise of all is written out, for flat and for peaked scores."""
    rows, size = 40, 3001
    scores = spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(3))
    scores -= scores.max(-1, keepdim=True).values
    keys = np.random.default_rng(3).integers(0, 2**32, (rows, 2), dtype=np.uint32)
    positions = np.arange(rows) * 7
    drawn = draw_of_all(scores, temperature, keys, positions)
    for row in range(rows):
        noise = words((int(keys[row, 0]), int(keys[row, 1])), int(positions[row]) * TOKENS, size)
        gumbels = -np.log(-np.log((noise.astype(np.float64) + 0.5) / 2.0**32))
        assert drawn[row] == ((scores[row] / temperature).double().numpy() + gumbels).argmax()


def test_older_rows_keep_their_noise():
    logits, keys = torch.randn(3, 500), np.ones((3, 2), dtype=np.uint32)
    older, newer = Sampler(settings(), shared_blocks=False), Sampler(settings())
    assert (older.name, newer.name) == ("gumbel_philox", "gumbel_philox4")
    scores = (logits - logits.max(-1, keepdim=True).values).double().numpy()
    tokens = np.broadcast_to(np.arange(500), (3, 500))
    expected = (scores + gumbel(keys, np.arange(3), tokens)).argmax(-1)
    assert older.choose(logits, keys, np.arange(3)).tokens.tolist() == expected.tolist()
    assert Sampler(settings(top_k=5)).name == "gumbel_philox"  # filters cost nothing: their noise is as ever


def test_noise_is_standard_gumbel():
    noise = gumbel(np.array([[3, 4]], dtype=np.uint32), np.array([0]), np.arange(200_000)[None])[0]
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=5 * math.pi / math.sqrt(6 * 200_000))
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_keys_tell_rows_apart():
    base = sampling_key(42, 0, "prompt", 0)
    others = [
        sampling_key(43, 0, "prompt", 0),
        sampling_key(42, 1, "prompt", 0),
        sampling_key(42, 0, "Prompt", 0),
        sampling_key(42, 0, "prompt", 1),
        sampling_key(42, 0, "prompt", 0, "0.5"),
    ]
    assert len({base, *others}) == 6
    assert occurrences(["a", "b", "a", "a"]) == [0, 0, 1, 2]


def test_equal_scores_keep_the_lowest_ids():
    logits = torch.zeros(1, 100)
    logits[0, 90] = 1.0
    keys = np.array([[0, 0]], dtype=np.uint32)
    seen = {int(Sampler(settings(top_k=3)).choose(logits, keys, np.array([i])).tokens[0]) for i in range(200)}
    assert seen == {90, 0, 1}


def test_greedy_is_argmax():
    logits = torch.randn(5, 50)
    choice = Sampler(settings(do_sample=False)).choose(logits, np.zeros((5, 2), dtype=np.uint32), np.zeros(5))
    assert (choice.tokens == logits.argmax(-1).numpy()).all()


@pytest.mark.parametrize("do_sample", [True, False])
def test_penalty_is_the_librarys(do_sample):
    """With so strong a penalty and so cold a softmax, the draw is the library's argmax."""
    logits = torch.randn(3, 30)
    seen = [[1, 2, 3], [4], [29, 0, 0]]
    chosen = settings(do_sample=do_sample, repetition_penalty=1.7, temperature=1e-3)
    choice = Sampler(chosen).choose(logits, np.zeros((3, 2), dtype=np.uint32), np.zeros(3), seen)
    for row in range(3):
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen[row]]), logits[row : row + 1].clone())
        assert choice.tokens[row] == int(expected.argmax())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_row_without_finite_logits_leaves_its_neighbours_alone(bad, do_sample):
    logits = torch.randn(3, 60)
    keys = np.array([[1, 1], [2, 2], [3, 3]], dtype=np.uint32)
    sampler = Sampler(settings(top_k=5, do_sample=do_sample))
    healthy = sampler.choose(logits, keys, np.zeros(3))
    logits[1, 7] = bad
    sick = sampler.choose(logits, keys, np.zeros(3))
    assert sick.finite.tolist() == [True, False, True]
    assert (sick.tokens[[0, 2]] == healthy.tokens[[0, 2]]).all()


def test_log_probabilities_and_entropies_are_the_models():
    """Before temperature and filters, against torch.distributions; a token that is ruled out (-inf) adds nothing."""
    logits = 3 * torch.randn(4, 70)
    logits[:, 11] = -torch.inf
    choice = Sampler(settings(temperature=0.5, top_k=4)).choose(logits, np.ones((4, 2), dtype=np.uint32), np.arange(4))
    reference = torch.distributions.Categorical(logits=logits.double().clamp(min=-1e9))
    tokens = torch.from_numpy(choice.tokens)
    assert choice.finite.all()
    np.testing.assert_allclose(choice.logprobs, reference.log_prob(tokens).numpy(), rtol=1e-5)
    np.testing.assert_allclose(choice.entropies, reference.entropy().numpy(), rtol=1e-5)


def test_open_settings_come_from_the_model_then_are_off():
    config = get_config("smoke") | {"top_k": None, "top_p": None}
    resolved = resolve_sampling(config, GenerationConfig(top_k=64, top_p=0.95))
    assert (resolved.top_k, resolved.top_p) == (64, 0.95)
    nothing = GenerationConfig()
    nothing.top_k = nothing.top_p = None
    resolved = resolve_sampling(config, nothing)
    assert (resolved.top_k, resolved.top_p, resolved.min_p) == (0, 1.0, None)
