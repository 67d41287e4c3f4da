"""Blocks cut elsewhere in every epoch: every token once, documents whole, and the same again when a run goes on."""

import numpy as np
import pytest
from datasets import Dataset

from frankenlm.trainer_ext.data.collators import build_collator
from frankenlm.trainer_ext.data.epochs import PLACE, with_random_offsets
from frankenlm.trainer_ext.data.packing import prepare_dataset
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer

TEXTS = [f"the cat {'sat on ' * (n % 6)}a mat, the {n}th" for n in range(23)]
LENGTH = 13


@pytest.fixture(scope="module", params=["train", "bytes"])
def tokenizer(request):
    return load_tokenizer(request.param, documents=TEXTS, objective="causal")


def packed(tokenizer, cache_dir, apart: bool = True, **more):
    options = {"max_length": LENGTH, "objective": "causal", "document_borders": apart, "cache_dir": cache_dir}
    return prepare_dataset(Dataset.from_dict({"text": TEXTS}), tokenizer, **{**options, **more})


def shifting(rows, tokenizer):
    return with_random_offsets(rows, build_collator("causal", tokenizer), tokenizer, max_length=LENGTH, seed=3)


def around(rows: list[dict]) -> list[int]:
    return [token for row in rows for token in row["input_ids"]]


@pytest.mark.parametrize("apart", [True, False])
def test_every_token_stands_in_one_row_of_every_epoch(tokenizer, apart, tmp_path):
    rows = packed(tokenizer, tmp_path, apart)
    numbered, collator = shifting(rows, tokenizer)
    assert numbered[PLACE] == list(range(len(rows)))
    whole, offsets = around(rows.to_list()), set()
    for epoch in range(12):
        collator.set_epoch(epoch)
        offset = collator.offset
        offsets.add(offset)
        cut = [collator.shifted(place) for place in range(len(rows))]
        moved = around(cut)
        assert moved == whole[offset:] + whole[:offset]
        assert all(len(row["input_ids"]) <= LENGTH for row in cut)
        if apart:
            assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) for row in cut)
            assert all(length > 0 for row in cut for length in row["seq_lengths"])
    assert len(offsets) > 5 and max(offsets) < LENGTH


def test_documents_begin_where_they_begin(tokenizer, tmp_path):
    """Within a row a document begins where one of the text does, and nowhere else."""
    rows = packed(tokenizer, tmp_path)
    _, collator = shifting(rows, tokenizer)
    text, begins = [], set()
    for document in TEXTS:
        begins.add(len(text))
        text += [tokenizer.bos_token_id, *tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    whole = around(rows.to_list())
    assert whole == text[: len(whole)] and len(text) - len(whole) < LENGTH  # a last block of markup alone is left out
    for epoch in range(12):
        collator.set_epoch(epoch)
        for place in range(len(rows) - 1):
            first = place * LENGTH + collator.offset
            row = collator.shifted(place)
            starts = (first + np.cumsum([0, *row["seq_lengths"][:-1]])).tolist()
            inside = {start for start in begins if first < start < first + len(row["input_ids"])}
            assert starts == sorted({first, *inside})


def test_batches_are_those_of_the_collator_inside(tokenizer, tmp_path):
    numbered, collator = shifting(packed(tokenizer, tmp_path), tokenizer)
    collator.set_epoch(1)
    batch = collator(numbered.select(range(2, 5)).to_list())
    expected = build_collator("causal", tokenizer)([collator.shifted(place) for place in range(2, 5)])
    assert batch.keys() == expected.keys() and all((batch[name] == expected[name]).all() for name in batch)
    again = shifting(packed(tokenizer, tmp_path), tokenizer)[1]
    again.set_epoch(1)
    assert again.offset == collator.offset


def test_rows_of_a_document_each_have_no_cuts(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="each of these rows is a document"):
        shifting(packed(tokenizer, tmp_path, packing=False), tokenizer)
