"""Checkpoints outlive versions: what is saved under the oldest packages runs under the newest, and the other way round.

The code that a checkpoint carries is what runs there. The two environments are those of `make test-oldest` and
`make test-newest`.
"""

import subprocess
from pathlib import Path

import pytest
import torch

from forking import WITHOUT_FRANKENLM

CACHE = Path(__file__).resolve().parents[2] / ".cache"
PYTHONS = {name: CACHE / f"venv-{name}" / "bin" / "python" for name in ("oldest", "newest")}

SAVE = """
import sys, torch
from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM
from frankenlm.modeling import InfinitoConfig, InfinitoForCausalLM, Legacy1BitConfig, Legacy1BitForCausalLM
folder = sys.argv[1]
sizes = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 24}
mixers = ["retnet", "titan_attn", "mamba", "sigmoid_attn", "standard_attn", "ode"]
models = {
    "frankenstein": FrankensteinForCausalLM(FrankensteinConfig(
        **sizes, num_hidden_layers=6, layer_pattern=mixers, mamba_head_dim=16, mamba_state=8, is_decoder=True)),
    "infinito": InfinitoForCausalLM(InfinitoConfig(**sizes, num_hidden_layers=2, memory_layers=[1], memory_slots=4,
        memory_dim=16, memory_heads=2, max_position_embeddings=64)),
    "legacy_1bit": Legacy1BitForCausalLM(Legacy1BitConfig(**sizes, num_hidden_layers=2, max_position_embeddings=64)),
}
for name, model in models.items():
    model.eval().save_pretrained(f"{folder}/{name}")
    with torch.no_grad():
        ids = torch.arange(3, 14)[None]
        torch.save({"logits": model(ids).logits,
                    "text": model.generate(ids, max_new_tokens=8, do_sample=False)}, f"{folder}/{name}.pt")
"""
# The hook refuses our package, which both environments hold.
LOAD = (
    WITHOUT_FRANKENLM
    + """
import torch, transformers
folder, name, result = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
ids = torch.arange(3, 14)[None]
with torch.no_grad():
    torch.save({"logits": model(ids).logits, "text": model.generate(ids, max_new_tokens=8, do_sample=False)}, result)
"""
)


def run(python, code, *arguments, modules):
    environment = {"HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "reader"), [("oldest", "newest"), ("newest", "oldest")])
def test_a_checkpoint_of_one_environment_runs_in_the_other(tmp_path, writer, reader):
    for name, python in PYTHONS.items():
        if not python.exists():
            pytest.skip(f"`make test-{name}` makes the environment this needs")
    run(PYTHONS[writer], SAVE, tmp_path, modules=tmp_path / "modules")
    for family in ("frankenstein", "infinito", "legacy_1bit"):
        result = tmp_path / "read.pt"
        run(PYTHONS[reader], LOAD, tmp_path, family, result, modules=tmp_path / "modules")
        expected = torch.load(tmp_path / f"{family}.pt", weights_only=True)
        found = torch.load(result, weights_only=True)
        # the package's native attention and norm round otherwise than the code that travels
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
        assert found["text"].tolist() == expected["text"].tolist(), family
