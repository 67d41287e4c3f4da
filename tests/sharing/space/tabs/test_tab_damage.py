"""The tab Damage: what is measured, the bounds, and above all a model that is whole again."""

import copy
import dataclasses
import math
import threading

import gradio as gr
import pytest
import torch
import torch.nn.functional as F

from frankenlm.degradation.configs import METHODS, default_levels
from frankenlm.modeling.packed_model import find_places, pack_layers
from frankenlm.sharing.space.limits import Limits
from frankenlm.sharing.space.tabs import damage as tab
from frankenlm.sharing.space.tabs.compare import measure
from frankenlm.sharing.space.tabs.damage import NO_TEXT, Patient, check_choices, curve, curve_levels, damage, groups_of
from frankenlm.trainer_ext.common.cli import UserError

TEXT = "the cat sat on a mat"
STRONG = ("mlp_only", "mult_gauss", 3.0, 1)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    monkeypatch.setattr(tab, "NEW_TOKENS", 8)
    monkeypatch.setattr(tab, "CURVE_TOKENS", 4)


@pytest.mark.parametrize("name", ["infinito", "ternary", "hybrid", "encoder"])
def test_the_text_changes_and_the_model_is_put_back(on_shelf, same_bits, name):
    opened = on_shelf(name)
    same = same_bits(opened)
    before, after, facts = damage(Patient(opened, TEXT, 8), *STRONG)
    assert before != after and "whole again" in facts
    assert ("pseudo" in facts) is (name == "encoder")
    assert same()
    assert damage(Patient(opened, TEXT, 8), *STRONG) == (before, after, facts)
    assert damage(Patient(opened, TEXT, 8), *STRONG[:3], 2)[1] != after


def test_without_damage_nothing_changes(on_shelf):
    before, after, facts = damage(Patient(on_shelf("infinito"), TEXT, 8), "attn_only", "ablation", 0, 1)
    assert before == after and facts.startswith("**100%**")


def test_perplexity_is_that_of_the_text(on_shelf):
    opened = on_shelf("infinito")
    start = opened.tokenizer.bos_token_id
    ids = torch.tensor([[start, *opened.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logits = opened.model(input_ids=ids).logits[0, :-1]
    expected = math.exp(F.cross_entropy(logits, ids[0, 1:]).item())
    found = Patient(opened, TEXT, 4).at("attn_only", "mult_gauss", 0.0, 0)
    assert found.perplexity == pytest.approx(expected, rel=1e-5) and found.moved == 0


def test_what_is_no_number_any_more_is_said(on_shelf, same_bits):
    opened = on_shelf("infinito")
    same = same_bits(opened)
    _, after, facts = damage(Patient(opened, TEXT, 8), "mlp_only", "mult_gauss", 1e30, 1)
    assert after == NO_TEXT and "no number damaged" in facts
    assert same()


@pytest.mark.parametrize("part", ["measure", "_write"])
def test_the_model_is_whole_after_an_error(on_shelf, same_bits, part, monkeypatch):
    opened = on_shelf("hybrid")
    same, patient = same_bits(opened), Patient(opened, TEXT, 4)

    def fail():
        assert not same()
        raise RuntimeError("in the middle of it")

    monkeypatch.setattr(patient.probe if part == "measure" else patient, part, fail)
    with pytest.raises(RuntimeError, match="in the middle of it"):
        patient.at(*STRONG)
    assert same() and not opened.lock.locked()


def test_a_curve_leaves_a_whole_model_behind_wherever_it_ends(on_shelf, same_bits):
    opened = on_shelf("infinito")
    same, levels = same_bits(opened), curve_levels("ablation", "mlp_only")
    drawing = curve(Patient(opened, TEXT, 4), "mlp_only", "ablation", levels, 1)
    for count in (1, 2, 3):
        states, rows = next(drawing)
        assert len(states) == len(rows) == count
        assert same() and not opened.lock.locked()
    drawing.close()  # a visitor who leaves
    assert same()
    assert rows[0][2] == "100%" and [row[0] for row in rows] == [f"{level:g}" for level in levels[:3]]
    # a level of the curve is the same damage as one that is asked for alone
    assert states[2].perplexity == Patient(opened, TEXT, 4).at("mlp_only", "ablation", levels[2], 1).perplexity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group", ["attn_only", "mlp_only", "embed_only"])
def test_a_curve_goes_from_undamaged_to_the_severest_level_of_the_lab(method, group):
    levels, all_levels = curve_levels(method, group), default_levels(method, group)
    assert levels[0] == 0 and levels[-1] == all_levels[-1] and 4 < len(levels) <= tab.CURVE_LEVELS
    assert [level for level in all_levels if level in levels] == levels


def test_groups_are_those_of_the_model(on_shelf):
    assert "memory" in groups_of(on_shelf("infinito")) and "memory" not in groups_of(on_shelf("ternary"))
    model = copy.deepcopy(on_shelf("ternary").model)
    pack_layers(model, find_places(model, int8_embeddings=False, int8_head=False))
    with pytest.raises(UserError, match="packed"):
        groups_of(dataclasses.replace(on_shelf("ternary"), model=model))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (("mlp_onl", "ablation", 0.1, 1), "Did you mean 'mlp_only'"),
        (("attn_only@L99", "ablation", 0.1, 1), "no layer 99"),
        (("x" * 1_000_000, "ablation", 0.1, 1), "at most 100 characters"),
        (("../../x", "ablation", 0.1, 1), "is not known"),
        (("mlp_only", "ablatoin", 0.1, 1), "Did you mean 'ablation'"),
        (("mlp_only", None, 0.1, 1), "There are: mult_gauss"),
        (("mlp_only", "ablation", "nan", 1), "is no number"),
        (("mlp_only", "ablation", math.inf, 1), "is no number"),
        (("mlp_only", "ablation", True, 1), "is no number"),
        (("mlp_only", "ablation", 1.5, 1), "between 0 and 1"),
        (("mlp_only", "mult_gauss", -0.1, 1), "at least 0"),
        (("mlp_only", "uni_quant", 3.5, 1), "whole numbers"),
        (("mlp_only", "ablation", 0.1, -1), "whole number from 0"),
        (("mlp_only", "ablation", 0.1, 0.5), "whole number from 0"),
        (("mlp_only", "ablation", 0.1, "\x07\ud800"), "is no number"),
    ],
)
def test_mistakes_are_one_line(on_shelf, same_bits, choices, words):
    opened = on_shelf("hybrid")
    same = same_bits(opened)
    with pytest.raises(UserError, match=words) as told:
        damage(Patient(opened, TEXT, 8), *check_choices(*choices))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    assert same() and not opened.lock.locked()


@pytest.mark.parametrize(
    ("name", "text", "words"), [("infinito", "x" * 125, "at most 120"), ("encoder", "a", "least 2")]
)
def test_texts_that_do_not_fit(on_shelf, name, text, words):
    with pytest.raises(UserError, match=words):
        damage(Patient(on_shelf(name), text, 8), *STRONG)


def test_other_visitors_never_meet_a_damaged_model(on_shelf):
    opened = on_shelf("infinito")
    undamaged, ended = measure(opened, TEXT), threading.Event()

    def go_on_damaging():
        while not ended.is_set():
            Patient(opened, TEXT, 2).at(*STRONG)

    damaging = threading.Thread(target=go_on_damaging)
    damaging.start()
    try:
        assert all(measure(opened, TEXT) == undamaged for _ in range(20))
    finally:
        ended.set()
        damaging.join()


def test_a_text_of_more_tokens_than_the_page_takes(shelf, monkeypatch):
    monkeypatch.setattr(shelf, "limits", Limits(prompt_tokens=10))
    with pytest.raises(gr.Error, match="20 tokens long; write at most 10"):
        tab.damage_text(shelf, "ternary", TEXT, *STRONG)


def test_what_the_page_asks_for(shelf, on_shelf):
    choices = ("mlp_only", "mult_gauss", "3", 1.0)  # as a page sends them
    assert tab.damage_text(shelf, "infinito", TEXT, *choices) == damage(Patient(on_shelf("infinito"), TEXT, 8), *STRONG)
    *_, (figure, rows) = tab.damage_curve(shelf, "encoder", TEXT, "attn_only", "uni_quant", 1)
    assert len(figure.axes) == 2 and len(rows) == len(curve_levels("uni_quant", "attn_only"))
    for bad in (("../../x", TEXT), ("infinito", ""), ("infinito", "a" * 10**6), ("infinito", "\ud800"), (None, TEXT)):
        with pytest.raises(gr.Error):
            tab.damage_text(shelf, *bad, *choices)


def test_choices_follow_the_model_and_the_method(shelf):
    assert tab.offer_groups(shelf, "infinito", "memory").value == "memory"
    assert tab.offer_groups(shelf, "ternary", "memory").value == "attn_only"
    assert tab.offer_levels("uni_quant", "attn_only").choices[1] == ("1024", "1024")
    assert tab.offer_levels("no method", "attn_only").choices == []
