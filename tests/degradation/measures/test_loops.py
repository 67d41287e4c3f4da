"""Loops at the end of a text: by hand, and against all ends."""

import random

import pytest

from frankenlm.degradation.measures.loops import MIN_LOOP_CHARACTERS, find_loop, periodic_end


@pytest.mark.parametrize(
    ("text", "start", "period"),
    [
        ("we ran. and then and then and then and then", "we ran. ", "and then"),
        ("so no no no no", "so ", "no"),
        ("x a b c a b c a b c a b c a", "x ", "a b c"),  # a fifth round has begun
        ("go the end the end the end the end the en", "go ", "the end"),  # cut within a word
        ("Case CASE case Case", "", "Case"),
        ("so 哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈", "so ", "哈"),
        ("你好吗" * 10, "", "你好吗"),
        ("=" * 40, "", "="),
        ("a " * 100, "", "a"),
    ],
)
def test_loops_by_hand(text, start, period):
    found = find_loop(text)
    assert (found.start, found.period) == (len(start), len(period))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "one",
        "and then and then and then",  # three rounds
        "no no no no but in the end it stopped",
        "a b c a b c a b c a b d",
        "1. 2. 3. 4. 5.",
        "Hmmmmmmm",
        "Wait...",
        " ".join(f"w{i}" for i in range(21)) * 4,  # joined without a space: a longer period
        "我喜欢猫和狗也喜欢鱼和鸟还有兔子和马以及所有其他动物",
    ],
)
def test_no_loops(text):
    assert find_loop(text) is None


def test_the_longest_period_of_a_loop():
    twenty, more = (" ".join([*(f"w{i}" for i in range(n)), ""]) for n in (20, 21))
    assert find_loop(twenty * 4).period == len(twenty) - 1
    assert find_loop(more * 4) is None
    assert find_loop("ab" * (MIN_LOOP_CHARACTERS // 2)).period == 2
    assert find_loop("ab" * (MIN_LOOP_CHARACTERS // 2 - 1)) is None


def test_periodic_ends_against_all_ends():
    def slow(items, max_period, repeats):
        for period in range(1, max_period + 1):
            starts = [
                start
                for start in range(len(items) - repeats * period + 1)
                if all(items[i] == items[i + period] for i in range(start, len(items) - period))
            ]
            if starts:
                return min(starts), period
        return None

    rng = random.Random(0)
    for _ in range(500):
        items = rng.choices("ab", k=rng.randint(0, 14))
        items += rng.choices("ab", k=rng.randint(1, 3)) * rng.randint(1, 5)
        assert periodic_end(items, 3, 3) == slow(items, 3, 3), items
