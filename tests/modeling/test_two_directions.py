"""One parameter set, two directions: rows of a mixed batch against each of them alone, and what the heads answer."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, FrankensteinForMaskedLM
from frankenlm.modeling.bert_weights import BERT_LAYOUT
from frankenlm.modeling.mixers import MIXERS
from frankenlm.sharing.export.gguf_files import architecture_of
from frankenlm.trainer_ext.common.cli import UserError

VOCAB, LENGTH = 31, 9
CAUSAL = torch.tensor([True, False, True, False, False])


def tiny_config(mixer: str = "retnet", **fields) -> FrankensteinConfig:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_loops": 2,
        "num_attention_heads": 2,
    }
    settings |= {"layer_pattern": [mixer], "intermediate_size": 16, "mamba_head_dim": 8, "position_type": "rope"}
    settings |= {"embedding_conv_kernel": 3, "two_directions": True, "initializer_range": 0.3, "pad_token_id": 0}
    return FrankensteinConfig(**{**settings, **fields})


def heads(config) -> tuple[FrankensteinForCausalLM, FrankensteinForMaskedLM]:
    causal = FrankensteinForCausalLM(config).eval()
    masked = FrankensteinForMaskedLM(config).eval()
    masked.load_state_dict(causal.state_dict())
    return causal, masked


def some_ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (len(CAUSAL), LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_a_mixed_batch_is_each_direction_alone(mixer):
    causal, masked = heads(tiny_config(mixer, use_titan_memory=mixer == "titan_attn"))
    ids = some_ids()
    with torch.no_grad():
        mixed, one, other = causal(ids, causal_rows=CAUSAL).logits, causal(ids).logits, masked(ids).logits
    torch.testing.assert_close(mixed[CAUSAL], one[CAUSAL])
    torch.testing.assert_close(mixed[~CAUSAL][:, :-1], other[~CAUSAL][:, 1:])  # at the token itself for who fills masks
    changed = ids.clone()
    changed[:, 5:] = 1 + changed[:, 5:] % (VOCAB - 1)
    with torch.no_grad():
        again = causal(changed, causal_rows=CAUSAL).logits
    torch.testing.assert_close(again[CAUSAL][:, :5], mixed[CAUSAL][:, :5])
    assert (again[~CAUSAL][:, :5] - mixed[~CAUSAL][:, :5]).abs().amax((1, 2)).min() > 1e-4


def test_either_class_opens_what_the_other_saved(tmp_path):
    causal, masked = heads(tiny_config())
    ids = some_ids()
    for saved, place in ((causal, "causal"), (masked, "masked")):
        saved.save_pretrained(tmp_path / place)
        opened = [
            auto.from_pretrained(tmp_path / place).eval() for auto in (AutoModelForCausalLM, AutoModelForMaskedLM)
        ]
        assert [model.config.is_decoder for model in opened] == [True, False]
        for model, expected in zip(opened, (causal, masked), strict=True):
            torch.testing.assert_close(model(ids).logits, expected(ids).logits)


def test_heads_do_not_share_a_configuration_that_they_change():
    config = tiny_config()
    causal, masked = heads(config)
    assert (causal.config.is_decoder, masked.config.is_decoder, config.is_decoder) == (True, False, False)


def test_pads_inside_a_row_stand_between_no_tokens():
    """Attention with given positions sees the real tokens alone: wherever the pads are, the row is the same."""
    _, masked = heads(tiny_config("standard_attn", embedding_conv_kernel=0))
    ids = some_ids()[:2, :6]
    real = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1, 1, 1, 0]]).bool()
    padded = torch.zeros(real.shape, dtype=ids.dtype).masked_scatter(real, ids)
    with torch.no_grad():
        found = masked(padded, attention_mask=real.long()).logits
        alone = masked(ids).logits
    torch.testing.assert_close(found[real], alone.flatten(0, 1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_and_documents(side):
    """A padded row, and packed documents, fill masks as each text does alone; the first token has only the bias."""
    _, masked = heads(tiny_config())
    ids = some_ids()[:1]
    pads = torch.zeros_like(ids[:, :3])
    padded = torch.cat([pads, ids] if side == "left" else [ids, pads], dim=1)
    with torch.no_grad():
        alone = masked(ids).logits
        found = masked(padded, attention_mask=(padded != 0).long()).logits
        twice = masked(torch.cat([ids, ids], 1), seq_idx=torch.arange(2).repeat_interleave(LENGTH)[None]).logits
    torch.testing.assert_close(found[:, 3:] if side == "left" else found[:, :LENGTH], alone)
    torch.testing.assert_close(twice, torch.cat([alone, alone], 1))
    torch.testing.assert_close(alone[0, 0], masked.lm_head.decoder.bias)


@pytest.mark.parametrize("sparse", [False, True])
def test_losses_are_those_of_the_shifted_logits(sparse):
    causal, masked = heads(tiny_config(sparse_prediction=sparse))
    ids = some_ids()
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.6, -100)
    labels[:, 0] = -100
    with torch.no_grad():
        logits = masked.lm_head(masked.model(ids).last_hidden_state)
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(masked(ids, labels=labels).loss, expected)
        everything = torch.zeros(len(ids), dtype=torch.bool)
        torch.testing.assert_close(causal(ids, labels=labels, causal_rows=everything).loss, expected)


def test_router_statistics_are_means_over_the_tokens_of_both_passes():
    config = tiny_config(num_experts=3, dropout=0.0, attention_dropout=0.0)
    model = FrankensteinForCausalLM(config).train()
    ids = some_ids()
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mixed = model(ids, attention_mask=mask, causal_rows=CAUSAL)
    parts = [model(ids[rows], attention_mask=mask[rows], causal_rows=CAUSAL[rows]) for rows in (CAUSAL, ~CAUSAL)]
    counts = [mask[rows].sum() for rows in (CAUSAL, ~CAUSAL)]
    for name in ("expert_load", "aux_loss", "router_z_loss"):
        total = sum(count * part[name] for count, part in zip(counts, parts, strict=True))
        torch.testing.assert_close(mixed[name], total / mask.sum())


def test_hidden_states_come_back_in_order():
    causal, masked = heads(tiny_config())
    ids = some_ids()
    with torch.no_grad():
        mixed = causal(ids, causal_rows=CAUSAL, output_hidden_states=True).hidden_states
        alone = [model(ids, output_hidden_states=True).hidden_states for model in (causal, masked)]
    for state, one, other in zip(mixed, *alone, strict=True):
        torch.testing.assert_close(state, torch.where(CAUSAL[:, None, None], one, other))


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        ({"two_directions": False}, {}, "one direction, is_decoder=True"),
        ({}, {"causal_rows": CAUSAL[:2]}, r"expected bool \(5,\)"),
        ({}, {"causal_rows": CAUSAL.long()}, r"int64 of shape \(5,\)"),
        ({}, {"use_cache": True}, "cache exclude each other"),
        ({}, {"cu_seq_lens_q": torch.tensor([0, LENGTH])}, "give seq_idx"),
    ],
)
def test_what_cannot_be(fields, inputs, message):
    model = FrankensteinForCausalLM(tiny_config(is_decoder=True, **fields))
    with pytest.raises(ValueError, match=message):
        model(some_ids(), **{"causal_rows": CAUSAL, **inputs})


def test_those_who_know_no_shift_are_not_handed_one():
    sizes = {name: tiny_config().to_dict()[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = FrankensteinConfig(**{**BERT_LAYOUT, **sizes, "num_attention_heads": 2, "two_directions": True})
    with pytest.raises(ValueError, match="two_directions"):
        FrankensteinForMaskedLM(config).to_bert()
    with pytest.raises(UserError, match="two_directions"):
        architecture_of(config, "m")
