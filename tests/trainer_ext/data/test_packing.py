"""Documents become rows of token ids: blocks by hand, nothing lost, nothing added, and the cache of them."""

import os
import subprocess
import sys

import datasets
import pytest
import torch

from frankenlm.trainer_ext.data import packing, rows
from frankenlm.trainer_ext.data.blocks import pack_blocks, pack_documents
from frankenlm.trainer_ext.data.collators import build_collator
from frankenlm.trainer_ext.data.packing import template_ids
from frankenlm.trainer_ext.data.splits import (
    count_tokens,
    prepare_dataset,
)
from frankenlm.trainer_ext.data.tokenizers import begin_id, train_tokenizer
from sample_texts import TEXTS, in_memory, write_texts

CLS, SEP, A = 2, 3, 5
# --- rows of token ids


def test_pack_blocks_by_hand():
    pieces = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9, 10]]
    assert [b.tolist() for b in pack_blocks(pieces, 4, [], [])] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [b.tolist() for b in pack_blocks(pieces, 5, [-1], [-2])][0::2] == [[-1, 1, 2, 3, -2], [-1, 7, 8, 9, -2]]
    assert [b.tolist() for b in pack_blocks([[1, 2]], 2, [], [])] == [[1, 2]]


def test_pack_documents_by_hand():
    documents = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9, 10]]
    packed = [(ids.tolist(), lengths) for ids, lengths in pack_documents(documents, 4, [], [])]
    assert packed == [([1, 2, 3, 4], [3, 1]), ([5, 6, 7, 8], [4]), ([9, 10], [2])]
    packed = [(ids.tolist(), lengths) for ids, lengths in pack_documents(documents, 7, [-1], [-2])]
    assert packed == [
        ([-1, 1, 2, 3, -2], [5]),  # no id would fit between a prefix and a suffix
        ([-1, 4, -2, -1, 5, 6, -2], [3, 4]),
        ([-1, 7, 8, 9, 10, -2], [6]),
    ]
    assert not list(pack_documents([[], []], 7, [-1], [-2]))


def rows_of(texts, tokenizer, objective, stream, **options):
    dataset = in_memory(texts).to_iterable_dataset() if stream else in_memory(texts)
    return list(prepare_dataset(dataset, tokenizer, objective=objective, **options))


@pytest.mark.parametrize("stream", [False, True])
def test_masked_blocks_by_hand(bert_like, tmp_path, stream):
    given = ["a b c", "d e"], bert_like, "mlm", stream
    rows = rows_of(*given, max_length=8, cache_dir=tmp_path)
    assert rows == [
        {"input_ids": [CLS, A, A + 1, A + 2, SEP, CLS, A + 3, SEP], "seq_lengths": [5, 3]},
        {"input_ids": [CLS, A + 4, SEP], "seq_lengths": [3]},
    ]
    rows = rows_of(*given, max_length=6, cache_dir=tmp_path, document_borders=False)
    assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, SEP, SEP], [CLS, A + 3, A + 4, SEP, SEP]]
    assert all(row.keys() == {"input_ids"} for row in rows)
    assert template_ids(bert_like) == ([CLS], [SEP])


@pytest.mark.parametrize("stream", [False, True])
def test_causal_blocks_by_hand(bert_like, tmp_path, stream):
    given = ["a b c", "d"], bert_like, "causal", stream
    rows = rows_of(*given, max_length=6, cache_dir=tmp_path)
    assert rows == [
        {"input_ids": [CLS, A, A + 1, A + 2, SEP, CLS], "seq_lengths": [5, 1]},
        {"input_ids": [A + 3, SEP], "seq_lengths": [2]},
    ]
    joined = rows_of(*given, max_length=6, cache_dir=tmp_path, document_borders=False)
    assert joined == [{"input_ids": row["input_ids"]} for row in rows]


def test_the_first_token_of_a_document_is_learned_in_packed_rows_too(byte_level):
    """It is predicted from the token that evaluation puts before a text; only a document's first id is no label."""
    rows = list(prepare_dataset(in_memory(["zyxw", "a b"]), byte_level, max_length=64, objective="causal"))
    batch = build_collator("causal", byte_level)(rows)
    firsts = [byte_level(text)["input_ids"][0] for text in ("zyxw", "a b")]
    starts = [0, rows[0]["seq_lengths"][0]]
    assert [batch["input_ids"][0, place].item() for place in starts] == [begin_id(byte_level)] * 2
    assert [batch["labels"][0, place + 1].item() for place in starts] == firsts
    assert (batch["labels"][0] == -100).nonzero().flatten().tolist() == starts


@pytest.mark.parametrize("objective", ["mlm", "causal"])
@pytest.mark.parametrize("tokenizer_name", ["bert_like", "byte_level"])
def test_a_packed_document_is_what_it_is_in_a_row_of_its_own(tokenizer_name, objective, request, tmp_path):
    """Pieces that were cut have what the template puts around a text, too; a row has room for all documents but one."""
    tokenizer = request.getfixturevalue(tokenizer_name)
    options = {"tokenizer": tokenizer, "objective": objective, "cache_dir": tmp_path}
    texts = [f"a b {'c d e ' * (n % 7)}f" for n in range(60)]
    alone = [row["input_ids"] for row in prepare_dataset(in_memory(texts), max_length=512, packing=False, **options)]
    prefix, suffix = template_ids(tokenizer) if objective == "mlm" else ([], [])
    pieces = []
    for row in prepare_dataset(in_memory(texts), max_length=64, **options):
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) <= 64
        ends = torch.tensor(row["seq_lengths"]).cumsum(0)[:-1].tolist()
        pieces += [piece.tolist() for piece in torch.tensor(row["input_ids"]).tensor_split(ends)]
    documents = iter(alone)
    while pieces:
        document = next(documents)
        piece = pieces.pop(0)
        while len(piece) < len(document):  # cut at the end of a row: the next piece goes on
            assert piece[len(piece) - len(suffix) :] == suffix and pieces[0][: len(prefix)] == prefix
            piece = piece[: len(piece) - len(suffix)] + pieces.pop(0)[len(prefix) :]
        assert piece == document
    assert next(documents, None) is None


def test_last_block_without_anything_to_predict_is_left_out(bert_like, tmp_path):
    dataset = in_memory(["a b c d"])
    for borders in (True, False):
        options = {"max_length": 6, "objective": "mlm", "document_borders": borders, "cache_dir": tmp_path}
        rows = prepare_dataset(dataset, bert_like, **options)
        assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, A + 3, SEP]]  # not [CLS, SEP, SEP]
    rows = prepare_dataset(dataset, bert_like, max_length=5, objective="causal", cache_dir=tmp_path)
    assert [row["input_ids"] for row in rows] == [[CLS, A, A + 1, A + 2, A + 3]]  # not [SEP]


@pytest.mark.parametrize("objective", ["mlm", "causal"])
def test_packing_loses_and_adds_nothing(byte_level, tmp_path, objective):
    """600 documents are more than two batches: a remainder dropped at a batch's end would show."""
    arguments = {"max_length": 63, "objective": objective, "cache_dir": tmp_path}
    rows = prepare_dataset(in_memory(TEXTS), byte_level, **arguments)
    joined = [token for row in rows for token in row["input_ids"]]
    # no template: causal texts begin and end with the same token, masked ones have neither
    end = [byte_level.eos_token_id] if objective == "causal" else []
    expected = [token for text in TEXTS for token in end + byte_level(text)["input_ids"] + end]
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
    assert prepare(["zyxw"], byte_level, "causal", 32) == [([end, *ids, end], len(ids) + 2)]
    assert prepare(["zyxw"], byte_level, "causal", len(ids)) == [([end, *ids[:-1]], len(ids))]
    assert prepare(["a", "b"], bert_like, "causal", 8) == [([CLS, A, SEP], 3), ([CLS, A + 1, SEP], 3)]  # not twice


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
    assert everything.tolist() == [0, 0, 2, 2, 0, 3, 1, 1, 0, 0, 0, 0, 0]
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
    monkeypatch.setattr(packing, "pack_documents", refuse)


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
        return packing.ids_key("x", dataset, byte_level, {}), packing.encode_pieces(dataset[:], byte_level, "mlm")

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
packing.pack_documents = refuse
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
