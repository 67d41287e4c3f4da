"""scripts/evaluate.py: the numbers, the report, the table, the mistakes."""

import json
import math

import pytest
from transformers import AutoTokenizer

from frankenlm.trainer_ext.cli import UserError
from frankenlm.trainer_ext.continuations import choose_lengths
from frankenlm.trainer_ext.scoring import LIKELIHOOD, choose_method, fitting_metrics, parse_metrics


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text("the cat sat on a mat\n\nbirds sang of rain in spring\n")
    return path


def read(path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_training_loss_is_found_again(evaluate, unbroken, corpus, tmp_path):
    report = tmp_path / "report.json"
    code = evaluate("--model", unbroken, "--dataset", corpus, "--split", "validation", "--max_length", 32,
                    "--report", report)  # fmt: skip
    assert code == 0
    facts, trained = read(report), json.loads((unbroken / "metrics.json").read_text())
    assert facts["method"] == "mlm" and facts["split"] == "validation"
    assert facts["loss"] == pytest.approx(trained["eval_loss"], rel=1e-5)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert report.read_text() == json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_pseudo_perplexity_scores_every_token(evaluate, unbroken, held_out, tmp_path, capsys):
    report = tmp_path / "sub" / "report.json"
    assert evaluate("--model", unbroken, "--dataset", held_out, "--method", "pseudo", "--report", report) == 0
    facts = read(report)
    tokenizer = AutoTokenizer.from_pretrained(unbroken)
    texts = held_out.read_text().strip().split("\n\n")
    assert facts["documents"] == 2
    assert facts["tokens"] == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert facts["bytes"] == sum(len(text.encode()) for text in texts)
    assert facts["bits_per_byte"] == pytest.approx(facts["loss"] * facts["tokens"] / facts["bytes"] / math.log(2))
    out = capsys.readouterr().out
    assert "pseudo-perplexity" in out and str(report) in out


@pytest.fixture(scope="module")
def causal(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "causal"
    assert train(folder, "--max_steps", 1, "--objective", "causal") == 0
    return folder


def test_causal(evaluate, causal, held_out, tmp_path):
    report = tmp_path / "report.json"
    words = ["--model", causal, "--dataset", held_out, "--metrics", "perplexity", "--report", report]
    assert evaluate(*words, "--max_length", 16) == 0
    facts = read(report)
    assert facts["method"] == "causal" and facts["stride"] == 8
    assert "perplexity" in facts and "loss" not in facts


def test_continuations(evaluate, causal, corpus, tmp_path, capsys):
    report, again = tmp_path / "report.json", tmp_path / "again.json"
    words = ["--model", causal, "--dataset", corpus, "--max_length", 32]
    assert evaluate(*words, "--continuations", 2, "--prompt_tokens", 8, "--max_new_tokens", 10, "--report", report) == 0
    facts, out = read(report), capsys.readouterr().out
    for name in ("bleu_1", "bleu_4", "repetition_1", "distinct_2", "self_bleu", "type_token_ratio", "perplexity"):
        assert name in facts and name in out
    made = facts["continuations"]
    assert (made["documents"], made["prompt_tokens"], made["new_tokens"], made["seed"]) == (2, 8, 10, 42)
    assert "tok:13a" in made["bleu_signature"]
    assert 0 <= facts["bleu_1"] <= 100 and facts["distinct_tokens"] <= 20
    more = ["--metrics", "bleu,vocabulary", "--continuations", 2, "--prompt_tokens", 8, "--max_new_tokens", 10]
    assert evaluate(*words, *more, "--report", again) == 0
    assert read(again)["bleu_1"] == facts["bleu_1"] and "repetition_1" not in read(again)
    assert "perplexity" not in read(again) and "seconds" not in read(again)


def test_documents_too_short_to_go_on_from(evaluate, causal, held_out, capfd):
    words = ["--model", causal, "--dataset", held_out, "--max_new_tokens", 200]
    assert evaluate(*words) == 0
    assert "nothing is written" in capfd.readouterr().err
    assert evaluate(*words, "--metrics", "bleu") == 2
    assert "lower --prompt_tokens" in capfd.readouterr().err
    assert evaluate(*words, "--metrics", "bleu", "--max_length", 64) == 2
    assert "exceed the 64 tokens" in capfd.readouterr().err


def test_lengths_that_fit():
    assert choose_lengths(512, None, None) == (32, 64)
    assert choose_lengths(32, None, None) == (10, 22)
    assert choose_lengths(2, None, None) == (1, 1)
    assert choose_lengths(100, 40, None) == (40, 60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "blue"], "Known: all, bits_per_byte, loss, perplexity"),
        (["--metrics", ","], "--metrics is empty"),
        (["--metrics", "bleu"], "mlm models write none"),
        (["--continuations", "0"], "at least 1"),
        (["--method", "causal"], "Methods for it: mlm, pseudo"),
        (["--model", "/no/such/folder"], "no such folder"),
        (["--model", "{corpus_dir}"], "no config.json"),
        (["--dataset", "missing.txt"], "missing.txt"),
        (["--report", "{corpus}/r.json"], "cannot write to"),
        (["--report", "{corpus_dir}"], "is a folder; name a file"),
        (["--max_length", "1"], "must be at least 2"),
        (["--max_length", "600"], "exceeds max_position_embeddings=512"),
        (["--batch_size", "0"], "at least 1"),
        (["--mlm_probability", "1"], "between 0 and 1"),
        (["--modle", "x"], "Did you mean '--model'"),
        (["--max_documents", "few"], "invalid int value"),
    ],
)
def test_mistakes(words, message, evaluate, unbroken, corpus, capfd):
    words = [word.format(corpus=corpus, corpus_dir=corpus.parent) for word in words]
    assert evaluate("--model", unbroken, "--dataset", corpus, *words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_metric_names_and_methods():
    everything = [*LIKELIHOOD, "bleu", "repetition", "diversity", "vocabulary"]
    assert parse_metrics("all") == everything
    assert fitting_metrics(everything, "causal", asked_for_all=True) == everything
    assert fitting_metrics(everything, "mlm", asked_for_all=True) == everything[:3]
    with pytest.raises(UserError, match="mlm models write none"):
        fitting_metrics(["bleu"], "mlm", asked_for_all=False)
    assert parse_metrics("loss, perplexity") == ["loss", "perplexity"]
    assert choose_method("m", ["BertForMaskedLM"], None) == "mlm"
    assert choose_method("m", ["FrankensteinForCausalLM"], None) == "causal"
    assert choose_method("m", ["BertForMaskedLM"], "pseudo") == "pseudo"
    assert choose_method("m", ["GPT2LMHeadModel"], None) == "causal"
    with pytest.raises(UserError, match="only masked and causal"):
        choose_method("m", ["BertForSequenceClassification"], None)
