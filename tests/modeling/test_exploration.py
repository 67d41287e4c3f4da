"""Exploration: noise in training that depends on seed, progress, call and process; the sampler that explores."""

import copy

import pytest
import torch

from frankenlm.modeling.exploration import ExplorationNoise, ExplorationSampling
from tiny_infinito import VOCAB, assert_same


def noisy(build_infinito, **fields):
    return build_infinito(exploration_sigma=0.1, **fields)


def test_noise_in_training_only_and_by_the_schedule(build_infinito, tokens):
    model, ids = noisy(build_infinito), tokens(2, 20)
    clean = build_infinito()(ids).logits
    assert torch.equal(model(ids).logits, clean)
    model.train()
    sizes = []
    for progress in (0.0, 0.5, 1.0):
        model.set_exploration(progress)
        assert model.model.exploration.strength == pytest.approx(0.1 * (1 - progress))  # the cosine meets the line here
        sizes.append((model(ids).logits - clean).std().item())
    assert sizes[0] > 1.2 * sizes[1] > 0 and sizes[2] == 0
    model.set_exploration(0.25)
    assert model.model.exploration.strength == pytest.approx(0.1 * (1 + 0.5**0.5) / 2)
    constant = noisy(build_infinito, exploration_schedule="constant")
    constant.set_exploration(1.0)
    assert constant.model.exploration.strength == 0.1


def test_noise_is_as_large_as_told_and_has_no_gradient(build_infinito):
    noise = noisy(build_infinito).train().model.exploration
    x = (torch.randn(4, 50, 32) * torch.tensor([1.0, 10.0, 0.1, 0.0])[:, None, None]).requires_grad_()
    added = noise(x) - x
    sizes, rms = added.square().mean((1, 2)).sqrt(), x.square().mean((1, 2)).sqrt()
    torch.testing.assert_close(sizes, 0.1 * rms, rtol=0.1, atol=1e-9)
    assert torch.equal(torch.autograd.grad(noise(x).sum(), x)[0], torch.ones_like(x))


def test_noise_has_a_generator_of_its_own(build_infinito, tokens):
    ids = tokens(2, 20)

    def run(**fields):
        model = noisy(build_infinito, **fields).train()
        return torch.stack([model(ids).logits for _ in range(2)])

    before = torch.get_rng_state()
    first = run()
    torch.manual_seed(99)
    again = run()
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert not torch.equal(first, run(exploration_seed=1))
    model = noisy(build_infinito).train()
    torch.set_rng_state(before)
    model(ids)
    assert torch.equal(before, torch.get_rng_state())
    copy.deepcopy(model)


def test_a_resumed_training_meets_the_noise_of_the_unbroken_one(build_infinito, tokens):
    """The noise of a step depends on its progress, not on how many steps this process has made."""
    ids, model = tokens(2, 20), noisy(build_infinito).train()
    for step in range(4):
        model.set_exploration(step / 4)
        unbroken = model(ids).logits
    resumed = noisy(build_infinito).train()
    resumed.set_exploration(3 / 4)
    assert torch.equal(resumed(ids).logits, unbroken)
    resumed.set_exploration(2 / 4)
    assert not torch.equal(resumed(ids).logits, unbroken)


def drawn(progress: float, calls: int = 1, seed: int = 3) -> torch.Tensor:
    """The noise of the last of some calls; its strength never changes, so that any difference is the draw's."""
    noise = ExplorationNoise(0.1, "constant", seed).train()
    noise.set_progress(progress)
    for _ in range(calls):
        last = noise(torch.ones(2, 3, 8))
    return last


def test_noise_depends_on_seed_progress_and_call():
    base = drawn(0.25)
    assert torch.equal(drawn(0.25), base)
    for other in (drawn(0.5), drawn(0.2500001), drawn(0.25, calls=2), drawn(0.25, seed=4)):
        assert (other != base).all()


def test_processes_that_train_together_draw_different_noise(monkeypatch):
    alone = drawn(0.25)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    draws = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        draws.append(drawn(0.25))
        assert torch.equal(drawn(0.25), draws[rank])
    assert torch.equal(draws[0], alone)
    assert (draws[1] != draws[0]).all() and (draws[2] != draws[0]).all() and (draws[2] != draws[1]).all()


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_the_run_is_refused(build_infinito, progress):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        build_infinito().set_exploration(progress)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_meets_the_same_noise(build_infinito, tokens, reentrant):
    ids, gradients = tokens(2, 20), []
    for checkpointing in (False, True):
        model = noisy(build_infinito, dropout=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_same(gradients[1][name], gradient)


def test_sampler_explores_as_often_as_told_and_is_greedy_otherwise():
    ids = torch.randint(VOCAB, (4000, 6))
    scores = torch.randn(4000, 11)
    sampler = ExplorationSampling(probability=0.3, temperature=0.7, seed=4)
    explores, result = sampler.explores(ids), sampler(ids, scores)
    assert explores.double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(result[explores], scores[explores] / 0.7)
    greedy = result[~explores]
    assert torch.equal(greedy.argmax(1), scores[~explores].argmax(1)) and greedy.isfinite().sum(1).eq(1).all()
    assert not ExplorationSampling(0.0).explores(ids).any() and ExplorationSampling(1.0).explores(ids).all()
    other = ExplorationSampling(0.3, seed=5).explores(ids)
    assert (other & explores).double().mean().item() == pytest.approx(0.09, abs=0.02)
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    assert (sampler.explores(longer) & explores).double().mean().item() == pytest.approx(0.09, abs=0.02)


def test_sampler_decides_by_the_rows_own_tokens():
    ids = torch.randint(1, VOCAB, (64, 6))
    sampler = ExplorationSampling(seed=4, pad_token_id=0)
    together = sampler.explores(ids)
    assert torch.equal(torch.cat([sampler.explores(row[None]) for row in ids]), together)
    assert torch.equal(sampler.explores(ids.flip(0)), together.flip(0))
    padded = torch.cat([torch.zeros(64, 5, dtype=torch.long), ids], dim=1)
    assert torch.equal(sampler.explores(padded), together)
    assert not torch.equal(ExplorationSampling(seed=4).explores(padded), together)
    inner = ids.clone()
    inner[:, 3] = 0
    assert not torch.equal(sampler.explores(inner), together)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, r"probability=1\.5 must lie in \[0, 1\]"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be positive"),
        ({"temperature": float("nan")}, "temperature=nan must be positive"),
        ({"seed": -1}, "seed=-1 must lie in"),
    ],
)
def test_sampler_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExplorationSampling(**arguments)


def test_generation_explores(build_infinito, tokens):
    model, prompts = build_infinito(), tokens(2, 6)
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 20, "pad_token_id": 0, "top_k": 0}
    greedy = model.generate(prompts, do_sample=False, **{**options, "top_k": None})
    never, always = (
        model.generate(prompts, do_sample=True, logits_processor=[ExplorationSampling(p, 2.0)], **options)
        for p in (0.0, 1.0)
    )
    assert torch.equal(never, greedy) and not torch.equal(always, greedy)
