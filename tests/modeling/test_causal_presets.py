"""Every preset as a causal language model, shrunk: it never looks ahead, generates alike in every way, and learns."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from frankenlm.modeling import FrankensteinConfig, InfinitoConfig, Legacy1BitConfig, list_presets, read_preset

VOCAB, LENGTH, STEPS = 128, 40, 200
FAMILIES = {"frankenstein": FrankensteinConfig, "infinito": InfinitoConfig, "legacy_1bit": Legacy1BitConfig}
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.1,
}
NO_MARKUP = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # bytes below 128 only
SHRUNK = {
    "frankenstein": {
        "num_hidden_layers": 12,
        "retention_heads": 2,
        "mamba_head_dim": 16,
        "mamba_state": 8,
        "chunk_size": 8,
    },
    "mini": {
        "retention_heads": 2,
        "mamba_head_dim": 16,
        "mamba_state": 8,
        "chunk_size": 8,
        "factorized_embedding_dim": 16,
        "use_titan_memory": True,
        "memory_chunk": 8,
    },
    "standard": {"num_hidden_layers": 3},
    "standard_hope": {"num_hidden_layers": 3},
    "tinybert": {"num_hidden_layers": 2},
    "embbert": {"num_hidden_layers": 2, "num_attention_heads": 1},
    "infinito": {
        "num_hidden_layers": 4,
        "memory_layers": [1, 3],
        "memory_slots": 4,
        "memory_segment": 4,
        "attention_window": 8,
    },
    "infinito-small": {"memory_slots": 8, "memory_segment": 4, "attention_window": 8},
    "legacy-1bit": NO_MARKUP,
    "legacy-1bit-base": {"num_hidden_layers": 3, **NO_MARKUP},
}
every_preset = pytest.mark.parametrize("preset", sorted(SHRUNK))


def build(preset, enliven=None, **overrides):
    family = FAMILIES[read_preset(preset).model_type]
    torch.manual_seed(0)
    config = family.from_preset(preset, **SMALL | SHRUNK[preset] | {"is_decoder": True} | overrides)
    model = AutoModelForCausalLM.from_config(config)
    return model if enliven is None else enliven(model.eval()).double()


@pytest.fixture
def ids():
    return torch.randint(1, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def test_every_preset_is_here():
    assert set(list_presets()) == set(SHRUNK)
    assert all(read_preset(name).model_type in FAMILIES for name in SHRUNK)
    assert all(AutoConfig.for_model(name).model_type == name for name in FAMILIES)


@every_preset
def test_no_preset_looks_ahead(preset, ids, enliven):
    model = build(preset, enliven)
    tolerance = 1e-10 if model.config.to_dict().get("num_experts") else 0.0
    other = torch.randint(1, VOCAB, ids.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
        assert expected.std() > 1
        for t in (1, 7, 8, 9, 16, 17, LENGTH - 1):
            difference = (model(torch.cat([ids[:, :t], other[:, t:]], dim=1)).logits - expected).abs()
            assert difference[:, :t].max() <= tolerance, t
            assert difference[:, t:].max() > 0.1, t


@pytest.mark.parametrize(
    ("preset", "beams"),
    [
        pytest.param(preset, beams, marks=[] if beams == (1, 3)[number % 2] else [pytest.mark.slow])
        for number, preset in enumerate(sorted(SHRUNK))
        for beams in (1, 3)
    ],
)
def test_every_preset_generates_alike_with_cache_without_and_alone(preset, beams, ids, enliven):
    model, prompts = build(preset, enliven), ids[:, :11]
    mask = torch.ones_like(prompts)
    mask[0, :5] = mask[1, :1] = 0
    options = {"max_new_tokens": 20, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    cached = model.generate(prompts, attention_mask=mask, **options)
    assert torch.equal(model.generate(prompts, attention_mask=mask, use_cache=False, **options), cached)
    for row, pads in enumerate((5, 1, 0)):
        prompt = prompts[row : row + 1, pads:]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert torch.equal(alone[0, 11 - pads :], cached[row, 11:])


def batch(text, rows, generator):
    starts = torch.randint(len(text) - LENGTH, (rows,), generator=generator)
    return torch.stack([text[start : start + LENGTH] for start in starts.tolist()])


def slow_unless_causal(preset, precision):
    """One of each family; the other presets learn as encoders in test_training.py, or are larger of the same."""
    is_quick = preset in ("infinito-small", "legacy-1bit") and precision == "fp32"
    return pytest.param(preset, precision, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("preset", "precision"),
    [slow_unless_causal(preset, precision) for preset in sorted(SHRUNK) for precision in ("fp32", "bf16")],
)
def test_every_preset_beats_the_unigram_entropy_as_a_causal_model(preset, precision, text_bytes):
    """200 steps on next bytes; in bf16 (autocast) without a NaN on the way."""
    model = build(preset).train()
    counts = torch.bincount(text_bytes["train"], minlength=VOCAB)
    if model.config.head_bias_init == "unigram":
        model.set_unigram_bias(counts)
    held_out = batch(text_bytes["validation"], 32, torch.Generator().manual_seed(5))
    unigram = -((counts + 1) / (counts + 1).sum()).log()[held_out[:, 1:]].mean().item()
    generator, optimizer = torch.Generator().manual_seed(1), torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min((step + 1) / 20, (STEPS - step) / (STEPS - 20))
        rows = batch(text_bytes["train"], 8, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(rows, labels=rows).loss
        assert loss.isfinite(), step
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
    with torch.no_grad():
        gain = unigram - model.eval()(held_out, labels=held_out).loss.item()
    assert gain >= 0.1, gain
