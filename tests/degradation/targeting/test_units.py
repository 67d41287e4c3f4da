"""Units of groups, and their removal: which elements are gone, by hand, in tensors of every build."""

import numpy as np
import pytest
import torch

from frankenlm.degradation.configs import TARGETED
from frankenlm.degradation.targeting.choosing import Ranking, chosen_of, removed, told
from frankenlm.degradation.weights.groups import select_group
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from frankenlm.degradation.weights.targets import Group, Target
from frankenlm.degradation.weights.units import find_units


def marks(table, *numbers):
    found = np.zeros(table.count, dtype=bool)
    found[list(numbers)] = True
    return found


def without(model, group, unit, *numbers):
    """Remove units and return name -> the mask of what became zero, of the tensors that changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Baseline(model, group) as baseline:
        table = find_units(baseline.group, unit)
        chosen = chosen_of(table, marks(table, *numbers))
        lesion = apply_damage(baseline, "targeted", len(numbers), 42, 0, chosen=chosen)
        gone = {}
        for name, value in model.state_dict().items():
            if not torch.equal(value, before[name]):
                gone[name] = value == 0
                assert torch.equal(value[~gone[name]], before[name][~gone[name]])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert lesion["level_value"] == len(numbers)
    return gone


def rows(shape, first, last):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[first:last] = True
    return mask


def columns(shape, first, last):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., first:last] = True
    return mask


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(found[name], mask), name


def test_a_head_is_its_columns_of_the_output_or_its_rows_of_the_values(tiny_model):
    model = tiny_model("llama")
    same(without(model, "attn_o", "head", 6), {"model.layers.1.self_attn.o_proj.weight": columns((32, 32), 16, 24)})
    same(without(model, "attn_only", "head", 3), {"model.layers.1.self_attn.v_proj.weight": rows((16, 32), 8, 16)})
    with pytest.raises(ValueError, match=r"different numbers of them, \[2, 4\]"):
        find_units(select_group(model, "attn_qkvo"), "head")


def test_a_neuron_is_one_unit_of_three_matrices(tiny_model):
    model = tiny_model("llama")
    at = "model.layers.2.mlp."
    expected = {f"{at}gate_proj.weight": rows((48, 32), 5, 6), f"{at}up_proj.weight": rows((48, 32), 5, 6)}
    expected[f"{at}down_proj.weight"] = columns((32, 48), 5, 6)
    same(without(model, "mlp_only", "neuron", 2 * 48 + 5), expected)
    fused = tiny_model("phi3")
    found = without(fused, "mlp_only", "neuron", 7)
    both = rows((96, 32), 7, 8) | rows((96, 32), 55, 56)
    same(
        found,
        {
            "model.layers.0.mlp.gate_up_proj.weight": both,
            "model.layers.0.mlp.down_proj.weight": columns((32, 48), 7, 8),
        },
    )


def test_heads_within_fused_matrices(tiny_model):
    """GPT-2 has columns [q, k, v], GPT-NeoX rows (head, q k v, width)."""
    same(
        without(tiny_model("gpt2"), "attn_only", "head", 1),
        {"transformer.h.0.attn.c_attn.weight": columns((32, 96), 72, 80)},
    )
    found = without(tiny_model("gpt_neox"), "attn_only", "head", 1)
    same(found, {"gpt_neox.layers.0.attention.query_key_value.weight": rows((96, 32), 24 + 16, 24 + 24)})
    joint = find_units(select_group(tiny_model("gpt2"), "attn_qkvo"), "head")
    assert joint.count == 16 and len(joint.targets) == 16


def test_experts_of_stacks_and_of_lists(tiny_model):
    model = tiny_model("mixtral")
    found = without(model, "mlp_experts", "expert", 4 + 2)
    at = "model.layers.1.mlp.experts."
    same(found, {f"{at}gate_up_proj": rows((4, 96, 32), 2, 3), f"{at}down_proj": rows((4, 32, 48), 2, 3)})
    listed = tiny_model("frankenstein", num_experts=4, top_k_experts=2)
    found = without(listed, "mlp_experts", "expert", 3)
    assert found.keys() == {f"model.layers.0.ffn.experts.3.{side}_proj.weight" for side in ("up", "down")}
    assert all(mask.all() for mask in found.values())
    some = find_units(select_group(listed, "mlp_experts#0,3"), "expert")
    assert some.count == 8 and [some.name(number)[-8:] for number in range(3)] == ["expert 0", "expert 3", "expert 0"]
    found = without(listed, "mlp_experts#0,3", "expert", 3)
    assert found.keys() == {f"model.layers.1.ffn.experts.3.{side}_proj.weight" for side in ("up", "down")}
    # neurons of stacked experts: expert by expert
    gate_up, down = torch.zeros((4, 96, 32), dtype=torch.bool), torch.zeros((4, 32, 48), dtype=torch.bool)
    gate_up[1, [3, 51]], down[1, :, 3] = True, True
    at = "model.layers.0.mlp.experts."
    same(without(model, "mlp_only", "neuron", 48 + 3), {f"{at}gate_up_proj": gate_up, f"{at}down_proj": down})


def test_single_elements(tiny_model):
    model = tiny_model("gpt2")
    found = without(model, "attn_only", "element", 33, 32 * 32 + 2)
    expected = torch.zeros((2, 32, 96), dtype=torch.bool)
    expected[0, 1, 64 + 1] = expected[1, 0, 64 + 2] = True
    same(found, {f"transformer.h.{layer}.attn.c_attn.weight": expected[layer] for layer in (0, 1)})


@pytest.mark.parametrize(
    ("group", "unit", "message"),
    [
        ("embed_only", "head", "no heads are known"),
        ("attn_o", "neuron", "has none; choose mlp_only"),
        ("mlp_only", "expert", "choose group mlp_experts, without numbers"),
    ],
)
def test_units_that_are_not_there(group, unit, message, tiny_model):
    with pytest.raises(ValueError, match=message):
        find_units(select_group(tiny_model("llama"), group), unit)


def of_names(*names, group, shape=(8, 8), **fields):
    """A group of tensors of some names: what a model of unusual modules has."""
    root = torch.nn.Module()
    targets = [Target(name, f"text/{name}", root, shape, 64, group=group, **fields) for name in names]
    return Group(group, tuple(targets))


@pytest.mark.parametrize(
    ("names", "kind", "group", "places"),
    [
        (("net.first.attn.o.weight", "net.second.attn.o.weight"), "head", "attn_o", ("net.first", "net.second")),
        (("stack.layer_3.attn.o", "stack.layer_4.attn.o"), "head", "attn_o", ("stack.layer_3", "stack.layer_4")),
        (("a.b.up_one", "a.b.up_two", "a.c.up_one"), "neuron", "mlp_up", ("a.b.up_one", "a.b.up_two", "a.c")),
        (
            [
                f"stack.layers.{layer}.moe.experts.{n}.{m}.weight"
                for layer in (0, 1)
                for n in (0, 1)
                for m in ("u", "d")
            ],
            "expert",
            "mlp_experts",
            ("stack.layers.0", "stack.layers.1"),
        ),
        (
            (
                "layers.3.self_attn.o_proj.weight",
                "layers.3.cross_attn.o_proj.weight",
                "layers.4.self_attn.o_proj.weight",
            ),
            "head",
            "attn_o",
            ("layers.3.self_attn", "layers.3.cross_attn", "layers.4"),
        ),
    ],
)
def test_no_unit_lies_in_two_layers_whatever_modules_are_called(names, kind, group, places):
    table = find_units(of_names(*names, group=group, head_dim=2, head_axis=1), kind)
    assert [place.name for place in table.places] == [f"text/{place}" for place in places]
    each = {"head": 4, "neuron": 8, "expert": 2}[kind]
    assert table.count == each * len(places)
    owners = {}
    for own in table.targets:
        place = next(place for place in table.places if place.first <= own.first < place.first + place.count)
        owners.setdefault(place.name, []).append(own.target.canonical)
    assert sum(map(len, owners.values())) == len(names)
    assert all(name.startswith(place) for place, found in owners.items() for name in found)
    said = told(table, marks(table, 0, table.count - 1))["units_by_layer"]
    assert sum(said.values()) == 2 and len(said) == 2


# --- choosing


def ranking(scores, tiny_model, group="attn_o", shuffled=False):
    table = find_units(select_group(tiny_model("llama"), group), "head")
    return Ranking(table, np.asarray(scores, dtype=np.float32), 42, shuffled)


def test_the_most_important_and_as_many_of_the_same_layers(tiny_model):
    scores = np.arange(16, dtype=np.float32)[::-1][None] % 7  # 1 0 6 5 4 3 2 1 0 6 5 4 3 2 1 0
    chosen = ranking(scores, tiny_model)
    assert np.flatnonzero(chosen.most_important(0, 4)).tolist() == [2, 3, 9, 10]
    for repeat in range(20):
        drawn = removed(chosen, "matched", repeat, 4)
        assert [int(drawn[4 * layer : 4 * layer + 4].sum()) for layer in range(4)] == [2, 0, 2, 0]
        more = removed(chosen, "matched", repeat, 5)
        assert not (drawn & ~more).any(), "lesions of a repeat are nested"
    hit = np.mean([removed(chosen, "matched", repeat, 4)[2] for repeat in range(400)])
    assert abs(hit - 0.5) < 0.1
    said = told(chosen.table, chosen.most_important(0, 4))
    assert said["units_by_layer"] == {"0": 2, "2": 2} and said["units_named"][0] == "text/layers.0 head 2"


def test_repeats_draw_prompts_and_shuffling_draws_units(tiny_model):
    per_prompt = np.zeros((6, 16), dtype=np.float32)
    per_prompt[:, 1], per_prompt[:3, 9], per_prompt[3:, 12] = 1.0, 1.5, 1.5  # two heads, each for half of the prompts
    chosen = ranking(per_prompt, tiny_model)
    first = {int(np.flatnonzero(chosen.most_important(repeat, 1))[0]) for repeat in range(30)}
    assert first == {1, 9, 12}
    one = np.zeros((1, 16), dtype=np.float32)
    one[0, 5] = 1
    shuffled = [
        int(np.flatnonzero(ranking(one, tiny_model, shuffled=True).most_important(r, 1))[0]) for r in range(200)
    ]
    assert set(shuffled) == set(range(16)) and shuffled.count(5) < 40


def test_chosen_units_are_for_methods_that_remove_them(tiny_model):
    with Baseline(tiny_model("llama"), "attn_o") as baseline:
        for method in TARGETED:
            with pytest.raises(ValueError, match="needs chosen units"):
                apply_damage(baseline, method, 1, 42, 0)
        with pytest.raises(ValueError, match="takes no chosen units"):
            apply_damage(baseline, "ablation", 0.5, 42, 0, chosen={})
