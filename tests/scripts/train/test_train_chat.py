"""scripts/train.py on conversations: what is learned, what is left behind, and that it goes on after a break."""

import json
import random
import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from frankenlm.trainer_ext.common.objectives import ANSWERS_LOSS
from frankenlm.trainer_ext.data.splits import load_splits
from run_outcomes import assert_same_run, metrics

from ..conftest import WORDS

STEPS = ("--objective", "causal", "--max_steps", 4, "--eval_steps", 2, "--save_steps", 2, "--max_length", 96)


def said(rng) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 6)))


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    rng = random.Random(0)
    roles = ("user", "assistant")
    rows = [
        {"messages": [{"role": role, "content": said(rng)} for _ in range(rng.randint(1, 2)) for role in roles]}
        for _ in range(40)
    ]
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chat(train, talks, tmp_path_factory):
    """A finished run on conversations, with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "chat"
    assert train(folder, "--dataset", talks, *STEPS) == 0
    return folder


def test_the_held_out_loss_is_of_the_answers(chat, talks, cache):
    """Computed anew with transformers' own mask, from what was saved."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat), AutoTokenizer.from_pretrained(chat)
    nats = tokens = 0
    for row in load_splits(str(talks), record_form="auto", cache_dir=cache)["validation"]:
        messages = json.loads(row["record"])["messages"]
        encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, learned = torch.tensor(encoded["input_ids"][:96]), torch.tensor(encoded["assistant_masks"][:96]).bool()
        with torch.no_grad():
            losses = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        nats, tokens = nats + losses[learned[1:]].sum(), tokens + learned[1:].sum()
    facts = metrics(chat)
    assert facts["eval_loss"] == pytest.approx((nats / tokens).item(), abs=1e-5)
    assert facts["validation_tokens"] == tokens and facts["loss_meaning"] == ANSWERS_LOSS
    assert abs(facts["loss_at_init"] - facts["unigram_cross_entropy"]) < 0.3, "the unigrams are those of the answers"
    card = (chat / "README.md").read_text()
    assert ANSWERS_LOSS in card and f"{tokens} tokens of answers" in card
    log = (chat / "training.log").read_text()
    assert "its rows are conversations (messages)" in log and "it gets a plain one" in log and "one a row" in log


def test_what_is_saved_answers(chat):
    tokenizer = AutoTokenizer.from_pretrained(chat)
    talk = [{"role": "user", "content": "the cat"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "user\nthe cat<|endoftext|>assistant\n"
    answer = pipeline("text-generation", model=str(chat), device="cpu")(talk, max_new_tokens=4, do_sample=False)
    assert [turn["role"] for turn in answer[0]["generated_text"]] == ["user", "assistant"]


def test_a_resumed_run_on_conversations_equals_the_unbroken_one(train, talks, chat, tmp_path):
    shutil.copytree(chat / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copy(chat / "training.csv", tmp_path)
    assert train(tmp_path, "--dataset", talks, *STEPS, "--resume_from_checkpoint", "last") == 0
    assert_same_run(chat, tmp_path)


def test_other_conversations_are_other_data(train, talks, chat, tmp_path, capsys):
    shutil.copytree(chat / "checkpoint-2", tmp_path / "checkpoint-2")
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(talks.read_text().splitlines(keepends=True)[1:]))
    assert train(tmp_path, "--dataset", fewer, *STEPS, "--resume_from_checkpoint", "last") == 2
    assert "the rows of the" in capsys.readouterr().err


def test_pairs_batched_by_length_need_no_template(train, tmp_path):
    rng = random.Random(1)
    rows = "".join(f'"{said(rng)}?"," {said(rng)}"\r\n' for _ in range(40))
    (tmp_path / "pairs.csv").write_bytes(f"prompt,completion\r\n{rows}".encode())
    words = ("--dataset", tmp_path / "pairs.csv", *STEPS, "--max_steps", 2, "--no_packing", "--tokenizer", "bytes")
    assert train(tmp_path / "run", *words) == 0
    assert metrics(tmp_path / "run")["loss_meaning"] == ANSWERS_LOSS
    assert not (tmp_path / "run" / "chat_template.jinja").exists()


def test_generation_stops_where_answers_end(train, talks, chat, tmp_path):
    template = "{% for m in messages %}{{ m.role + '\n' + m.content + '<stop>' }}{% endfor %}"
    (tmp_path / "stop.jinja").write_text(template + "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}")
    run = tmp_path / "run"
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<stop>"]})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = ("--dataset", talks, *STEPS, "--max_steps", 1, "--tokenizer", tmp_path / "tokenizer", "--vocab_size", 301)
    assert train(run, *words, "--chat_template", tmp_path / "stop.jinja") == 0
    generation = json.loads((run / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<stop>"), tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--record_form messages --objective mlm",
            "--record_form messages: conversations are learned with --objective",
        ),
        ("--chat_template plain --objective classification", "--chat_template plain: conversations are learned with"),
        ("--chat_template plane --objective causal", "--chat_template plane: no such file"),
        ("--chat_template plain --objective causal", "holds texts, no conversations"),
        ("--record_form messages --objective causal", "no column 'messages'. Columns: text, label"),
    ],
)
def test_flags_that_do_not_fit(words, message, train, tmp_path, capsys):
    assert train(tmp_path / "run", *words.split()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run" / "model.safetensors").exists()
