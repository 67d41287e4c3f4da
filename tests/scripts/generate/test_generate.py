"""scripts/generate.py: the same text for the same seed, what ends it, what is shown and written."""

import csv
import errno
import io
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frankenlm.trainer_ext.commands import generate as work
from frankenlm.trainer_ext.generation.generate import derive_seed
from frankenlm.trainer_ext.generation.heatmaps import readable
from frankenlm.trainer_ext.generation.prompts import Prompt, read_prompts
from frankenlm.trainer_ext.generation.streaming import StopAtText, TextStream, continuation_text, cut_at_stop

POSITIONS = 48


def read(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


# --- the same text


def test_greedy_is_the_likeliest_token(texts, gpt2, capsys):
    (row,) = texts("--prompt", "the cat", "--temperature", 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    for token in row["token_ids"]:
        assert int(model(input_ids=ids).logits[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert row["finished"] == "length" and row["tokens"] == 12
    assert capsys.readouterr().out == f"the cat{row['text']}\n"


def test_an_empty_prompt_begins_a_document(texts, gpt2, capsys):
    """With the end token, as the server does; blanks are a text."""
    greedy = ("--temperature", 0, "--max_new_tokens", 1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    for prompt, ids in (("", [tokenizer.eos_token_id]), (" ", tokenizer(" ")["input_ids"])):
        (row,) = texts("--prompt", prompt, *greedy)
        assert ids and row["token_ids"] == [int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        assert row["prompt"] == prompt and capsys.readouterr().out == f"{prompt}{row['text']}\n"


def test_a_seed_gives_its_text(texts):
    first, again, other = (texts("--prompt", "the cat", "--seed", seed)[0] for seed in (7, 7, 8))
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]
    assert first["seed"] == derive_seed(7, 0, 0) != other["seed"]


def test_global_random_numbers_are_left_alone(texts):
    state = torch.get_rng_state()
    texts("--prompt", "the cat")
    assert torch.equal(state, torch.get_rng_state())


def test_neighbours_change_nothing(texts):
    """A prompt's text depends on its place, not on what stands beside it, and text 1 of 3 is text 1 of 1."""
    alone = texts("--prompt", "the cat")
    many = texts("--prompt", "the cat", "--prompt", "a long one: birds sang of rain", "--num_return_sequences", 3)
    assert [row["prompt"] for row in many] == ["the cat"] * 3 + ["a long one: birds sang of rain"] * 3
    assert many[0]["token_ids"] == alone[0]["token_ids"]
    assert len({tuple(row["token_ids"]) for row in many}) == len({row["seed"] for row in many}) == 6


@pytest.mark.parametrize("model", ["gpt2", "mamba", "hybrid", "infinito"])
def test_the_cache_changes_nothing(texts, model, request):
    folder = request.getfixturevalue(model)
    words = ["--prompt", "the cat", "--temperature", 0]
    with_cache, without = (texts(*words, *more, model=folder)[0]["token_ids"] for more in ([], ["--no_cache"]))
    assert with_cache == without


def test_own_sampling_defaults_of_a_checkpoint_are_not_used(texts, gpt2, tmp_path):
    folder = tmp_path / "opinionated"
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=3.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2).save_pretrained(folder)
    assert texts("--prompt", "the cat", model=folder)[0]["token_ids"] == texts("--prompt", "the cat")[0]["token_ids"]


def test_settings_do_something(texts):
    greedy = texts("--prompt", "the cat", "--temperature", 0)[0]["token_ids"]
    assert texts("--prompt", "the cat", "--top_k", 1)[0]["token_ids"] == greedy
    assert texts("--prompt", "the cat", "--top_p", 1e-6)[0]["token_ids"] == greedy
    assert texts("--prompt", "the cat", "--temperature", 1e-4)[0]["token_ids"] == greedy
    assert texts("--prompt", "the cat", "--temperature", 0, "--repetition_penalty", 50)[0]["token_ids"] != greedy
    penalised = texts("--prompt", "the cat", "--temperature", 0, "--repetition_penalty", 50)[0]["token_ids"]
    assert len(set(penalised)) == len(penalised)


def test_beams(texts, capsys):
    rows = texts("--prompt", "the cat", "--num_beams", 3, "--num_return_sequences", 2)
    assert rows[0]["token_ids"] != rows[1]["token_ids"]
    assert rows[0]["text"] in capsys.readouterr().out
    stop = rows[0]["text"][3:6]
    for row in texts("--prompt", "the cat", "--num_beams", 3, "--num_return_sequences", 3, "--stop", stop):
        assert stop not in row["text"] and 1 not in row["token_ids"]  # 1: the pad token


def test_a_frankenstein_generates(texts, train, tmp_path):
    assert train(tmp_path / "model", "--max_steps", 1, "--objective", "causal") == 0
    first, again = (texts("--prompt", "the cat", model=tmp_path / "model")[0] for _ in range(2))
    assert first["token_ids"] == again["token_ids"] and first["tokens"] > 0


# --- a model with a slot memory


def test_memory_switch(texts, infinito):
    words = ["--prompt", "the cat sat on a mat and saw dogs", "--temperature", 0]
    on, off = (texts(*words, *more, model=infinito)[0]["token_ids"] for more in ([], ["--no_memory"]))
    assert on != off


def test_exploration(texts, infinito):
    """Now and then a token is sampled: with probability 1 all of them, with next to none the text is greedy."""

    def run(*words):
        return texts("--prompt", "the cat", *words, model=infinito)[0]["token_ids"]

    greedy = run("--temperature", 0)
    assert run("--explore", 1e-9) == greedy
    assert run("--explore", 1, "--temperature", 1) == run("--temperature", 1)
    hot = ["--temperature", 9, "--seed", 3]
    assert run("--explore", *hot) == run("--explore", 0.3, *hot)
    assert greedy != run("--explore", 0.5, *hot) != run(*hot)


def test_memory_map(texts, infinito, tmp_path, tokenizer):
    (row,) = texts("--prompt", "the cat sat on", "--memory_map", tmp_path / "reads.png", model=infinito)
    assert (tmp_path / "reads.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "reads.csv").open(encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(tokenizer("the cat sat on")["input_ids"]) + row["tokens"]
    assert {cell["layer"] for cell in cells} == {"memory of layer 1"}
    for index, cell in enumerate(cells):
        assert sum(float(cell[f"slot_{slot}"]) for slot in range(6)) + float(cell["null"]) == pytest.approx(1, abs=1e-4)
        # a segment of four tokens fills a slot; tokens of the first one meet an empty memory
        assert float(cell["slots_used"]) == min(6, (index + 1) // 4)
        assert (float(cell["null"]) == 1) == (index < 4)


# --- ends


def test_stop_strings(texts, capsys):
    (whole,) = texts("--prompt", "the cat")
    stop = whole["text"][4:7]
    capsys.readouterr()
    (row,) = texts("--prompt", "the cat", "--stop", "not there", "--stop", stop)
    assert row["finished"] == "stop" and row["text"] == whole["text"].partition(stop)[0]
    assert row["tokens"] < whole["tokens"]
    assert capsys.readouterr().out == f"the cat{row['text']}\n"


@pytest.mark.parametrize(
    ("text", "stop", "before"),
    [
        (" the cat sat on a mat", ["t sa"], " the ca"),  # across tokens
        (" the cat sat on a mat", ["mat", "on a"], " the cat sat "),  # the first to come, not the first given
        (" the cat", [" the"], ""),  # right behind the prompt, with the space that begins a word
        (" so größer", ["größ"], " so "),  # characters of several bytes, and of several tokens
        (" so gr🌍ß", ["gr🌍"], " so "),
        (" aaab", ["aab"], " a"),  # its own beginning stands before it
        ("\n\nUser", ["\n\n"], ""),
    ],
)
def test_no_piece_shows_the_beginning_of_a_stop_string(tokenizer, text, stop, before):
    """Token by token, as generate() does it: what is shown, when it ends, and what is said of it."""
    prompt, new = tokenizer("the dog")["input_ids"], tokenizer(text)["input_ids"]
    pieces = []
    stream = TextStream(tokenizer, prompt, pieces.append, stop=stop)
    criterion = StopAtText(tokenizer, len(prompt), stop)
    stream.put(torch.tensor([prompt]))
    ended = None
    for index, token in enumerate(new):
        stream.put(torch.tensor([token]))
        assert before.startswith("".join(pieces))
        rows = torch.tensor([[*prompt, *new[: index + 1]], [*prompt, *prompt * 9][: len(prompt) + index + 1]])
        if criterion(rows, None).tolist() == [True, False]:  # the other row of the batch goes on
            ended = index
            break
    whole = continuation_text(tokenizer, prompt, new[: ended + 1])
    assert any(string in whole for string in stop), "not before it is there"
    assert not any(string in continuation_text(tokenizer, prompt, new[:ended]) for string in stop), "and not later"
    assert stream.finish() == "".join(pieces) == before and stream.stopped()


def test_a_special_token_as_stop_string(tokenizer):
    """Texts are shown without special tokens; as stop strings they still end them."""
    end, prompt = tokenizer.eos_token, tokenizer("the dog")["input_ids"]
    row = [*tokenizer(" sat")["input_ids"], tokenizer.eos_token_id]
    assert StopAtText(tokenizer, len(prompt), [end])(torch.tensor([[*prompt, *row]]), None).tolist() == [True]
    assert StopAtText(tokenizer, len(prompt), [end])(torch.tensor([[*prompt, *row[:-1]]]), None).tolist() == [False]
    stream = TextStream(tokenizer, prompt, lambda piece: None, stop=[end])
    stream.put(torch.tensor([prompt]))
    stream.put(torch.tensor(row))
    assert stream.stopped() and stream.finish() == " sat"


def test_several_texts_stop_each_by_itself(texts):
    words = ["--prompt", "the cat", "--prompt", "birds", "--num_return_sequences", 2]
    whole = texts(*words)
    stops = [row["text"][3:6] for row in whole]
    for row, free in zip(texts(*words, *(word for stop in stops for word in ("--stop", stop))), whole, strict=True):
        assert row["finished"] == "stop" and free["text"].startswith(row["text"])
        assert not any(stop in row["text"] for stop in stops)


def test_end_token(texts, gpt2, tmp_path):
    (whole,) = texts("--prompt", "the cat", "--temperature", 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    model.generation_config.eos_token_id = whole["token_ids"][3]
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (row,) = texts("--prompt", "the cat", "--temperature", 0, model=tmp_path / "m")
    first = whole["token_ids"].index(whole["token_ids"][3])
    assert row["finished"] == "end" and row["token_ids"] == whole["token_ids"][: first + 1]


def test_the_position_table_ends_a_text(texts, capfd):
    (row,) = texts("--prompt", "the cat", "--max_new_tokens", 500)
    assert row["finished"] == "positions"
    assert f"has positions for {POSITIONS}" in capfd.readouterr().err


# --- what is written


def test_report(generate, gpt2, tmp_path):
    report = tmp_path / "sub" / "r.json"
    words = ["--prompt", "the cat", "--max_new_tokens", 5, "--temperature", 0.5, "--top_k", 9, "--seed", 3]
    assert generate("--model", gpt2, *words, "--json", report) == 0
    facts = read(report)
    assert facts["settings"]["top_k"] == 9 and facts["settings"]["seed"] == 3
    assert facts["model"] == gpt2.name and facts["tokens"] == 5 and facts["tokens_per_second"] > 0
    assert facts["versions"]["transformers"] and facts["dtype"] == "float32"


def test_texts_are_kept_whatever_ends_the_work(generate, gpt2, tmp_path, monkeypatch, capsys):
    report = tmp_path / "r.json"
    whole, calls = work.generate_texts, []

    def twice(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(work, "generate_texts", twice)
    words = ["--prompt", "the cat", "--prompt", "birds", "--max_new_tokens", 3, "--json", report]
    assert generate("--model", gpt2, *words) == 130
    assert [row["prompt"] for row in read(report)["texts"]] == ["the cat"]


def test_a_reader_who_leaves_ends_what_is_only_shown(generate, gpt2, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        encoding = "utf-8"

        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    words = ["--model", gpt2, "--prompt", "the cat", "--max_new_tokens", 3]
    monkeypatch.setattr("sys.stdout", Closed())
    assert generate(*words) == 141
    assert generate(*words, "--json", tmp_path / "r.json") == 0
    assert read(tmp_path / "r.json")["tokens"] == 3


def test_logits_that_are_no_numbers(generate, gpt2, monkeypatch, capsys):
    def draw(self, *args, **kwargs):
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")

    monkeypatch.setattr("transformers.GPT2LMHeadModel.generate", draw)
    assert generate("--model", gpt2, "--prompt", "the cat") == 1
    assert "stopped: the model's logits are NaN or infinite" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("line", ["/seed ²", "/seed " + "9" * 5000, "/seed -1", "/seed x"])
def test_odd_seeds_end_no_talk(generate, gpt2, monkeypatch, capsys, line):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\nthe cat\n"))
    assert generate("--model", gpt2, "--interactive", "--max_new_tokens", 3) == 0
    out, err = capsys.readouterr()
    assert out.strip() and "unknown command" in err


def test_no_standard_input(generate, gpt2, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", None)
    assert generate("--model", gpt2, "--interactive", "--json", tmp_path / "r.json") == 0
    assert read(tmp_path / "r.json")["texts"] == []


def test_attention_map(texts, tmp_path, tokenizer):
    (row,) = texts("--prompt", "the $cat", "--attention_map", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "map.csv").open(encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert {cell["layer"] for cell in cells} == {"attention 0", "attention 1"}
    length = len(tokenizer("the $cat")["input_ids"]) + row["tokens"]
    sums = {}
    for cell in cells:
        assert int(cell["key_index"]) <= int(cell["query_index"]) < length
        place = cell["layer"], cell["query_index"]
        sums[place] = sums.get(place, 0) + float(cell["weight"])
    assert len(sums) == 2 * length and all(total == pytest.approx(1, abs=1e-4) for total in sums.values())


def test_maps_of_several_texts_have_numbers(texts, tmp_path):
    texts("--prompt", "the", "--prompt", "cat", "--attention_map", tmp_path / "map.png")
    assert sorted(path.name for path in tmp_path.glob("map*.png")) == ["map-1-1.png", "map-2-1.png"]


def test_demo(generate, gpt2, capsys):
    assert generate("--model", gpt2, "--demo", "--max_new_tokens", 6, "--prompt", "the cat") == 0
    out = capsys.readouterr().out
    for name in ("greedy", "sampled", "top-p 0.9", "penalised", "repetition_4", "distinct_2"):
        assert name in out
    assert out.count("the cat|") == 4


# --- pieces


def test_streamed_pieces_make_the_text(tokenizer):
    pieces = []
    prompt, new = (tokenizer(text)["input_ids"] for text in ("the cat", " größer als rain, STOP and more"))
    stream = TextStream(tokenizer, prompt, pieces.append, stop=["STOP"])
    stream.put(torch.tensor([prompt]))
    for token in new:
        stream.put(torch.tensor([token]))
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    stream.end()
    assert stream.finish() == "".join(pieces) == " größer als rain, "
    assert len(pieces) > 3 and stream.stopped()
    assert stream.take_new() == new and stream.take_new() == []


def test_a_long_stream_is_the_decoded_text(tokenizer):
    pieces = []
    ids = tokenizer("the cat sat on a mat, größe ñandú 漢字 " * 20)["input_ids"]
    stream = TextStream(tokenizer, ids[:3], pieces.append)
    stream.put(torch.tensor([ids[:3]]))
    for token in ids[3:]:
        stream.put(torch.tensor([token]))
    assert stream.finish() == "".join(pieces) == continuation_text(tokenizer, ids[:3], ids[3:])
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_text_behind_a_prompt(tokenizer):
    prompt, new = tokenizer("the größ")["input_ids"], tokenizer(" mat")["input_ids"]
    assert continuation_text(tokenizer, prompt, new) == " mat"
    assert continuation_text(tokenizer, [], []) == ""
    assert cut_at_stop("one two three", ["three", "two"]) == "one "


def test_stop_criterion_looks_at_new_text_only(tokenizer):
    ids = tokenizer("the cat sat on a mat")["input_ids"]
    rows = torch.tensor([ids, [*ids[:-1], ids[0]]])
    prompt = len(tokenizer("the cat sat")["input_ids"])
    assert StopAtText(tokenizer, prompt, ["mat"])(rows, None).tolist() == [True, False]
    assert StopAtText(tokenizer, prompt, ["cat"])(rows, None).tolist() == [False, False]


def test_prompt_files(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "reference": "b"}\n\n{"prompt": "c", "reference": ["d", "e"]}\n{"prompt": "f"}\n')
    assert read_prompts(path) == [Prompt("a", ("b",)), Prompt("c", ("d", "e")), Prompt("f")]
    (tmp_path / "p.txt").write_text("one\n\n two\n")
    assert read_prompts(tmp_path / "p.txt") == [Prompt("one"), Prompt(" two")]


def test_readable_labels():
    assert [readable(token) for token in (" a b", "\n", "$", "", " " * 40)] == ["·a·b", "\\n", "$", "∅", "·" * 11 + "…"]
