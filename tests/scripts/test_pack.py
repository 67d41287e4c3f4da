"""scripts/pack.py: what it writes, from frankenlm's and from transformers' BitNet checkpoints, and the mistakes."""

import contextlib
import json
import os
import shutil
import signal
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitNetConfig,
    BitNetForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.modeling.bitnet_conversion import pack_bitnet
from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.modeling.ternary import quantize_weight
from frankenlm.scripts import pack as script_module
from frankenlm.trainer_ext.common.cli import UserError, run_command
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

IDS = torch.arange(3, 20)[None]
SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def main():
    return script_module.main


@pytest.fixture(scope="module")
def pack(main):
    """pack(*words) runs the script in this process and returns its exit code."""
    return lambda *words: run_command(main, [str(word) for word in words])


def save_legacy(folder, **changes):
    torch.manual_seed(0)
    model = Legacy1BitForCausalLM(Legacy1BitConfig(**SIZES | {"intermediate_size": 96} | changes)).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """A folder with a model whose embedding and head are not ternary, and a tokenizer."""
    folder = tmp_path_factory.mktemp("legacy") / "model"
    save_legacy(folder, bitnet_embedding=False, bitnet_head=False)
    train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=300, mask=False).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model):
    with torch.compiler.set_stance("force_eager"):
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("int8", [False, True])
def test_packs_a_checkpoint(int8, pack, legacy, tmp_path, capsys):
    output = tmp_path / "new" / "packed"
    words = ["--int8_embeddings", "--int8_head"] if int8 else []
    assert pack("--model", legacy, "--output", output, *words) == 0
    printed = capsys.readouterr().out
    facts = json.loads((output / "packing.json").read_text(), parse_constant=pytest.fail)
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 96)
    assert facts["ternary_weights"] == weights and facts["ternary_layers"] == 12
    assert facts["ternary_bytes"] == weights / 4 + 4 * 2 * (4 * 64 + 64 + 96)
    assert facts["bits_per_ternary_weight"] == pytest.approx(8 * facts["ternary_bytes"] / weights)
    assert facts["int8_bytes"] == (2 * (61 * 64 + 61 * 4) if int8 else 0)
    assert facts["file_bytes"] == (output / "model.safetensors").stat().st_size
    sizes = sum(tensor.nbytes for tensor in load_file(output / "model.safetensors").values())
    assert facts["ternary_bytes"] + facts["int8_bytes"] + facts["other_bytes"] == sizes
    assert f"{weights:,} ternary weights at {facts['bits_per_ternary_weight']:.3f} bits" in printed
    card = (output / "README.md").read_text()
    assert f"| {facts['bits_per_ternary_weight']:.3f} |" in card and "trust_remote_code" in card
    assert (output / "quantizer_ternary.py").is_file()
    assert AutoTokenizer.from_pretrained(output).get_vocab() == AutoTokenizer.from_pretrained(legacy).get_vocab()
    expected = logits(AutoModelForCausalLM.from_pretrained(legacy))
    actual = logits(AutoModelForCausalLM.from_pretrained(output))
    assert (actual - expected).norm() / expected.norm() < 0.05 if int8 else torch.equal(actual, expected)


def test_a_model_without_tokenizer_says_so(pack, tmp_path, capsys):
    save_legacy(tmp_path / "model")
    assert pack("--model", tmp_path / "model", "--output", tmp_path / "packed") == 0
    assert "has no tokenizer" in capsys.readouterr().err
    assert json.loads((tmp_path / "packed" / "packing.json").read_text())["tokenizer"] is False


def save_bitnet(folder, linear_class, mode, *, tie=False, dtype=torch.float32, config_class=BitNetConfig):
    """A random BitNet, or a model of another family with its layers, as transformers stores it."""
    torch.manual_seed(0)
    config = config_class(
        **SIZES, intermediate_size=96, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tie
    )
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if "proj" in name and mode == "offline"]:
        codes, scale = quantize_weight(state[name])
        state[name] = pack_bitnet(codes.to(torch.int8))
        scale = 1 / scale if linear_class == "bitlinear" else scale
        state[name.replace(".weight", ".weight_scale")] = scale.reshape(1).to(dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": mode}
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] = quantization | {"modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


KINDS = [("bitlinear", "offline"), ("autobitlinear", "offline"), ("autobitlinear", "online")]
DTYPES = (torch.float32, torch.bfloat16)
# Each value of each of the four once; the slow tests cross them.
WALK = [(*KINDS[0], False, torch.float32), (*KINDS[1], True, torch.bfloat16), (*KINDS[2], False, torch.bfloat16)]


@pytest.mark.parametrize(
    ("linear_class", "mode", "tie", "dtype"),
    [
        pytest.param(*case, marks=[] if case in WALK else [pytest.mark.slow])
        for case in (
            (*kind, tie, dtype) for kind in KINDS for tie in (False, True) for dtype in (torch.float32, torch.bfloat16)
        )
    ],
)
def test_bitnet_checkpoints_both_ways(linear_class, mode, tie, dtype, pack, tmp_path):
    folder = save_bitnet(tmp_path / "bitnet", linear_class, mode, tie=tie, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while its compiler is imported
        expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    near = 0.03 if dtype == torch.float32 else 0.25  # transformers' layers sum in bfloat16
    assert pack("--model", folder, "--output", tmp_path / "packed") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype="auto")
    assert type(model) is BitNetForCausalLM and len(packed_layers(model)) == 14
    assert (logits(model) - expected).norm() / expected.norm() < near
    assert pack("--model", tmp_path / "packed", "--output", tmp_path / "back", "--to", "bitnet") == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert again.config.quantization_config.linear_class == linear_class
    assert (logits(again) - expected).norm() / expected.norm() < near
    if mode == "offline":
        before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            exact = dtype != torch.float32 or linear_class == "autobitlinear" or not name.endswith("weight_scale")
            torch.testing.assert_close(after[name], tensor, rtol=0 if exact else 2e-7, atol=0, msg=name)


@pytest.mark.parametrize(("linear_class", "mode"), KINDS)
def test_llamas_with_bitnet_layers(linear_class, mode, pack, tmp_path):
    """As Falcon-E and Falcon3-1.58bit are."""
    folder = save_bitnet(tmp_path / "llama", linear_class, mode, dtype=torch.bfloat16, config_class=LlamaConfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    assert pack("--model", folder, "--output", tmp_path / "packed") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype="auto")
    assert type(model) is LlamaForCausalLM and len(packed_layers(model)) == 14 and model.dtype == torch.bfloat16
    assert (logits(model) - expected).norm() / expected.norm() < 0.25
    assert pack("--model", tmp_path / "packed", "--output", tmp_path / "back", "--to", "bitnet") == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert type(again) is LlamaForCausalLM and (logits(again) - expected).norm() / expected.norm() < 0.25


@pytest.mark.parametrize("tie", [False, True])
def test_bitnet_with_int8_ends(tie, pack, tmp_path):
    folder = save_bitnet(tmp_path / "bitnet", "autobitlinear", "offline", tie=tie)
    output = tmp_path / "packed"
    assert pack("--model", folder, "--output", output, "--int8_embeddings", "--int8_head") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = logits(AutoModelForCausalLM.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(output)
    assert (logits(model) - expected).norm() / expected.norm() < 0.1
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie
    tables = [tensor for tensor in load_file(output / "model.safetensors").values() if tensor.dtype == torch.int8]
    assert len(tables) == (1 if tie else 2)
    assert pack("--model", output, "--output", tmp_path / "back", "--to", "bitnet") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(number, code, pack, legacy, tmp_path, monkeypatch, capsys):
    def killed(*args, **kwargs):
        with contextlib.suppress(Exception):  # as libraries do
            os.kill(os.getpid(), number)

    monkeypatch.setattr("frankenlm.trainer_ext.packed_checkpoints.write_json", killed)
    # a shell's background jobs, such as a run of the tests may be, ignore SIGINT from their start
    before = signal.default_int_handler if number == signal.SIGINT else signal.getsignal(number)
    kept = signal.signal(number, before)
    try:
        assert pack("--model", legacy, "--output", tmp_path / "new" / "packed") == code
        assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted")
        assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is before
    finally:
        signal.signal(number, kept)


@pytest.mark.parametrize("number", [28, 30])
def test_a_full_or_read_only_disk_leaves_nothing(number, pack, legacy, tmp_path, monkeypatch, capsys):
    """The checkpoint is written beside and renamed, so the same command can be given again."""

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("frankenlm.trainer_ext.packed_checkpoints.write_json", full)
    assert pack("--model", legacy, "--output", tmp_path / "new" / "packed") == 6
    assert os.strerror(number) in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_cards_and_reports_name_no_place(pack, legacy, tmp_path):
    assert pack("--model", legacy, "--output", tmp_path / "packed") == 0
    for name in ("README.md", "packing.json", "config.json"):
        assert str(legacy.parent) not in (tmp_path / "packed" / name).read_text(), name
    assert json.loads((tmp_path / "packed" / "packing.json").read_text())["model"] == legacy.name
    assert f"The ternary weights of `{legacy.name}`" in (tmp_path / "packed" / "README.md").read_text()


def test_a_damaged_tokenizer_is_found_before_anything_is_written(pack, legacy, tmp_path, capsys):
    shutil.copytree(legacy, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    assert pack("--model", tmp_path / "model", "--output", tmp_path / "packed") == 2
    assert "its tokenizer cannot be used" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "packed").exists()


def test_a_damaged_bitnet_checkpoint_is_named(main, tmp_path):
    folder = save_bitnet(tmp_path / "bitnet", "bitlinear", "offline")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"] |= 3
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj: damaged"):
        main(["--model", str(folder), "--output", str(tmp_path / "packed")])


@pytest.fixture
def mistakes(tmp_path, legacy, pack):
    """Folders with something wrong, by name."""
    folders = {name: tmp_path / name for name in ("gpt2", "plain", "int2", "packed", "taken", "normed", "legacy")}
    GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folders["gpt2"])
    save_legacy(folders["plain"], use_bitnet=False)
    save_legacy(folders["int2"], w_scheme="int2")
    assert pack("--model", legacy, "--output", folders["packed"]) == 0
    folders["taken"].mkdir()
    (folders["taken"] / "notes.txt").write_text("mine")
    save_bitnet(folders["normed"], "bitlinear", "offline")
    fields = json.loads((folders["normed"] / "config.json").read_text())
    fields["quantization_config"]["use_rms_norm"] = True
    (folders["normed"] / "config.json").write_text(json.dumps(fields))
    return folders | {"legacy": legacy, "nowhere": tmp_path / "nowhere", "new": tmp_path / "new"}


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("nowhere", [], "no such folder"),
        ("taken", [], "no config.json"),
        ("gpt2", [], "no layer that could be ternary"),
        ("plain", [], "no ternary layer"),
        ("int2", [], "w_scheme='int2' cannot be packed"),
        ("packed", [], "packed already"),
        ("normed", [], "use_rms_norm=True"),
        ("legacy", ["--modules_to_not_convert", "lm_heads"], "no 'lm_heads'. Did you mean 'lm_head'"),
        ("legacy", ["--int8"], "unknown argument '--int8'"),
        ("legacy", ["--to", "bitnet"], "--to bitnet takes back"),
        ("packed", ["--to", "bitnet"], "--to bitnet takes back"),
        ("legacy", ["--to", "gguf"], "invalid choice"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(model, words, message, mistakes, pack, capsys):
    assert pack("--model", mistakes[model], "--output", mistakes["new"], *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not mistakes["new"].exists()


def test_never_overwrites(mistakes, main):
    with pytest.raises(UserError, match="exists already"):
        main(["--model", str(mistakes["legacy"]), "--output", str(mistakes["taken"])])
    assert [path.name for path in mistakes["taken"].iterdir()] == ["notes.txt"]
