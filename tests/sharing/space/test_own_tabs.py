"""Generate, Fill mask and Ternary as functions, without the page."""

import pytest
import torch

from frankenlm.sharing.space.tabs.fill_mask import GUESSES, fill_mask, fill_masks
from frankenlm.sharing.space.tabs.generate import generate, stopped
from frankenlm.sharing.space.tabs.ternary import PackedTwin, compare_texts, ternary, weight_bytes

gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'frankenlm[app]'")
POSITIONS = 24  # of the random models


def generated(shelf, **changed) -> tuple[str, str]:
    values = {
        "model": "tiny/infinito",
        "prompt": "Return a list of",
        "max_new_tokens": 12,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "typical_p": 1,
        "repetition_penalty": 1,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "seed": 42,
        "stop": "",
    }
    return list(generate(shelf, **values | changed))[-1]


@pytest.mark.parametrize("model", ["tiny/infinito", "tiny/legacy-1bit", "runs/deep/gpt2"])
def test_every_causal_model_writes(shelf, model):
    text, how = generated(shelf, model=model)
    assert text and how.startswith("12 tokens in ")
    assert generated(shelf, model=model)[0] == text != generated(shelf, model=model, seed=43)[0]


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 1.5}, True),
        ({"top_k": 1}, True),
        ({"top_p": 0.05}, True),
        ({"min_p": 1.0}, True),
        ({"typical_p": 0.05}, True),
        ({"repetition_penalty": 3}, True),
        ({"temperature": 0, "num_beams": 4}, True),
        ({"top_k": 2**31 - 1}, False),
        ({"seed": 42.0, "max_new_tokens": 40.0}, False),
    ],
)
def test_every_option_does_something(shelf, options, differs):
    text, how = generated(shelf, **{"max_new_tokens": 40} | options)
    assert how.startswith("40 tokens") and (text != generated(shelf, max_new_tokens=40)[0]) is differs


def test_no_ngram_twice(shelf):
    plain, _ = generated(shelf, temperature=0, max_new_tokens=60)
    single, _ = generated(shelf, temperature=0, max_new_tokens=60, no_repeat_ngram_size=2)
    assert plain.count("number of the number") > 1 >= single.count("number of the number")


def test_stop_strings(shelf):
    text, how = generated(shelf, temperature=0, max_new_tokens=60, stop="no such text\nnumber")
    assert text == generated(shelf, temperature=0, max_new_tokens=60)[0].partition("number")[0]
    assert how.endswith("ended by itself or at a stop string")
    assert "\n" not in generated(shelf, max_new_tokens=60, stop=r"\n")[0]


def test_what_stands_below_a_stopped_answer():
    assert stopped("3 tokens in 0.1 s, 30 tokens/s ...") == "3 tokens in 0.1 s, 30 tokens/s; stopped"
    assert stopped("3 tokens; as long as asked for") == "3 tokens; as long as asked for"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "../../x"}, "no model '../../x'"),
        ({"model": "tiny/mini"}, "not of the kind"),
        ({"prompt": ""}, "The text is empty"),
        ({"prompt": " \n\t"}, "The text is empty"),
        ({"prompt": None}, "must be text"),
        ({"prompt": {"a": 1}}, "must be text"),
        ({"prompt": "x" * 1_000_000}, "has 1,000,000 characters; write at most 4,000"),
        ({"prompt": "\ud835"}, "half a character"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "word " * 700}, "this page takes at most 1,024|the model has positions for 256"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 must be a whole number from 1 to 256"),
        ({"max_new_tokens": 257}, "from 1 to 256"),
        ({"max_new_tokens": 2.5}, "whole number"),
        ({"max_new_tokens": "many"}, "no number"),
        ({"max_new_tokens": None}, "no number"),
        ({"temperature": -1}, "temperature -1.0: must lie between 0"),
        ({"temperature": float("nan")}, "no number"),
        ({"temperature": float("inf")}, "no number"),
        ({"temperature": 1e-9}, "overflow"),
        ({"top_p": -0.1}, "top_p -0.1"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"min_p": -0.1}, "min_p"),
        ({"typical_p": 2}, "typical_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"num_beams": 4}, "num_beams 4 searches and does not sample: set temperature 0"),
        ({"num_beams": 100, "temperature": 0}, "from 1 to 8"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"seed": [1]}, "seed"),
        ({"stop": "a\nb\nc\nd\ne"}, "5 strings; at most 4"),
        ({"stop": "x" * 1000}, "give at most 200"),
        ({"stop": 5}, "must be text"),
    ],
)
def test_a_visitor_is_told(shelf, changed, message):
    with pytest.raises(gr.Error, match=message) as caught:
        generated(shelf, **changed)
    assert "\n" not in caught.value.message and len(caught.value.message) < 500


def test_errors_of_our_own_are_told_and_logged(shelf, monkeypatch, caplog):
    def broken(*inputs, **named):
        raise ZeroDivisionError("of a secret")

    monkeypatch.setattr("frankenlm.sharing.space.tabs.generate.answer", broken)
    with pytest.raises(gr.Error, match=r"an error of its own \(ZeroDivisionError\); its log has more") as caught:
        generated(shelf)
    assert "secret" not in caught.value.message and "of a secret" in caplog.text


@pytest.mark.parametrize("prompt", ["<script>alert(1)</script>", "\x01\x02\x1b[31m", "größer 漢字 😀", "a" * 250])
def test_odd_texts_do_no_harm(shelf, prompt):
    assert generated(shelf, model="tiny/legacy-1bit", prompt=prompt)[1].startswith("12 tokens")


# --- fill mask


@pytest.mark.parametrize("model", ["tiny/mini", "runs/bert", "runs/roberta"])
def test_every_mask_is_filled(shelf, model):
    filled, guesses = fill_mask(shelf, model, "the <mask> sat on<mask>")
    assert "mask" not in filled and [row[0] for row in guesses] == [1] * GUESSES + [2] * GUESSES
    for mask in (1, 2):
        values = [probability for number, _, probability in guesses if number == mask]
        assert values == sorted(values, reverse=True) and 0 < sum(values) <= 1.001


def test_each_mask_gets_its_own_guess(shelf):
    filled, guesses = fill_mask(shelf, "tiny/mini", "If the <mask> is not given, the <mask> is used.")
    first, second = guesses[0][1], guesses[GUESSES][1]
    assert first != second and filled == f"If the{first} is not given, the{second} is used."


def test_guesses_are_the_models(shelf):
    opened = shelf.open("tiny/mini")
    _, guesses = fill_masks(opened, "the<mask> of a<mask>", 5)
    ids = torch.tensor([opened.tokenizer("the<mask> of a<mask>")["input_ids"]])
    with torch.inference_mode():
        probabilities = opened.model(input_ids=ids).logits.softmax(-1)
    for mask, place in enumerate((ids[0] == opened.tokenizer.mask_token_id).nonzero().flatten().tolist(), 1):
        values, tokens = probabilities[0, place].topk(GUESSES)
        mine = [guess for guess in guesses if guess.mask == mask]
        assert [guess.probability for guess in mine] == pytest.approx(values.tolist(), abs=1e-5)
        assert [guess.text for guess in mine] == [opened.tokenizer.decode([token]) for token in tokens.tolist()]


def test_another_models_mask_is_understood(shelf):
    assert fill_mask(shelf, "tiny/mini", "the [MASK] sat") == fill_mask(shelf, "tiny/mini", "the <mask> sat")
    assert fill_mask(shelf, "runs/bert", "<mask>" + " a" * (POSITIONS - 1)), "as many tokens as there are positions"


@pytest.mark.parametrize("model", ["runs/bert", "runs/roberta"])
@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "The sentence is empty"),
        ("no gap", "Write &lt;mask&gt;"),
        ("<mask>" + " a" * POSITIONS, f"reads at most {POSITIONS}"),
        ("<mask> " + "hello " * 600, "shorten it"),
        ("<mask>" + "x" * 1_000_000, "characters"),
        ("<mask>" * 33, "33 masks; this page fills at most 32"),
        ("<mask> \ud835", "half a character"),
        (7, "must be text"),
    ],
)
def test_of_sentences_a_visitor_is_told(shelf, model, sentence, message):
    with pytest.raises(gr.Error, match=message):
        fill_mask(shelf, model, sentence)


def test_fill_mask_wants_a_masked_model(shelf):
    with pytest.raises(gr.Error, match="not of the kind"):
        fill_mask(shelf, "tiny/infinito", "the <mask> sat")


# --- ternary


def test_packed_and_full(shelf):
    opened = shelf.open("tiny/legacy-1bit")
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    states = list(ternary(shelf, PackedTwin(), "tiny/legacy-1bit", "Return a list", 20, 0, 1))
    full, packed, rows, verdict = states[-1]
    assert full == packed and verdict.startswith("Both texts are equal. The packed weights ran on ")
    assert [row[0] for row in rows] == ["float32", "packed"]
    assert rows[0][1] == weight_bytes(opened.model) > 8 * rows[1][1], "a byte holds four weights"
    assert all(torch.equal(tensor, before[name]) for name, tensor in opened.model.state_dict().items())
    assert states[0][1] == "" and states[0][2] == [], "the first states have only the first text"


def test_a_twin_is_made_once(shelf):
    twins, opened = PackedTwin(), shelf.open("tiny/legacy-1bit")
    assert twins.of(opened) is twins.of(opened) is not opened.model


def test_shared_weights_count_once():
    layer = torch.nn.Linear(4, 4, bias=False)
    tied = torch.nn.ModuleList([layer, layer, torch.nn.Linear(2, 2, bias=False)])
    tied[2].weight.requires_grad = False
    assert weight_bytes(tied) == (16 + 4) * 4


def test_where_texts_part():
    assert compare_texts("abc", "abc") == "Both texts are equal."
    assert compare_texts("abc", "abd").startswith("The texts part after 2 characters")
    assert compare_texts("abc", "ab").startswith("The texts part after 2 characters")


def test_ternary_wants_ternary_weights(shelf):
    with pytest.raises(gr.Error, match="There are: tiny/legacy-1bit"):
        list(ternary(shelf, PackedTwin(), "tiny/infinito", "Return", 5, 0, 1))
