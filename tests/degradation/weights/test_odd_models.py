"""Models of other shapes than most: no attention, attention in some layers, few positions, sizes that cannot be."""

import contextlib
import io
import json
import re
import shutil

import pytest
import torch
import transformers

from frankenlm.degradation.answers.masked_probe import WINDOW, MaskedTextProbe
from frankenlm.degradation.answers.text_probe import TextProbe, window_of
from frankenlm.degradation.cli import main
from frankenlm.degradation.weights.attention_heads import attention_heads
from frankenlm.degradation.weights.groups import describe_groups
from frankenlm.trainer_ext.common.cli import run_command

VOCABULARY = {"vocab_size": 272, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# class -> fields of its configuration, and groups that it must have
OTHERS = {
    "Mamba2ForCausalLM": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
        {"embed_only", "lm_head", "norm"},
    ),
    "MambaForCausalLM": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, {"embed_only", "norm"}),
    "RecurrentGemmaForCausalLM": (
        SIZES | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
        {"attn_only", "mlp_only"},
    ),
    "Lfm2ForCausalLM": (SIZES | {"num_key_value_heads": 2, "full_attn_idxs": [1]}, {"attn_only", "embed_only"}),
    "OPTForCausalLM": (
        {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
        {"attn_only", "mlp_only", "embed_only"},
    ),
    "BloomForCausalLM": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, {"embed_only", "norm"}),
    "XLNetLMHeadModel": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, {"embed_only"}),
    "OpenAIGPTLMHeadModel": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, {"embed_only"}),
}


def empty(name):
    config_class = getattr(transformers, name).config_class
    with torch.device("meta"):
        return getattr(transformers, name)(config_class(**VOCABULARY | OTHERS[name][0]))


@pytest.mark.parametrize("name", OTHERS)
def test_groups_of_other_families(name):
    groups = {row["group"]: row for row in describe_groups(empty(name))}
    assert OTHERS[name][1] <= groups.keys()
    assert all(row["elements"] > 0 for row in groups.values())


def test_heads_are_known_where_there_are_any(tiny_config):
    assert attention_heads(empty("Mamba2ForCausalLM").config) is None
    assert attention_heads(tiny_config("gpt2")) == attention_heads(tiny_config("llama")) == 4


def command(*words):
    """Run the command in this process; return its exit code and the lines that a user is told."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = run_command(main, [str(word) for word in words])
    return code, [line for line in err.getvalue().splitlines() if re.match("error|stopped|storage|failed", line)]


@pytest.fixture(scope="module")
def saved(tiny_tokenizer, tmp_path_factory):
    """saved(name, **fields) -> the folder of a model of OTHERS with a tokenizer."""
    root = tmp_path_factory.mktemp("others")

    def make(name, **fields):
        torch.manual_seed(0)
        model_class = getattr(transformers, name)
        model_class(model_class.config_class(**VOCABULARY | OTHERS[name][0] | fields)).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
        return root / name

    return make


SHORT = "--config smoke --dtype float32 --group embed_only --levels 0 --n_rep 1 --max_prompts 2 --max_new_tokens 2"


@pytest.mark.parametrize(
    ("name", "fields"), [("Mamba2ForCausalLM", {}), ("OPTForCausalLM", {"max_position_embeddings": 100})]
)
def test_a_run_on_other_families(name, fields, saved, tmp_path):
    folder = saved(name, **fields)
    assert command("groups", "--model", folder) == (0, [])
    assert command("dry-run", "--model", folder, *SHORT.split()) == (0, [])
    assert command("run", "--model", folder, "--output_dir", tmp_path, *SHORT.split()) == (0, [])
    (path,) = tmp_path.glob("outputs_*.json")
    rows = json.loads(path.read_text())
    assert len(rows) == 2 and rows[0]["perplexity"] > 1


# --- windows


@pytest.mark.parametrize("positions", [2, 3, 16, 61, 400])
def test_windows_fit_the_positions(positions, tiny_model, tiny_tokenizer):
    """Every token is scored once, with as much before it as the model has positions for, at least half."""
    model, text = tiny_model("gpt2", n_positions=positions), "The kettle sang. " * 12
    probe = TextProbe(model, tiny_tokenizer(), text, positions)
    score, kept = probe.remember(), 0
    assert probe.context == min(positions, 512)
    losses, scored_to = [], 1
    for start in range(0, len(probe.ids) - 1, probe.context // 2):
        end = min(start + probe.context, len(probe.ids))
        with torch.inference_mode():
            predictions = model(probe.ids[None, start:end]).logits[0].log_softmax(-1)
        losses += [-predictions[at - start - 1, probe.ids[at]].item() for at in range(scored_to, end)]
        scored_to = end
        if end == len(probe.ids):
            break
    assert len(losses) == len(probe.ids) - 1 and not kept
    assert score.log_perplexity == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_windows_of_masked_models_fit_too(tiny_model, tiny_mask_tokenizer):
    model = tiny_model("bert", max_position_embeddings=20)
    probe = MaskedTextProbe(model, tiny_mask_tokenizer(), "The kettle sang. " * 4, 20)
    assert probe.window == 18 < WINDOW
    assert probe.remember().log_perplexity > 0


def test_no_window_at_all_is_one_line():
    with pytest.raises(ValueError, match="perplexity needs 4 positions, the model has 3"):
        window_of(64, 3, special=2)


# --- what a folder can hold


@pytest.fixture
def broken(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir("llama"), tmp_path / "tiny")


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "endless layers": (lambda f: change(f, num_hidden_layers=1_000_000_000), "num_hidden_layers=1000000000"),
    "no heads": (lambda f: change(f, num_attention_heads=0), "config.json"),
    "heads of text": (lambda f: change(f, num_attention_heads="four"), "config.json"),
    "negative width": (lambda f: change(f, hidden_size=-32), "config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json"),
    "cut": (cut, "weights"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "weights"),
    "another's width": (lambda f: change(f, intermediate_size=50), "weights"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    "odd template": (lambda f: (f / "chat_template.jinja").write_text("{{ foo("), "chat template"),
    "no generation": (lambda f: (f / "generation_config.json").write_text("[1"), "generation_config.json"),
    "odd stop": (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "end"}'), "token id"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_one_line(name, broken, tmp_path):
    damage, message = DAMAGES[name]
    damage(broken)
    code, lines = command("run", "--model", broken, "--output_dir", tmp_path / "results", *SHORT.split())
    assert code == 2 and len(lines) == 1 and message in lines[0], lines
    code, lines = command("groups", "--model", broken)
    assert code in (0, 2) and len(lines) == (code == 2)


def test_weights_that_the_method_cannot_take_are_told_before_any_row(tiny_model, tiny_tokenizer, tmp_path):
    from frankenlm.degradation import get_config, run_experiment
    from frankenlm.trainer_ext.common.cli import UserError

    model = tiny_model("llama")
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = torch.inf
    config = get_config("smoke") | {"dtype": "float32", "method": "uni_quant", "levels": (0, 16), "perplexity": False}
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.v_proj.*infinities"):
        run_experiment(config, model=model, tokenizer=tiny_tokenizer(), output_dir=tmp_path, progress=False)
    assert not any(json.loads(path.read_text()) for path in tmp_path.glob("outputs_*.json"))
    with pytest.raises(ValueError, match="device meta"):
        run_experiment(config, model=model.to("meta"), tokenizer=tiny_tokenizer(), output_dir=tmp_path)
