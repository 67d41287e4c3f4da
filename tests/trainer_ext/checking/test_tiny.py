"""Tiny models: small, with each kind of layer, and with weights in which a layer's output is as large as its input."""

import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from faulty_llama import faulty
from frankenlm.modeling import FrankensteinConfig
from frankenlm.scripts.check import build_parser
from frankenlm.trainer_ext.checking import judging
from frankenlm.trainer_ext.checking.families import facts_of, family_names, markdown, try_families
from frankenlm.trainer_ext.checking.measure import Difference, distance
from frankenlm.trainer_ext.checking.noise import Noise
from frankenlm.trainer_ext.checking.opening import find_class, plan_type
from frankenlm.trainer_ext.checking.tiny import tiny_config
from frankenlm.trainer_ext.checking.weights import redraw

PAGE = Path(__file__).resolve().parents[3] / "docs" / "check.md"


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("gemma3_text", ["sliding_attention", "full_attention"]),
        ("qwen3_5_text", ["linear_attention", "full_attention"]),
        ("lfm2", ["conv", "full_attention"]),
        ("llama", None),
    ],
)
def test_each_kind_of_layer_stays_once(model_type, kinds):
    config = plan_type(model_type).config.to_dict()
    assert config.get("layer_types") == kinds and config["num_hidden_layers"] == 2
    assert config["hidden_size"] == 32 and config.get("sliding_window") in (None, 8)


def test_what_a_configuration_chose_is_kept():
    like = LlamaConfig(attention_bias=True, num_key_value_heads=32, vocab_size=128_256, eos_token_id=[128_001, 128_008])
    config = tiny_config(LlamaConfig, like, num_hidden_layers=3)
    assert (config.attention_bias, config.num_hidden_layers, config.num_key_value_heads) == (True, 3, 4)
    assert config.eos_token_id == 2 and config.vocab_size == 97 and config.head_dim == 8
    assert tiny_config(GPT2Config).n_inner is None and tiny_config(BertConfig).pad_token_id == 0
    preset = tiny_config(FrankensteinConfig, FrankensteinConfig.from_preset("mini"))
    assert preset.layer_pattern == ["retnet", "titan_attn", "mamba", "ode"] and preset.num_hidden_layers == 8


def test_classes_that_could_be_encoders_read_forwards():
    assert plan_type("bert").is_decoder is False and plan_type("bert-generation").config.is_decoder is True
    assert find_class("FrankensteinForCausalLM").__name__ == "FrankensteinForCausalLM"


def test_weights_show_what_a_layer_does():
    """As families begin, layers add little to what passes by; drawn anew, as much as that."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(LlamaConfig, tie_word_embeddings=True)).eval()
    ids = torch.randint(4, 97, (2, 16))

    def added():
        with torch.no_grad():
            before, after = model(ids, output_hidden_states=True).hidden_states[:2]
        return float((after - before).std() / before.std())

    before = added()
    redraw(model, 0)
    assert 2 * before < added() < 5 and added() > 0.5
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_is_set_by_design_stays():
    plan = plan_type("mamba2")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(plan.config)
    mixer = model.backbone.layers[0].mixer
    decays, times, norm = mixer.A_log.clone(), mixer.dt_bias.clone(), mixer.norm.weight.clone()
    redraw(model, 0)
    assert torch.equal(mixer.A_log, decays) and torch.equal(mixer.dt_bias, times)
    assert 0 < (mixer.norm.weight - norm).abs().max() < 0.5


def test_a_control_that_shows_nothing_is_no_proof():
    judge = faulty()
    assert judge.judge("x", lambda trial: Difference(0.0, 1e-9)).verdict == "cannot be told"
    assert judge.judge("x", lambda trial: Difference(0.0, 1e-2)).verdict == "holds"
    assert judge.judge("x", lambda trial: Difference(float("nan"), 1.0)).verdict != "holds"


def test_a_jump_on_one_row_is_not_called_broken():
    judge = faulty()

    def jump(trial):
        here = trial.rows.seed == 0 and trial.subject.dtype == torch.float32
        return Difference(0.1 if here else 0.0, 1.0)

    found = judge.judge("x", jump)
    assert found.verdict == "cannot be told" and "some rows" in found.note
    everywhere = judge.judge("x", lambda trial: Difference(0.1 if trial.rows.seed == 0 else 0.0, 1.0))
    assert everywhere.verdict == "broken"  # these rows differ in the wider format as well: a fault of their tokens


def test_rounding_that_could_hide_a_fault_proves_nothing(monkeypatch):
    monkeypatch.setattr(judging, "wider", lambda subject: None)
    monkeypatch.setattr(judging, "measure_noise", lambda trial, twin: Noise(1e-2, 1e-2))
    judge = faulty()
    found = {size: judge.judge("x", lambda trial, size=size: Difference(size, 1.0)) for size in (1e-4, 0.05, 0.5)}
    assert [each.verdict for each in found.values()] == ["holds", "cannot be told", "broken"]
    assert "rounding alone" in found[0.05].note


def test_distances_do_not_overlook_what_is_no_number():
    ones = torch.ones(2, 3, dtype=torch.float64)
    assert distance(ones * 1.5, ones) == 0.5 and distance(ones, torch.zeros_like(ones)) > 1e9
    assert distance(ones * float("nan"), ones) == distance(ones, ones[:1]) == float("inf")


def test_the_page_s_commands_are_commands_and_its_python_shows_the_fault(capsys):
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    assert len(lines) > 6
    for line in lines:
        program, verb, *words = shlex.split(line, comments=True)
        assert (program, verb) == ("frankenlm", "check") and build_parser().parse_strictly(words)
    (code,) = (text for kind, text in blocks if kind == "python")
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__page__"})
    assert float(capsys.readouterr().out.strip().removeprefix("tensor(").removesuffix(")")) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_family_of_plain_attention_is_blamed(dtype):
    """The walk over all families: what is broken is what the page names, in both formats."""
    found = try_families(family_names(), dtype=getattr(torch, dtype))
    tried = {each.name: each for each in found if each.findings}
    named = set(re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(tried) > 150
    assert {name for name, each in tried.items() if each.is_decoder and each.broken} <= named
    for name in (
        "mamba",
        "mamba2",
        "jamba",
        "bamba",
        "falcon_h1",
        "zamba2",
        "recurrent_gemma",
        "lfm2",
        "rwkv",
        "xlstm",
    ):
        assert "packed rows, position_ids" in tried[name].broken


def test_the_table_of_families():
    """A cell holds the worst of its promises; what could not be built says why."""
    found = list(try_families(["mamba2", "llama", "t5", "blt", "fnet"]))
    table = markdown(found)
    row = next(line for line in table.splitlines() if line.startswith("| `mamba2`"))
    assert row.split(" | ")[1:8] == ["ok"] * 6 + ["refuses"] and "(silent)" in row.split(" | ")[8]
    assert "(1)\n\n`llama`." in table and "- `blt`: its tiny configuration has" in table and "`t5`" not in table
    assert "| `fnet` | - | **" in table and f"transformers {version('transformers')}" in table
    assert facts_of(found)["t5"]["reason"].startswith("is an encoder-decoder")
