"""scripts/generate.py --interactive: a conversation that keeps its state, goes on, begins anew and ends."""

import dataclasses
import io
import json
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frankenlm.trainer_ext.common.cli import UserError

POSITIONS = 48


def read(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("model", ["gpt2", "mamba", "hybrid", "infinito"])
def test_state_goes_from_turn_to_turn(conversation, model, request, tokenizer):
    """A second turn with the kept state writes what the model writes when it reads everything again."""
    folder = request.getfixturevalue(model)
    cached, plain = conversation(folder), conversation(folder, use_cache=False)
    for talk in (cached, plain):
        talk.reply("the cat")
        talk.reply("sat on")
    assert cached.cache is not None and plain.cache is None
    assert cached.history == plain.history
    assert "".join(cached.pieces) == "".join(plain.pieces)
    middle = tokenizer("\nsat on")["input_ids"]
    assert cached.history[len(tokenizer("the cat")["input_ids"]) + 6 :][: len(middle)] == middle


def test_a_turn_reads_only_what_is_new(conversation):
    talk = conversation()
    talk.reply("the cat")
    lengths = []
    talk.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    before = len(talk.window)
    talk.reply("sat on")
    new = len(talk.window) - before - 6
    assert lengths == [new + 1, 1, 1, 1, 1, 1]  # the last token of a turn has not been read yet


def test_a_full_table_drops_the_oldest(conversation):
    talk = conversation(max_new_tokens=2 * POSITIONS)
    answer = talk.reply("the cat")
    assert len(answer.tokens) == 2 * POSITIONS and answer.finished == "length"
    assert len(talk.window) <= POSITIONS and talk.window == talk.history[-len(talk.window) :]
    assert "the oldest 24 tokens are dropped" in talk.notes[0]
    with pytest.raises(UserError, match=f"positions for {POSITIONS}"):
        talk.reply("cat " * 100)
    assert talk.reply("on a mat").finished == "length"


def test_positions_without_end_need_no_new_window(conversation, hybrid):
    talk = conversation(hybrid, max_new_tokens=2 * POSITIONS)
    assert len(talk.reply("the cat").tokens) == 2 * POSITIONS
    assert talk.notes == [] and talk.window == talk.history


def test_reset_and_seed_repeat_a_conversation(conversation):
    talk = conversation(temperature=1.0)
    first = [talk.reply(line).tokens for line in ("the cat", "sat")]
    other = [talk.reply(line).tokens for line in ("the cat", "sat")]
    talk.reset()
    talk.reseed(42)
    assert [talk.reply(line).tokens for line in ("the cat", "sat")] == first != other


def test_first_interrupt_ends_the_text_only(conversation):
    talk = conversation(max_new_tokens=30)
    sent = []

    def write(piece):
        talk.pieces.append(piece)
        if not sent:
            sent.append(signal.raise_signal(signal.SIGINT))

    talk.write = write
    answer = talk.reply("the cat")
    assert answer.finished == "interrupted" and 0 < len(answer.tokens) < 30
    assert talk.cache is not None and talk.history[-len(answer.tokens) :] == answer.tokens
    assert talk.reply("sat").finished == "length"


def test_second_interrupt_ends_it_at_once(conversation):
    talk = conversation(max_new_tokens=30)
    calls = []

    def press(*args):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    handle = talk.model.register_forward_pre_hook(press)
    answer = talk.reply("the cat")
    handle.remove()
    assert answer.finished == "interrupted" and len(answer.tokens) == 1
    assert talk.cache is None and talk.history[-1] == answer.tokens[0]
    fresh = conversation(use_cache=False)
    fresh.history, fresh.window = list(talk.history), list(talk.window)
    talk.sampling = fresh.sampling
    assert talk.reply("sat").tokens == fresh.reply("sat").tokens


def test_interactive_over_a_pipe(generate, gpt2, monkeypatch, capsys, tmp_path):
    lines = "the cat\n/seed 5\n\n/frobnicate\nsat on\n/reset\n/help\nthe cat\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    report = tmp_path / "r.json"
    assert generate("--model", gpt2, "--interactive", "--max_new_tokens", 5, "--json", report) == 0
    rows = read(report)["texts"]
    assert [row["prompt"] for row in rows] == ["the cat", "sat on", "the cat"]
    out, err = capsys.readouterr()
    assert out == "".join(row["text"] + "\n" for row in rows)
    assert "seed 5" in err and "unknown command '/frobnicate'" in err and "/reset forgets" in err


def test_chat_template(generate, gpt2, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "chat"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    tokenizer.save_pretrained(folder)
    report = tmp_path / "r.json"
    words = ["--model", folder, "--chat_template", "--max_new_tokens", 4, "--temperature", 0, "--json", report]
    assert generate(*words, "--prompt", "cat") == 0
    (asked,) = read(report)["texts"]
    assert generate("--model", gpt2, "--prompt", "u:cat;a:", *words[3:]) == 0
    assert read(report)["texts"][0]["token_ids"] == asked["token_ids"]
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\nmat\n"))
    assert generate(*words, "--interactive") == 0
    first, second = read(report)["texts"]
    assert first["token_ids"] == asked["token_ids"]
    # the second turn goes on from the tokens of the first, whatever other tokens would spell the same text
    ids = [token for text in ("u:cat;a:", ";u:mat;a:") for token in [*tokenizer(text)["input_ids"], None]]
    place = ids.index(None)
    talk = torch.tensor([ids[:place] + first["token_ids"] + ids[place + 1 : -1]])
    again = AutoModelForCausalLM.from_pretrained(gpt2).generate(talk, max_new_tokens=4, do_sample=False)
    assert again[0, talk.shape[1] :].tolist() == second["token_ids"]


def test_a_long_talk_drops_its_oldest_turns(generate, gpt2, monkeypatch, tmp_path, capsys):
    """With a template that writes earlier turns otherwise, the talk is read anew each time, until it no longer fits."""
    folder = tmp_path / "chat"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = (
        "{{ messages|length }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    )
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("cat mat\n" * 12))
    report = tmp_path / "r.json"
    words = ["--model", folder, "--chat_template", "--max_new_tokens", 4, "--interactive", "--json", report]
    assert generate(*words) == 0
    err = capsys.readouterr().err
    assert len(read(report)["texts"]) == 12 and "error" not in err
    assert "the oldest turns are dropped" in err


def test_bytes_that_are_no_text_are_a_mistake(generate, gpt2, monkeypatch, capsys):
    assert generate("--model", gpt2, "--prompt", "abc\udcff") == 2
    assert "not valid UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\udcff\nthe cat\n"))
    assert generate("--model", gpt2, "--interactive", "--max_new_tokens", 3) == 0
    assert "not valid UTF-8" in capsys.readouterr().err


def test_a_full_table_carries_the_memory_over(conversation, infinito, tokenizer):
    """What the second window writes is what the model writes there when it is given the memory of the first."""
    talk = conversation(infinito, max_new_tokens=POSITIONS + 8)
    answer = talk.reply("the cat")
    assert answer.finished == "length" and "the memory is carried over" in talk.notes[0] and len(talk.notes) == 1
    model = talk.model
    first, rest = talk.history[: POSITIONS - 1], talk.history[POSITIONS - 1 :]
    with torch.no_grad():
        carried = model(input_ids=torch.tensor([first]), use_cache=False).memory_state
        logits = model(input_ids=torch.tensor([rest[:-1]]), memory_state=carried, use_cache=False).logits
        forgotten = model(input_ids=torch.tensor([rest[:-1]]), use_cache=False).logits
    assert logits[0].argmax(-1).tolist() == rest[1:]
    assert not torch.allclose(logits, forgotten, atol=1e-3)
    assert talk.window == rest
    # the next turn stays in the window and goes on with its cache
    talk.sampling = dataclasses.replace(talk.sampling, max_new_tokens=4)
    answer = talk.reply("sat")
    assert len(talk.notes) == 1 and talk.window == talk.history[POSITIONS - 1 :]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([talk.window[:-1]]), memory_state=carried, use_cache=False).logits
    assert logits[0, -4:].argmax(-1).tolist() == answer.tokens


def test_without_memory_the_oldest_is_dropped(conversation, infinito):
    talk = conversation(infinito, max_new_tokens=POSITIONS + 8, use_memory=False)
    talk.reply("the cat")
    assert "the oldest" in talk.notes[0]
