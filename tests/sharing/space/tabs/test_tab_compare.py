"""The tab Compare: figures worked out by hand, and what different tokenizers and kinds of models make of them."""

import math

import gradio as gr
import pytest
import torch
import torch.nn.functional as F

from frankenlm.sharing.space.tabs import compare as tab
from frankenlm.sharing.space.tabs.compare import MEASURES, compare, expect, expected_rows, measure, measure_rows, notes
from frankenlm.trainer_ext.common.cli import UserError

TEXT = "the cat sat on a mat, größer"


def named(standing):
    return dict(zip(MEASURES, standing.measures, strict=True))


@pytest.mark.parametrize("name", ["infinito", "hybrid"])
@torch.no_grad()
def test_a_causal_model_by_hand(on_shelf, name):
    opened = on_shelf(name)
    tokenizer, found = opened.tokenizer, measure(opened, TEXT)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = [start, *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    logits = opened.model(input_ids=torch.tensor([ids])).logits[0]
    nats = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").item()
    size = len(TEXT.encode())
    assert named(found) == {
        "bits per byte": pytest.approx(nats / math.log(2) / size, rel=1e-5),
        "perplexity (per token)": pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5),
        "tokens": len(ids) - 1,
        "bytes per token": pytest.approx(size / (len(ids) - 1)),
        "parameters": opened.model.num_parameters(),
        "bytes of weights": sum(
            {each.data_ptr(): each.nbytes for each in (*opened.model.parameters(), *opened.model.buffers())}.values()
        ),
    }
    assert found.kind == "causal" and not opened.lock.locked()
    probabilities, tokens = logits[-1].softmax(-1).topk(5)
    assert [text for text, _ in found.expected] == [tokenizer.decode([token]) for token in tokens]
    assert [share for _, share in found.expected] == pytest.approx(probabilities.tolist(), rel=1e-5)


@torch.no_grad()
def test_a_masked_model_by_hand(on_shelf):
    opened = on_shelf("encoder")
    tokenizer, found = opened.tokenizer, measure(opened, TEXT)
    ids = tokenizer(TEXT)["input_ids"]
    special = set(tokenizer.all_special_ids)
    nats = 0.0
    places = [place for place, token in enumerate(ids) if token not in special]
    for place in places:
        masked = torch.tensor([ids])
        masked[0, place] = tokenizer.mask_token_id
        nats += F.cross_entropy(opened.model(input_ids=masked).logits[0, place], torch.tensor(ids[place])).item()
    assert named(found)["perplexity (per token)"] == pytest.approx(math.exp(nats / len(places)), rel=1e-5)
    assert named(found)["bits per byte"] == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-5)
    assert found.kind == "masked (pseudo-likelihood)"
    last = places[-1] + 1  # a mask behind the text, before what ends it
    masked = torch.tensor([[*ids[:last], tokenizer.mask_token_id, *ids[last:]]])
    best = opened.model(input_ids=masked).logits[0, last].softmax(-1).max().item()
    assert found.expected[0][1] == pytest.approx(best, rel=1e-5)


def test_texts_longer_than_the_model_are_read_in_windows(on_shelf):
    long = measure(on_shelf("infinito"), "x" * 300)
    assert named(long)["tokens"] == 300
    tail = list(range(20, 147))  # with the mask, a text of 127 tokens fills the encoder
    assert expect(on_shelf("encoder"), [5, 6, *tail], 128) == expect(on_shelf("encoder"), tail, 128)
    assert expect(on_shelf("infinito"), [5, 6, *tail, 9], 128) == expect(on_shelf("infinito"), [6, *tail, 9], 128)


def test_what_is_to_be_kept_in_mind(on_shelf):
    infinito, ternary, hybrid, encoder = map(on_shelf, ("infinito", "ternary", "hybrid", "encoder"))
    assert notes([infinito, ternary]) == ""
    assert "bits per byte" in notes([infinito, hybrid]) and "masked" not in notes([infinito, hybrid])
    assert "masked models only" in notes([hybrid, encoder])


def test_tables(on_shelf):
    *_, standings = compare([on_shelf("hybrid"), on_shelf("encoder")], TEXT)
    rows, guesses = measure_rows(standings), expected_rows(standings)
    assert [row[0] for row in rows] == ["kind", *MEASURES] and all(len(row) == 3 for row in rows)
    assert rows[0][1:] == ["causal", "masked (pseudo-likelihood)"]
    assert rows[1][1] == f"{standings[0].measures[0]:.4g}"
    assert [row[0] for row in guesses] == list("12345") and all(row[1].endswith("%)") for row in guesses)


@pytest.mark.parametrize("names", [[], ["infinito"], ["infinito", "infinito"], [f"m{count}" for count in range(7)]])
def test_two_models_at_least(shelf, names):
    with pytest.raises(gr.Error, match="Choose 2 to 6 different models"):
        tab.compare_models(shelf, names, TEXT)


def test_long_texts_are_refused_soonest_by_masked_models(on_shelf, monkeypatch):
    monkeypatch.setattr(tab, "MOST_MASKED", 3)
    with pytest.raises(UserError, match="write at most 3"):
        measure(on_shelf("encoder"), TEXT)
    with pytest.raises(UserError, match="write at most 20"):
        measure(on_shelf("ternary"), TEXT, 20)


def test_what_the_page_asks_for(shelf):
    measures, guesses, words = tab.compare_models(shelf, ["infinito", "encoder"], TEXT)
    assert measures["headers"] == ["measure", "infinito", "encoder"] and "masked models only" in words
    assert guesses["headers"] == ["place", "infinito", "encoder"] and len(guesses["data"]) == 5
    bad = ((["infinito", "../../x"], TEXT), (["infinito", "encoder"], ""), ("infinito", TEXT), ([{}, None], TEXT))
    for names, text in bad:
        with pytest.raises(gr.Error):
            tab.compare_models(shelf, names, text)
