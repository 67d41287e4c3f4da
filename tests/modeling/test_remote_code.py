"""A checkpoint carries its code: it loads where frankenlm is not installed, with equal logits."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForSequenceClassification,
    FrankensteinForTokenClassification,
    FrankensteinModel,
    InfinitoForCausalLM,
    InfinitoForQuestionAnswering,
    InfinitoModel,
    Legacy1BitForCausalLM,
    Legacy1BitForSequenceClassification,
    native_ops,
)
from tiny_infinito import tiny_infinito
from tiny_legacy import tiny_legacy

PATTERN = ["retnet", "titan_attn", "mamba", "sigmoid_attn", "standard_attn", "ode"]
STRANGER = """
folder, kind, again = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
ids = torch.arange(3, 20)[None]
with torch.no_grad():
    torch.save(model(input_ids=ids)[0], again + "/output.pt")  # of a span: where it begins
if kind == "AutoModelForCausalLM":
    torch.save(model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), again + "/text.pt")
model.save_pretrained(again)
if kind != "AutoModel":
    transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
"""


def tiny(is_decoder: bool) -> FrankensteinConfig:
    return FrankensteinConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=12,
        num_loops=2,
        num_attention_heads=2,
        layer_pattern=PATTERN,
        intermediate_size=24,
        mamba_head_dim=16,
        mamba_state=8,
        chunk_size=8,
        factorized_embedding_dim=16,
        embedding_conv_kernel=3,
        num_experts=2,
        is_decoder=is_decoder,
        use_bitnet=is_decoder,
    )


FAMILIES = {"modeling_frankenstein.py", "modeling_infinito.py", "modeling_legacy_1bit.py"}
CASES = {
    "encoder": (lambda: FrankensteinForMaskedLM(tiny(False)), "AutoModelForMaskedLM"),
    "decoder": (lambda: FrankensteinForCausalLM(tiny(True)), "AutoModelForCausalLM"),
    "infinito": (lambda: InfinitoForCausalLM(tiny_infinito()), "AutoModelForCausalLM"),
    "infinito stack": (lambda: InfinitoModel(tiny_infinito()), "AutoModel"),
    "legacy": (lambda: Legacy1BitForCausalLM(tiny_legacy()), "AutoModelForCausalLM"),
    "spans": (lambda: InfinitoForQuestionAnswering(tiny_infinito()), "AutoModelForQuestionAnswering"),
    "entities": (lambda: FrankensteinForTokenClassification(tiny(False)), "AutoModelForTokenClassification"),
    "classes": (lambda: Legacy1BitForSequenceClassification(tiny_legacy()), "AutoModelForSequenceClassification"),
}


ALIKE = {"decoder", "infinito stack", "entities", "classes"}  # to the encoder, the model of the stack, and spans


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in CASES]
)
def test_loads_where_the_package_is_missing(case, stranger, tmp_path, monkeypatch):
    make, kind = CASES[case]
    torch.manual_seed(0)
    model, ids = make().eval(), torch.arange(3, 20)[None]
    first, second = tmp_path / tmp_path.name, tmp_path / "second"  # no other test's name: code is kept by that
    second.mkdir()
    model.save_pretrained(first)
    done = stranger.run(STRANGER, first, kind, second, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    # Without the native attention and norm, which the stranger does not have: equal to the last bit.
    monkeypatch.setattr(native_ops, "native_code_runs", lambda: False)
    with torch.no_grad():
        expected = model(input_ids=ids)[0]
    assert torch.equal(torch.load(second / "output.pt", weights_only=True), expected)
    if kind == "AutoModelForCausalLM":
        text = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert torch.equal(torch.load(second / "text.pt", weights_only=True), text)
    # What the stranger saved is complete again, and no other family's.
    carried = {path.name for path in first.glob("*.py")}
    assert carried == {path.name for path in second.glob("*.py")}
    assert carried & FAMILIES == {f"modeling_{model.config.model_type}.py"}
    assert json.loads((second / "config.json").read_text())["auto_map"] == model.auto_classes


@pytest.mark.parametrize(
    ("auto", "head", "is_decoder"),
    [
        (AutoModel, FrankensteinModel, False),
        (AutoModelForMaskedLM, FrankensteinForMaskedLM, False),
        (AutoModelForCausalLM, FrankensteinForCausalLM, True),
        (AutoModelForSequenceClassification, FrankensteinForSequenceClassification, False),
    ],
)
def test_auto_classes_open_a_checkpoint(tmp_path, auto, head, is_decoder):
    model = head(tiny(is_decoder)).eval()
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is head
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, msg=name)
