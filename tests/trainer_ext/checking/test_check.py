"""The command: what it says of models ours and not ours, of collators, and of mistakes."""

import json
import shlex

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from faulty_llama import FaultyLlama
from frankenlm.modeling import list_presets
from frankenlm.scripts.check import main
from frankenlm.trainer_ext.checking.opening import open_subject, plan_preset
from frankenlm.trainer_ext.checking.promises.table import PROMISES
from frankenlm.trainer_ext.checking.snippets import snippet
from frankenlm.trainer_ext.checking.tiny import tiny_config
from frankenlm.trainer_ext.common.cli import run_command


def run(line):
    """Return the exit code of the command with these words."""
    try:
        return run_command(main, shlex.split(line))
    except SystemExit as end:
        return end.code


def verdicts(path):
    return {each["promise"]: each["verdict"] for each in json.loads(path.read_text())["findings"]}


@pytest.mark.parametrize(
    "name",
    [
        *("infinito", "legacy-1bit", "frankenstein --set num_loops=1 num_hidden_layers=4"),
        pytest.param("mini --set is_decoder=true", marks=pytest.mark.slow),
    ],
)
def test_ours_break_nothing(name, tmp_path, capsys):
    """Ternary weights and a choice of experts jump with rounding, which is no fault."""
    assert run(f"--preset {name} --json {tmp_path / 'f.json'}") == 0, capsys.readouterr().out
    found = verdicts(tmp_path / "f.json")
    assert list(found) == list(PROMISES)
    assert all(found[f"packed rows, {form}"] == "holds" for form in ("position_ids", "seq_idx", "cu_seq_lens"))
    assert "breaks no promise" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(list_presets()))
def test_every_preset_breaks_nothing(name, dtype):
    assert run(f"--preset {name} --dtype {dtype}") == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["LlamaForCausalLM", "--model_type qwen3", "--model_type gpt2"])
def test_attention_alone_breaks_nothing(model, dtype, tmp_path):
    assert run(f"{model} --dtype {dtype} --json {tmp_path / 'f.json'}") == 0
    assert set(verdicts(tmp_path / "f.json").values()) == {"holds"}


@pytest.mark.parametrize(
    ("model_type", "broken", "refused"),
    [
        ("mamba2", {"position_ids", "seq_idx", "cu_seq_lens"}, set()),
        ("falcon_h1", {"position_ids", "cu_seq_lens"}, {"seq_idx"}),
        ("qwen3_5_text", {"position_ids"}, {"seq_idx", "cu_seq_lens"}),
        ("bert", {"position_ids", "seq_idx", "cu_seq_lens"}, set()),
    ],
)
def test_leaks_of_other_families_are_found(model_type, broken, refused, tmp_path, capsys):
    assert run(f"--model_type {model_type} --json {tmp_path / 'f.json'}") == 1
    found = verdicts(tmp_path / "f.json")
    forms = {form: found[f"packed rows, {form}"] for form in ("position_ids", "seq_idx", "cu_seq_lens")}
    assert forms == {**dict.fromkeys(broken, "broken"), **dict.fromkeys(refused, "refuses")}
    assert found["no gradient across documents"] == "broken"
    assert found["batch independence"] == found["save and load"] == found["padding right, batch 2"] == "holds"
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith(f"{model_type} breaks ")
    assert ("ignored in silence\n" in shown) is (model_type == "mamba2")


def test_a_saved_model_is_checked_as_it_was_saved(tmp_path, capsys):
    """Near zero, as families begin, a fault shows in little; --tiny draws anew."""
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(LlamaConfig)).save_pretrained(tmp_path / "m")
    for flag, said in (("", "weights as saved"), ("--tiny --set num_hidden_layers=1", "tiny, random weights (seed 0)")):
        assert run(f"{tmp_path / 'm'} {flag} --json {tmp_path / 'f.json'}") == 0
        assert said in capsys.readouterr().out
    facts = json.loads((tmp_path / "f.json").read_text())
    assert facts["class"] == "LlamaForCausalLM" and facts["broken"] == [] and facts["noise"]["calm"] > 0
    assert set(facts["versions"]) == {"frankenlm", "torch", "transformers"}


def shown(capsys, words):
    """Return the reproduction that the command prints, and what it prints itself."""
    assert run(f"{words} --reproduce") == 1
    text = capsys.readouterr().out.partition("\n# ")[2].partition("\n")[2]
    exec(compile(text, "snippet", "exec"), {"__name__": "__snippet__"})
    return text, float(capsys.readouterr().out.strip().removeprefix("tensor(").partition(",")[0].removesuffix(")"))


@pytest.mark.parametrize(
    ("words", "held"), [("--model_type mamba2", "'mamba2'"), ("--model_type roberta", "+ 2)"), ("BertModel", "_state")]
)
def test_the_reproduction_shows_the_fault(words, held, capsys):
    """As an issue would hold it: without a word of ours, and it prints what is wrong."""
    text, wrong = shown(capsys, words)
    assert held in text and "frankenlm" not in text and wrong > 1e-2


@pytest.mark.parametrize(("fault", "size"), [("future", 1), ("state", 0.1), ("rows", 0.1)])
def test_the_reproduction_of_a_class_has_that_class(fault, size, monkeypatch, capsys):
    """Its family alone has no fault."""
    monkeypatch.setattr(FaultyLlama, "fault", fault)
    monkeypatch.setattr(FaultyLlama, "size", size)
    text, wrong = shown(capsys, "faulty_llama:FaultyLlama")
    assert "from faulty_llama import FaultyLlama\n" in text and wrong > 1e-2


def test_the_reproduction_of_a_preset_knows_its_family():
    plan = plan_preset("infinito")
    text = snippet(plan, "cache", open_subject(plan, dtype=torch.float32, device="cpu", seed=0))
    exec(compile(text, "snippet", "exec"), {"__name__": "__snippet__"})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "name one model: MODEL"),
        ("gpt2 --preset mini", "name one model: MODEL"),
        ("gpt2", "A tiny one with random weights: --model_type gpt2"),
        ("mamb2", "Did you mean --model_type 'mamba2'?"),
        ("nomodel", "no connection).\n"),
        ("NoModel", "no class of that name.\n"),
        ("LlamaForCasualLM", "Did you mean 'LlamaForCausalLM'?"),
        ("PreTrainedModel", "is no model of a family"),
        ("json:dumps", "is no model of a family"),
        ("nowhere_at_all:Model", "cannot be imported"),
        ("json:Dumps", "Did you mean 'dumps'?"),
        ("/tmp", "holds no config.json"),
        ("/no/such/folder", "no such folder"),
        ("--model_type mamb2", "Did you mean 'mamba2'?"),
        ("--model_type t5", "is an encoder-decoder"),
        ("T5ForConditionalGeneration", "is an encoder-decoder"),
        ("--model_type gemma3", "--model_type gemma3_text"),
        ("--model_type vit", "reads no tokens"),
        ("--preset minni", "Did you mean 'mini'?"),
        ("--model_type llama --json /proc/nothing/f.json", "cannot write to"),
        ("--model_type llama --json /tmp", "is a folder"),
        ("--model_type llama --dtype int8", "invalid choice"),
        ("--model_type llama --device quantum", "no such device"),
        ("--model_type llama --seed -1", "--seed -1"),
        ("--model_type llama --tiny", "--tiny is for a folder"),
        ("--model_type llama --set hiden_size=32", "Did you mean 'hidden_size'?"),
        ("--model_type llama --set hidden_size", "write FIELD=VALUE"),
        ("--model_type llama --set hidden_size=[", "--set hidden_size"),
        ("--model_type llama --set hidden_size=33", "its tiny"),
        ("gpt2 --set n_embd=8", "--set is for tiny models"),
        ("--collator DataColatorWithFlattening", "Did you mean 'DataCollatorWithFlattening'?"),
        ("--collator DataCollatorWithFlattening --collator_args [1]", "write a JSON object"),
        ("--collator DataCollatorWithFlattening --collator_args {", "is no JSON"),
        ("""--collator DataCollatorWithPadding --collator_args '{"x": 1}'""", "cannot be made"),
        ("--collator_args {} --model_type llama", "is for a --collator"),
        ("--families --model_type llama", "leave the model"),
        ("--page README.md --model_type llama", "needs the lines"),
    ],
)
def test_mistakes_are_one_line(line, told, capsys):
    assert run(line) == 2
    out, error = capsys.readouterr()
    assert told in error and error.startswith("error: ") and error.count("\n") == 1 and not out
