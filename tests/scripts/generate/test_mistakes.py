"""scripts/generate.py: what is refused, in one line, before the work."""

import json
from pathlib import Path

import pytest


def read(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


# --- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to go on from"),
        (["--prompt", "", "--model", ""], "--model is empty: give a "),
        (["--prompt", "", "--json", ""], "--json is empty: give a value, or leave --json out"),
        (["--interactive", "--prompt", ""], "leave out --prompt"),
        (["--prompt", "a", "--max_new_tokens", "0"], "--max_new_tokens 0: must be at least 1"),
        (["--prompt", "a", "--max_new_tokens", "-3"], "must be at least 1"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature -1.0: must be 0 (greedy) or a positive"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature nan: must be a finite number"),
        (["--prompt", "a", "--top_p", "0"], "--top_p 0.0: must lie above 0"),
        (["--prompt", "a", "--top_p", "1.5"], "--top_p 1.5: must lie above 0"),
        (["--prompt", "a", "--top_k", "0"], "--top_k 0: must be at least 1"),
        (["--prompt", "a", "--top_k", "5", "--temperature", "0"], "does nothing with --temperature 0"),
        (["--prompt", "a", "--repetition_penalty", "0"], "must be positive"),
        (["--prompt", "a", "--seed", "-1"], "--seed -1"),
        (["--prompt", "a", "--stop", ""], "--stop is empty"),
        (["--prompt", "a", "--num_beams", "0"], "--num_beams 0"),
        (["--prompt", "a", "--num_beams", "2", "--temperature", "1"], "add --temperature 0"),
        (["--prompt", "a", "--temperature", "0", "--num_return_sequences", "2"], "finds at most 1"),
        (["--prompt", "a", "--explore", "--temperature", "0"], "--explore samples some"),
        (["--prompt", "a", "--explore", "1.5"], "a probability above 0"),
        (["--prompt", "a", "--explore", "--num_beams", "2"], "--explore samples some"),
        (["--prompt", "a", "--no_memory"], "--no_memory: {model} (gpt2) has no slot memory"),
        (["--prompt", "a", "--memory_map", "m.png"], "--memory_map: {model} (gpt2) has no slot memory"),
        (["--prompt", "a", "--memory_map", "m.png", "--no_memory"], "leave one of them out"),
        (["--prompt", "a", "--attention_map", "m.jpg"], "ends in .png"),
        (["--prompt", "a", "--attention_map", "m.png", "--model", "{mamba}"], "has attention weights to draw"),
        (["--prompt", "a", "--json", "r.txt"], "ends in .json"),
        (["--prompt", "a", "--json", "{model}/config.json/r.json"], "cannot write to"),
        (["--prompt", "a", "--model", "/no/such/model"], "no such folder"),
        (["--prompt", "a", "--model", "{tmp}"], "no config.json"),
        (["--prompt", "a", "--device", "warp"], "no such device"),
        (["--prompt", "a", "--dtype", "float8"], "invalid choice"),
        (["--prompt", "a", "--chat_template"], "has none"),
        (["--prompt", "cat" * 80], "has positions for 48"),
        (["--prompts", "{tmp}/missing.txt"], "No such file"),
        (["--prompts", "{tmp}/empty.txt"], "holds no prompt"),
        (["--prompts", "{tmp}/bad.jsonl"], "line 2: needs a field"),
        (["--prompts", "{tmp}/worse.jsonl"], "line 1: not JSON"),
        (["--prompts", "{tmp}/reference.jsonl"], "must be a text or a list of texts"),
        (["--demo", "--top_k", "5"], "leave out --top_k"),
        (["--demo", "--interactive"], "two things"),
        (["--interactive", "--prompt", "a"], "leave out --prompt"),
        (["--interactive", "--num_beams", "2"], "leave out --num_beams"),
        (["--interactive", "--attention_map", "m.png"], "leave out --interactive"),
        (["--promt", "a"], "Did you mean '--prompt"),
    ],
)
def test_mistakes(words, message, generate, gpt2, mamba, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "worse.jsonl").write_text("prompt\n")
    (tmp_path / "reference.jsonl").write_text('{"prompt": "a", "reference": 3}\n')
    places = {"model": gpt2, "mamba": mamba, "tmp": tmp_path}
    before = sorted(tmp_path.iterdir())
    assert generate("--model", gpt2, *(word.format(**places) for word in words)) == 2
    out, err = capfd.readouterr()
    # transformers says once a process that a Mamba runs without its kernels
    (said,) = [line for line in err.splitlines() if "[transformers]" not in line]
    assert out == "" and message.format(**places) in said
    assert sorted(tmp_path.iterdir()) == before


def test_a_masked_model_does_not_generate(generate, unbroken, capfd):
    assert generate("--model", unbroken, "--prompt", "the cat") == 2
    assert "only causal language models generate" in capfd.readouterr().err


def test_a_model_that_the_hub_does_not_give(generate, monkeypatch, capfd):
    def fetch(name, **kwargs):
        raise OSError("We couldn't connect to the hub.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fetch)
    assert generate("--model", "someone/model", "--prompt", "the cat") == 2
    assert capfd.readouterr().err.startswith("error: --model someone/model: no folder of that name, and")
