"""The synthetic tasks' rows: what a reader that looks things up makes of them, what chance makes of them."""

import dataclasses

import numpy as np
import pytest

from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.trainer_ext.synthetic.compression import Compression
from frankenlm.trainer_ext.synthetic.copying import SelectiveCopying
from frankenlm.trainer_ext.synthetic.fuzzy import FuzzyRecall, draw_words, words
from frankenlm.trainer_ext.synthetic.memorization import Memorization
from frankenlm.trainer_ext.synthetic.mqar import MultiQueryRecall
from frankenlm.trainer_ext.synthetic.recall import InContextRecall
from frankenlm.trainer_ext.synthetic.task import SyntheticRows, guessing
from frankenlm.trainer_ext.synthetic.tasks import TASKS

# The suite's sizes, and those of the papers.
SIZES = {
    **TASKS,
    "mqar, published": MultiQueryRecall(length=256, pairs=16, keys=4096, values=4096),
    "mqar, crowded": MultiQueryRecall(length=32, pairs=8, keys=8, values=8, power=1.0, random_filler=True),
    "recall, published": InContextRecall(length=128),
    "noisy_recall, published": InContextRecall(length=128, noise=0.2, noise_kinds=16),
    "noisy_recall, loud": InContextRecall(length=32, noise=0.8, noise_kinds=16),
    "fuzzy_recall, published": FuzzyRecall(length=128),
    "selective_copying, published": SelectiveCopying(length=256, copied=16),
    "compression, published": Compression(length=32),
    "memorization, published": Memorization(),
}


def look_up_pairs(task, row):
    """The values that the first part gives, at each key of the second at an even distance."""
    told = dict(zip(row[: 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2], strict=True))
    asked = [None] * task.length
    for place in range(2 * task.pairs, task.length, 2):
        asked[place] = told.get(row[place])
    return asked


def look_up_seen(task, row):
    """What followed a key the last time, at each key."""
    told, asked = {}, []
    for place, token in enumerate(row):
        is_key = token < task.keys and place % 2 == 0
        asked.append(told.get(token) if is_key else None)
        if is_key and place + 1 < len(row):
            told[token] = row[place + 1]
    return asked


def look_up_fuzzy(task, row):
    """The value of the key that has just ended, token by token."""
    told, asked, key, value = {}, [], (), ()
    pad = task.vocab_size - 1
    for place, token in enumerate(row):
        if token == pad:
            asked.append(None)
            continue
        if token < task.keys:
            if value:
                told[key] = value
                key, value = (), ()
            key += (token,)
        else:
            value += (token,)
        # whether the key goes on is seen from the next token alone; the value that a told key has is not
        ends = place + 1 == len(row) or row[place + 1] >= task.keys or bool(value)
        known = told.get(key, ())
        is_open = ends and len(value) < len(known) and known[: len(value)] == value
        asked.append(known[len(value)] if is_open else None)
    return asked


def look_up_told(task, row):
    told = [token for token in row[: task.length - task.copied] if token < task.kinds]
    return [None] * (task.length - task.copied) + told


def look_up_all(task, row):
    return [*row[:-1], None]


def look_up_facts(task, row):
    table = task.table()
    return [None if token < task.facts else table[row[place - 1]] for place, token in enumerate(row)]


READERS = {
    MultiQueryRecall: look_up_pairs,
    InContextRecall: look_up_seen,
    FuzzyRecall: look_up_fuzzy,
    SelectiveCopying: look_up_told,
    Compression: look_up_all,
    Memorization: look_up_facts,
}


def draw(task, rows=40, seed=0, is_test=False) -> SyntheticRows:
    return task.draw(rows, np.random.default_rng(seed), is_test=is_test)


@pytest.mark.parametrize("is_test", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_a_reader_that_looks_up_is_always_right(name, is_test):
    """Every label follows from the row, and nothing that follows is left unasked."""
    task = SIZES[name]
    rows = draw(task, is_test=is_test)
    assert rows.inputs.shape == rows.labels.shape and rows.inputs.dtype == np.int64
    for inputs, labels in zip(rows.inputs, rows.labels, strict=True):
        expected = [IGNORED_LABEL if token is None else token for token in READERS[type(task)](task, inputs.tolist())]
        if name == "mqar, crowded":  # filler may look like a query; what is asked for is right all the same
            expected = [told if asked != IGNORED_LABEL else asked for told, asked in zip(expected, labels, strict=True)]
        assert labels.tolist() == expected


@pytest.mark.parametrize("name", SIZES)
def test_rows_hold_known_tokens_and_each_asks_something(name):
    task = SIZES[name]
    rows = draw(task)
    asked = rows.labels[rows.labels != IGNORED_LABEL]
    assert rows.inputs.min() >= 0 and rows.inputs.max() < task.vocab_size
    assert set(asked.tolist()) <= set(task.answers)
    assert ((rows.labels != IGNORED_LABEL).sum(axis=1) > 0).all()


@pytest.mark.parametrize("name", SIZES)
def test_a_seed_decides_the_rows(name):
    task = SIZES[name]
    assert draw(task).keys() == draw(task).keys()
    assert not set(draw(task).keys()) & set(draw(task, seed=1).keys())


def test_rows_of_the_test_are_left_out_of_the_training():
    task = Compression(length=3, kinds=2)  # four rows there are
    rows = draw(task)
    taken = set(rows.keys()[:1])
    apart = rows.apart_from(taken)
    assert 0 < len(apart) < len(rows) and not taken & set(apart.keys())
    assert [labels.tolist() for labels in apart.labels] == [[*row[:-1], IGNORED_LABEL] for row in apart.inputs.tolist()]
    assert rows.apart_from({b"none"}) is rows


@pytest.mark.parametrize("name", SIZES)
def test_no_constant_answer_beats_chance(name):
    """Nor any answer drawn evenly: what is called chance is the most that nothing learnt comes to."""
    task = SIZES[name]
    rows = draw(task, rows=400, seed=3, is_test=True)
    asked = rows.labels[rows.labels != IGNORED_LABEL]
    shares = np.bincount(asked, minlength=task.vocab_size) / len(asked)
    assert shares.max() < task.chance + 0.03 and 1 / len(task.answers) < task.chance + 0.01
    assert guessing(task, rows) < task.chance + 0.03


def test_a_guess_takes_what_stood_most_often():
    task = InContextRecall(length=8, keys=2, values=3)
    inputs = np.array([[0, 3, 1, 3, 0, 3, 1], [0, 4, 1, 2, 0, 4, 1]])
    labels = np.array([[-100, -100, -100, -100, 3, -100, 3], [-100, -100, -100, -100, 4, -100, 2]])
    # row 0: 3 both times; row 1: 2 (the lower of two that stood once), then 4
    assert guessing(task, SyntheticRows(inputs, labels)) == 0.5
    whole = Compression(length=4, kinds=3)
    row = np.array([[2, 1, 1, 3]])
    assert guessing(whole, SyntheticRows(row, np.array([[2, 1, 1, -100]]))) == pytest.approx(2 / 3)


def test_queries_follow_the_power_law():
    """With one pair, slot i is taken with a probability in proportion to i^(a - 1)."""
    task = MultiQueryRecall(length=22, pairs=1, keys=4, values=4, power=0.2)
    slots = task.query_slots(20_000, np.random.default_rng(0))
    weights = np.arange(1, 11) ** (0.2 - 1)
    assert np.bincount(slots[:, 0], minlength=10) / 20_000 == pytest.approx(weights / weights.sum(), abs=0.012)
    even = dataclasses.replace(task, power=1.0).query_slots(20_000, np.random.default_rng(0))
    assert np.bincount(even[:, 0], minlength=10) / 20_000 == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_pairs_take_slots_evenly_and_never_the_same():
    task = MultiQueryRecall(length=64, pairs=8, keys=16, values=16)
    rows = draw(task, rows=2000)
    assert ((rows.labels != IGNORED_LABEL).sum(axis=1) == 8).all()
    place_of = [(rows.inputs[:, 16:] == rows.inputs[:, [2 * pair]]).argmax(axis=1).mean() for pair in (0, 7)]
    assert place_of[0] == pytest.approx(place_of[1], abs=1.0)


def test_noise_takes_its_share_of_places():
    task = InContextRecall(length=128, noise=0.4, noise_kinds=16)
    pairs = draw(task, rows=500).inputs[:, :-1].reshape(500, -1, 2)
    is_noise = pairs >= task.keys + task.values
    assert (is_noise[..., 0] == is_noise[..., 1]).all()
    assert is_noise[..., 0].mean() == pytest.approx(0.4 * 62 / 63, abs=0.01)


def test_words_are_all_sequences_without_repetition_and_lengths_are_even():
    table = words(4, 2)
    assert len(table) == 4 + 12 and {tuple(word) for word in table.tolist()} >= {(0, -1), (3, 2)}
    drawn = table[draw_words(4, 2, range(1, 3), (20_000,), np.random.default_rng(0))]
    assert (drawn[:, 1] == -1).mean() == pytest.approx(0.5, abs=0.01)
    assert (drawn == [0, -1]).all(axis=1).mean() == pytest.approx(1 / 8, abs=0.01)


def test_test_rows_of_fuzzy_recall_have_the_longest_keys():
    task = FuzzyRecall(length=64, keys=5, values=5, longest=3)
    key = draw(task, is_test=True).inputs < task.keys
    runs = {len(run) for row in key for run in "".join(" x"[int(is_key)] for is_key in row).split()}
    assert runs == {3}


def test_blanks_lie_everywhere_in_selective_copying():
    task = SelectiveCopying(length=40, copied=4)
    rows = draw(task, rows=3000)
    share = (rows.inputs[:, :36] < task.kinds).mean(axis=0)
    assert share == pytest.approx(np.full(36, 4 / 36), abs=0.03)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiQueryRecall(length=32, pairs=9), "pairs=9 do not fit into length=32: each takes 4 .* at most 8"),
        (lambda: MultiQueryRecall(length=33), "length=33 must be even"),
        (lambda: MultiQueryRecall(pairs=8, keys=7), "keys=7 must be at least pairs=8"),
        (lambda: MultiQueryRecall(power=0.0), r"power=0.0 must lie in \(0, 1\]"),
        (lambda: MultiQueryRecall(pairs=0), "pairs=0 must be at least 1"),
        (lambda: InContextRecall(noise=0.2), "noise=0.2 and noise_kinds=0 go together"),
        (lambda: InContextRecall(noise=1.0, noise_kinds=2), r"noise=1.0 must lie in \[0, 1\)"),
        (lambda: InContextRecall(length=2), "length=2 must be at least 4"),
        (lambda: FuzzyRecall(length=10), "length=10 must be at least 11"),
        (lambda: FuzzyRecall(keys=2), "keys=2 must be at least 3"),
        (lambda: SelectiveCopying(length=15), "copied=8 do not fit into length=15: .* at most 7"),
        (lambda: Compression(kinds=1), "kinds=1 must be at least 2"),
        (lambda: Memorization(length=7), "length=7 must be even"),
    ],
)
def test_sizes_that_cannot_be_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
