"""The thread that runs a model: who stands together, who must wait, who leaves, and what one answer's failure costs."""

import queue
import threading
import time

import pytest
import torch

from frankenlm.sharing.live.models import LoadedModel
from frankenlm.sharing.live.options import Options
from frankenlm.sharing.server.engine import AnswerJob, Engine, EngineClosed, EngineLimits, Overloaded
from frankenlm.sharing.server.rows import GroupMaker, SlotRows
from frankenlm.trainer_ext.common.cli import Failed


class Reader:
    """One job and what was delivered of it."""

    def __init__(self, ids=(5, 6, 7), tokens=8, **fields):
        self.arrived = queue.SimpleQueue()
        self.job = AnswerJob(list(ids), Options(max_new_tokens=tokens), 1, self.arrived.put, **fields)

    def pieces(self):
        """All pieces, to the last one."""
        found = []
        while not found or found[-1].finish_reason is None:
            found.append(self.arrived.get(timeout=30))
            if isinstance(found[-1], Exception):
                raise found[-1]
        return found

    def text(self):
        return "".join(piece.text for piece in self.pieces())

    def reason(self):
        return self.pieces()[-1].finish_reason


class Watched:
    """The model of a LoadedModel with its calls counted, and a gate that can hold them up."""

    def __init__(self, loaded, monkeypatch):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()
        forward = loaded.model.forward

        def watched(*args, **inputs):
            assert self.gate.wait(30)
            self.batches.append(len(inputs["input_ids"]))
            return forward(*args, **inputs)

        self.forward = watched
        monkeypatch.setattr(loaded.model, "forward", watched)


@pytest.fixture
def start(opened, monkeypatch):
    """start(name, **limits) is an engine and its watched model."""
    engines = []

    def make(name="gpt2", **limits):
        loaded = opened(name)
        engine = Engine(loaded, EngineLimits(**limits))
        engines.append(engine)
        return engine, Watched(loaded, monkeypatch)

    yield make
    for engine in engines:
        engine.close()
        assert not engine.is_alive


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "slots"), ("hybrid", "groups"), ("ternary", "groups")])
def test_answers_stand_together(start, name, kind):
    engine, watched = start(name, slots=4, queue=9)
    assert engine.maker.kind == kind
    readers = [Reader(tokens=6 + number) for number in range(7)]
    watched.gate.clear()
    engine.submit([reader.job for reader in readers])
    watched.gate.set()
    texts = [reader.text() for reader in readers]
    assert texts[-1].startswith(texts[0])
    assert max(watched.batches) == 4
    assert len(watched.batches) < 0.6 * sum(range(6, 13))
    assert engine.busy == 0


def test_one_at_a_time_where_that_is_asked_for(start):
    engine, watched = start(slots=1, queue=9)
    assert engine.maker.kind == "alone"
    readers = [Reader() for _ in range(3)]
    engine.submit([reader.job for reader in readers])
    assert len({reader.text() for reader in readers}) == 1
    assert set(watched.batches) == {1}


def test_a_model_that_cannot_be_decoded_together_is_served_alone(start, opened, monkeypatch):
    loaded = opened("gpt2")
    forward = loaded.model.forward
    # as if rows saw each other
    monkeypatch.setattr(loaded.model, "forward", lambda *a, **k: _noisy(forward(*a, **k)))
    assert GroupMaker(loaded.model, 4, 64).kind == "alone"


def _noisy(output):
    output.logits = output.logits + len(output.logits)
    return output


def test_slots_keep_rows_apart_whoever_leaves(opened):
    """Rows leave from every place; those that stay go on as if nothing had happened."""
    loaded = opened("gpt2")
    maker = GroupMaker(loaded.model, 5, 64)
    rows = [[3 + place, 9, 20 + place][: 1 + place % 3] for place in range(5)]
    with torch.inference_mode():
        expected = [loaded.model(torch.tensor([[*row, 8]])).logits[0, -1] for row in rows]
        for kept in ([0, 2, 4], [4], [1, 3], [0, 1, 2, 3, 4], [3, 4], []):
            group = maker.make()
            assert isinstance(group, SlotRows)
            group.begin(rows)
            order = group.keep(kept)
            assert sorted(order) == kept and group.count == len(kept)
            if kept:
                torch.testing.assert_close(
                    group.step([8] * len(kept)), torch.stack([expected[place] for place in order]), atol=1e-4, rtol=1e-4
                )
            group.keep([])


def test_the_queue_has_an_end(start):
    engine, watched = start(slots=2, queue=2)
    watched.gate.clear()
    readers = [Reader() for _ in range(4)]
    engine.submit([reader.job for reader in readers])
    with pytest.raises(Overloaded, match="try again in about") as caught:
        engine.submit([Reader().job])
    assert 1 <= caught.value.retry_after <= 60
    watched.gate.set()
    assert {reader.reason() for reader in readers} == {"length"}
    engine.submit([Reader().job])


def test_all_answers_of_a_request_or_none(start):
    engine, watched = start(slots=1, queue=2)
    watched.gate.clear()
    engine.submit([Reader().job, Reader().job])
    with pytest.raises(Overloaded):
        engine.submit([Reader().job, Reader().job])
    assert engine.busy == 2
    watched.gate.set()


@pytest.mark.parametrize("name", ["gpt2", "hybrid"])
def test_who_leaves_makes_room(start, name):
    engine, watched = start(name, slots=2, queue=4)
    leaving, staying, waiting = Reader(tokens=90), Reader(tokens=12), Reader(tokens=4)
    engine.submit([leaving.job, staying.job, waiting.job])
    leaving.arrived.get(timeout=30)
    leaving.job.cancelled.set()
    assert staying.reason() == "length" and waiting.reason() == "length"
    assert leaving.reason() == "cancelled"
    assert len(watched.batches) < 60


def test_who_leaves_while_waiting_is_never_begun(start):
    engine, watched = start(slots=1, queue=4)
    watched.gate.clear()
    first, second = Reader(), Reader()
    engine.submit([first.job, second.job])
    second.job.cancelled.set()
    watched.gate.set()
    first.pieces()
    time.sleep(0.05)
    assert second.arrived.empty() and engine.busy == 0


@pytest.mark.parametrize("name", ["gpt2", "hybrid"])
def test_a_failure_of_the_model_is_told_and_the_engine_goes_on(start, opened, monkeypatch, name):
    engine, watched = start(name, slots=4, queue=4)
    monkeypatch.setattr(opened(name).model, "forward", lambda *a, **k: 1 / 0)
    readers = [Reader(), Reader()]
    engine.submit([reader.job for reader in readers])
    for reader in readers:
        with pytest.raises(ZeroDivisionError):
            reader.pieces()
    monkeypatch.setattr(opened(name).model, "forward", watched.forward)
    reader = Reader()
    engine.submit([reader.job])
    assert reader.reason() == "length"


def test_too_little_memory_is_said_in_words(start, opened, monkeypatch):
    engine, _ = start(slots=2)

    def full(*args, **inputs):
        raise RuntimeError("not enough memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(opened("gpt2").model, "forward", full)
    reader = Reader()
    engine.submit([reader.job])
    with pytest.raises(Failed, match="memory does not suffice"):
        reader.pieces()


def test_one_row_of_nan_is_its_own_affair(start, opened, monkeypatch):
    engine, watched = start(slots=2)
    expected = Reader()
    engine.submit([expected.job])
    expected = expected.text()

    def one_bad_row(*args, **inputs):
        output = watched.forward(*args, **inputs)
        if len(output.logits) == 2:
            output.logits[1] = torch.nan
        return output

    monkeypatch.setattr(opened("gpt2").model, "forward", one_bad_row)
    good, bad = Reader(), Reader(ids=(9, 9))
    engine.submit([good.job, bad.job])
    with pytest.raises(Failed, match="NaN"):
        bad.pieces()
    assert good.text() == expected


def test_closing_ends_every_answer(start):
    engine, watched = start(slots=2, queue=4)
    readers = [Reader(tokens=100) for _ in range(4)]
    engine.submit([reader.job for reader in readers])
    readers[0].arrived.get(timeout=30)
    engine.close()
    assert {reader.reason() for reader in readers} == {"cancelled"}
    with pytest.raises(EngineClosed):
        engine.submit([Reader().job])


def test_an_engine_that_breaks_down_leaves_nobody_waiting(start, monkeypatch):
    engine, _ = start(slots=2, queue=4)
    monkeypatch.setattr(engine, "_admit", lambda jobs: 1 / 0)
    reader = Reader()
    engine.submit([reader.job, Reader().job, Reader().job])
    engine._thread.join(10)
    assert not engine.is_alive
    with pytest.raises(EngineClosed):
        engine.submit([Reader().job])


def test_positions_bound_the_context(opened):
    loaded = opened("gpt2")
    engine = Engine(LoadedModel(loaded.model, loaded.tokenizer, "x", "causal", 128), EngineLimits(context=4096))
    assert engine.context == 128
    engine.close()
