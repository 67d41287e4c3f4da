"""Documents, held-out splits, rows of token ids, caching, streaming; and every bad input with its message."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from frankenlm.trainer_ext.data import documents, packing, rows
from frankenlm.trainer_ext.data import splits as data
from frankenlm.trainer_ext.data.packing import pack_blocks, template_ids
from frankenlm.trainer_ext.data.splits import (
    build_collator,
    count_bytes,
    count_tokens,
    iter_texts,
    label_names,
    load_documents,
    load_splits,
    prepare_dataset,
)
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

WIKIPEDIA = Path(__file__).parents[4] / "shared" / "data" / "wikipedia-vital"
TEXTS = [f"document number {i} says {'very ' * (i % 7)}little." for i in range(600)]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    """load_splits, cached inside the test's own folder."""
    return lambda spec, **options: load_splits(str(spec), cache_dir=cache, **options)


@pytest.fixture(scope="module")
def byte_level():
    return train_tokenizer(TEXTS, vocab_size=300, mask=True)


@pytest.fixture(scope="module")
def bert_like():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


CLS, SEP, A = 2, 3, 5


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(path, texts=TEXTS):
    return write_jsonl(path, [{"text": text} for text in texts])


def in_memory(texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def texts_of(splits):
    return {name: list(iter_texts(split)) for name, split in splits.items()}


# --- what a document is


def read(path, *columns):
    return [document.text for document in documents.FileSource.of(path).documents(columns or ["text"])]


def test_txt_documents_are_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n one\r\ntwo\r\n \t\r\n\r\nthrée\n\n".encode())
    assert read(path) == [" one\ntwo", "thrée"]


def test_txt_without_blank_lines_has_a_document_a_line(tmp_path):
    path = tmp_path / "a.TXT"
    path.write_text("\none\ntwo\nthree\n\n\n", encoding="utf-8")
    assert read(path) == ["one", "two", "three"]


def test_jsonl_and_parquet_rows_are_documents(tmp_path):
    rows = [{"id": i, "body": text} for i, text in enumerate(["one\n\ntwo", "  ", "thrée"])]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    path.write_text("\n" + path.read_text(), encoding="utf-8-sig")
    assert read(path, "body") == ["one\n\ntwo", "thrée"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "body") == ["one\n\ntwo", "thrée"]


# --- held-out splits


@pytest.mark.parametrize("streaming", [False, True])
def test_split_is_complete_and_shares_nothing(tmp_path, load, streaming):
    repeated = [*TEXTS, *TEXTS[:200]]
    splits = load(write_texts(tmp_path / "a.jsonl", repeated), validation_fraction=0.2, streaming=streaming)
    sides = texts_of(splits)
    assert Counter(sides["train"] + sides["validation"]) == Counter(repeated)
    assert not set(sides["train"]) & set(sides["validation"])
    assert 0.15 < len(set(sides["validation"])) / len(TEXTS) < 0.25  # 600 draws: 1 sigma is 0.016
    assert splits["train"].column_names == ["text"]
    assert isinstance(splits["train"], datasets.IterableDataset) == streaming


def test_streamed_split_equals_the_cached_one_in_order(tmp_path, load):
    path = write_texts(tmp_path / "a.jsonl")
    assert texts_of(load(path)) == texts_of(load(path, streaming=True))


def test_a_document_keeps_its_side_when_others_come_and_go(tmp_path, load):
    whole = texts_of(load(write_texts(tmp_path / "a.jsonl"), validation_fraction=0.2))
    half = texts_of(load(write_texts(tmp_path / "b.jsonl", TEXTS[::-2]), validation_fraction=0.2))
    assert set(half["validation"]) == set(whole["validation"]) & set(TEXTS[::-2])


def test_seed_chooses_another_split(tmp_path, load):
    path = write_texts(tmp_path / "a.jsonl")
    first, again, other = (texts_of(load(path, seed=seed))["validation"] for seed in (0, 0, 1))
    assert first == again != other


def test_hash_is_fixed_for_ever():
    # A change would move documents from one side to the other, and old results with them.
    assert data.document_hash("a document", 0) == 524365225718989582
    assert data.document_hash("a document", 1) != data.document_hash("a document", 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_of_few_documents_one_is_held_out(tmp_path, load, streaming):
    splits = load(write_texts(tmp_path / "a.jsonl", TEXTS[:3]), validation_fraction=1e-6, streaming=streaming)
    sides = texts_of(splits)
    assert (len(sides["train"]), len(sides["validation"])) == (2, 1)
    assert sorted(sides["train"] + sides["validation"]) == sorted(TEXTS[:3])


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_of_its_own(tmp_path, load, streaming):
    train, held_out = write_texts(tmp_path / "a.jsonl", TEXTS[:10]), write_texts(tmp_path / "b.jsonl", TEXTS[8:12])
    sides = texts_of(load(train, validation=str(held_out), streaming=streaming))
    assert sides == {"train": TEXTS[:8], "validation": TEXTS[8:12]}, "shared documents leave the training side"


def test_max_documents(tmp_path, load):
    path = write_texts(tmp_path / "a.jsonl")
    for streaming in (False, True):
        sides = texts_of(load(path, max_documents=50, streaming=streaming))
        assert sorted(sides["train"] + sides["validation"]) == sorted(TEXTS[:50])


def test_changed_file_is_read_again(tmp_path, load):
    path = write_texts(tmp_path / "a.jsonl", TEXTS[:20])
    before = texts_of(load(path))
    write_texts(path, [text.upper() for text in TEXTS[:20]])
    os.utime(path, ns=(1, 1))
    after = texts_of(load(path))
    assert sorted(after["train"] + after["validation"]) == sorted(text.upper() for text in TEXTS[:20])
    assert before != after


# --- folders, globs, built-in text, hub


def test_folder_is_read_in_order_without_hidden_files(tmp_path, load):
    for name, texts in (("b", TEXTS[:5]), ("a/c", TEXTS[5:9]), (".hidden", ["no"]), (".git/x", ["no"])):
        write_texts(tmp_path / "d" / f"{name}.jsonl", texts)
    (tmp_path / "d" / "README.md").write_text("not data")
    dataset = load_documents(str(tmp_path / "d"), cache_dir=tmp_path / "cache")
    assert list(iter_texts(dataset)) == TEXTS[5:9] + TEXTS[:5]


def test_folder_with_parts(tmp_path, load):
    write_texts(tmp_path / "d" / "train-00000-of-00001.jsonl", TEXTS[:10])
    write_texts(tmp_path / "d" / "dev" / "x.jsonl", TEXTS[10:13])
    write_texts(tmp_path / "d" / "test.jsonl", TEXTS[13:20])
    assert texts_of(load(tmp_path / "d")) == {"train": TEXTS[:10], "validation": TEXTS[10:13]}
    dataset = load_documents(str(tmp_path / "d"), cache_dir=tmp_path / "cache")
    assert list(iter_texts(dataset)) == TEXTS[10:13]


def test_folder_with_parts_but_no_validation_never_reads_the_test_part(tmp_path, load):
    write_texts(tmp_path / "d" / "train.jsonl", TEXTS[:10])
    write_texts(tmp_path / "d" / "test.jsonl", TEXTS[10:20])
    sides = texts_of(load(tmp_path / "d"))
    assert sorted(sides["train"] + sides["validation"]) == sorted(TEXTS[:10])


def test_glob(tmp_path, load):
    for name, texts in (("a", TEXTS[:5]), ("b", TEXTS[5:9]), ("c.skip", ["no"])):
        write_texts(tmp_path / f"{name}.jsonl", texts)
    sides = texts_of(load(tmp_path / "[ab].jsonl"))
    assert sorted(sides["train"] + sides["validation"]) == sorted(TEXTS[:9])


@pytest.mark.parametrize("spec", ["builtin", "builtin-code"])
def test_builtin_is_split_by_topic(load, spec, monkeypatch):
    chosen = [(f"topic {i}", text) for i, text in enumerate(TEXTS[:100])]
    monkeypatch.setattr(documents, "builtin_documents", lambda name: chosen if name == spec else None)
    sides = texts_of(load(spec, validation_fraction=0.3))
    held_out = {text for topic, text in chosen if data.document_hash(topic, 0) < 0.3 * 2**64}
    assert set(sides["validation"]) == held_out
    assert set(sides["train"]) == {text for _, text in chosen} - held_out
    assert count_bytes(load(spec, validation_fraction=0.3)["validation"]) == sum(len(t.encode()) for t in held_out)


def hub(monkeypatch, splits):
    calls = []

    def fake(name, config, streaming):
        calls.append((name, config))
        made = {key: datasets.Dataset.from_list(rows) for key, rows in splits.items()}
        return {key: split.to_iterable_dataset() for key, split in made.items()} if streaming else made

    monkeypatch.setattr(datasets, "load_dataset", fake)
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_with_and_without_validation(load, monkeypatch, streaming):
    rows = [{"id": i, "text": text} for i, text in enumerate([*TEXTS[:30], " "])]
    calls = hub(monkeypatch, {"train": rows, "test": [{"id": 0, "text": "never"}]})
    sides = texts_of(load("owner/name:config", streaming=streaming))
    assert sorted(sides["train"] + sides["validation"]) == sorted(TEXTS[:30])
    assert set(calls) == {("owner/name", "config")}

    hub(monkeypatch, {"train": rows, "validation": [{"id": 0, "text": "held out"}]})
    assert texts_of(load("owner/name", streaming=streaming)) == {"train": TEXTS[:30], "validation": ["held out"]}


# --- labels

LABELLED = [{"text": text, "mood": ("sad", "glad", "mad")[i % 3], "grade": 5 + i % 2} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_are_numbered_in_sorted_order(tmp_path, load, byte_level, streaming):
    path = write_jsonl(tmp_path / "a.jsonl", LABELLED)
    for column, names in (("mood", ["glad", "mad", "sad"]), ("grade", ["5", "6"])):
        split = load(path, label_column=column, streaming=streaming)["validation"]
        assert label_names(split) == names
        truth = {row["text"]: str(row[column]) for row in LABELLED}
        assert all(names[row["label"]] == truth[row["text"]] for row in split)
    rows = prepare_dataset(split, byte_level, max_length=16, objective="classification", cache_dir=tmp_path)
    assert label_names(rows) == names
    assert [row["labels"] for row in rows] == [row["label"] for row in split]
    assert set(next(iter(rows))) == {"input_ids", "length", "labels"}
    batch = build_collator("classification", byte_level)([row for row, _ in zip(rows, range(5), strict=False)])
    assert batch["labels"].shape == (5,)


def test_labels_of_the_hub_keep_their_order(load, monkeypatch):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    made = datasets.Dataset.from_dict({"text": TEXTS[:30], "label": [i % 2 for i in range(30)]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": made})
    train = load("owner/name", label_column="label")["train"]
    assert label_names(train) == ["pos", "neg"]
    assert all(row["label"] == TEXTS.index(row["text"]) % 2 for row in train)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", 1], r"mixes types: str \(.*line 1\), int \(.*line 2\)"),
        (["a", "a"], "fewer than two distinct labels"),
        (["a", None], "line 2: label column 'label' holds nothing"),
        ([0.5, 1.5], "line 1: label column 'label' holds float"),
    ],
)
def test_unusable_labels(tmp_path, load, labels, message):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)]
    with pytest.raises(ValueError, match=message):
        load(write_jsonl(tmp_path / "a.jsonl", rows), label_column="label")


def test_validation_label_unknown_to_training(tmp_path, load):
    train = write_jsonl(tmp_path / "a.jsonl", LABELLED)
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"text": "x", "mood": "bad"}])
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: label 'bad' is not in the training data \(glad, mad"):
        load(train, validation=str(held_out), label_column="mood")


def test_text_without_labels(tmp_path, load):
    (tmp_path / "a.txt").write_text("x\ny")
    with pytest.raises(ValueError, match="a .txt file has no labels"):
        load(tmp_path / "a.txt", label_column="label")
    with pytest.raises(ValueError, match="'builtin' has no labels"):
        load("builtin", label_column="label")
    with pytest.raises(ValueError, match="classification needs a label column"):
        prepare_dataset(
            in_memory(TEXTS),
            train_tokenizer(TEXTS, vocab_size=300, mask=True),
            max_length=8,
            objective="classification",
            cache_dir=tmp_path,
        )


# --- bad input


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "y"\n', r"a\.jsonl, line 3: not JSON \(.*column \d+\)"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "line 2: a JSON object is expected, not list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 7}\n', "line 2: column 'text' holds int, a string is expected"),
        (
            "a.jsonl",
            b'{"txet": "x", "id": 1}\n',
            r"line 1: no column 'text'\. Did you mean 'txet'\? Columns: txet, id",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', "line 2: the text holds half a surrogate pair"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', r"line 2: not UTF-8 \(byte 0xe9\)"),
        ("a.txt", b"one\ntwo\ncaf\xe9\n", r"a\.txt, line 3: not UTF-8"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.txt", b" \n\n", "no text"),
        ("a.jsonl", b'{"text": " "}\n', "no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x"}\n', "only one distinct document"),
        ("a.parquet", b"PAR1 this is no parquet file", r"a\.parquet: not a readable Parquet file"),
        ("a.doc", b"text\nx\n", r"a\.doc: unknown file type '\.doc'.*Known: \.txt, \.jsonl, .*\.parquet"),
    ],
)
def test_bad_file(tmp_path, load, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / name, streaming=streaming)
    assert "\n" not in str(caught.value)


def test_bad_parquet_columns(tmp_path, load):
    pq.write_table(pa.table({"body": ["x", "y"], "text": [None, "y"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: column 'text' holds nothing"):
        load(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'bodi'\. Did you mean 'body'\? Columns: body, text"):
        load(tmp_path / "a.parquet", text_column="bodi")


def test_missing_paths(tmp_path, load):
    write_texts(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"trian\.jsonl' does not exist\. Did you mean 'train\.jsonl'\?"):
        load(tmp_path / "trian.jsonl")
    with pytest.raises(ValueError, match="matches no file"):
        load(tmp_path / "*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no \.txt, \.jsonl, .*\.parquet file"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="'no such thing' does not exist"):
        load("no such thing")


def test_mixed_file_types(tmp_path, load):
    write_texts(tmp_path / "d" / "a.jsonl")
    (tmp_path / "d" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mixes \.jsonl and \.txt files; name one kind with a glob"):
        load(tmp_path / "d")
    with pytest.raises(ValueError, match=r"mixes \.jsonl and \.txt"):
        load(tmp_path / "d" / "a.*")


def test_everything_trained_on_is_held_out_too(tmp_path, load):
    path = write_texts(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no document is left for train; every one stands in the validation data"):
        load(path, validation=str(path))


def test_hub_without_connection(load, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'bultin' on the Hub (OfflineModeIsEnabled)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ValueError, match=r"'bultin' is no local file.*Couldn't reach.*Did you mean 'builtin'\?"
    ) as caught:
        load("bultin")
    assert "\n" not in str(caught.value)


def test_hub_without_training_split_or_text(load, monkeypatch):
    hub(monkeypatch, {"test": [{"text": "x"}]})
    with pytest.raises(ValueError, match="has no train split. Splits: test"):
        load("owner/name")
    hub(monkeypatch, {"train": [{"txt": "x"}]})
    with pytest.raises(ValueError, match=r"no column 'text'\. Did you mean 'txt'"):
        load("owner/name")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0}, "validation_fraction=0 must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must lie"),
        ({"max_documents": 1}, "max_documents=1 must be at least 2"),
    ],
)
def test_bad_options(load, options, message):
    with pytest.raises(ValueError, match=message):
        load("builtin", **options)


# --- rows of token ids


def test_pack_blocks_by_hand():
    pieces = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9, 10]]
    assert [b.tolist() for b in pack_blocks(pieces, 4, [], [])] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [b.tolist() for b in pack_blocks(pieces, 5, [-1], [-2])][0::2] == [[-1, 1, 2, 3, -2], [-1, 7, 8, 9, -2]]
    assert [b.tolist() for b in pack_blocks([[1, 2]], 2, [], [])] == [[1, 2]]


@pytest.mark.parametrize("stream", [False, True])
def test_masked_blocks_by_hand(bert_like, tmp_path, stream):
    dataset = in_memory(["a b c", "d e"])
    dataset = dataset.to_iterable_dataset() if stream else dataset
    rows = prepare_dataset(dataset, bert_like, max_length=6, objective="mlm", cache_dir=tmp_path)
    assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, SEP, SEP], [CLS, A + 3, A + 4, SEP, SEP]]
    assert template_ids(bert_like) == ([CLS], [SEP])


@pytest.mark.parametrize("stream", [False, True])
def test_causal_blocks_by_hand(bert_like, tmp_path, stream):
    dataset = in_memory(["a b c", "d"])
    dataset = dataset.to_iterable_dataset() if stream else dataset
    rows = prepare_dataset(dataset, bert_like, max_length=5, objective="causal", cache_dir=tmp_path)
    assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, SEP], [CLS, A + 3, SEP]]


def test_last_block_without_anything_to_predict_is_left_out(bert_like, tmp_path):
    dataset = in_memory(["a b c d"])
    rows = prepare_dataset(dataset, bert_like, max_length=6, objective="mlm", cache_dir=tmp_path)
    assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, A + 3, SEP]]  # not [CLS, SEP, SEP]
    rows = prepare_dataset(dataset, bert_like, max_length=5, objective="causal", cache_dir=tmp_path)
    assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, A + 3]]  # not [SEP]


@pytest.mark.parametrize("objective", ["mlm", "causal"])
def test_packing_loses_and_adds_nothing(byte_level, tmp_path, objective):
    """600 documents are more than two batches: a remainder dropped at a batch's end would show."""
    arguments = {"max_length": 63, "objective": objective, "cache_dir": tmp_path}
    rows = prepare_dataset(in_memory(TEXTS), byte_level, **arguments)
    joined = [token for row in rows for token in row["input_ids"]]
    expected = [token for text in TEXTS for token in [*byte_level(text)["input_ids"], byte_level.eos_token_id]]
    kept = len(joined)
    assert joined == expected[:kept] and len(expected) - kept < 2
    assert [len(row["input_ids"]) for row in rows][:-1] == [63] * (len(rows) - 1)

    streamed = prepare_dataset(in_memory(TEXTS).to_iterable_dataset(), byte_level, **arguments)
    assert list(streamed) == list(rows)
    assert list(streamed) == list(rows), "the second pass starts afresh"
    in_two = prepare_dataset(in_memory(TEXTS), byte_level, **arguments | {"cache_dir": tmp_path / "two"}, num_proc=2)
    assert list(in_two) == list(rows)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_one_document(byte_level, bert_like, tmp_path, stream):
    def prepare(texts, tokenizer, objective, max_length):
        dataset = in_memory(texts).to_iterable_dataset() if stream else in_memory(texts)
        rows = prepare_dataset(
            dataset, tokenizer, max_length=max_length, packing=False, objective=objective, cache_dir=tmp_path
        )
        return [(row["input_ids"], row["length"]) for row in rows]

    rows = [([CLS, A, A + 1, A + 2, SEP], 5), ([CLS, A + 5, SEP], 3)]
    assert prepare(["a b c d e", "[SEP]", "f"], bert_like, "mlm", 5) == rows
    end = byte_level.eos_token_id
    ids = byte_level("zyxw")["input_ids"]
    assert prepare(["zyxw"], byte_level, "causal", 32) == [([*ids, end], len(ids) + 1)]
    assert prepare(["zyxw"], byte_level, "causal", len(ids)) == [(ids, len(ids))]


def test_impossible_lengths_and_empty_rows(bert_like, tmp_path):
    with pytest.raises(ValueError, match="max_length=3 is too short for this tokenizer; it needs at least 4"):
        prepare_dataset(in_memory(["a"]), bert_like, max_length=3, objective="mlm", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="no document has a token to predict"):
        prepare_dataset(in_memory(["[SEP]"]), bert_like, max_length=8, objective="mlm", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="num_proc=0 must be at least 1"):
        prepare_dataset(in_memory(["a"]), bert_like, max_length=8, objective="mlm", cache_dir=tmp_path, num_proc=0)
    with pytest.raises(ValueError, match="Did you mean 'causal'"):
        prepare_dataset(in_memory(["a"]), bert_like, max_length=8, objective="casual", cache_dir=tmp_path)


def test_counts_by_hand(bert_like, tmp_path):
    rows = prepare_dataset(in_memory(["a b a", "c a"]), bert_like, max_length=6, objective="mlm", cache_dir=tmp_path)
    everything = count_tokens(rows, 13)
    assert everything.tolist() == [0, 0, 2, 4, 0, 3, 1, 1, 0, 0, 0, 0, 0]
    assert everything.dtype == torch.int64
    assert count_tokens(rows, 13, exclude=[CLS, SEP]).sum() == 5
    assert torch.equal(count_tokens(rows.to_iterable_dataset(), 13), everything)
    with pytest.raises(ValueError, match="token id 7 does not fit into vocab_size=7"):
        count_tokens(rows, 7)


# --- caching


def refuse(*args, **kwargs):
    raise AssertionError("this should have come from the cache")


def break_everything(monkeypatch):
    monkeypatch.setattr(rows, "READERS", dict.fromkeys(rows.READERS, refuse))
    for name in ("encode_rows", "encode_pieces"):
        broken = lambda *args, **kwargs: refuse()  # noqa: E731 - a fresh function to rename
        broken.__name__ = name
        monkeypatch.setattr(packing, name, broken)
    monkeypatch.setattr(packing, "pack_blocks", refuse)


@pytest.mark.parametrize("packing_on", [False, True])
def test_second_call_comes_from_the_cache(tmp_path, load, cache, byte_level, monkeypatch, packing_on):
    path = write_texts(tmp_path / "a.jsonl")
    arguments = {"max_length": 32, "objective": "mlm", "packing": packing_on, "cache_dir": cache}
    first = prepare_dataset(load(path)["train"], byte_level, **arguments)
    byte_level(["x y z"] * 3, truncation=True, max_length=2, padding=True)  # changes the tokenizer's own state
    with monkeypatch.context() as patch:
        break_everything(patch)
        again = prepare_dataset(load(path)["train"], byte_level, **arguments)
        with pytest.raises((AssertionError, datasets.exceptions.DatasetGenerationError)):
            prepare_dataset(load(path)["train"], byte_level, **arguments | {"max_length": 33})
    assert list(first) == list(again)


def test_what_the_tokenizer_was_called_with_before_leaves_no_trace(byte_level):
    def outcome():
        dataset = in_memory(TEXTS[:3])
        return packing._key("x", dataset, byte_level, {}), packing.encode_pieces(dataset[:], byte_level, "mlm")

    byte_level("x")
    before = outcome()
    byte_level(["x y z", "x"], truncation=True, max_length=2, padding=True)
    after = outcome()
    assert before == after


def test_cache_key_tells_tokenizers_apart(tmp_path, byte_level):
    other = train_tokenizer(TEXTS, vocab_size=280, mask=True)
    arguments = {"max_length": 32, "objective": "mlm", "cache_dir": tmp_path}
    rows = [list(prepare_dataset(in_memory(TEXTS), tokenizer, **arguments)) for tokenizer in (byte_level, other)]
    assert rows[0] != rows[1]


OTHER_PROCESS = """
import sys
from transformers import AutoTokenizer
from frankenlm.trainer_ext.data import packing, rows
from frankenlm.trainer_ext.data.splits import load_splits, prepare_dataset

def refuse(*args, **kwargs):
    raise AssertionError("not from the cache")

rows.READERS = dict.fromkeys(rows.READERS, refuse)
packing.pack_blocks = refuse
path, cache, tokenizer = sys.argv[1:]
split = load_splits(path, cache_dir=cache)["train"]
rows = prepare_dataset(split, AutoTokenizer.from_pretrained(tokenizer), max_length=32, objective="mlm", cache_dir=cache)
print(len(rows))
"""


def test_cache_is_found_by_another_process(tmp_path, load, cache, byte_level):
    path = write_texts(tmp_path / "a.jsonl")
    rows = prepare_dataset(load(path)["train"], byte_level, max_length=32, objective="mlm", cache_dir=cache)
    byte_level.save_pretrained(tmp_path / "tokenizer")
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(path), str(cache), str(tmp_path / "tokenizer")],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(len(rows))


# --- streaming


def test_streaming_reads_no_further_than_it_must(tmp_path, load, byte_level):
    path = write_texts(tmp_path / "a.jsonl", TEXTS * 20)
    with open(path, "a") as file:
        file.write("{corrupt\n")
    rows = prepare_dataset(load(path, streaming=True)["train"], byte_level, max_length=32, objective="mlm")
    assert len(next(iter(rows))["input_ids"]) == 32
    with pytest.raises(ValueError, match="line 12001: not JSON"):
        list(rows)


def test_streaming_takes_constant_memory(tmp_path, load):
    path = tmp_path / "a.jsonl"
    with open(path, "w") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": f"{number} " + "x" * 1000}) + "\n")
    train = load(path, streaming=True)["train"]
    tracemalloc.start()
    try:
        count = sum(1 for _ in train)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 18_000
    assert peak < path.stat().st_size / 10


def test_stream_can_be_shuffled_anew_each_epoch(tmp_path, load, byte_level):
    path = write_texts(tmp_path / "a.jsonl")
    plain = prepare_dataset(load(path, streaming=True)["train"], byte_level, max_length=32, objective="mlm")
    shuffled = plain.shuffle(seed=1, buffer_size=50)
    first, again = list(shuffled), list(shuffled)
    shuffled.set_epoch(1)
    second = list(shuffled)
    assert first == again != second
    key = str
    assert sorted(first, key=key) == sorted(second, key=key) == sorted(plain, key=key)
    assert first != list(plain)


def test_stream_of_several_files_has_a_shard_each(tmp_path, load):
    for name in "abc":
        write_texts(tmp_path / "d" / f"{name}.jsonl", [f"{name} {text}" for text in TEXTS[:20]])
    train = load(tmp_path / "d", streaming=True)["train"]
    assert train.num_shards == 3
    assert len({text[0] for text in iter_texts(train.shard(3, 0))}) == 1


# --- real text


@pytest.mark.skipif(not WIKIPEDIA.is_dir(), reason=f"the Wikipedia text is not at {WIKIPEDIA}")
def test_real_text_end_to_end(tmp_path, load, cache):
    splits = load(WIKIPEDIA, max_documents=300)
    assert [len(splits[name]) for name in ("train", "validation")] == [300, 300]
    tokenizer = train_tokenizer(iter_texts(splits["train"]), vocab_size=1000, mask=True)
    rows = prepare_dataset(splits["train"], tokenizer, max_length=128, objective="mlm", cache_dir=cache)
    batch = build_collator("mlm", tokenizer)([rows[i] for i in range(4)])
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 128)
    text = tokenizer.decode([token for row in rows for token in row["input_ids"]])
    assert text.split("<|endoftext|>")[:-1][:10] == splits["train"][:10]["text"]
