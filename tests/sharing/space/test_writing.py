"""Answers as the page shows them: bounded, from their prompt and seed, and ended when nobody reads them."""

import threading
import time

import pytest

from frankenlm.sharing.live.answers import stream
from frankenlm.sharing.live.options import BadOption, Options
from frankenlm.sharing.space.limits import Limits
from frankenlm.sharing.space.writing import BEAT, WRITING, AnswerState, answer
from frankenlm.trainer_ext.common.cli import UserError

LIMITS = Limits(prompt_tokens=20)


@pytest.fixture(scope="module")
def opened(shelf):
    return shelf.open("tiny/legacy-1bit")


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("page answer", "answer")]


def wait_for_no_writers() -> float:
    start = time.monotonic()
    while writers():
        assert time.monotonic() - start < 10, "the generation goes on"
        time.sleep(0.01)
    return time.monotonic() - start


def test_states_are_those_of_the_stream(opened):
    options = Options(max_new_tokens=40, temperature=0.9, top_k=20)
    states = list(answer(opened, "Return a", options, seed=7, limits=LIMITS))
    pieces = stream(opened.model, opened.tokenizer, "Return a", options, seed=7)
    last = states[-1]
    assert last.text == "".join(piece.text for piece in pieces) and last.tokens == 40 and last.finished == "length"
    assert all(last.text.startswith(state.text) for state in states)
    assert [state.finished for state in states[:-1]] == [None] * (len(states) - 1)
    assert last.words().endswith("as long as asked for") and " tokens/s" in last.words()


def test_other_seeds_other_texts(opened):
    options = Options(max_new_tokens=40)
    texts = [list(answer(opened, "Return a", options, seed=seed, limits=LIMITS))[-1].text for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_who_leaves_ends_the_generation(opened):
    states = answer(opened, "Return a", Options(max_new_tokens=50_000), limits=LIMITS)
    next(states)
    assert opened.lock.locked() and writers()
    states.close()
    wait_for_no_writers()
    assert not opened.lock.locked()


def test_who_leaves_before_the_model_is_free_never_begins(opened):
    with opened.lock:
        states = answer(opened, "Return a", Options(max_new_tokens=50_000), limits=LIMITS)
        start = time.monotonic()
        first = next(states)
        assert time.monotonic() - start < 20 * BEAT and first == AnswerState(), "something to read meanwhile"
        assert first.words() == "waiting for the model" + WRITING
        states.close()
    wait_for_no_writers()
    assert not opened.lock.locked()


def test_a_search_ends_too(opened):
    states = answer(opened, "Return a", Options(max_new_tokens=50_000, temperature=0, num_beams=3), limits=LIMITS)
    assert next(states).text == ""
    states.close()
    wait_for_no_writers()


def test_errors_reach_the_reader(opened, monkeypatch):
    def broken(*inputs, **named):
        raise ZeroDivisionError("within the model")

    monkeypatch.setattr(opened.model, "forward", broken)
    with pytest.raises(ZeroDivisionError, match="within the model"):
        list(answer(opened, "Return a", Options(), limits=LIMITS))
    wait_for_no_writers()
    assert not opened.lock.locked()


def test_limits(opened):
    with pytest.raises(UserError, match="21 tokens long; this page takes at most 20"):
        answer(opened, "x" * 21, Options(), limits=LIMITS)
    with pytest.raises(BadOption, match="5 strings; at most 4"):
        answer(opened, "x", Options(), stop=list("abcde"), limits=LIMITS)
    assert not writers()
