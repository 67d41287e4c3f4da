"""The slot memory in its model: what it tells, how it is switched off and shuffled, windows that carry it on."""

import pytest
import torch
from torch.nn.parallel import scatter_gather

from frankenlm.modeling import InfinitoConfig, InfinitoForCausalLM
from tiny_infinito import ATTENTION_SLOTS, SEGMENT, VOCAB, assert_same, left_padded, tiny_infinito

every_type = pytest.mark.parametrize("fields", [{}, ATTENTION_SLOTS], ids=["slots", "attention_slots"])

# --- what the memory tells


def test_statistics_and_reads(build_infinito, tokens):
    model, ids = build_infinito(memory_slots=20), tokens(3, 34)
    output = model(ids, output_memory_reads=True)
    assert [reads.shape for reads in output.memory_reads] == [(3, 34, 21)] * 2
    assert {name: value.shape for name, value in output.memory_stats.items()} == dict.fromkeys(
        ("slots_used", "mean_importance", "rotation", "null_mass"), (3,)
    )
    assert output.memory_stats["slots_used"].tolist() == [34 // SEGMENT] * 3
    null = torch.stack([reads[..., -1].mean(1) for reads in output.memory_reads]).mean(0)
    assert_same(output.memory_stats["null_mass"], null)
    assert output.memory_stats["rotation"].eq(0).all() and output.memory_stats["mean_importance"].min() > 0
    assert not any(value.requires_grad for value in output.memory_stats.values())
    assert build_infinito()(ids).memory_stats["rotation"].eq((34 // SEGMENT - 5) / 5).all()
    assert model(ids).memory_reads is None


def test_attention_slots_say_how_they_are_used(build_infinito, tokens):
    model, ids = build_infinito(**ATTENTION_SLOTS), tokens(3, 34)
    output = model(ids, output_memory_reads=True)
    assert [reads.shape for reads in output.memory_reads] == [(3, 34, 8)] * 2
    assert {name: value.shape for name, value in output.memory_stats.items()} == dict.fromkeys(
        ("slots_used", "mean_importance", "rotation", "utilisation", "slot_mass"), (3,)
    )
    assert output.memory_stats["slots_used"].eq(7).all()
    assert_same(output.memory_stats["rotation"], torch.tensor([(34 - 4 - 7) / 7] * 3, dtype=torch.float64))
    in_window = torch.stack([reads[..., -1].mean(1) for reads in output.memory_reads]).mean(0)
    assert_same(output.memory_stats["slot_mass"], 1 - in_window)
    assert not any(value.requires_grad for value in output.memory_stats.values())


def test_the_preset_uses_its_memory_behind_its_window():
    config = InfinitoConfig.from_preset("infinito-small")
    model, window = InfinitoForCausalLM(config).eval(), config.attention_window
    with torch.no_grad():
        used = [
            model(torch.arange(length)[None]).memory_stats["slots_used"].item() for length in (window - 1, window + 2)
        ]
    assert used == [0, 3]


@every_type
@pytest.mark.parametrize("off", [{"use_memory": False}, {"memory_layers": []}])
def test_memory_off_is_the_model_without_memory(build_infinito, tokens, off, fields):
    model, ids = build_infinito(**fields), tokens(2, 34)
    without = InfinitoForCausalLM(tiny_infinito(**fields | {"memory_layers": []})).double().eval()
    missing = without.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all("memories" in name or "importance" in name for name in missing.unexpected_keys)
    expected = without(ids, labels=ids)
    output = (model if "use_memory" in off else without)(ids, labels=ids, use_memory=False)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert output.memory_state is output.memory_stats is output.memory_reads is None
    assert expected.memory_state is None
    assert (model(ids).logits - expected.logits).abs().max() > 0.1


def test_shuffled_memory(build_infinito, tokens):
    model, ids = build_infinito(memory_slots=20), tokens(3, 34)
    with torch.no_grad():
        own, shuffled = model(ids).logits, model(ids, shuffle_memory=True).logits
        assert torch.equal(own[:, :SEGMENT], shuffled[:, :SEGMENT])
        assert (own - shuffled)[:, SEGMENT:].abs().amax((1, 2)).min() > 0.01
        alike = ids[:1].expand(3, -1)
        assert_same(model(alike, shuffle_memory=True).logits, model(alike).logits)
        changed = torch.cat([ids[:2], (ids[2:] + 1) % VOCAB])
        moved = (model(changed, shuffle_memory=True).logits - shuffled).abs().amax((1, 2)) > 1e-6
        # Only row 2 has changed. Row 1 reads its memory, and row 0 row 1's, whose later layer has seen that.
        assert moved.tolist() == [True, True, True]
    with pytest.raises(ValueError, match="give at least two rows"):
        model(ids[:1], shuffle_memory=True)
    with pytest.raises(ValueError, match="shuffle_memory=True needs the memory"):
        model(ids, shuffle_memory=True, use_memory=False)


def test_with_one_memory_layer_a_row_reads_one_other(build_infinito, tokens):
    model, ids = build_infinito(memory_layers=[1]), tokens(4, 34)
    changed = torch.cat([ids[:3], (ids[3:] + 1) % VOCAB])
    with torch.no_grad():
        before, after = (model(each, shuffle_memory=True).logits for each in (ids, changed))
    assert ((before - after).abs().amax((1, 2)) > 1e-6).tolist() == [False, False, True, True]


# --- the memory carried on


def test_memory_reads_go_on_where_the_last_window_ended(build_infinito, tokens):
    """At the first layer, without positions, a memory sees tokens alone: windows then are one text, read for read."""
    model, ids = build_infinito(memory_layers=[0]), tokens(3, 50)
    with torch.no_grad():
        model.model.embeddings.embed_positions.weight.zero_()
        whole = model(ids, output_memory_reads=True)
        first = model(ids[:, :22], output_memory_reads=True)
        second = model(ids[:, 22:], memory_state=first.memory_state, output_memory_reads=True)
    assert_same(torch.cat([first.memory_reads[0], second.memory_reads[0]], dim=1), whole.memory_reads[0])
    for name, value in whole.memory_stats.items():
        assert_same(second.memory_stats[name], value)


@pytest.mark.parametrize("cuts", [(1,), (SEGMENT,), (9, 30), (13, 14, 15)], ids=str)
@pytest.mark.parametrize(
    "fields", [{"attention_window": 1}, {**ATTENTION_SLOTS, "memory_layers": [0, 1, 2]}], ids=["slots", "attention"]
)
def test_windows_with_carried_memory_are_one_text(build_infinito, tokens, cuts, fields):
    """Without positions, and with attention on the token itself or carried on too, memory connects all tokens."""
    model, ids = build_infinito(**fields), tokens(3, 40)
    mask = left_padded(ids, (0, 3, 6))
    with torch.no_grad():
        model.model.embeddings.embed_positions.weight.zero_()
        whole = model(ids, attention_mask=mask)
        state, logits = None, []
        for start, stop in zip((0, *cuts), (*cuts, 40), strict=True):
            output = model(ids[:, start:stop], attention_mask=mask[:, start:stop], memory_state=state)
            state, logits = output.memory_state, [*logits, output.logits]
    real = mask.bool()
    assert_same(torch.cat(logits, dim=1)[real], whole.logits[real])
    forgetful = model(ids[:, cuts[-1] :], attention_mask=mask[:, cuts[-1] :]).logits
    if cuts[-1] >= SEGMENT:
        assert (forgetful - logits[-1])[0].abs().max() > 1e-3


@every_type
def test_state_hangs_on_the_graph_in_training_only(build_infinito, tokens, fields):
    model, ids = build_infinito(**fields), tokens(2, 10)
    assert not model(ids).memory_state[0].keys.requires_grad
    state = model.train()(ids).memory_state
    assert state[0].keys.requires_grad
    model(ids, labels=ids, memory_state=state).loss.backward()
    model.activation_checkpointing_enable({"use_reentrant": True})  # as InfinitoModelOutput tells
    assert model(ids).memory_state[0].keys.requires_grad == (not fields)


@pytest.mark.parametrize("carrier", ["memory_state", "cache"])
@pytest.mark.parametrize("autocast", [True, False])
def test_what_is_carried_may_come_from_another_precision(build_infinito, tokens, autocast, carrier):
    """Full precision before, half after, within autocast or in the weights themselves; and the other way round."""
    full = build_infinito(dtype=torch.float32, **ATTENTION_SLOTS)
    half = full if autocast else build_infinito(dtype=torch.bfloat16, **ATTENTION_SLOTS)
    ids, options = tokens(2, 20), {"use_cache": carrier == "cache"}

    @torch.no_grad()
    def read(model, columns, before=None):
        carried = {} if before is None else {carrier: before[carrier]}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and model == "half"):
            return (half if model == "half" else full)(ids[:, columns], **options, **carried)

    def distance(ours, theirs):
        return ((ours.logits.float() - theirs.logits).norm() / theirs.logits.norm()).item()

    for cut in (19, 16):
        told, asked = slice(cut), slice(cut, None)
        exact = read("full", asked, read("full", told))
        for first, second in (("full", "half"), ("half", "full")):
            near = distance(read(second, asked, read(first, told)), exact)
            far = distance(read("full", asked), exact)
            assert near < 0.1 < 0.4 < far


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state[:1], r"memory_state holds 1 states, but memory_layers=\[1, 2\] needs 2"),
        (lambda state: [each.select(torch.tensor([0])) for each in state], r"memory_state\[0\] holds keys of shape"),
    ],
)
@every_type
def test_a_state_that_does_not_fit_is_refused(build_infinito, tokens, change, message, fields):
    model, ids = build_infinito(**fields), tokens(2, 10)
    state = model(ids).memory_state
    with pytest.raises(ValueError, match=message):
        model(ids, memory_state=change(state))


def test_a_state_of_another_kind_or_segment_is_refused(build_infinito, tokens):
    model, ids = build_infinito(memory_segment=4), tokens(2, 10)
    state = build_infinito(memory_segment=16)(tokens(2, 30)).memory_state
    with pytest.raises(ValueError, match="has 14 tokens in its open segment, but memory_segment=4"):
        model(ids, memory_state=state)
    slots = build_infinito(**ATTENTION_SLOTS)
    with pytest.raises(ValueError, match="SlotMemoryState, expected a AttentionSlotsState per memory layer"):
        slots(ids, memory_state=state)
    with pytest.raises(ValueError, match="has 3 tokens since its last ranking, but memory_segment=2"):
        state = slots(tokens(2, 11)).memory_state
        build_infinito(**ATTENTION_SLOTS | {"memory_segment": 2})(ids, memory_state=state)
    for wrong in (state[0], {"keys": state[0].keys}, [state[0].keys, state[0].keys]):
        with pytest.raises(ValueError, match="expected a SlotMemoryState per memory layer"):
            model(ids, memory_state=wrong)


@every_type
def test_contradictions_are_refused(build_infinito, tokens, fields):
    model, ids = build_infinito(**fields), tokens(2, 10)
    output = model(ids)
    with pytest.raises(ValueError, match="beside a filled cache"):
        model(ids, memory_state=output.memory_state, cache=output.cache)
    with pytest.raises(ValueError, match="but the memory is off"):
        model(ids, memory_state=output.memory_state, use_memory=False)
    with pytest.raises(ValueError, match="use_memory=False differs from the calls that filled"):
        model(ids, cache=output.cache, use_memory=False)
    without = model(ids, use_memory=False).cache
    with pytest.raises(ValueError, match="use_memory=True differs"):
        model(ids, cache=without)
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        model(tokens(1, 97))
    with pytest.raises(ValueError, match="sequence is empty"):
        model(ids[:, :0])
    with pytest.raises(ValueError, match="exactly one of"):
        model()


# --- replicas


@every_type
def test_replicas_of_data_parallel_can_be_gathered(build_infinito, tokens, fields, monkeypatch):
    """As Trainer wraps a model on a machine with several GPUs; gathering their tensors is joining them here."""
    joining = type("Joining", (), {"apply": staticmethod(lambda device, dim, *parts: torch.stack(parts).flatten(0, 1))})
    monkeypatch.setattr(scatter_gather, "Gather", joining)
    model, ids = build_infinito(**fields).train(), tokens(4, 34)
    replica = model._replicate_for_data_parallel()
    replica.model = model.model._replicate_for_data_parallel()
    parts = [replica(part) for part in ids.chunk(2)]
    gathered, whole = scatter_gather.gather(parts, "cpu"), model(ids)
    assert_same(gathered.logits, whole.logits)
    assert_same(gathered.memory_stats, whole.memory_stats)
    assert "memory_state" not in gathered and whole.memory_state is not None
