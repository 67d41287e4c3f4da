"""A checkpoint carries its code: it loads where frankenlm is not installed, with equal logits."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForSequenceClassification,
    FrankensteinModel,
    native_ops,
)

PATTERN = ["retnet", "titan_attn", "mamba", "sigmoid_attn", "standard_attn", "ode"]
# Runs without the package: an import hook refuses it, which an editable install would otherwise defeat.
STRANGER = """
import sys
class NoFrankenlm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "frankenlm":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NoFrankenlm())
import json, torch, transformers
folder, kind, again = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
ids = torch.arange(3, 20)[None]
with torch.no_grad():
    logits = model(input_ids=ids).logits
torch.save(logits, again + "/logits.pt")
model.save_pretrained(again)
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


@pytest.mark.parametrize(
    ("head", "kind", "is_decoder"),
    [(FrankensteinForMaskedLM, "AutoModelForMaskedLM", False), (FrankensteinForCausalLM, "AutoModelForCausalLM", True)],
)
def test_loads_where_the_package_is_missing(tmp_path, monkeypatch, head, kind, is_decoder):
    torch.manual_seed(0)
    model = head(tiny(is_decoder)).eval()
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    model.save_pretrained(first)
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", STRANGER, str(first), kind, str(second)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    # Without the native attention and norm, which the stranger does not have: equal to the last bit.
    monkeypatch.setattr(native_ops, "native_code_runs", lambda: False)
    with torch.no_grad():
        expected = model(input_ids=torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(torch.load(second / "logits.pt", weights_only=True), expected, rtol=0, atol=0)
    # What the stranger saved is complete again.
    assert {path.name for path in first.glob("*.py")} == {path.name for path in second.glob("*.py")}
    assert json.loads((second / "config.json").read_text())["auto_map"].keys() >= {"AutoConfig", "AutoModel", kind}


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
