"""The recall task: what its sequences promise, and (slow) who can solve it."""

import pytest
import torch

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM
from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.scripts.evidence.recall_task import RecallTask, recall_accuracy, train_recall

TASK = RecallTask()
WINDOW, LAYERS = 16, 2


def draw(task, size=50, seed=0):
    return task.batch(size, torch.Generator().manual_seed(seed))


def test_every_asked_value_was_told_before_the_filler():
    ids, labels = draw(TASK)
    assert ids.shape == labels.shape == (50, TASK.length)
    told, asked = ids[:, : 2 * TASK.pairs].unflatten(1, (-1, 2)), ids[:, -2 * TASK.pairs :].unflatten(1, (-1, 2))
    for first, second in zip(told.tolist(), asked.tolist(), strict=True):
        assert dict(first) == dict(second) and len(dict(first)) == TASK.pairs
    assert any(first != second for first, second in zip(told.tolist(), asked.tolist(), strict=True))


def test_kinds_of_token_do_not_overlap_and_only_asked_values_are_scored():
    ids, labels = draw(TASK)
    filler = ids[:, 2 * TASK.pairs : -2 * TASK.pairs]
    assert filler.shape[1] == TASK.filler_length
    assert filler.min() >= TASK.keys + TASK.values and filler.max() < TASK.vocab_size
    scored = labels != IGNORED_LABEL
    assert scored.sum(1).tolist() == [TASK.pairs] * 50 and not scored[:, : -2 * TASK.pairs].any()
    assert torch.equal(labels[scored], ids[scored])
    assert labels[scored].min() >= TASK.keys and labels[scored].max() < TASK.keys + TASK.values


def test_same_seed_same_sequences():
    assert torch.equal(draw(TASK)[0], draw(TASK)[0])
    assert not torch.equal(draw(TASK)[0], draw(TASK, seed=1)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": 17}, "pairs=17 must lie in 1..keys = 16"),
        ({"values": 0}, "values=0 must be at least 1"),
        ({"filler_length": -1}, "filler_length=-1 must not be negative"),
    ],
)
def test_impossible_sizes(fields, message):
    with pytest.raises(ValueError, match=message):
        RecallTask(**fields)


def build(use_memory):
    """Two layers of windowed attention over embeddings that each see their predecessor too."""
    torch.manual_seed(0)
    return FrankensteinForCausalLM(
        FrankensteinConfig(
            is_decoder=True, vocab_size=TASK.vocab_size, hidden_size=64, num_hidden_layers=LAYERS,
            num_attention_heads=2, intermediate_size=128, layer_pattern=["titan_attn"], use_titan_memory=use_memory,
            attention_window=WINDOW, embedding_conv_kernel=2, use_hope=False, position_type="rope",
            norm_type="rms_norm", embedding_norm=None, initializer_range=0.1, dropout=0.0, attention_dropout=0.0,
        )
    )  # fmt: skip


def test_the_filler_lies_beyond_all_attention():
    """Stacked windows and the convolution reach 31 tokens back: no value asked for is told within that."""
    assert TASK.filler_length > LAYERS * (WINDOW - 1) + 1


def test_an_untrained_model_guesses():
    assert recall_accuracy(build(True).eval(), TASK) < 3 * TASK.chance


@pytest.mark.slow
def test_delta_memory_recalls_beyond_the_window_where_attention_alone_cannot():
    accuracy = {}
    for use_memory in (True, False):
        model = train_recall(build(use_memory), TASK, steps=400, batch_size=64, learning_rate=3e-3)
        accuracy[use_memory] = recall_accuracy(model, TASK, seed=1)
    print(f"accuracy with memory {accuracy[True]:.3f}, without {accuracy[False]:.3f}, chance {TASK.chance:.3f}")
    assert accuracy[True] > 0.95
    assert accuracy[False] < 1.5 * TASK.chance
