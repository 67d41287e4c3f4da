"""The parts of the memory evidence: sizes, rows, statistics, sentences."""

import math

import pytest
import torch

from frankenlm.modeling import InfinitoConfig
from frankenlm.scripts.evidence.comparisons import COMPARISONS, verdict
from frankenlm.scripts.evidence.data import HeldOut, document_rows, packed_rows
from frankenlm.scripts.evidence.models import (
    ATTENTION,
    GPT2,
    HYBRID_VARIANT,
    TITAN,
    TITAN_MEMORY,
    Shape,
    check_budget,
    fit_width,
    gpt2_config,
    infinito_config,
)
from frankenlm.scripts.evidence.plan import CODE, MIXERS, TABLES, WIKIPEDIA, smoke_table
from frankenlm.scripts.evidence.runs import differences
from frankenlm.scripts.evidence.training import Recipe, row_order, thin_out
from frankenlm.trainer_ext.metrics.seeds import paired_difference, plus_minus, summary, unpaired_difference

IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}


@pytest.mark.parametrize("table", [*TABLES.values(), *map(smoke_table, TABLES.values())], ids=lambda t: t.name)
def test_every_model_meets_the_budget(table):
    for variant in table.variants:
        with torch.device("meta"):
            model = variant.model_class(variant.configure(table.shape, IDS))
        check_budget(variant.name, model.num_parameters(), table.shape.budget)


def test_the_full_size_is_the_preset():
    ours = infinito_config(WIKIPEDIA.shape, IDS).to_dict()
    preset = InfinitoConfig.from_preset("infinito-small").to_dict()
    changed = {name for name in preset if ours[name] != preset[name]}
    memory = {"memory_type", "memory_layers", "memory_dim"}  # the one that the tables were made with
    assert changed <= {"dropout", "attention_dropout", "attention_window", *memory, *IDS}


def test_twins_have_one_width_and_the_window_reaches_every_model():
    plain, memory = (variant.configure(CODE.shape, IDS) for variant in (TITAN, TITAN_MEMORY))
    assert plain.intermediate_size == memory.intermediate_size
    assert memory.use_titan_memory and not plain.use_titan_memory
    assert all(v.configure(CODE.shape, IDS).attention_window == 64 for v in CODE.variants)
    with pytest.raises(ValueError, match="GPT-2 has no attention window"):
        gpt2_config(CODE.shape, IDS)


def test_hybrid_and_plain_attention_differ_in_their_mixers_alone():
    hybrid, plain = (variant.configure(MIXERS.shape, IDS).to_dict() for variant in (HYBRID_VARIANT, ATTENTION))
    assert changed(hybrid, plain) == {"layer_pattern", "position_type", "intermediate_size"}
    assert set(plain["layer_pattern"]) == {"standard_attn"} and plain["norm_type"] == "derf"
    assert plain["embedding_norm"] == "rms" and plain["embedding_conv_kernel"] == 3 and plain["head_bias"]
    assert HYBRID_VARIANT.unigram_bias and ATTENTION.unigram_bias and not GPT2.unigram_bias


def test_every_table_with_the_hybrid_has_its_baseline():
    for table in TABLES.values():
        if HYBRID_VARIANT in table.variants:
            assert ATTENTION in table.variants


def changed(one: dict, other: dict) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_budget():
    check_budget("x", 102, 100)
    with pytest.raises(ValueError, match=r"x has 103 parameters, \+3.0% of the budget of 100; at most 2%"):
        check_budget("x", 103, 100)
    with pytest.raises(ValueError, match="budget=1,000 is too small"):
        GPT2.configure(Shape(1000, 512, 32, 2, 64, None), IDS)
    assert fit_width(lambda width: torch_model(5 + 3 * width), 98) == 31


def torch_model(parameters: int):
    class Counted:
        def num_parameters(self) -> int:
            return parameters

    return Counted()


def test_every_model_sees_the_same_rows():
    order = row_order(10, 25, seed=3)
    assert torch.equal(order, row_order(10, 25, seed=3)) and not torch.equal(order, row_order(10, 25, seed=4))
    assert sorted(order[:10].tolist()) == sorted(order[10:20].tolist()) == list(range(10))


def test_schedule():
    recipe = Recipe(tokens=1000, length=10, batch_rows=5, eval_rows=2, warmup=0.1)
    factors = [recipe.rate_factor(step) for step in range(recipe.steps)]
    assert recipe.steps == 20 and factors[:3] == [0.5, 1.0, 1.0]
    assert all(a >= b for a, b in zip(factors[1:], factors[2:], strict=False)) and 0 < factors[-1] < 0.01


def test_packed_rows_keep_every_token():
    rows, documents = packed_rows([[1, 2, 3], [4, 5], [6, 7, 8]], 3)
    assert rows.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, -1]]
    assert documents.tolist() == [0, 1, 2]


def test_document_rows_come_from_one_document():
    rows, documents = document_rows([[1, 2, 3, 4, 5], [6], [7, 8]], 2, None)
    assert rows.tolist() == [[1, 2], [3, 4], [7, 8]] and documents.tolist() == [0, 0, 2]
    assert document_rows([[1, 2, 3, 4, 5], [6], [7, 8]], 2, 1)[1].tolist() == [0, 2]


@pytest.mark.parametrize(("rows", "size"), [(2, 4), (3, 2), (7, 4), (64, 4), (65, 16)])
def test_batches_score_every_row_once_and_never_one_alone(rows, size):
    held_out = HeldOut(torch.zeros(rows, 4), torch.zeros(rows, 4), torch.arange(rows) // 4, 1, 1, 0.0)
    batches = list(held_out.batches(size))
    assert sorted(torch.cat(batches).tolist()) == list(range(rows))
    assert all(len(batch) > 1 for batch in batches)
    if rows >= 64:
        assert held_out.shared_neighbours(size) == 0


def test_shared_neighbours_are_counted():
    held_out = HeldOut(torch.zeros(4, 2), torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), 1, 1, 0.0)
    assert held_out.shared_neighbours(4) == 2  # rows 0 and 1 read 1 and 2; 2 reads 3, 3 reads 0
    assert held_out.shared_neighbours(2) == 2  # rows 0 and 2 read each other


def test_statistics_by_hand():
    assert summary([1.0, 2.0, 3.0]) == {"n": 3, "mean": 2.0, "sd": 1.0}
    assert summary([1.0]) == {"n": 1, "mean": 1.0, "sd": None}
    result = paired_difference({0: 1.0, 1: 3.0, 2: 5.0, 7: 9.0}, {0: 0.0, 1: 1.0, 2: 2.0})
    assert (result["mean"], result["sd"], result["seeds"]) == (2.0, 1.0, [0, 1, 2])
    half = 4.303 / math.sqrt(3)  # t quantile for two degrees of freedom
    assert result["low"] == pytest.approx(2 - half) and result["high"] == pytest.approx(2 + half)
    assert result["excludes_zero"] is False
    assert paired_difference({0: 1.0, 1: 1.1}, {0: 0.0, 1: 0.1})["excludes_zero"] is True
    # Welch by hand: variances 1 and 4 over three seeds each; 2.94 degrees of freedom, rounded down to 2
    loose = unpaired_difference(summary([1.0, 2.0, 3.0]), summary([0.0, 2.0, 4.0]))
    half = 4.303 * math.sqrt(5 / 3)
    assert (loose["mean"], loose["counts"]) == (0.0, [3, 3])
    assert loose["high"] == pytest.approx(half) and loose["low"] == pytest.approx(-half)
    assert unpaired_difference(summary([1.0, 2.0]), summary([0.0]))["low"] is None
    assert unpaired_difference(summary([1.0, 1.0]), summary([0.0, 0.0]))["excludes_zero"] is True
    assert plus_minus(summary([1.0, 2.0, 3.0]), 1, sign=True) == "+2.0 ± 1.0"
    assert plus_minus(summary([]), 1) == "missing"


def test_sentences():
    memory = COMPARISONS[0]
    lower = {**paired_difference({0: 1.0, 1: 1.1}, {0: 2.0, 1: 2.1}), "share": 0.5}
    assert verdict(memory, lower).endswith("which excludes 0: the slot memory lowers the loss.")
    higher = {**paired_difference({0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.1}), "share": 0.5}
    assert verdict(memory, higher).endswith("which excludes 0: the slot memory raises the loss.")
    tiny = verdict(memory, {**lower, "share": 0.00025})
    assert tiny.endswith("the slot memory lowers the loss; by a negligible 0.03% of the loss.")
    unclear = paired_difference({0: 1.0, 1: 3.0}, {0: 2.0, 1: 2.0})
    assert verdict(memory, unclear).endswith("which includes 0: no effect of the slot memory is shown.")
    assert "one seed" in verdict(memory, paired_difference({0: 1.0}, {0: 2.0}))
    assert "runs are missing" in verdict(memory, paired_difference({}, {0: 2.0}))


def test_differences_between_settings_are_named():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == ["a.c: 2, now 4", "d: 3, now nothing", "e: nothing, now 5"]
    assert differences(old, old) == []


def test_thin_out():
    assert thin_out([1.0, 3.0, 5.0, 7.0, 9.0], points=2) == [[2, 2.0], [4, 6.0], [5, 9.0]]
