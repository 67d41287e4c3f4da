"""From --dataset to splits: what a document is, which side takes it, folders, globs, the hub, streams, real text."""

import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frankenlm.trainer_ext.data import documents
from frankenlm.trainer_ext.data import splits as data
from frankenlm.trainer_ext.data.splits import (
    build_collator,
    count_bytes,
    iter_texts,
    load_documents,
    prepare_dataset,
)
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from sample_texts import TEXTS, hub, texts_of, write_jsonl, write_texts

CLS, SEP, A = 2, 3, 5
WIKIPEDIA = Path(__file__).parents[4] / "shared" / "data" / "wikipedia-vital"
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


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_with_and_without_validation(load, monkeypatch, streaming):
    rows = [{"id": i, "text": text} for i, text in enumerate([*TEXTS[:30], " "])]
    calls = hub(monkeypatch, {"train": rows, "test": [{"id": 0, "text": "never"}]})
    sides = texts_of(load("owner/name:config", streaming=streaming))
    assert sorted(sides["train"] + sides["validation"]) == sorted(TEXTS[:30])
    assert set(calls) == {("owner/name", "config")}

    hub(monkeypatch, {"train": rows, "validation": [{"id": 0, "text": "held out"}]})
    assert texts_of(load("owner/name", streaming=streaming)) == {"train": TEXTS[:30], "validation": ["held out"]}


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
        for number in range(5_000):
            file.write(json.dumps({"text": f"{number} " + "x" * 4000}) + "\n")
    train = load(path, streaming=True)["train"]
    tracemalloc.start()
    try:
        count = sum(1 for _ in train)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 4_500
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
    assert text == "".join(splits["train"]["text"])
    assert sum(len(row["seq_lengths"]) for row in rows) > 300
