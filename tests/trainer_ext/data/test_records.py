"""Conversations in every kind of file: the same records, and what is said of bad ones."""

import csv
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frankenlm.trainer_ext.data import skipping
from frankenlm.trainer_ext.data.records import RECORD_FORMS, choose_form, contents
from frankenlm.trainer_ext.data.splits import BadRowError, iter_texts, load_splits, skipped_rows

USER = {"role": "user", "content": "what is\r\nit, é😀?"}
ANSWER = {"role": "assistant", "content": "  a cat\n"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
TOOLS = [{"function": {"name": "f"}}]
RECORDS = {
    "messages": [
        {"messages": [{"role": "system", "content": ""}, USER, ANSWER]},
        {"messages": [USER, ANSWER, USER, ANSWER]},
        {"messages": [USER, CALL, {"role": "tool", "content": "1", "name": "f"}, ANSWER], "tools": TOOLS},
        {"messages": [ANSWER]},
    ],
    "prompt_completion": [
        {"prompt": "2 + 2 =\r\n", "completion": " 4"},
        {"prompt": "", "completion": "[so]"},
        {"prompt": "[1, 2]", "completion": "one, two"},
    ],
    "prompt_completion of messages": [
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
    ],
}
KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


@pytest.fixture(autouse=True)
def fresh_counters(monkeypatch):
    monkeypatch.setattr(skipping, "_counters", {})


def write(path, records):
    """Write records as a file of the kind that its name says."""
    names = list(dict.fromkeys(name for record in records for name in record))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".parquet":
        # a column, and each struct in it, has the keys of all records, null where one has none
        rows = [{name: record.get(name) for name in names} for record in records]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, delimiter="\t" if path.suffix == ".tsv" else ",")  # lines end with CRLF
        writer.writeheader()
        for record in records:
            writer.writerow({name: v if isinstance(v, str) else json.dumps(v) for name, v in record.items()})
        path.write_bytes(text.getvalue().encode())
    return str(path)


@pytest.fixture
def read(tmp_path):
    """read(path, **options) -> the records of both sides, as they are."""

    def both(path, **options):
        options = {"record_form": "auto", "cache_dir": tmp_path / "cache"} | options
        splits = load_splits(str(path), **options)
        return [json.loads(row["record"]) for split in splits.values() for row in split]

    return both


@pytest.mark.parametrize("form", RECORDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_in_every_kind_of_file(form, kind, tmp_path, read):
    found = read(write(tmp_path / f"a{kind}", RECORDS[form]))
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, RECORDS[form]))


def test_a_single_conversation_in_a_json_file_is_one_record(tmp_path, read):
    first, second = RECORDS["messages"][:2]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.json").write_text(json.dumps(first))
    (tmp_path / "a" / "validation.json").write_text(json.dumps({"version": 1, "data": [second]}))
    assert read(tmp_path / "a") == [first, second]


def test_keys_that_are_null_and_parts_of_text_make_no_other_record(tmp_path, read):
    odd = [{"content": [{"type": "text", "text": "a"}, {"text": "b"}], "role": "user", "name": None}, ANSWER]
    second = {"messages": [USER, ANSWER]}
    found = read(write(tmp_path / "a.jsonl", [{"messages": odd, "completion": None}, second]))
    assert {"messages": [{"role": "user", "content": "ab"}, ANSWER]} in found


BAD = [
    ({"messages": None}, "column 'messages' holds nothing (null), a list is expected"),
    ({"messages": []}, "column 'messages' is an empty list"),
    ({"messages": "hello"}, "column 'messages': not JSON"),
    ({"messages": ["hello"]}, "message 1 of 'messages' is str"),
    ({"messages": [USER, {"content": "x"}]}, "message 2 of 'messages' has no role; it has: content"),
    ({"messages": [{**USER, "role": " "}, ANSWER]}, "message 1 of 'messages' has no role"),
    ({"messages": [{**USER, "content": None}, ANSWER]}, "message 1 of 'messages' (user) has no content"),
    (
        {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]},
        "message 1 of 'messages' has a content that is no text but list",
    ),
    ({"messages": [USER]}, "no answer in 'messages': none of its roles (user) is 'assistant'"),
    ({"messages": [USER, {**ANSWER, "content": " \n"}]}, "an answer in 'messages' is blank"),
    ({"messages": [USER, ANSWER], "completion": "x"}, "holds 'messages' and 'completion'"),
    ({"messages": [USER, {**ANSWER, "content": "\ud800"}]}, "the text holds half a surrogate pair"),
    ({"prompt": "x", "completion": "y"}, "no column 'messages'. Columns: prompt, completion. A record has 'messages'"),
    ({"prompt": "x", "completion": None}, "column 'completion' holds nothing (null), a text or a list"),
    ({"prompt": 3, "completion": "y"}, "column 'prompt' holds int"),
    ({"prompt": "x", "completion": "\n"}, "column 'completion' is blank"),
    (
        {"prompt": "x", "completion": [ANSWER]},
        "'prompt' and 'completion' are a text and a list; both must be of one kind",
    ),
    ({"prompt": [USER], "completion": [USER]}, "no answer in 'completion'"),
    ({"prompt": "x", "completion": "y", "messages": [ANSWER]}, "holds 'prompt' and 'completion' and 'messages'"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_records(bad, message, tmp_path, read):
    form = "messages" if "messages" in bad and "prompt" not in bad or "no column" in message else "prompt_completion"
    good = RECORDS[form]
    path = write(tmp_path / "a.jsonl", [good[0], bad, *good[1:]])
    with pytest.raises(BadRowError, match=re.escape(f"a.jsonl, line 2: {message}")) as caught:
        read(path, record_form=form)
    assert "--skip_bad_rows" in str(caught.value) and "\n" not in str(caught.value)
    assert len(read(path, record_form=form, skip_bad_rows=True)) == len(good) and skipped_rows() == 1


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_bad_records_of_other_files_are_named_too(kind, tmp_path, read):
    path = write(tmp_path / f"a{kind}", [{"messages": [USER, ANSWER]}, {"messages": [USER]}])
    place = "row 2" if kind == ".parquet" else "line 3"
    with pytest.raises(BadRowError, match=rf"a{kind}, {place}: no answer"):
        read(path)


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (None, "text"),
        (["messages", "text"], "text"),
        (["id", "messages", "prompt"], "messages"),
        (["completion", "prompt"], "prompt_completion"),
        (["prompt"], "text"),
    ],
)
def test_the_form_follows_from_the_columns(names, form):
    assert choose_form("auto", names, "text") == form
    assert all(choose_form(asked, names, "text") == asked for asked in RECORD_FORMS[1:])


def test_texts_stay_texts_unless_conversations_are_asked_for(tmp_path, read, caplog):
    rows = [{"text": f"text {index}", **record} for index, record in enumerate(RECORDS["messages"][:2])]
    path = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level("INFO"):
        splits = load_splits(path, record_form="auto", cache_dir=tmp_path)
    assert splits["train"].column_names == ["text"]
    assert "--record_form messages takes the conversations" in caplog.text
    assert len(read(path, record_form="messages")) == 2


def test_conversations_in_what_has_none(tmp_path, read):
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    for spec in ("builtin", tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="is text and holds no conversations"):
            read(spec, record_form="messages")
    path = write(tmp_path / "a.jsonl", RECORDS["messages"])
    with pytest.raises(ValueError, match="no column 'text'.*which --objective causal learns"):
        read(path, record_form="text")
    with pytest.raises(ValueError, match="conversations are whole"):
        read(path, join_articles="yes")


def test_held_out_conversations_are_left_out_of_training(tmp_path):
    same = RECORDS["messages"][1]
    train = write(tmp_path / "a.jsonl", RECORDS["messages"])
    held_out = write(tmp_path / "b.csv", [same])
    splits = load_splits(train, validation=held_out, record_form="auto", cache_dir=tmp_path)
    assert len(splits["train"]) == 3 and json.loads(splits["validation"][0]["record"]) == same


def test_a_tokenizer_is_trained_on_what_is_said(tmp_path):
    assert contents(json.dumps(RECORDS["messages"][0])) == "\n" + USER["content"] + "\n" + ANSWER["content"]
    assert contents(json.dumps(RECORDS["prompt_completion"][0])) == "2 + 2 =\r\n\n 4"
    path = write(tmp_path / "a.jsonl", RECORDS["messages"])
    texts = [
        t for split in load_splits(path, record_form="auto", cache_dir=tmp_path).values() for t in iter_texts(split)
    ]
    assert sorted(texts) == sorted(contents(json.dumps(record)) for record in RECORDS["messages"])
