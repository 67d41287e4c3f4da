"""The suite's decoders and their training: causal, of the state they say, asked what they never saw."""

import numpy as np
import pytest
import torch

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.synthetic import training
from frankenlm.trainer_ext.synthetic.compression import Compression
from frankenlm.trainer_ext.synthetic.memorization import Memorization
from frankenlm.trainer_ext.synthetic.models import LAYERS, MODELS, RECURRENT, TaskModel, model_config, place_codes
from frankenlm.trainer_ext.synthetic.mqar import MultiQueryRecall
from frankenlm.trainer_ext.synthetic.training import SuiteRun, ask, stream, train, train_and_ask

TASK = MultiQueryRecall(length=16, pairs=2, keys=4, values=4)


def build(mixer: str, task=TASK) -> TaskModel:
    torch.manual_seed(0)
    return TaskModel(model_config(mixer, task, 16, 8), task).eval()


def a_run(**fields) -> SuiteRun:
    settings = {"task": "mqar", "mixer": "softmax", "hidden_size": 16, "mamba_state": 8, "learning_rate": 1e-2}
    return SuiteRun(**{**settings, "seed": 0, "steps": 2, "batch_size": 8, "test_rows": 8, **fields})


@pytest.mark.parametrize("mixer", MODELS)
def test_no_answer_sees_what_follows(mixer):
    model = build(mixer)
    ids = torch.from_numpy(TASK.draw(2, stream(0, 0)).inputs)
    others = ids.clone()
    others[:, 9:] = (ids[:, 9:] + 1) % TASK.vocab_size
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, :9] = True
    with torch.no_grad():
        torch.testing.assert_close(model(ids, asked), model(others, asked))
        assert not torch.equal(model(ids, ~asked), model(others, ~asked))


@pytest.mark.parametrize("mixer", MODELS)
def test_the_state_that_is_told_is_what_the_cache_holds(mixer):
    model = build(mixer)
    short, long = model.state_size(8), model.state_size(16)
    assert (long == short) is (mixer in RECURRENT)
    # softmax: keys and values of 16 numbers a token and layer; retnet: an 8 x 8 state for each of 2 heads
    known = {"softmax": 2 * 16 * 16 * LAYERS, "retnet": 2 * 8 * 8 * LAYERS}
    assert long == known.get(mixer, long)


def test_compression_is_read_from_the_last_state_alone():
    task = Compression(length=6, kinds=5)
    model = build("softmax", task)
    rows = task.draw(3, stream(0, 0))
    asked = torch.from_numpy(rows.labels >= 0)
    with torch.no_grad():
        state = model.decoder.model(torch.from_numpy(rows.inputs), use_cache=False).last_hidden_state[:, -1]
        expected = model.decoder.lm_head(model.reader(state)[asked])
        torch.testing.assert_close(model(torch.from_numpy(rows.inputs), asked), expected)
    codes = place_codes(6, 16)
    assert codes[0].tolist() == [0.0] * 8 + [1.0] * 8 and len(codes.unique(dim=0)) == 6


def test_training_sees_no_row_of_the_test(monkeypatch):
    """Of eight rows that there are, those of the test are left to the test."""
    task = Compression(length=4, kinds=2)
    seen = set()
    monkeypatch.setattr(
        training,
        "answers",
        lambda model, rows, plain=training.answers: (seen.update(rows.keys()), plain(model, rows))[1],
    )
    taboo = set(task.draw(3, stream(0, training.TEST)).keys())
    steps = []
    train(build("softmax", task).train(), a_run(steps=3, batch_size=40), task, taboo, lambda: steps.append(1))
    assert taboo and not seen & taboo and len(seen | taboo) == 8 and len(steps) == 3


def test_a_batch_of_test_rows_alone_is_drawn_again():
    """One fact of eight is left to the training: with two rows a batch it is not in every draw."""
    task, rng = Memorization(length=2, facts=8), stream(0, training.TRAIN)
    every = set(task.draw(200, stream(1, training.TRAIN)).keys())
    (free, *others) = sorted(every)
    drawn = [training.training_rows(task, 2, rng, set(others)) for _ in range(20)]
    assert len(every) == 8 and all(set(rows.keys()) == {free} for rows in drawn)
    with pytest.raises(UserError, match="8 in the test leave none to train on"):
        training.training_rows(task, 2, rng, every)


def test_training_and_test_of_every_seed_draw_from_streams_of_their_own(monkeypatch):
    streams = [stream(seed, which) for seed in (0, 1) for which in (training.TRAIN, training.TEST)]
    assert len({each.random() for each in streams}) == 4
    asked = []
    monkeypatch.setattr(training, "stream", lambda seed, which: (asked.append((seed, which)), stream(seed, which))[1])
    train_and_ask(a_run(seed=5, steps=1), TASK)
    assert sorted(asked) == [(5, training.TRAIN), (5, training.TEST)] and training.TRAIN < training.TEST


def test_what_stops_the_run_is_asked_after_every_step():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_ask(a_run(), TASK, stop)


def test_a_table_is_learnt_and_a_seed_gives_the_same_run_again():
    task = Memorization(length=8, facts=6)
    run = a_run(task="memorization", steps=60)
    measured = train_and_ask(run, task)
    assert measured["accuracy"] > 0.9 and measured["loss"] < 0.5 and measured["seconds"] > 0
    assert measured["chance"] == task.chance < 0.3
    again = train_and_ask(run, task)
    assert {**measured, "seconds": 0} == {**again, "seconds": 0}


def test_accuracy_counts_what_is_asked_and_nothing_else(monkeypatch):
    rows = TASK.draw(5, np.random.default_rng(0))
    answered = iter([(torch.tensor([[0.0, 9.0]]), torch.tensor([1])), (torch.zeros(3, 2), torch.tensor([1, 1, 0]))])
    monkeypatch.setattr(training, "answers", lambda model, part: next(answered))
    accuracy, loss = ask(None, rows, batch_size=3)
    assert accuracy == 2 / 4 and loss == pytest.approx(3 * np.log(2) / 4, abs=1e-3)
