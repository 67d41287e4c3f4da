"""Collators: shapes and labels by hand, and masking that depends on seed, epoch and row alone."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, TrainerState

from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.trainer_ext.callbacks import MaskingEpochs
from frankenlm.trainer_ext.data.collators import build_collator

SPECIALS = ["[PAD]", "[EOS]", "[MASK]", "[EXTRA]"]
PAD, EOS, MASK, EXTRA = range(4)
VOCABULARY = 1000


@pytest.fixture(scope="module")
def tokenizer():
    words = SPECIALS + [f"w{i}" for i in range(VOCABULARY - len(SPECIALS))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["[EXTRA]"]})
    return tokenizer


def random_rows(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIALS), VOCABULARY, (count, length), generator=generator)
    return [{"input_ids": row.tolist(), "length": length} for row in ids]


def test_causal_by_hand(tokenizer):
    batch = build_collator("causal", tokenizer)([{"input_ids": [5, 6, EOS]}, {"input_ids": [7], "length": 1}])
    assert batch["input_ids"].tolist() == [[5, 6, EOS], [7, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, EOS], [7, IGNORED_LABEL, IGNORED_LABEL]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_padding_side_and_multiple(tokenizer):
    tokenizer.padding_side = "left"
    try:
        batch = build_collator("causal", tokenizer, pad_to_multiple_of=4)([{"input_ids": [5]}, {"input_ids": [6, 7]}])
    finally:
        tokenizer.padding_side = "right"
    assert batch["input_ids"].tolist() == [[PAD, PAD, PAD, 5], [PAD, PAD, 6, 7]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED_LABEL] * 3 + [5], [IGNORED_LABEL] * 2 + [6, 7]]


def test_pad_token_that_is_also_the_end_token(tokenizer):
    tokenizer.pad_token = "[EOS]"
    try:
        batch = build_collator("causal", tokenizer)([{"input_ids": [5, EOS]}, {"input_ids": [EOS]}])
    finally:
        tokenizer.pad_token = "[PAD]"
    assert batch["input_ids"].tolist() == [[5, EOS], [EOS, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[5, EOS], [EOS, IGNORED_LABEL]]


def test_classification_by_hand(tokenizer):
    batch = build_collator("classification", tokenizer)(
        [{"input_ids": [5, 6], "labels": 2, "length": 2}, {"input_ids": [7], "labels": 0, "length": 1}]
    )
    assert batch["input_ids"].tolist() == [[5, 6], [7, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [2, 0]


def test_masking_shares(tokenizer):
    rows = random_rows(400, 63)
    batch = build_collator("mlm", tokenizer, mlm_probability=0.15)(rows)
    original = torch.tensor([row["input_ids"] for row in rows])
    chosen = batch["labels"] != IGNORED_LABEL
    masked, kept = batch["input_ids"] == MASK, batch["input_ids"] == original

    assert chosen.float().mean() == pytest.approx(0.15, abs=0.01)  # 25,200 tokens: 1 sigma is 0.002
    assert masked[chosen].float().mean() == pytest.approx(0.8, abs=0.03)  # 3,780 tokens: 1 sigma is 0.007
    assert kept[chosen].float().mean() == pytest.approx(0.1, abs=0.03)
    assert (~masked & ~kept)[chosen].float().mean() == pytest.approx(0.1, abs=0.03)
    assert kept[~chosen].all()
    assert (batch["labels"][chosen] == original[chosen]).all()
    replacements = batch["input_ids"][chosen & ~masked & ~kept]
    assert (replacements >= len(SPECIALS)).all()
    assert len(replacements.unique()) > 100


def test_masking_probability_is_heard(tokenizer):
    batch = build_collator("mlm", tokenizer, mlm_probability=0.4)(random_rows(100, 63))
    assert (batch["labels"] != IGNORED_LABEL).float().mean() == pytest.approx(0.4, abs=0.03)


def test_special_tokens_and_padding_are_never_chosen_nor_inserted(tokenizer):
    rows = [{"input_ids": [EOS, 5, EXTRA, 6, MASK] * 3 + [7] * n} for n in range(200)]
    collator = build_collator("mlm", tokenizer, mlm_probability=0.9, pad_to_multiple_of=8)
    batch = collator(rows)
    chosen = batch["labels"] != IGNORED_LABEL
    assert not (chosen & (batch["attention_mask"] == 0)).any()
    assert (batch["labels"][chosen] >= len(SPECIALS)).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
    for row, ids in zip(rows, batch["input_ids"], strict=True):
        before = torch.tensor(row["input_ids"])
        assert (ids[: len(before)][before < len(SPECIALS)] == before[before < len(SPECIALS)]).all()
    inserted = batch["input_ids"][chosen & (batch["input_ids"] != MASK)]
    assert (inserted >= len(SPECIALS)).all()
    assert batch["input_ids"].shape[1] % 8 == 0


def test_every_row_with_an_ordinary_token_has_a_label(tokenizer):
    collator = build_collator("mlm", tokenizer, mlm_probability=0.001)
    batch = collator([{"input_ids": [EOS, 5 + n, EOS]} for n in range(50)] + [{"input_ids": [EOS, EOS]}])
    assert (batch["labels"] != IGNORED_LABEL).sum(1).tolist() == [1] * 50 + [0]
    assert batch["labels"][:50, 1].tolist() == list(range(5, 55))


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_masks_the_same_whatever_happens_around_it(tokenizer):
    rows = random_rows(13, 31)
    training = build_collator("mlm", tokenizer, seed=3)
    evaluation = training.for_evaluation()
    whole = evaluation(rows)
    training.set_epoch(7)
    torch.rand(5)
    assert same(whole, evaluation(rows))
    assert same(whole, build_collator("mlm", tokenizer, seed=3, pad_to_multiple_of=1).for_evaluation()(rows))
    one_by_one = [evaluation([row]) for row in rows]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([batch[name] for batch in one_by_one]))
    assert not same(whole, build_collator("mlm", tokenizer, seed=4).for_evaluation()(rows))
    padded = evaluation([*rows, {"input_ids": list(range(4, 80))}])
    assert torch.equal(padded["labels"][:13, :31], whole["labels"])


def test_training_masks_anew_each_epoch_and_repeats_an_epoch_exactly(tokenizer):
    rows = random_rows(13, 31)
    collator = build_collator("mlm", tokenizer)
    epochs = []
    for epoch in range(3):
        collator.set_epoch(epoch)
        epochs.append(collator(rows))
    assert not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    assert not same(epochs[0], collator.for_evaluation()(rows))
    resumed = build_collator("mlm", tokenizer)
    resumed.set_epoch(2)
    assert same(resumed(rows), epochs[2])


def test_masking_leaves_the_global_generator_alone(tokenizer):
    before = torch.get_rng_state()
    build_collator("mlm", tokenizer)(random_rows(2, 9))
    assert torch.equal(before, torch.get_rng_state())


def test_persistent_loader_workers_see_the_epoch(tokenizer):
    rows = random_rows(8, 15)
    collator = build_collator("mlm", tokenizer)
    loader = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        collator.set_epoch(epoch)
        for batch, start in zip(loader, (0, 4), strict=True):
            assert same(batch, collator(rows[start : start + 4]))


def test_callback_tells_the_epoch(tokenizer):
    collator = build_collator("mlm", tokenizer)
    callback = MaskingEpochs(collator)
    state = TrainerState(epoch=0)
    seen = []
    callback.on_train_begin(None, state, None)
    for epoch in (0, 0.4, 0.8):  # a stream of unknown length: state.epoch is no count of passes
        state.epoch = epoch
        callback.on_epoch_begin(None, state, None)
        seen.append(collator.epoch)
    callback.on_train_begin(None, state, None)
    state.epoch = 4.25  # resumed in the fifth pass
    callback.on_epoch_begin(None, state, None)
    assert [*seen, collator.epoch] == [0, 1, 2, 4]
    MaskingEpochs(build_collator("causal", tokenizer)).on_epoch_begin(None, state, None)


def test_refusals(tokenizer):
    with pytest.raises(ValueError, match="mlm_probability=1.5 must lie between"):
        build_collator("mlm", tokenizer, mlm_probability=1.5)
    with pytest.raises(ValueError, match="pad_to_multiple_of=0"):
        build_collator("mlm", tokenizer, pad_to_multiple_of=0)
    with pytest.raises(ValueError, match="Did you mean 'causal'"):
        build_collator("casual", tokenizer)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no pad token"):
        build_collator("causal", bare)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(ValueError, match="no mask token"):
        build_collator("mlm", bare)


@pytest.mark.parametrize("side", ["left", "right"])
def test_documents_of_a_row_are_numbered(tokenizer, side):
    """Pads at the left are of the first document, those at the right of the last one."""
    tokenizer.padding_side = side
    rows = [
        {"input_ids": [5, 6, EOS, 7, 8, EOS], "seq_lengths": [3, 2, 1]},
        {"input_ids": [5, 6], "seq_lengths": [1, 1]},
    ]
    expected = {"left": [[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 1]], "right": [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]}
    for objective in ("causal", "mlm"):
        batch = build_collator(objective, tokenizer)(rows)
        assert batch["seq_idx"].tolist() == expected[side]
        assert batch["seq_idx"].dtype == torch.int64
        if objective == "causal":  # a first token is not predicted, and not counted by who divides by the labels
            assert batch["labels"][0].tolist() == [-100, 6, EOS, -100, 8, -100]
        assert "seq_idx" not in build_collator(objective, tokenizer)([{"input_ids": [5, 6, EOS]}])
