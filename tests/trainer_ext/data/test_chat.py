"""Which tokens of a conversation are learned: by hand, against TRL, and where it cannot be told."""

import json
import re
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from frankenlm.modeling import byte_tokenizer
from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.data.chat import encode_record, prepare_conversations
from frankenlm.trainer_ext.data.chat_templates import check_template, plain_template, set_chat_template
from frankenlm.trainer_ext.data.collators import build_collator
from frankenlm.trainer_ext.data.splits import BadRowError, count_tokens
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer, train_tokenizer
from sample_texts import TEXTS

TALK = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Who are you, é😀?"},
    {"role": "assistant", "content": "A cat.\n\nAnd you"},
    {"role": "user", "content": "Nobody"},
    {"role": "assistant", "content": "Then  go"},
]
CHATML = r"""{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MARKS = re.compile(r"{% (end)?generation %}")
# templates of TRL's collection: the model's own without marks, and the same with them
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PAIRS_OF_TEMPLATES = ("gemma", "phi3", "cohere", "qwen3_instruct_2507")
NEEDED = re.compile(r"<[|][^<>'\"{}]*?[|]>|<(?:start|end)_of_turn>|<bos>|<eos>")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A small byte-level BPE without a chat template."""
    return train_tokenizer(TEXTS, vocab_size=300, mask=False)


@pytest.fixture
def with_template(words, tmp_path):
    """with_template(text) -> the tokenizer with a template and the special tokens that it writes."""
    words.save_pretrained(tmp_path / "words")

    def load(template: str) -> PreTrainedTokenizerFast:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words")
        special = sorted({*NEEDED.findall(template or ""), "<|im_start|>", "<|im_end|>"})
        tokenizer.add_special_tokens({"extra_special_tokens": special})
        tokenizer.chat_template = template
        return tokenizer

    return load


def answers(tokenizer, record) -> str:
    """The labelled text of a record, with a bar for each gap."""
    ids, labels = encode_record(record, tokenizer, "row 1")
    runs, before = [], IGNORED_LABEL
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, IGNORED_LABEL)
        if label != IGNORED_LABEL:
            runs = [*runs, []] if before == IGNORED_LABEL else runs
            runs[-1].append(token)
        before = label
    return "|".join(tokenizer.decode(run) for run in runs)


# --- by hand


def test_labels_by_hand():
    """Bytes: a token is a character, and the plain template says where each stands."""
    tokenizer = byte_tokenizer()
    set_chat_template(tokenizer)
    talk = [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": "yes"}]
    ids, labels = encode_record({"messages": [*talk, *talk]}, tokenizer, "row 1")
    turn, end = b"user\nHi", tokenizer.eos_token_id
    once = [*turn, end, *b"assistant\n", *b"yes", end]
    assert ids == once + once
    ignored = [IGNORED_LABEL] * (len(turn) + 1 + len(b"assistant\n"))
    assert labels == (ignored + [*b"yes", end]) * 2
    assert encode_record({"prompt": "2+2=", "completion": "4"}, tokenizer, "row 1") == (
        [*b"2+2=4", end],
        [IGNORED_LABEL] * 4 + [*b"4", end],
    )


@pytest.mark.parametrize("template", [CHATML, MARKS.sub("", CHATML), None], ids=["marked", "unmarked", "plain"])
def test_every_answer_counts_with_its_end(template, with_template):
    tokenizer = with_template(template)
    if template is None:
        set_chat_template(tokenizer)
    end = "<|im_end|>" if template else "<|endoftext|>"
    after = "\n" if template is not None and template != CHATML else ""  # what the template writes of the turn
    answer = [f"A cat.\n\nAnd you{end}{after}", f"Then  go{end}{after}"]
    assert answers(tokenizer, {"messages": TALK}) == "|".join(answer)
    assert answers(tokenizer, {"prompt": TALK[:2], "completion": TALK[2:]}) == "|".join(answer)
    assert answers(tokenizer, {"prompt": TALK[:4], "completion": TALK[4:]}) == answer[1]
    assert answers(tokenizer, {"messages": TALK[2:3]}) == answer[0]
    ids, _ = encode_record({"messages": TALK}, tokenizer, "row 1")
    assert ids == tokenizer.apply_chat_template(TALK, return_dict=False), "what a pipeline gives the model"
    asked = tokenizer.apply_chat_template(TALK[:4], add_generation_prompt=True, return_dict=False)
    assert ids[: len(asked)] == asked


def test_an_end_token_outside_of_the_marks_is_learned_all_the_same(with_template):
    outside = CHATML.replace("m.content + '<|im_end|>' }}{% endgen", "m.content }}{% endgen").replace(
        "{% endgeneration %}", "{% endgeneration %}{{ '<|im_end|>' }}"
    )
    assert answers(with_template(outside), {"messages": TALK}) == "A cat.\n\nAnd you<|im_end|>|Then  go<|im_end|>"
    without = CHATML.replace("<|im_end|>", "")
    assert answers(with_template(without), {"messages": TALK[1:3]}) == "A cat.\n\nAnd you"  # a line end follows
    at_the_end = without.replace("{% endif %}{{ '\\n' }}", "{% endif %}")
    assert answers(with_template(at_the_end), {"messages": TALK[1:3]}) == "A cat.\n\nAnd you<|endoftext|>"


def test_tools_and_calls_are_written():
    bare = byte_tokenizer()
    set_chat_template(bare)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    talk = [TALK[1], call, {"role": "tool", "content": "1", "name": "f"}, {"role": "assistant", "content": "one"}]
    found = answers(bare, {"messages": talk, "tools": [{"name": "f"}]})
    assert found == '[{"function": {"name": "f", "arguments": {"x": 1}}}]<eos>|one<eos>'
    assert bare.decode(encode_record({"messages": talk, "tools": [{"name": "f"}]}, bare, "")[0]).startswith("tools\n[{")


# --- against TRL


def of_trl(tokenizer, records, tmp_path, **options) -> list[tuple[list[int], list[int]]]:
    """The ids and labels that TRL's trainer makes of records."""
    trainer = object.__new__(SFTTrainer)  # its data preparation alone: no model is needed for it
    trainer._tokenizer, trainer.chat_template = tokenizer, None
    trainer.completion_only_loss = "prompt" in records[0]
    args = SFTConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True, **options)
    rows = trainer._prepare_dataset(Dataset.from_list(records), tokenizer, args, False, None, "train")
    return [(row["input_ids"], row["labels"]) for row in rows]


@pytest.mark.filterwarnings("default")  # TRL's own warnings are its own
def test_labels_are_those_of_trl(with_template, tmp_path):
    tokenizer = with_template(CHATML)
    talks = [{"messages": TALK}, {"messages": TALK[:3]}]
    expected = of_trl(tokenizer, talks, tmp_path, assistant_only_loss=True)
    assert [encode_record(talk, tokenizer, "row 1") for talk in talks] == expected
    pairs = [{"prompt": TALK[:4], "completion": TALK[4:]}, {"prompt": TALK[:2], "completion": TALK[2:3]}]
    tokenizer.chat_template = MARKS.sub("", CHATML)
    assert [encode_record(pair, tokenizer, "row 1") for pair in pairs] == of_trl(tokenizer, pairs, tmp_path)
    texts = [{"prompt": "Who are you, é?\n", "completion": "A cat"}, {"prompt": "2 + 2 =", "completion": " 4"}]
    assert [encode_record(text, tokenizer, "row 1") for text in texts] == of_trl(tokenizer, texts, tmp_path)


@pytest.mark.parametrize("name", PAIRS_OF_TEMPLATES)
def test_real_templates_give_what_their_marked_twins_give(name, with_template):
    marked, own = (TEMPLATES / f"{name}{end}.jinja" for end in ("_training", ""))
    tokenizer = with_template(marked.read_text())
    output = tokenizer.apply_chat_template(TALK[1:], return_dict=True, return_assistant_tokens_mask=True)
    mask = output["assistant_masks"]
    expected = [token if learned else IGNORED_LABEL for token, learned in zip(output["input_ids"], mask, strict=True)]
    assert sum(mask) > 10 and encode_record({"messages": TALK[1:]}, tokenizer, "row 1")[1] == expected
    tokenizer.chat_template = own.read_text()
    assert encode_record({"messages": TALK[1:]}, tokenizer, "row 1")[1] == expected


# --- where it cannot be told


LAST_ALONE = MARKS.sub("", CHATML).replace("m.content + ", "(m.content if loop.last else '') + ")
REFUSED = {
    "a space before": (CHATML.replace(r"+ '\n' }}", "+ ': ' }}"), "a token reaches over the border of an answer"),
    "earlier turns shortened": (LAST_ALONE, "in another way when more follows.*--chat_template FILE"),
    "some unmarked": (CHATML.replace("m.role == 'assistant'", "loop.last"), "the chat template marks 1 of 2 answers"),
    "its own refusal": ("{{ raise_exception('roles must alternate') }}", "cannot write it: roles must alternate"),
    "not Jinja": ("{% if messages %}", "cannot write it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_templates_that_hide_the_answers_are_refused(case, with_template):
    template, message = REFUSED[case]
    tokenizer = with_template(template)
    word = next(word for word in tokenizer.get_vocab() if word.startswith("Ġ") and len(word) > 2)  # " " grows into it
    talk = [{**turn, "content": word[1:]} for turn in TALK]
    with pytest.raises(BadRowError, match=f"row 1: .*{message}"):
        encode_record({"messages": talk}, tokenizer, "row 1")


def test_a_prompt_whose_last_token_grows_is_cut_where_it_ends(words):
    """As the model meets it: the prompt's own tokens."""
    whole = words(TEXTS[0], add_special_tokens=False)["input_ids"]
    grown = next(token for token in whole if len(words.decode([token])) > 2)
    text = words.decode([grown])
    ids, labels = encode_record({"prompt": text[:1], "completion": text[1:]}, words, "row 1")
    assert ids != [grown, words.eos_token_id] and words.decode(ids) == text + words.eos_token
    assert [label != IGNORED_LABEL for label in labels] == [False] + [True] * (len(ids) - 1)


# --- the data set


def rows_of(records):
    texts = [json.dumps(record) for record in records]
    return Dataset.from_dict({"record": texts, "place": [f"row {index}" for index in range(len(texts))]})


def test_long_conversations_are_cut_and_those_without_an_answer_left_out(tmp_path, caplog):
    tokenizer = byte_tokenizer()
    prompts = ["x" * length for length in (3, 8, 9, 10, 30)]
    data = rows_of([{"prompt": prompt, "completion": "yes"} for prompt in prompts])
    with caplog.at_level("INFO"):
        rows = prepare_conversations(data, tokenizer, max_length=10, name="train", cache_dir=tmp_path)
    assert [len(row["input_ids"]) for row in rows] == rows["length"] == [7, 10, 10]
    assert [sum(label != IGNORED_LABEL for label in row["labels"]) for row in rows] == [4, 2, 1]
    told = "train: 5 conversations, 4 longer than --max_length 10 and cut, 2 left out"
    assert [record.message for record in caplog.records if "conversations" in record.message][0].startswith(told)
    assert count_tokens(rows, 300).sum() == 7, "the answers' tokens alone"
    batch = build_collator("causal", tokenizer)([rows[0], rows[1]])
    assert batch["labels"].tolist()[0] == [*rows[0]["labels"], *[IGNORED_LABEL] * 3]
    assert batch["attention_mask"].sum().item() == 17
    stream = prepare_conversations(data.to_iterable_dataset(), tokenizer, max_length=10)
    assert list(stream) == list(rows)
    with pytest.raises(ValueError, match="train: 1 conversations.*nothing is left. Raise --max_length"):
        prepare_conversations(rows_of([json.loads(data[4]["record"])]), tokenizer, max_length=10, name="train")


def test_an_answer_that_nothing_stands_before_is_not_learned(words, tmp_path):
    """The first token of a row is never predicted, and here there is no other."""
    data = rows_of([{"prompt": "", "completion": words.eos_token}, {"prompt": "", "completion": "ab"}])
    assert prepare_conversations(data, words, max_length=9, cache_dir=tmp_path)["length"] == [len(words("ab")[0]) + 1]


def test_records_that_a_template_refuses_are_bad_rows(with_template, tmp_path, caplog):
    refusal = "{% if messages|length > 3 %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = with_template(refusal + CHATML)
    data = rows_of([{"messages": TALK[1:3]}, {"messages": TALK}])
    with pytest.raises(BadRowError, match=r"row 1: the chat template cannot write it: no \(--skip_bad_rows"):
        prepare_conversations(data, tokenizer, max_length=99, cache_dir=tmp_path)
    with caplog.at_level("INFO"):
        rows = prepare_conversations(data, tokenizer, max_length=99, skip_bad_rows=True, cache_dir=tmp_path)
    assert len(rows) == 1 and "1 bad ones left out" in caplog.text


# --- templates


def test_the_plain_template_is_saved_and_is_one_of_the_tokenizers_tokens(words, bert_like, tmp_path):
    tokenizer = load_tokenizer("bytes", documents=[], objective="causal")
    set_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template and not again.split_special_tokens
    assert encode_record({"messages": TALK}, again, "") == encode_record({"messages": TALK}, tokenizer, "")
    assert "sep_token" in plain_template(bert_like) and "bos_token" not in plain_template(words)


def test_a_template_of_the_users(words, tmp_path):
    file = tmp_path / "a.jinja"
    file.write_text(CHATML)
    check_template(str(file))
    tokenizer = byte_tokenizer()
    set_chat_template(tokenizer, str(file))
    assert tokenizer.chat_template == CHATML
    set_chat_template(tokenizer)
    assert tokenizer.chat_template == CHATML, "its own stays"
    set_chat_template(tokenizer, "plain")
    assert tokenizer.chat_template == plain_template(tokenizer)
    file.write_text("hello")
    for choice, message in ((str(file), "never names 'messages'"), ("plane", "no such file")):
        with pytest.raises(UserError, match=message):
            check_template(choice)
