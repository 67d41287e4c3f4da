"""scripts/generate.py: the same text for the same seed, what it shows and writes, the conversation, the mistakes."""

import csv
import dataclasses
import errno
import io
import json
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, InfinitoConfig, InfinitoForCausalLM
from frankenlm.scripts import generate as script_module
from frankenlm.trainer_ext.commands import generate as work
from frankenlm.trainer_ext.common.checkpoints import load_model, open_checkpoint
from frankenlm.trainer_ext.common.cli import UserError, run_command
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from frankenlm.trainer_ext.generation.conversation import Conversation
from frankenlm.trainer_ext.generation.generate import derive_seed
from frankenlm.trainer_ext.generation.heatmaps import readable
from frankenlm.trainer_ext.generation.prompts import Prompt, read_prompts
from frankenlm.trainer_ext.generation.sampling import Sampling
from frankenlm.trainer_ext.generation.streaming import StopAtText, TextStream, continuation_text, cut_at_stop

TEXT = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring, größer"
POSITIONS = 48


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT] * 4, vocab_size=310, mask=False)


@pytest.fixture(scope="module")
def gpt2(tokenizer, tmp_path_factory):
    """A random GPT-2 of 48 positions that never says its end token by itself."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mamba(tokenizer, tmp_path_factory):
    """A random Mamba: no attention, no positions."""
    folder = tmp_path_factory.mktemp("models") / "mamba"
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hybrid(tokenizer, tmp_path_factory):
    """A random Frankenstein whose layers keep states of three kinds, and positions without an end."""
    folder = tmp_path_factory.mktemp("models") / "hybrid"
    torch.manual_seed(0)
    config = FrankensteinConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        retention_heads=2,
        intermediate_size=16,
        layer_pattern=["retnet", "titan_attn", "mamba"],
        mamba_head_dim=8,
        mamba_state=4,
        position_type="rope",
        is_decoder=True,
        initializer_range=0.5,
        max_position_embeddings=POSITIONS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    FrankensteinForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def infinito(tokenizer, tmp_path_factory):
    """A random Infinito whose memory matters: at init its output is zero."""
    folder = tmp_path_factory.mktemp("models") / "infinito"
    torch.manual_seed(0)
    config = InfinitoConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=POSITIONS,
        memory_layers=[1],
        memory_slots=6,
        memory_dim=8,
        memory_heads=2,
        memory_segment=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = InfinitoForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generate():
    """generate(*words) runs the script in this process and returns its exit code."""

    def run(*words) -> int:
        return run_command(script_module.main, [str(word) for word in words])

    return run


@pytest.fixture
def texts(generate, gpt2, tmp_path):
    """texts(*words) generates with the random GPT-2 and returns the rows of the report."""

    def run(*words, model=gpt2):
        report = tmp_path / "report.json"
        assert generate("--model", model, "--max_new_tokens", 12, *words, "--json", report) == 0
        return read(report)["texts"]

    return run


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


def test_a_full_table_carries_the_memory_over(conversation, infinito, tokenizer):
    """What the second window writes is what the model writes there when it is given the memory of the first."""
    talk = conversation(infinito, max_new_tokens=POSITIONS + 8)
    answer = talk.reply("the cat")
    assert answer.finished == "length" and "the memory is carried over" in talk.notes[0] and len(talk.notes) == 1
    model = talk.model
    first, rest = talk.history[: POSITIONS - 1], talk.history[POSITIONS - 1 :]
    with torch.no_grad():
        carried = model(input_ids=torch.tensor([first]), use_cache=False).memory_state
        logits = model(input_ids=torch.tensor([rest[:-1]]), memory_state=carried, use_cache=False).logits
        forgotten = model(input_ids=torch.tensor([rest[:-1]]), use_cache=False).logits
    assert logits[0].argmax(-1).tolist() == rest[1:]
    assert not torch.allclose(logits, forgotten, atol=1e-3)
    assert talk.window == rest
    # the next turn stays in the window and goes on with its cache
    talk.sampling = dataclasses.replace(talk.sampling, max_new_tokens=4)
    answer = talk.reply("sat")
    assert len(talk.notes) == 1 and talk.window == talk.history[POSITIONS - 1 :]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([talk.window[:-1]]), memory_state=carried, use_cache=False).logits
    assert logits[0, -4:].argmax(-1).tolist() == answer.tokens


def test_without_memory_the_oldest_is_dropped(conversation, infinito):
    talk = conversation(infinito, max_new_tokens=POSITIONS + 8, use_memory=False)
    talk.reply("the cat")
    assert "the oldest" in talk.notes[0]


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
    ids = tokenizer(f"{TEXT} größe ñandú 漢字 " * 20)["input_ids"]
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


# --- conversation


@pytest.fixture
def conversation(gpt2):
    """conversation(**settings) -> a Conversation with the random GPT-2, with .pieces and .notes."""

    def make(model=gpt2, **settings):
        checkpoint = open_checkpoint(str(model))
        pieces, notes = [], []
        sampling = Sampling(**{"max_new_tokens": 6, "temperature": 0.0} | settings)
        talk = Conversation(
            load_model(checkpoint, device="cpu"), checkpoint, sampling, write=pieces.append, say=notes.append
        )
        talk.pieces, talk.notes = pieces, notes
        return talk

    return make


@pytest.mark.parametrize("model", ["gpt2", "mamba", "hybrid", "infinito"])
def test_state_goes_from_turn_to_turn(conversation, model, request, tokenizer):
    """A second turn with the kept state writes what the model writes when it reads everything again."""
    folder = request.getfixturevalue(model)
    cached, plain = conversation(folder), conversation(folder, use_cache=False)
    for talk in (cached, plain):
        talk.reply("the cat")
        talk.reply("sat on")
    assert cached.cache is not None and plain.cache is None
    assert cached.history == plain.history
    assert "".join(cached.pieces) == "".join(plain.pieces)
    middle = tokenizer("\nsat on")["input_ids"]
    assert cached.history[len(tokenizer("the cat")["input_ids"]) + 6 :][: len(middle)] == middle


def test_a_turn_reads_only_what_is_new(conversation):
    talk = conversation()
    talk.reply("the cat")
    lengths = []
    talk.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    before = len(talk.window)
    talk.reply("sat on")
    new = len(talk.window) - before - 6
    assert lengths == [new + 1, 1, 1, 1, 1, 1]  # the last token of a turn has not been read yet


def test_a_full_table_drops_the_oldest(conversation):
    talk = conversation(max_new_tokens=2 * POSITIONS)
    answer = talk.reply("the cat")
    assert len(answer.tokens) == 2 * POSITIONS and answer.finished == "length"
    assert len(talk.window) <= POSITIONS and talk.window == talk.history[-len(talk.window) :]
    assert "the oldest 24 tokens are dropped" in talk.notes[0]
    with pytest.raises(UserError, match=f"positions for {POSITIONS}"):
        talk.reply("cat " * 100)
    assert talk.reply("on a mat").finished == "length"


def test_positions_without_end_need_no_new_window(conversation, hybrid):
    talk = conversation(hybrid, max_new_tokens=2 * POSITIONS)
    assert len(talk.reply("the cat").tokens) == 2 * POSITIONS
    assert talk.notes == [] and talk.window == talk.history


def test_reset_and_seed_repeat_a_conversation(conversation):
    talk = conversation(temperature=1.0)
    first = [talk.reply(line).tokens for line in ("the cat", "sat")]
    other = [talk.reply(line).tokens for line in ("the cat", "sat")]
    talk.reset()
    talk.reseed(42)
    assert [talk.reply(line).tokens for line in ("the cat", "sat")] == first != other


def test_first_interrupt_ends_the_text_only(conversation):
    talk = conversation(max_new_tokens=30)
    sent = []

    def write(piece):
        talk.pieces.append(piece)
        if not sent:
            sent.append(signal.raise_signal(signal.SIGINT))

    talk.write = write
    answer = talk.reply("the cat")
    assert answer.finished == "interrupted" and 0 < len(answer.tokens) < 30
    assert talk.cache is not None and talk.history[-len(answer.tokens) :] == answer.tokens
    assert talk.reply("sat").finished == "length"


def test_second_interrupt_ends_it_at_once(conversation):
    talk = conversation(max_new_tokens=30)
    calls = []

    def press(*args):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    handle = talk.model.register_forward_pre_hook(press)
    answer = talk.reply("the cat")
    handle.remove()
    assert answer.finished == "interrupted" and len(answer.tokens) == 1
    assert talk.cache is None and talk.history[-1] == answer.tokens[0]
    fresh = conversation(use_cache=False)
    fresh.history, fresh.window = list(talk.history), list(talk.window)
    talk.sampling = fresh.sampling
    assert talk.reply("sat").tokens == fresh.reply("sat").tokens


def test_interactive_over_a_pipe(generate, gpt2, monkeypatch, capsys, tmp_path):
    lines = "the cat\n/seed 5\n\n/frobnicate\nsat on\n/reset\n/help\nthe cat\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    report = tmp_path / "r.json"
    assert generate("--model", gpt2, "--interactive", "--max_new_tokens", 5, "--json", report) == 0
    rows = read(report)["texts"]
    assert [row["prompt"] for row in rows] == ["the cat", "sat on", "the cat"]
    out, err = capsys.readouterr()
    assert out == "".join(row["text"] + "\n" for row in rows)
    assert "seed 5" in err and "unknown command '/frobnicate'" in err and "/reset forgets" in err


def test_chat_template(generate, gpt2, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "chat"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    tokenizer.save_pretrained(folder)
    report = tmp_path / "r.json"
    words = ["--model", folder, "--chat_template", "--max_new_tokens", 4, "--temperature", 0, "--json", report]
    assert generate(*words, "--prompt", "cat") == 0
    (asked,) = read(report)["texts"]
    assert generate("--model", gpt2, "--prompt", "u:cat;a:", *words[3:]) == 0
    assert read(report)["texts"][0]["token_ids"] == asked["token_ids"]
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\nmat\n"))
    assert generate(*words, "--interactive") == 0
    first, second = read(report)["texts"]
    assert first["token_ids"] == asked["token_ids"]
    # the second turn goes on from the tokens of the first, whatever other tokens would spell the same text
    ids = [token for text in ("u:cat;a:", ";u:mat;a:") for token in [*tokenizer(text)["input_ids"], None]]
    place = ids.index(None)
    talk = torch.tensor([ids[:place] + first["token_ids"] + ids[place + 1 : -1]])
    again = AutoModelForCausalLM.from_pretrained(gpt2).generate(talk, max_new_tokens=4, do_sample=False)
    assert again[0, talk.shape[1] :].tolist() == second["token_ids"]


def test_a_long_talk_drops_its_oldest_turns(generate, gpt2, monkeypatch, tmp_path, capsys):
    """With a template that writes earlier turns otherwise, the talk is read anew each time, until it no longer fits."""
    folder = tmp_path / "chat"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = (
        "{{ messages|length }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    )
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("cat mat\n" * 12))
    report = tmp_path / "r.json"
    words = ["--model", folder, "--chat_template", "--max_new_tokens", 4, "--interactive", "--json", report]
    assert generate(*words) == 0
    err = capsys.readouterr().err
    assert len(read(report)["texts"]) == 12 and "error" not in err
    assert "the oldest turns are dropped" in err


def test_bytes_that_are_no_text_are_a_mistake(generate, gpt2, monkeypatch, capsys):
    assert generate("--model", gpt2, "--prompt", "abc\udcff") == 2
    assert "not valid UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\udcff\nthe cat\n"))
    assert generate("--model", gpt2, "--interactive", "--max_new_tokens", 3) == 0
    assert "not valid UTF-8" in capsys.readouterr().err


# --- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to go on from"),
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--max_new_tokens", "0"], "--max_new_tokens 0: must be at least 1"),
        (["--prompt", "a", "--max_new_tokens", "-3"], "must be at least 1"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature -1.0: must be 0 (greedy) or a positive"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature nan: must be a finite number"),
        (["--prompt", "a", "--top_p", "0"], "--top_p 0.0: must lie above 0"),
        (["--prompt", "a", "--top_p", "1.5"], "--top_p 1.5: must lie above 0"),
        (["--prompt", "a", "--top_k", "0"], "--top_k 0: must be at least 1"),
        (["--prompt", "a", "--top_k", "5", "--temperature", "0"], "does nothing with --temperature 0"),
        (["--prompt", "a", "--repetition_penalty", "0"], "must be positive"),
        (["--prompt", "a", "--seed", "-1"], "--seed -1"),
        (["--prompt", "a", "--stop", ""], "--stop is empty"),
        (["--prompt", "a", "--num_beams", "0"], "--num_beams 0"),
        (["--prompt", "a", "--num_beams", "2", "--temperature", "1"], "add --temperature 0"),
        (["--prompt", "a", "--temperature", "0", "--num_return_sequences", "2"], "finds at most 1"),
        (["--prompt", "a", "--explore", "--temperature", "0"], "--explore samples some"),
        (["--prompt", "a", "--explore", "1.5"], "a probability above 0"),
        (["--prompt", "a", "--explore", "--num_beams", "2"], "--explore samples some"),
        (["--prompt", "a", "--no_memory"], "--no_memory: {model} (gpt2) has no slot memory"),
        (["--prompt", "a", "--memory_map", "m.png"], "--memory_map: {model} (gpt2) has no slot memory"),
        (["--prompt", "a", "--memory_map", "m.png", "--no_memory"], "leave one of them out"),
        (["--prompt", "a", "--attention_map", "m.jpg"], "ends in .png"),
        (["--prompt", "a", "--attention_map", "m.png", "--model", "{mamba}"], "has attention weights to draw"),
        (["--prompt", "a", "--json", "r.txt"], "ends in .json"),
        (["--prompt", "a", "--json", "{model}/config.json/r.json"], "cannot write to"),
        (["--prompt", "a", "--model", "/no/such/model"], "no such folder"),
        (["--prompt", "a", "--model", "{tmp}"], "no config.json"),
        (["--prompt", "a", "--device", "warp"], "no such device"),
        (["--prompt", "a", "--dtype", "float8"], "invalid choice"),
        (["--prompt", "a", "--chat_template"], "has none"),
        (["--prompt", "cat" * 80], "has positions for 48"),
        (["--prompts", "{tmp}/missing.txt"], "No such file"),
        (["--prompts", "{tmp}/empty.txt"], "holds no prompt"),
        (["--prompts", "{tmp}/bad.jsonl"], "line 2: needs a field"),
        (["--prompts", "{tmp}/worse.jsonl"], "line 1: not JSON"),
        (["--prompts", "{tmp}/reference.jsonl"], "must be a text or a list of texts"),
        (["--demo", "--top_k", "5"], "leave out --top_k"),
        (["--demo", "--interactive"], "two things"),
        (["--interactive", "--prompt", "a"], "leave out --prompt"),
        (["--interactive", "--num_beams", "2"], "leave out --num_beams"),
        (["--interactive", "--attention_map", "m.png"], "leave out --interactive"),
        (["--promt", "a"], "Did you mean '--prompt"),
    ],
)
def test_mistakes(words, message, generate, gpt2, mamba, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "worse.jsonl").write_text("prompt\n")
    (tmp_path / "reference.jsonl").write_text('{"prompt": "a", "reference": 3}\n')
    places = {"model": gpt2, "mamba": mamba, "tmp": tmp_path}
    before = sorted(tmp_path.iterdir())
    assert generate("--model", gpt2, *(word.format(**places) for word in words)) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message.format(**places) in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_masked_model_does_not_generate(generate, unbroken, capfd):
    assert generate("--model", unbroken, "--prompt", "the cat") == 2
    assert "only causal language models generate" in capfd.readouterr().err


def test_a_model_that_the_hub_does_not_give(generate, monkeypatch, capfd):
    def fetch(name, **kwargs):
        raise OSError("We couldn't connect to the hub.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fetch)
    assert generate("--model", "someone/model", "--prompt", "the cat") == 2
    assert capfd.readouterr().err.startswith("error: --model someone/model: no folder of that name, and")
