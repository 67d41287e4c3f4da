"""Minimal pairs: what they are, and what a model makes of them against a loop that asks it token by token."""

import collections
import json
import re
import shutil

import pytest
import torch

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer
from frankenlm.trainer_ext.evaluation.minimal_pairs import PAIRS, PHENOMENA, Pair, make_pairs
from frankenlm.trainer_ext.evaluation.pair_scores import ALL, make_pairs_to_score, pair_scorers, score_pairs
from frankenlm.trainer_ext.evaluation.scoring import load_scorer, objective_of_run
from frankenlm.trainer_ext.saving.checkpoint_record import RunRecord, write_record
from frankenlm.trainer_ext.saving.output_folder import AVERAGE

PAIRS_OF_EACH = make_pairs(20)


def test_there_are_enough_and_none_twice():
    pairs = make_pairs()
    assert len(PHENOMENA) >= 10 and PAIRS >= 20
    assert len(set(pairs)) == len(pairs) == PAIRS * len(PHENOMENA)
    assert make_pairs() == pairs != make_pairs(seed=1)
    for name in PHENOMENA:
        of_it = [pair for pair in pairs if pair.phenomenon == name]
        assert len(of_it) == PAIRS and make_pairs(7) != of_it


@pytest.mark.parametrize("phenomenon", sorted(PHENOMENA))
def test_a_pair_is_two_sentences_that_differ_in_one_point(phenomenon):
    for pair in make_pairs():
        if pair.phenomenon != phenomenon:
            continue
        good, bad = pair.good.split(), pair.bad.split()
        assert pair.good != pair.bad and len(good) == len(bad)
        assert sum(one != other for one, other in zip(good, bad, strict=True)) == 1
        assert pair.good[0].isupper() and pair.bad.endswith(".") and "{" not in pair.good + pair.bad


@pytest.mark.parametrize("phenomenon", sorted(PHENOMENA))
def test_a_liking_for_a_form_is_right_half_of_the_time(phenomenon):
    """Whichever of two forms somebody prefers, it is the good one in as many frames as it is the bad one."""
    choices = collections.Counter()
    for frame in PHENOMENA[phenomenon]:
        (forms,) = (pair for pair in zip(frame.good.split(), frame.bad.split(), strict=True) if pair[0] != pair[1])
        choices[tuple(form.casefold() for form in forms)] += 1
    assert choices == {(bad, good): count for (good, bad), count in choices.items()}


@pytest.mark.parametrize("liked", ["the", "no", "a", "each", "many", "most", "often", "ever", "much", "was", "has"])
def test_likings_by_counting_words(liked):
    """The sentences themselves: the good ones have no more of a word than the bad ones, in any phenomenon."""
    counts = dict.fromkeys(PHENOMENA, 0)
    for pair in PAIRS_OF_EACH:
        good, bad = (sentence.casefold().split().count(liked) for sentence in (pair.good, pair.bad))
        counts[pair.phenomenon] += good - bad
    assert set(counts.values()) == {0}


def test_what_is_grammatical_is_in_no_bad_sentence():
    bad = " ".join(pair.bad for pair in make_pairs(40))
    assert not re.search(r"(was|been) (worked|arrived)|what the \w+ lived|(old|new|small|large|good|long) water", bad)


def test_impossible_numbers():
    with pytest.raises(UserError, match="at least 1"):
        make_pairs_to_score(0, 0)
    with pytest.raises(UserError, match=r"fewer than 150 of them; ask for \d+ at most"):
        make_pairs_to_score(150, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two directions that was never trained, with weights that make it opinionated."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer("bytes", documents=[], objective="joint")
    config = FrankensteinConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        layer_pattern=["retnet"],
        two_directions=True,
        initializer_range=1.0,
        mask_token_id=tokenizer.mask_token_id,
    )
    torch.manual_seed(0)
    FrankensteinForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def nats_of(model, tokenizer, sentence: str, masked: bool) -> float:
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
    total = 0.0
    for place in range(1, ids.shape[1]):
        given = ids.clone() if masked else ids[:, :place]
        if masked:
            given[0, place] = tokenizer.mask_token_id
        logits = model(given).logits[0, place if masked else -1]
        total -= logits.log_softmax(-1)[ids[0, place]].item()
    return total


def test_both_ways_of_asking_are_the_loop_over_tokens(model):
    options = {"max_length": 64, "stride": None, "batch_size": 32, "device": "cpu", "trust_remote_code": False}
    scorers = pair_scorers(load_scorer(model, "mlm", **options), model, trust_remote_code=False)
    assert list(scorers) == ["causal", "pseudo"]
    pairs = [pair for pair in make_pairs(1) if pair.phenomenon in sorted(PHENOMENA)[:2]]
    pairs.append(Pair("same", "A tie.", "A tie."))
    for mode, scorer in scorers.items():
        found = score_pairs(scorer, pairs, draws=0, seed=0)
        right = {name: [] for name in (ALL, *sorted({pair.phenomenon for pair in pairs}))}
        with torch.no_grad():
            for pair in pairs:
                good, bad = (nats_of(scorer.model, scorer.tokenizer, text, mode == "pseudo") for text in pair[1:])
                for name in (ALL, pair.phenomenon):
                    right[name].append(0.5 if pair.good == pair.bad else float(good < bad))
        assert {name: entry["value"] for name, entry in found.items()} == pytest.approx(
            {name: sum(values) / len(values) for name, values in right.items()}
        )
        assert found["same"] == {"value": 0.5, "low": None, "high": None, "pairs": 1}


@pytest.mark.parametrize(("objective", "kinds"), [("causal", ["causal"]), ("joint", ["causal", "pseudo"])])
@pytest.mark.parametrize("place", ["", AVERAGE])
def test_a_model_is_asked_what_its_run_learned(model, tmp_path, objective, kinds, place):
    shutil.copytree(model, tmp_path / place, dirs_exist_ok=True)
    (tmp_path / "metrics.json").write_text(json.dumps({"objective": objective}))
    options = {"max_length": 64, "stride": None, "batch_size": 32, "device": "cpu", "trust_remote_code": False}
    folder = str(tmp_path / place)
    scorer = load_scorer(folder, None, **options)
    assert list(pair_scorers(scorer, folder, trust_remote_code=False)) == kinds
    if objective == "causal":
        with pytest.raises(UserError, match="--method mlm does not fit"):
            load_scorer(folder, "mlm", **options)


def test_a_checkpoint_says_what_it_learned(tmp_path):
    assert objective_of_run(tmp_path) is None
    write_record(tmp_path, RunRecord({"objective": "mlm"}), 1, 1)
    assert objective_of_run(tmp_path) == "mlm"


def test_a_sentence_too_long(model):
    options = {"max_length": 20, "stride": None, "batch_size": 8, "device": "cpu", "trust_remote_code": False}
    with pytest.raises(UserError, match="raise --max_length"):
        score_pairs(load_scorer(model, "causal", **options), make_pairs(1), draws=0, seed=0)
