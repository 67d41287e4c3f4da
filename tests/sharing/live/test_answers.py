"""One answer, piece by piece: what it is equal to, what ends it, and what is never shown."""

import copy
import threading

import pytest
import torch
from tokenizers.normalizers import Replace

from frankenlm.modeling import byte_tokenizer
from frankenlm.sharing.live.answers import Writing, room_for, stream
from frankenlm.sharing.live.choosing import ChosenToken
from frankenlm.sharing.live.options import BadOption, Options
from frankenlm.trainer_ext.common.cli import Failed, UserError
from frankenlm.trainer_ext.generation.generate import prompt_ids
from frankenlm.trainer_ext.generation.streaming import UNFINISHED

GREEDY = Options(max_new_tokens=24, temperature=0)
SAMPLED = Options(max_new_tokens=24, temperature=0.9, top_k=40, top_p=0.95)
FAMILIES = ("gpt2", "hybrid", "infinito", "ternary")


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def answer(loaded, prompt="the cat", options=SAMPLED, **more):
    return list(stream(loaded.model, loaded.tokenizer, prompt, options, **more))


def feed(text_bytes, stop=(), most=1000, logprobs=False):
    """The pieces of bytes that a model of bytes would have written."""
    writing = Writing(byte_tokenizer(), [65], most, {258}, stop, logprobs=logprobs)
    pieces = []
    for byte in text_bytes:
        if writing.finished is None:
            pieces.append(writing.take(ChosenToken(byte, -1.0, ((byte, -1.0),))))
    return [piece for piece in pieces if piece is not None], writing


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_it_is_what_generate_gives(opened, name, beams):
    loaded = opened(name)
    ids = torch.tensor([prompt_ids(loaded.tokenizer, "the cat")])
    expected = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, num_beams=beams
    )
    pieces = answer(loaded, options=Options(max_new_tokens=24, temperature=0, num_beams=beams))
    text = loaded.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert text_of(pieces) == text[: len(text) - min(3, len(text) - len(text.rstrip(UNFINISHED)))]
    assert sum(piece.tokens for piece in pieces) == expected.shape[1] - ids.shape[1]
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason in ("length", "stop")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_seed_alone_decides(opened, name):
    loaded = opened(name)
    first = text_of(answer(loaded, seed=1))
    torch.manual_seed(12345)  # nobody's global numbers are in it
    iterators = [stream(loaded.model, loaded.tokenizer, "the cat", SAMPLED, seed=seed) for seed in (2, 1, 3)]
    texts = [""] * 3
    open_ones = dict(enumerate(iterators))
    while open_ones:  # by turns, so that all three are in the model at once
        for place, iterator in list(open_ones.items()):
            piece = next(iterator, None)
            if piece is None:
                del open_ones[place]
            else:
                texts[place] += piece.text
    assert texts[1] == first
    assert len({*texts}) == 3


def test_torchs_own_generator_is_left_alone(opened):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    answer(opened("gpt2"), seed=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["gpt2", "infinito"])
def test_stop_strings_are_never_shown_even_in_part(opened, name):
    loaded = opened(name)
    whole = text_of(answer(loaded, seed=4))
    for start in range(1, len(whole) - 3, 3):
        stop = whole[start : start + 3]
        pieces = answer(loaded, seed=4, stop=(stop,))
        assert text_of(pieces) == whole[: whole.index(stop)]
        assert pieces[-1].finish_reason == "stop"


def test_half_characters_are_not_shown():
    text = "größer € 😀 fin"
    whole = text.encode()
    for size in range(1, len(whole) + 1):
        pieces, _ = feed(whole[:size], most=size)
        assert text_of(pieces) == whole[:size].decode(errors="ignore")
        assert not any(UNFINISHED in piece.text for piece in pieces)
        assert pieces[-1].finish_reason == "length"


def test_what_never_was_a_character_is_shown_as_such():
    pieces, _ = feed(b"a\xffb\xfe\xfdstop", stop=("stop",))
    assert text_of(pieces) == f"a{UNFINISHED}b{UNFINISHED}{UNFINISHED}"


def test_the_end_token_ends_and_is_not_shown():
    pieces, writing = feed([*b"ab", 258])
    assert (text_of(pieces), pieces[-1].finish_reason, writing.finished) == ("ab", "stop", "stop")
    assert sum(piece.tokens for piece in pieces) == 3


def test_each_shown_token_is_reported_once_with_its_text():
    text = "ab€ and XYZ"
    pieces, _ = feed(text.encode(), stop=("XYZ",), logprobs=True)
    reports = [report for piece in pieces for report in piece.logprobs]
    assert bytes(report.token for report in reports) == "ab€ and ".encode()
    assert [report.text for report in reports[:3]] == ["a", "b", UNFINISHED]
    assert reports[5].start == 3  # the character behind the euro sign
    assert reports[0].alternatives == ((97, "a", -1.0),)


def test_logprobs_are_the_models_own(opened):
    loaded = opened("gpt2")
    options = Options(max_new_tokens=6, temperature=0.7, top_k=5, logprobs=3)
    reports = [report for piece in answer(loaded, options=options, seed=9) for report in piece.logprobs]
    ids = prompt_ids(loaded.tokenizer, "the cat")
    for report in reports:
        with torch.no_grad():
            expected = loaded.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert report.logprob == pytest.approx(float(expected[report.token]), abs=1e-4)
        assert [token for token, _, _ in report.alternatives] == expected.topk(3).indices.tolist()
        ids = [*ids, report.token]


def test_cancelled_ends_with_its_reason(opened):
    loaded, cancelled = opened("gpt2"), threading.Event()
    pieces = []
    for piece in stream(loaded.model, loaded.tokenizer, "a", Options(max_new_tokens=100), cancelled=cancelled):
        pieces.append(piece)
        cancelled.set()
    assert pieces[-1].finish_reason == "cancelled"
    assert sum(piece.tokens for piece in pieces) < 60


def test_whoever_stops_reading_ends_the_worker(opened, monkeypatch):
    loaded = opened("gpt2")
    calls = []
    forward = loaded.model.forward
    monkeypatch.setattr(loaded.model, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    pieces = stream(loaded.model, loaded.tokenizer, "a", Options(max_new_tokens=100))
    next(pieces)
    pieces.close()
    assert not any(thread.name == "answer" for thread in threading.enumerate())
    assert len(calls) < 60


def test_errors_of_the_worker_reach_the_reader(opened, monkeypatch):
    loaded = opened("gpt2")
    monkeypatch.setattr(loaded.model, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(loaded)
    assert not any(thread.name == "answer" for thread in threading.enumerate())


def test_logits_that_are_no_numbers_are_told(opened, monkeypatch):
    loaded = opened("gpt2")
    monkeypatch.setattr(loaded.model.lm_head, "forward", lambda x: torch.full((*x.shape[:2], 330), torch.nan))
    with pytest.raises(Failed, match="NaN"):
        answer(loaded)


def test_prompts_without_room_are_refused_at_once(opened):
    loaded = opened("gpt2")
    with pytest.raises(UserError, match=r"200 tokens.*positions for 128"):
        stream(loaded.model, loaded.tokenizer, [5] * 200, GREEDY)
    with pytest.raises(UserError, match="not valid UTF-8"):
        stream(loaded.model, loaded.tokenizer, "\ud800", GREEDY)
    with pytest.raises(UserError, match="vocabulary ends"):
        stream(loaded.model, loaded.tokenizer, [100_000], GREEDY)
    with pytest.raises(BadOption):
        stream(loaded.model, loaded.tokenizer, "a", Options(temperature=-1))
    assert room_for(loaded.model, [5] * 120, 50) == 8
    pieces = list(stream(loaded.model, loaded.tokenizer, [5] * 120, Options(max_new_tokens=50)))
    assert (sum(piece.tokens for piece in pieces), pieces[-1].finish_reason) == (8, "length")


def test_an_empty_prompt_begins_a_document(opened):
    tokenizer = opened("gpt2").tokenizer
    assert prompt_ids(tokenizer, "") == [tokenizer.eos_token_id]
    assert prompt_ids(opened("infinito").tokenizer, "") == [257]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match="no token that begins a text: give a word"):
        prompt_ids(tokenizer, "")
    tokenizer.backend_tokenizer.normalizer = Replace("?", "")
    with pytest.raises(UserError, match="'\\?\\?' has no token in the tokenizer's vocabulary"):
        prompt_ids(tokenizer, "??")
