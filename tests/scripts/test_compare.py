"""scripts/compare.py: the numbers of one model are those of the other commands; the four files; the mistakes."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from frankenlm.scripts import compare as script_module
from frankenlm.trainer_ext.common.cli import Failed, UserError, run_command
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from frankenlm.trainer_ext.evaluation.comparing import (
    PANELS,
    choose_metrics,
    format_value,
    make_labels,
    markdown_report,
)
from frankenlm.trainer_ext.evaluation.flags import COMPARED
from frankenlm.trainer_ext.metrics.text import bleu

TEXT = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring"


def save(folder: Path, tokenizer, seed: int, **changes) -> Path:
    torch.manual_seed(seed)
    fields = {"n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5} | changes
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **fields)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT] * 4, vocab_size=300, mask=False)


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory) -> list[Path]:
    """Two random GPT-2; the second has fewer positions."""
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / "one", tokenizer, 0), save(folder / "two", tokenizer, 1, n_positions=96)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "pairs.jsonl"
    rows = [{"prompt": "the cat", "reference": "sat on a mat"}, {"prompt": "birds", "reference": ["sang", "of rain"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text(f"{TEXT}\n\nbirds sang of rain in spring\n")
    return path


@pytest.fixture(scope="module")
def compare():
    """compare(*words) runs the script in this process and returns its exit code."""
    return lambda *words: run_command(script_module.main, [str(word) for word in words])


def read(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def full(compare, models, pairs, held_out, tmp_path_factory) -> Path:
    """The report of everything about both models, and of the first again."""
    folder = tmp_path_factory.mktemp("full") / "new" / "report"
    words = ["--prompts", pairs, "--dataset", held_out, "--max_new_tokens", 8, "--num_return_sequences", 2]
    assert compare("--models", *models, models[0], *words, "--output_dir", folder) == 0
    return folder


def test_all_files_say_the_same(full):
    facts = read(full / "compare.json")
    labels = [row["label"] for row in facts["models"]]
    assert labels == ["one #1", "two", "one #2"]
    names = [measure for measures in COMPARED.values() for measure in measures]
    with (full / "compare.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    page = (full / "compare.md").read_text()
    for row, model in zip(rows, facts["models"], strict=True):
        assert row["label"] == model["label"] and list(row)[2:] == names
        for name in names:
            value = model["measures"][name]
            assert row[name] == "" if value is None else float(row[name]) == pytest.approx(value)
        # of texts of a few tokens, by a tokenizer that knows every character
        assert {name for name, value in model["measures"].items() if value is None} == {
            "unique_per_100",
            "unknown_share",
        }
    for text in ("sat on a mat", "perplexity", "one \\#2", "seed 42", "sacrebleu"):
        assert text in page
    assert (full / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert facts["settings"]["max_new_tokens"] == 8 and facts["versions"]["torch"]


def test_the_same_model_twice_is_equal(full):
    first, _, again = read(full / "compare.json")["models"]
    for row in (first, again):
        row["measures"].pop("tokens_per_second")
        for text in row["texts"]:
            text.pop("seconds")
    assert first["measures"] == again["measures"] and first["texts"] == again["texts"]


def test_measures_are_those_of_the_texts(full, models):
    row = read(full / "compare.json")["models"][1]
    texts = [text["text"] for text in row["texts"]]
    assert len(texts) == 4 and len(set(texts)) == 4
    expected = bleu(texts, [text["references"] for text in row["texts"]])
    for order in (1, 2, 3, 4):
        assert row["measures"][f"bleu_{order}"] == pytest.approx(expected[f"bleu_{order}"])
    assert row["texts"][2]["references"] == ["sang", "of rain"]
    assert row["bleu_signature"] == expected["bleu_signature"]
    assert 0 < row["measures"]["distinct_1"] <= row["measures"]["distinct_4"] == 1
    assert row["model"] == models[1].name
    assert row["measures"]["parameters"] == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(models[1]).parameters()
    )


def test_likelihood_is_that_of_evaluate(full, models, held_out, evaluate, tmp_path):
    """Windows of the smaller of both models, for both."""
    facts = read(full / "compare.json")
    assert facts["context_length"] == 96 and facts["stride"] == 48 and facts["documents"] == 2
    report = tmp_path / "r.json"
    words = ["--dataset", held_out, "--max_length", 96, "--metrics", "loss,perplexity,bits_per_byte"]
    for model, row in zip(models, facts["models"], strict=False):
        assert evaluate("--model", model, *words, "--report", report) == 0
        for name, entry in read(report)["splits"]["all"]["measures"].items():
            assert row["measures"][name] == pytest.approx(entry["value"], rel=1e-6)


def test_seeds(compare, models, tmp_path):
    texts = []
    for number, seed in enumerate((1, 1, 2)):
        words = [
            "--output_dir",
            tmp_path / str(number),
            "--seed",
            seed,
            "--max_new_tokens",
            4,
            "--metrics",
            "repetition",
        ]
        assert compare("--models", models[0], *words) == 0
        texts.append([row["text"] for row in read(tmp_path / str(number) / "compare.json")["models"][0]["texts"]])
    assert texts[0] == texts[1] != texts[2]


def test_chosen_metrics_only(compare, models, tmp_path, capsys):
    words = ["--metrics", "repetition,parameters", "--max_new_tokens", 3, "--temperature", 0, "--output_dir", tmp_path]
    assert compare("--models", *models, *words) == 0
    measures = read(tmp_path / "compare.json")["models"][0]["measures"]
    assert sorted(measures) == sorted(["parameters", *COMPARED["repetition"]])
    assert measures["repetition_4"] is None  # no text has four tokens
    out = capsys.readouterr().out
    assert "longest_repeat" in out and "perplexity" not in out and "compare.md" in out


def test_different_tokenizers_are_said(compare, models, tmp_path):
    other = save(tmp_path / "other", train_tokenizer(["other words"] * 3, vocab_size=262, mask=False), 3)
    words = ["--metrics", "vocabulary", "--max_new_tokens", 3, "--output_dir", tmp_path / "o"]
    assert compare("--models", models[0], other, *words) == 0
    assert "different tokenizers" in (tmp_path / "o" / "compare.md").read_text()


def test_half_a_surrogate_pair_is_refused_before_the_work(compare, models, tmp_path, capfd):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "the cat", "reference": "half \\ud835 here"}\n')
    assert compare("--models", *models, "--prompts", prompts, "--output_dir", tmp_path / "o") == 2
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 1 and "line 1" in err[0] and "surrogate" in err[0]
    assert not (tmp_path / "o").exists()


def test_models_that_are_measured_are_reported_whatever_ends_the_work(compare, models, tmp_path, monkeypatch, capfd):
    from frankenlm.trainer_ext.evaluation import comparing

    measure, done = comparing.measure, []

    def once(*args):
        if done:
            raise Failed("no token can be drawn")
        done.append(True)
        return measure(*args)

    monkeypatch.setattr(comparing, "measure", once)
    words = ["--max_new_tokens", 3, "--metrics", "repetition", "--output_dir", tmp_path / "o"]
    assert compare("--models", *models, *words) == 1
    facts = read(tmp_path / "o" / "compare.json")
    assert [row["label"] for row in facts["models"]] == ["one"] and facts["models_asked_for"] == 2
    assert (tmp_path / "o" / "compare.md").exists()
    assert capfd.readouterr().err.splitlines()[-1] == "stopped: no token can be drawn"


@pytest.mark.parametrize("name", ["two words", 'it\'s "quoted"', "a\nb", "größe 🌍", "$x|y`"])
def test_names_that_tables_must_bear(compare, models, name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(models[0], folder)
    output = tmp_path / f"out {name}"
    words = ["--max_new_tokens", 2, "--metrics", "repetition", "--output_dir", output]
    assert compare("--models", folder, *words) == 0
    (row,) = read(output / "compare.json")["models"]
    assert row["model"] == name and "\n" not in row["label"]
    assert len((output / "compare.csv").read_text().splitlines()) == 2 + name.count("\n")
    assert sorted(file.name for file in output.iterdir()) == [
        "compare.csv",
        "compare.json",
        "compare.md",
        "compare.png",
    ]


def test_a_full_disk_is_told_and_leaves_no_half_a_report(compare, models, tmp_path, monkeypatch, capfd):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    words = ["--max_new_tokens", 2, "--metrics", "repetition", "--output_dir", tmp_path / "o"]
    assert compare("--models", models[0], *words) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "o").iterdir()}
    monkeypatch.setattr("frankenlm.trainer_ext.common.files.os.fsync", full)
    assert compare("--models", models[1], *words) == 6
    assert capfd.readouterr().err.splitlines()[-1].startswith("storage: ")
    assert {file.name: file.read_bytes() for file in (tmp_path / "o").iterdir()} == before


def test_panels_draw_measures():
    assert {measure for panel in PANELS.values() for measure in panel} <= {
        measure for measures in COMPARED.values() for measure in measures
    }


def test_tables():
    assert make_labels(["a/x", "b/x", "c/y", "hub/z"]) == ["x #1", "x #2", "y", "z"]
    shown = {None: "-", float("inf"): "-", 12345678901: "12,345,678,901", 0.123456: "0.1235", 12345.6: "12,346"}
    shown |= {9_999_998.7: "9,999,999", 12345678.9: "1.235e+07", -1.6e24: "-1.6e+24"}
    assert {value: format_value(value) for value in shown} == shown
    row = {
        "label": "a|b",
        "model": "m",
        "architecture": "A",
        "dtype": "float32",
        "measures": {"loss": 1.0},
        "texts": [{"prompt": "p" * 300, "references": [], "text": "x | y\n# z"}],
    }
    facts = {"settings": {}, "dataset": None, "bleu_signature": None, "same_tokenizer": True}
    page = markdown_report([row], facts)
    assert "| a\\|b | x \\| y ⏎ \\# z |" in page and "..." + "p" * 200 in page


def test_metric_names():
    assert choose_metrics("all", has_data=True, has_references=True) == list(COMPARED)
    assert "loss" not in choose_metrics("all", has_data=False, has_references=True)
    assert "bleu" not in choose_metrics("all", has_data=True, has_references=False)
    assert choose_metrics("speed, loss", has_data=True, has_references=False) == ["loss", "speed"]
    with pytest.raises(UserError, match="needs --dataset"):
        choose_metrics("perplexity", has_data=False, has_references=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "blue"], "unknown metric 'blue'. Did you mean 'bleu'"),
        (["--metrics", ","], "--metrics is empty"),
        (["--metrics", "loss"], "--metrics loss: needs --dataset"),
        (["--metrics", "bleu"], '--metrics bleu: needs a "reference"'),
        (["--models", "{one}", "/no/such"], "--models /no/such: no such folder"),
        (["--models", "{one}", "{tmp}"], "no config.json"),
        (["--models", "{one}", "{broken}"], "broken"),
        (["--prompts", "missing.txt"], "No such file"),
        (["--prompts", "{long}"], "has positions for 96"),
        (["--dataset", "missing.txt"], "missing.txt"),
        (["--dataset", "{text}", "--max_length", "97"], "exceeds max_position_embeddings=96"),
        (["--dataset", "{text}", "--stride", "97"], "must not exceed the 96 tokens"),
        (["--batch_size", "0"], "at least 1"),
        (["--validation_fraction", "1"], "between 0 and 1"),
        (["--top_p", "2"], "--top_p 2.0"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0"),
        (["--output_dir", "{text}/o"], "cannot write to"),
        (["--device", "cuda:0"], "there is no GPU"),
        (["--modles", "x"], "Did you mean '--models'"),
    ],
)
def test_mistakes(words, message, compare, models, held_out, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    broken, long = tmp_path / "broken", tmp_path / "long.txt"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((models[0] / name).read_bytes())
    long.write_text("cat " * 110)
    places = {"one": models[0], "tmp": tmp_path, "broken": broken, "long": long, "text": held_out}
    output = tmp_path / "o"
    words = [word.format(**places) for word in words]
    assert compare("--models", *models, "--output_dir", output, *words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not output.exists()


def test_sacrebleu_is_missed_before_the_work(compare, models, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert compare("--models", *models, "--output_dir", tmp_path / "o") == 2
    assert "pip install sacrebleu" in capfd.readouterr().err
    assert (
        compare("--models", *models, "--output_dir", tmp_path / "o", "--metrics", "repetition", "--max_new_tokens", 2)
        == 0
    )
