"""How the next token is chosen: the distribution it is drawn from, the penalties by hand, and what is refused."""

import math

import pytest
import torch

from frankenlm.sharing.live.choosing import TokenChoice, processors
from frankenlm.sharing.live.options import BadOption, Options, check_answer_seed, check_stops
from frankenlm.trainer_ext.common.cli import Failed


def drawn(scores, options, draws=2000):
    """How often each token is drawn behind prompts of growing length, seeds differing."""
    counts = torch.zeros(len(scores))
    row = torch.tensor([scores])
    for seed in range(draws):
        counts[TokenChoice(options, seed, 1).choose(torch.tensor([[0]]), row).token] += 1
    return counts / draws


def test_tokens_are_drawn_from_the_filtered_softmax():
    scores = [1.0, 0.0, -1.0, 2.0]
    expected = (torch.tensor(scores) / 0.5).softmax(-1)
    assert torch.allclose(drawn(scores, Options(temperature=0.5)), expected, atol=0.04)
    kept = torch.tensor([1.0, -math.inf, -math.inf, 2.0]).softmax(-1)
    assert torch.allclose(drawn(scores, Options(top_k=2), 1000), kept, atol=0.05)
    assert drawn(scores, Options(top_p=0.5), 50)[3] == 1
    assert drawn(scores, Options(top_p=0), 50)[3] == 1
    assert drawn(scores, Options(min_p=0.9), 50)[3] == 1
    assert drawn(scores, Options(temperature=0), 5)[3] == 1


def test_the_noise_changes_from_token_to_token():
    choice = TokenChoice(Options(), 5, 1)
    tokens = {choice.choose(torch.zeros(1, 1 + n, dtype=torch.long), torch.zeros(1, 50)).token for n in range(20)}
    assert len(tokens) > 10


def test_count_penalties_by_hand():
    options = Options(frequency_penalty=0.5, presence_penalty=0.25)
    ids = torch.tensor([[3, 3, 1, 1, 2]])  # the prompt is 3 3: it does not count
    changed = processors(options, prompt_length=2)(ids, torch.zeros(1, 5))
    assert changed.tolist() == [[0, -1.25, -0.75, 0, 0]]


def test_bias_and_repetition_by_hand():
    options = Options(logit_bias={4: 2.5}, repetition_penalty=2.0)
    changed = processors(options, prompt_length=1)(torch.tensor([[1, 2]]), torch.tensor([[1.0, 1.0, -1.0, 1.0, 0.0]]))
    assert changed.tolist() == [[1.0, 0.5, -2.0, 1.0, 2.5]]


@pytest.mark.parametrize("temperature", [0, 1])
def test_where_no_token_is_left_it_is_told(temperature):
    choice = TokenChoice(Options(temperature=temperature, no_repeat_ngram_size=1), 0, 2)
    with pytest.raises(Failed, match="no token is left"):
        choice.choose(torch.tensor([[0, 1]]), torch.zeros(1, 2))


NAN, INF = math.nan, math.inf
REFUSED = [
    ("temperature", -0.1),
    ("temperature", NAN),
    ("temperature", INF),
    ("temperature", 1e-9),
    ("temperature", "hot"),
    ("temperature", True),
    ("top_p", -0.5),
    ("top_p", 1.5),
    ("top_k", 0),
    ("top_k", 2.5),
    ("min_p", -1),
    ("typical_p", 0),
    ("repetition_penalty", 0),
    ("repetition_penalty", NAN),
    ("frequency_penalty", 2.1),
    ("presence_penalty", -3),
    ("no_repeat_ngram_size", -1),
    ("max_new_tokens", 0),
    ("max_new_tokens", 10**5000),
    ("num_beams", 17),
    ("num_beams", 2),  # beside temperature 1
    ("logprobs", 21),
    ("logit_bias", {3: NAN}),
    ("logit_bias", {3: 101}),
]


@pytest.mark.parametrize(
    ("name", "value"), REFUSED, ids=[f"{name}-{number}" for number, (name, _) in enumerate(REFUSED)]
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(BadOption) as caught:
        Options(**{name: value}).check()
    assert caught.value.name == name
    assert str(caught.value).startswith(name)
    assert len(str(caught.value)) < 200


def test_stops_and_seeds_out_of_range_are_named():
    for stop in ([""], ["x" * 300], ["x"] * 17):
        with pytest.raises(BadOption, match="stop"):
            check_stops(stop)
    for seed in (2**63, 1.5, "x", True, 10**5000):
        with pytest.raises(BadOption, match="seed"):
            check_answer_seed(seed)
    assert Options().check() == Options()
