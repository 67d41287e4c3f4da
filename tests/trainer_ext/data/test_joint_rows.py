"""The rows of joint training: which are read left to right, what they are asked, and what evaluation makes of them."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.trainer_ext.common.objectives import form_of_text
from frankenlm.trainer_ext.data.collators import build_collator
from frankenlm.trainer_ext.data.packing import prepare_dataset, template_ids
from frankenlm.trainer_ext.data.tokenizers import begin_every_text, load_tokenizer

TEXTS = ["the cat sat on a mat", "birds sang of rain in spring", "dogs run over green hills"] * 20


@pytest.fixture(scope="module", params=["train", "bytes"])
def tokenizer(request):
    return load_tokenizer(request.param, documents=TEXTS, objective="joint")


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory):
    options = {"max_length": 19, "objective": "joint", "cache_dir": tmp_path_factory.mktemp("cache")}
    return prepare_dataset(Dataset.from_dict({"text": TEXTS}), tokenizer, **options).to_list()


def test_a_text_begins_with_something_to_be_predicted_from(tokenizer):
    begin = [tokenizer.bos_token_id]
    assert template_ids(tokenizer) == (begin, [])
    assert tokenizer("a cat")["input_ids"] == begin + tokenizer("a cat", add_special_tokens=False)["input_ids"]
    before = tokenizer("a", "b")["input_ids"]
    begin_every_text(tokenizer)  # once is enough
    assert tokenizer("a", "b")["input_ids"] == before
    assert tokenizer.mask_token_id in tokenizer(f"a {tokenizer.mask_token} cat")["input_ids"]


def test_each_row_asks_as_its_direction_does(tokenizer, rows):
    batch = build_collator("joint", tokenizer, causal_share=0.5, mlm_probability=0.4)(rows)
    causal, ids, labels = batch["causal_rows"], batch["input_ids"], batch["labels"]
    assert causal.dtype == torch.bool and 0 < causal.sum() < len(rows)
    plain = build_collator("causal", tokenizer)(rows)
    for name, tensor in plain.items():
        assert torch.equal(batch[name][causal], tensor[causal])
    originals, asked = plain["input_ids"][~causal], labels[~causal] != IGNORED_LABEL
    assert torch.equal(labels[~causal][asked], originals[asked])
    assert torch.equal(ids[~causal][~asked], originals[~asked])
    assert 0.2 < asked.float().mean() < 0.5 and bool((ids[~causal] == tokenizer.mask_token_id).any())
    starts = [sum(row["seq_lengths"][:n]) for row in rows for n in range(len(row["seq_lengths"]))]
    where = [index for index, row in enumerate(rows) for _ in row["seq_lengths"]]
    assert (labels[where, starts] == IGNORED_LABEL).all()  # none before it is of its document


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_share_of_rows(tokenizer, share):
    rows = [{"input_ids": np.random.default_rng(n).integers(5, 250, 6).tolist()} for n in range(200)]
    collator = build_collator("joint", tokenizer, causal_share=share)
    first = collator(rows)["causal_rows"]
    assert first.float().mean().item() == pytest.approx(share, abs=0.1)
    assert torch.equal(first, collator(rows)["causal_rows"])
    pieces = torch.cat([collator(rows[start : start + 7])["causal_rows"] for start in range(0, 200, 7)])
    assert torch.equal(first, pieces)  # whatever the batch
    collator.set_epoch(1)
    assert not torch.equal(first, collator(rows)["causal_rows"])
    assert not torch.equal(first, build_collator("joint", tokenizer, causal_share=share, seed=1)(rows)["causal_rows"])


def test_evaluation_reads_every_row_both_ways(tokenizer, rows):
    collator = build_collator("joint", tokenizer)
    batch = collator.for_evaluation()(rows[:4])
    assert batch["causal_rows"].tolist() == [True] * 4 + [False] * 4
    collator.set_epoch(3)
    again = collator.for_evaluation()(rows[:4])
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_a_row_without_a_token_to_hide_is_read_left_to_right(tokenizer):
    batch = build_collator("joint", tokenizer, causal_share=1e-9)([{"input_ids": [tokenizer.eos_token_id] * 3}])
    assert batch["causal_rows"].tolist() == [True]


def test_evaluation_counts_a_row_without_a_token_to_hide_once(tokenizer, rows):
    bare = {"input_ids": [tokenizer.eos_token_id] * 3, "seq_lengths": [3]}
    batch = build_collator("joint", tokenizer).for_evaluation()([bare, *rows[:2], bare])
    assert batch["causal_rows"].tolist() == [True] * 4 + [False] * 2
    assert (batch["labels"][:, 1:3] == tokenizer.eos_token_id).all(1).sum() == 2
    assert build_collator("joint", tokenizer).for_evaluation()([bare])["causal_rows"].tolist() == [True]


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_of_all_or_none_is_another_objective(tokenizer, share):
    with pytest.raises(ValueError, match=f"causal_share={share}"):
        build_collator("joint", tokenizer, causal_share=share)


def test_a_masked_specialist_of_two_directions_is_asked_as_joint_masked_rows_are(tokenizer, rows):
    joint = build_collator("joint", tokenizer, causal_share=1e-9)(rows)
    alone = build_collator("mlm", tokenizer, two_directions=True)(rows)
    assert not joint.pop("causal_rows").any()
    assert all(torch.equal(joint[name], alone[name]) for name in joint) and joint.keys() == alone.keys()
    one_direction = build_collator("mlm", tokenizer)([{"input_ids": [70], "seq_lengths": [1]}])
    assert one_direction["labels"].tolist() == [[70]]  # spared above alone


@pytest.mark.parametrize("objective", ["mlm", "causal", "joint", "classification"])
@pytest.mark.parametrize("both", [True, False])
def test_the_form_of_text(objective, both):
    assert form_of_text(objective, both) == ("joint" if both and objective != "classification" else objective)


def test_without_anything_that_begins_a_text():
    bare = load_tokenizer("bytes", documents=[], objective="mlm")
    bare.bos_token = bare.eos_token = None
    bare.sep_token = bare.mask_token
    with pytest.raises(ValueError, match="neither a begin nor an end token"):
        begin_every_text(bare)
