"""Models of frankenlm packed a layer at a time: the files that packing them in memory gives."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.quantizer_ternary import pack_model

LEGACY = {
    "vocab_size": 61,
    "hidden_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 72,
}
PLAIN = {"bitnet_embedding": False, "bitnet_head": False, "tie_word_embeddings": True}
MIXED = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "layer_pattern": ["retnet", "mamba", "ode"],
    "intermediate_size": 40,
    "mamba_head_dim": 16,
    "mamba_state": 8,
    "num_experts": 2,
    "use_bitnet": True,
}
GROUPS = {"scale_axis": "group", "group_size": 32}
MODELS = {
    "mixers": (FrankensteinForCausalLM, FrankensteinConfig, MIXED | {"is_decoder": True}),
    "ternary head": (FrankensteinForCausalLM, FrankensteinConfig, MIXED | {"is_decoder": True, "bitnet_head": True}),
    "encoder": (FrankensteinForMaskedLM, FrankensteinConfig, MIXED | {"layer_pattern": ["retnet"]}),
    "legacy": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY),
    "tied": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY | GROUPS | {"tie_word_embeddings": True}),
    "plain ends": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY | PLAIN),
}
INT8 = ["--int8_embeddings", "--int8_head"]
SLOW = {"mixers", "ternary head", "encoder"}  # their code is longer to copy


def build(name):
    torch.manual_seed(0)
    head, config, fields = MODELS[name]
    return head(config(**fields)).eval()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(pytest.param(name, [], marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS),
        ("plain ends", INT8),
        pytest.param("encoder", INT8, marks=pytest.mark.slow),
    ],
)
def test_the_files_are_those_of_packing_in_memory(name, words, pack, tmp_path):
    model = build(name)
    if model.can_generate():
        model.generation_config.update(do_sample=True, temperature=0.5)
    model.save_pretrained(tmp_path / "plain", max_shard_size="20KB")
    expected = pack_model(model, int8_embeddings=bool(words), int8_head=bool(words))
    expected.save_pretrained(tmp_path / "expected")
    output = pack(tmp_path / "plain", *words)
    files = {file.name: file for file in (tmp_path / "expected").iterdir()}
    assert {file.name for file in output.iterdir()} == {*files, "README.md", "packing.json"}
    for file in ("config.json", "generation_config.json"):
        if file in files:
            assert json.loads((output / file).read_text()) == json.loads(files[file].read_text()), file
    ours, theirs = load_file(output / "model.safetensors"), load_file(files["model.safetensors"])
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        assert ours[tensor].dtype == theirs[tensor].dtype and torch.equal(ours[tensor], theirs[tensor]), tensor
    facts = json.loads((output / "packing.json").read_text())
    assert facts["ternary_bytes"] + facts["int8_bytes"] + facts["other_bytes"] == sum(t.nbytes for t in ours.values())


@pytest.mark.parametrize(("name", "number"), [("legacy", 1), ("tied", 2)])
def test_the_format_says_whether_scales_belong_to_groups(name, number, tmp_path):
    model = pack_model(build(name))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["format"] == number and "plain_layers" not in saved
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_the_number_format_is_kept(pack, tmp_path):
    build("legacy").to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    packed = AutoModelForCausalLM.from_pretrained(pack(tmp_path / "plain"))
    assert packed.dtype == torch.bfloat16 and packed.config.quantization_config.format == 1


UP, NORM = "model.layers.0.ffn.up_proj.weight", "model.norm_f.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state[UP][0].fill_(float("nan")), f"{UP} holds NaN or infinity"),
        (lambda state: state[NORM].fill_(float("inf")), f"{NORM} holds NaN or infinity"),
        (lambda state: state.pop(UP), f"the checkpoint lacks {UP}"),
        (lambda state: state.update({UP: state[UP][:-1].clone()}), f"{UP} is (71, 40) in the checkpoint"),
        (lambda state: state.update({f"x{n}": torch.ones(1) for n in range(99)}), "no place for 99 of the"),
    ],
)
def test_damage_is_told_in_one_line(damage, message, pack, tmp_path, capsys):
    build("legacy").save_pretrained(tmp_path / "plain")
    state = load_file(tmp_path / "plain" / "model.safetensors")
    damage(state)
    save_file(state, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    assert pack.code("--model", tmp_path / "plain", "--output", tmp_path / "out") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line, line
    assert not (tmp_path / "out").exists()
