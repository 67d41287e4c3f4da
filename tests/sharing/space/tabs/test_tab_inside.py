"""The tab Inside: what is shown is what the model computed, and what it does not have is said."""

import copy
import math

import gradio as gr
import pytest
import torch

from frankenlm.modeling.delta_memory import FORGETTING
from frankenlm.sharing.space.figures import half_life
from frankenlm.sharing.space.tabs import inside as tab
from frankenlm.sharing.space.tabs.inside import VIEWS, encode, see
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.generation.heatmaps import readable
from frankenlm.trainer_ext.generation.inspection import memory_decays, memory_reads, norm_saturation, token_texts

TEXT = "the cat sat on a mat"
HAS = {
    "infinito": {"attention", "slot memory"},
    "ternary": {"attention"},
    "hybrid": {"attention", "decay rates", "norm saturation"},
    "encoder": {"attention", "decay rates", "norm saturation"},
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", HAS)
def test_what_a_model_has_is_shown_and_what_it_has_not_is_said(on_shelf, same_bits, name, view):
    opened = on_shelf(name)
    same, attention = same_bits(opened), opened.model.config._attn_implementation
    seen = see(opened, TEXT, view)
    assert name in seen.words or view in HAS[name]
    assert (seen.figure is not None) is bool(seen.rows) is (view in HAS[name])
    assert all(len(row) == len(seen.headers) for row in seen.rows)
    assert same() and not opened.lock.locked() and opened.model.config._attn_implementation == attention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in opened.model.modules())


@pytest.mark.parametrize(("layer", "head"), [("all", "mean"), ("1", "mean"), (0, 1), ("all", "0")])
def test_attention_is_that_of_the_layer_and_the_head(on_shelf, layer, head):
    opened = on_shelf("infinito")
    ids = encode(opened, TEXT)
    opened.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = opened.model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    opened.model.set_attn_implementation("sdpa")
    seen = see(opened, TEXT, "attention", layer, head)
    layers = range(len(weights)) if layer == "all" else [int(layer)]
    maps = [weights[index][0].mean(0) if head == "mean" else weights[index][0, int(head)] for index in layers]
    tokens = [readable(token) for token in token_texts(opened.tokenizer, ids)]
    expected = [
        (f"attention {index}", token, tokens[row.argmax()], f"{row.max():.3f}")
        for index, each in zip(layers, maps, strict=True)
        for token, row in zip(tokens, each, strict=True)
    ]
    assert list(seen.rows) == expected
    drawn = [panel.images[0].get_array() for panel in seen.figure.axes if panel.images]
    assert len(drawn) == len(maps)
    for image, each in zip(drawn, maps, strict=True):
        torch.testing.assert_close(torch.tensor(image.data), each)


def test_slots_are_those_that_are_read(on_shelf):
    opened = on_shelf("infinito")
    ids = encode(opened, TEXT)
    reads, _ = memory_reads(opened.model, ids)
    rows = see(opened, TEXT, "slot memory").rows
    assert len(rows) == len(reads) * len(ids)
    segment = opened.model.config.memory_segment
    assert all(row[2:] == ("none", "1.000", "1.000") for row in rows[:segment])  # nothing is written yet
    assert any(row[2] != "none" for row in rows) and all(0 <= float(row[4]) <= 1 for row in rows)


@torch.no_grad()
def test_decay_rates_by_hand(on_shelf):
    model = copy.deepcopy(on_shelf("hybrid").model)
    _, titan, mamba = (layer.mixer for layer in model.model.layers)
    # without inputs, the gates say what their biases say
    titan.memory.forget_proj.weight.zero_()
    mamba.in_proj.weight.zero_()
    decays = dict(zip(("retention", "titan", "mamba"), memory_decays(model, [5, 6, 7]).values(), strict=True))
    assert decays["retention"][[0, 3]] == pytest.approx([1 - 1 / 32, 1 - 1 / 512])
    assert decays["titan"][[0, 3]] == pytest.approx([1 - FORGETTING[0], 1 - FORGETTING[1]], rel=1e-3)
    steps = torch.nn.functional.softplus(mamba.dt_bias.double())
    expected = (-steps * mamba.A_log.double().exp()).exp()
    assert decays["mamba"] == pytest.approx(expected.tolist(), rel=1e-5)


def test_mamba_s_steps_are_those_that_it_scans_with(on_shelf, monkeypatch):
    model = on_shelf("hybrid").model
    mixer, steps = model.model.layers[2].mixer, []
    scan = mixer.scan
    monkeypatch.setattr(mixer, "scan", lambda xBC, dt, *others: steps.append(dt) or scan(xBC, dt, *others))
    kept = memory_decays(model, [5, 6, 7, 90])["model.layers.2.mixer"]
    with torch.no_grad():
        expected = (-steps[0].double() * mixer.A_log.double().exp()).mean(dim=(0, 1)).exp()
    assert kept == pytest.approx(expected.tolist(), rel=1e-5)


def test_rates_that_depend_on_the_text_are_of_this_text(on_shelf):
    model, names = on_shelf("hybrid").model, ("model.layers.0.mixer", "model.layers.1.mixer.memory")
    one, other = (memory_decays(model, ids) for ids in ([5, 90], [6, 7, 8]))
    assert [bool((one[name] == other[name]).all()) for name in names] == [True, False]


@pytest.mark.parametrize(("kept", "tokens"), [(0.5, 1), (0.25, 0.5), (math.sqrt(0.5), 2), (1.0, math.inf), (0.0, 0)])
def test_half_life(kept, tokens):
    assert half_life(kept) == pytest.approx(tokens)


@torch.no_grad()
def test_saturation_by_hand(on_shelf):
    model = copy.deepcopy(on_shelf("hybrid").model)
    norm = model.model.layers[1].norm1
    seen = []
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    size = seen[0].abs().flatten().sort().values  # three tokens of 32 units
    bound = float(size[-24:-22].mean())  # between the 72nd and the 73rd of 96
    norm.alpha.fill_(2 / bound)
    norm.shift.zero_()
    assert norm_saturation(model, [5, 6, 7])["model.layers.1.norm1"] == pytest.approx(23 / 96)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (("atention",), "Did you mean 'attention'"),
        ((None,), "There are: attention"),
        (("../../x",), "There are: attention"),
        (("attention", "99"), "from 0 to 2"),
        (("attention", "-1"), "from 0 to 2"),
        (("attention", "all", "9"), "from 0 to 1"),
        (("attention", "all", "nan"), "no number"),
        (("attention", "\x07\ud800" * 10_000), "no number"),
        (("attention", None), "no number"),
    ],
)
def test_mistakes_are_one_line(on_shelf, choice, words):
    with pytest.raises(UserError, match=words) as told:
        see(on_shelf("infinito"), TEXT, *choice)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300 and str(told.value).isascii()


def test_long_texts_are_refused_before_they_are_read(on_shelf):
    with pytest.raises(UserError, match="97 tokens long for infinito; write 1 to 96"):
        see(on_shelf("infinito"), "x" * 97, "attention")


def test_what_the_page_asks_for(shelf):
    _, figure, table, shown = tab.look_inside(shelf, "infinito", TEXT, "attention", "all", "mean")
    assert shown and len(figure.axes) == 4 and len(table["data"]) == 3 * len(TEXT)
    words, figure, table, shown = tab.look_inside(shelf, "infinito", TEXT, "norm saturation", "all", "mean")
    assert "no Derf" in words and figure is table is None and not shown
    layers, heads = tab.offer_layers(shelf, "infinito")
    assert [each for each, _ in layers.choices] == ["all", "0", "1", "2"] and len(heads.choices) == 3
    for bad in (("../../x", TEXT), ("infinito", " "), ("infinito", "<b>" * 10**5), ("infinito", "\ud800")):
        with pytest.raises(gr.Error):
            tab.look_inside(shelf, *bad, "attention", "all", "mean")
