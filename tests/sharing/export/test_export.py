"""`frankenlm export`: programs that give the model's numbers at other sizes, GGUF files that are its weights."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from frankenlm import modeling
from frankenlm.modeling import FrankensteinConfig, byte_tokenizer
from frankenlm.scripts.export import main
from frankenlm.sharing.export import comparing, exporting, gguf_files, onnx_files, torch_program
from frankenlm.sharing.export.programs import longest_text, programs_of
from frankenlm.trainer_ext.common.cli import run_command
from tiny_infinito import tiny_infinito
from tiny_legacy import tiny_legacy

# torch.onnx says of itself that it uses what torch is going to change
pytestmark = pytest.mark.filterwarnings("ignore")

TINY = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "retention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "mamba_head_dim": 16,
    "mamba_state": 8,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
LLAMA = {
    "layer_pattern": ["standard_attn"],
    "norm_type": "rms_norm",
    "position_type": "rope",
    "hidden_act": "swiglu",
    "embedding_norm": None,
    "head_bias": False,
    "is_decoder": True,
}
GPT2 = LLAMA | {"norm_type": "layer_norm", "position_type": "learned", "hidden_act": "gelu", "use_bias": True}
BERT = GPT2 | {"is_decoder": False, "norm_style": "post", "head_transform": True, "type_vocab_size": 2}


@torch.no_grad()
def lively(model, seed=1):
    """Weights with which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else parameter + 0.3 * noise)
    return model.eval()


def make(kind, **fields):
    torch.manual_seed(0)
    if kind == "infinito":
        return lively(modeling.InfinitoForCausalLM(tiny_infinito(memory_slots=24, **fields)))
    if kind.startswith("legacy"):
        return lively(modeling.Legacy1BitForCausalLM(tiny_legacy("modern" if "ternary" in kind else "modern twin")))
    config = FrankensteinConfig(**TINY | fields)
    head = {"decoder": "ForCausalLM", "encoder": "ForMaskedLM"}.get(kind, f"For{kind}")
    return lively(getattr(modeling, f"Frankenstein{head}")(config))


@pytest.fixture
def saved(tmp_path, capfd):
    """saved(kind, **fields) -> (model, its folder, a folder for the export)."""

    def save(kind, with_tokenizer=True, **fields):
        model = make(kind, **fields)
        model.save_pretrained(tmp_path / "model")
        if with_tokenizer:
            byte_tokenizer().save_pretrained(tmp_path / "model")
        capfd.readouterr()  # progress bars
        return model, tmp_path / "model", tmp_path / "out"

    return save


def export(folder, format, output, *more) -> int:
    return run_command(main, [str(folder), "--format", format, "--output", str(output), *more])


def tokens(model, batch, length):
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


# --- torch and ONNX

HYBRID = {"layer_pattern": ["retnet", "titan_attn"], "num_experts": 2}
CASES = {
    "encoder": ("encoder", HYBRID),
    "infinito": ("infinito", {}),
    "ternary": ("legacy ternary", {}),
    "decoder": (
        "decoder",
        {"layer_pattern": ["mamba", "sigmoid_attn", "ode"], "num_hidden_layers": 3, "is_decoder": True},
    ),
    "loops": ("decoder", {"layer_pattern": ["retnet"], "is_decoder": True, "num_loops": 2, "use_bitnet": True}),
    "conv": ("encoder", {"layer_pattern": ["mamba"], "embedding_conv_kernel": 3, "factorized_embedding_dim": 16}),
    "spans": ("QuestionAnswering", {"layer_pattern": ["standard_attn"], "position_type": "learned"}),
    "classes": ("SequenceClassification", {"layer_pattern": ["titan_attn"], "is_decoder": True}),
    "window": ("decoder", {"layer_pattern": ["titan_attn"], "is_decoder": True, "attention_window": 3}),
}
FAST = {("onnx", "spans")}


@pytest.mark.parametrize(
    ("format", "case"),
    [
        pytest.param(format, case, marks=[] if (format, case) in FAST else pytest.mark.slow)
        for format in ("torch", "onnx")
        for case in CASES
    ],
)
def test_programs_are_the_model(format, case, saved, capfd):
    """What the files say of a text and, token by token, of what follows it, is what the model says."""
    kind, fields = CASES[case]
    model, folder, output = saved(kind, **fields)
    assert export(folder, format, output) == 0
    facts = json.loads((output / "export.json").read_text())
    assert all(0 <= file["largest_relative_difference"] < 1e-4 for file in facts["files"])
    names = [file["file"].partition(".")[0] for file in facts["files"]]
    assert f"{facts['files'][0]['file']}: largest relative difference" in capfd.readouterr().out
    assert (output / "tokenizer.json").is_file()

    reader = exporting.PROGRAMS[format]
    programs = {program.name: program for program in programs_of(model)}
    assert names == list(programs)
    runs = {name: reader.opened(output / f"{name}{reader.SUFFIX}", programs[name]) for name in names}
    inputs = tokens(model, 2, 13)
    with torch.no_grad():
        whole = model(**inputs)
    expected = whole.logits if "logits" in whole else whole.start_logits
    if names != ["prefill", "step"]:
        actual = runs[names[0]](*inputs.values())[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
        return
    parts = {name: tensor[:, :9] for name, tensor in inputs.items()}
    logits, *state = runs["prefill"](*parts.values())
    found = [logits]
    for place in range(9, 13):
        mask = inputs["attention_mask"][:, :place]
        logits, *state = runs["step"](inputs["input_ids"][:, place : place + 1], mask, *state)
        found.append(logits)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(found, 1)[real], expected[real], rtol=1e-3, atol=1e-3)


def test_a_signal_leaves_nothing(saved, monkeypatch, capfd):
    _, folder, output = saved("QuestionAnswering", layer_pattern=["standard_attn"], position_type="learned")
    monkeypatch.setattr(torch_program, "write", lambda program, path: os.kill(os.getpid(), signal.SIGTERM))
    assert export(folder, "torch", output) == 143
    assert f"interrupted: {output} is not written." in capfd.readouterr().err
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_what_differs_is_not_kept(saved, monkeypatch, capfd):
    _, folder, output = saved("QuestionAnswering", layer_pattern=["standard_attn"], position_type="learned")
    opened = torch_program.opened
    monkeypatch.setattr(
        torch_program,
        "opened",
        lambda path, program: lambda *inputs: [x * 1.01 for x in opened(path, program)(*inputs)],
    )
    assert export(folder, "torch", output) == 1
    assert "differs from the model in start_logits by 1.0e-02" in capfd.readouterr().err
    assert not output.exists() and [path.name for path in output.parent.iterdir()] == ["model"]


def test_differences():
    ours = torch.tensor([1.0, -2.0, torch.finfo(torch.float32).min, float("-inf")])
    assert comparing.relative_difference(ours, ours) == 0
    assert comparing.relative_difference(ours, ours * torch.tensor([1, 1.01, 1, 1])) == pytest.approx(0.01)
    assert comparing.relative_difference(ours, ours[:3]) is None
    assert comparing.relative_difference(ours, ours * torch.tensor([1, 1, -1, 1])) is None
    assert comparing.relative_difference(ours, torch.tensor([1.0, float("nan"), -1e38, float("-inf")])) is None
    assert comparing.relative_difference(ours[3:], ours[3:]) == 0


def test_how_long_a_text_may_be():
    assert longest_text(make("encoder", layer_pattern=["retnet"])) is None
    assert longest_text(make("encoder", layer_pattern=["retnet"], position_type="learned")) == 64
    assert longest_text(make("infinito", max_position_embeddings=400)) == 23 * 4
    span = make("encoder", layer_pattern=["titan_attn"], hope_damping=0.7)
    assert 30 < longest_text(span) < 50


def test_what_onnx_cannot_say(saved, monkeypatch, capfd):
    _, folder, output = saved("decoder", layer_pattern=["titan_attn"], use_titan_memory=True, is_decoder=True)
    monkeypatch.setattr(onnx_files, "exported", lambda program: (_ for _ in ()).throw(ValueError("no such operator")))
    assert export(folder, "onnx", output) == 1
    assert "ONNX cannot say what this model does: no such operator" in capfd.readouterr().err
    assert not output.exists()


# --- GGUF


@pytest.mark.parametrize(("kind", "fields", "architecture"), [("decoder", LLAMA, "llama"), ("decoder", GPT2, "gpt2")])
def test_transformers_reads_our_gguf(kind, fields, architecture, saved):
    """The file as others understand it: transformers' model of that architecture says what ours says."""
    model, folder, output = saved(kind, **fields, tie_word_embeddings=architecture == "gpt2")
    assert export(folder, "gguf", output) == 0
    (facts,) = json.loads((output / "export.json").read_text())["files"]
    assert facts["architecture"] == architecture and facts["vocabulary"].startswith("259 tokens")
    # transformers takes a gpt2's number of positions and its width between for the usual ones, whatever the file says
    sizes = {"n_positions": 64, "n_inner": 48} if architecture == "gpt2" else {}
    theirs = AutoModelForCausalLM.from_pretrained(output, gguf_file="model.gguf", dtype=torch.float32, **sizes).eval()
    ids = tokens(model, 2, 20)["input_ids"]
    if architecture == "gpt2":  # llama.cpp's GELU, and theirs, is the approximation by tanh
        gelu = torch.nn.GELU(approximate="tanh")
        for layer in model.model.layers:
            layer.ffn.activation = gelu
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_bert_as_gguf(saved):
    model, folder, output = saved("encoder", **BERT)
    assert export(folder, "gguf", output) == 0
    tensors = gguf_files.read_back(output / "model.gguf")
    layer = model.model.layers[1]
    pairs = {
        "token_embd.weight": model.model.embeddings.embed_tokens.weight,
        "token_types.weight": model.model.embeddings.embed_types.weight,
        "token_embd_norm.bias": model.model.embeddings.norm.bias,
        "blk.1.attn_q.weight": layer.mixer.q_proj.weight,
        "blk.1.attn_output_norm.weight": layer.norm1.weight,
        "blk.1.ffn_down.bias": layer.ffn.down_proj.bias,
        "blk.1.layer_output_norm.bias": layer.norm2.bias,
    }
    for name, parameter in pairs.items():
        assert np.array_equal(tensors[name], parameter.detach().numpy()), name
    assert len(tensors) == 5 + 2 * 16


REFUSED = {
    "mixers": ("decoder", LLAMA | {"layer_pattern": ["standard_attn", "retnet"]}, "layer_pattern has retnet"),
    "memories": ("infinito", {}, "the family infinito is a causal post-norm transformer with slot memories"),
    "ternary": ("legacy ternary", {}, "use_bitnet=True"),
    "experts": ("decoder", LLAMA | {"num_experts": 2}, "num_experts=2"),
    "bias": ("decoder", LLAMA | {"head_bias": True}, "no bias and no transform"),
    "loops": ("decoder", LLAMA | {"num_loops": 2}, "num_loops=2"),
    "mixture": ("decoder", LLAMA | {"hidden_act": "gelu"}, "no architecture has pre, rms_norm, rope, gelu together"),
    "convolution": ("decoder", LLAMA | {"embedding_conv_kernel": 3}, "embedding_conv_kernel=3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_run(case, saved, capfd):
    kind, fields, reason = REFUSED[case]
    _, folder, output = saved(kind, with_tokenizer=False, **fields)
    assert export(folder, "gguf", output) == 2
    error = capfd.readouterr().err
    assert reason in error and error.count("\n") == 1 and not output.exists()


def test_llama_cpp_says_the_same(saved):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, folder, output = saved("decoder", **LLAMA)
    assert export(folder, "gguf", output) == 0
    ids = tokens(model, 1, 8)["input_ids"]
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=256, eos_token_id=None)
    runner = llama_cpp.Llama(str(output / "model.gguf"), n_ctx=32, verbose=False)
    found = [token for token, _ in zip(runner.generate(ids[0].tolist(), temp=0.0), range(8), strict=False)]
    assert found == expected[0, 8:].tolist()


# --- mistakes: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{model}", "--format", "onx", "--output", "{dir}/out"], "Did you mean 'onnx'?"),
        (["{model}", "--format", "\x1b[31m", "--output", "{dir}/out"], "no such format"),
        (["{model}", "--format", "", "--output", "{dir}/out"], "--format"),
        (["{model}", "--format", "torch", "--output", ""], "--output"),
        (["{model}", "--format", "torch", "--output", "{dir}/model"], "exists already"),
        (["{model}", "--format", "torch", "--output", "{dir}/model/config.json"], "exists already"),
        (["{model}", "--format", "torch", "--output", "{dir}/model/config.json/x"], "cannot write to"),
        (["{dir}/../../nothing", "--format", "torch", "--output", "{dir}/out"], "nothing"),
        (["{model}", "--format", "torch", "--outptu", "{dir}/out"], "--output"),
        (["", "--format", "torch", "--output", "{dir}/out"], "model"),
    ],
)
def test_mistakes(words, message, saved, tmp_path, capfd):
    _, folder, _ = saved("decoder", **LLAMA)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert run_command(main, [word.format(model=folder, dir=tmp_path) for word in words]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_damaged_model(saved, capfd):
    _, folder, output = saved("decoder", **LLAMA)
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    assert export(folder, "torch", output) == 2
    assert "weights cannot be used" in capfd.readouterr().err and not output.exists()
