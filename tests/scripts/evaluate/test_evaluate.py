"""scripts/evaluate.py: the numbers, the report, the table, the mistakes."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frankenlm.modeling import FrankensteinConfig
from frankenlm.trainer_ext.common.cli import Failed, UserError
from frankenlm.trainer_ext.evaluation.continuations import choose_lengths
from frankenlm.trainer_ext.evaluation.flags import SCORED, TEXT_METRICS
from frankenlm.trainer_ext.evaluation.scoring import choose_method, fitting_metrics, parse_metrics, was_trained_apart


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text("the cat sat on a mat\n\nbirds sang of rain in spring\n")
    return path


def read(path, split="all") -> dict:
    """The facts of a report, with those of one split, and its measures by their names."""
    facts = json.loads(path.read_text(), parse_constant=pytest.fail)
    of_split = facts["splits"][split]
    values = {name: entry["value"] for name, entry in of_split["measures"].items()}
    return {**facts, **of_split, **values}


def test_training_loss_is_found_again(evaluate, unbroken, corpus, tmp_path):
    report = tmp_path / "report.json"
    code = evaluate(
        "--model", unbroken, "--dataset", corpus, "--split", "validation", "--max_length", 32, "--report", report
    )
    assert code == 0
    facts, trained = read(report, "validation"), json.loads((unbroken / "metrics.json").read_text())
    assert facts["method"] == "mlm" and list(facts["splits"]) == ["validation"] and facts["gaps"] == []
    assert facts["bootstrap"] == {"confidence": 0.95, "draws": 1000, "seed": 42, "unit": "row"}
    assert facts["loss"] == pytest.approx(trained["eval_loss"], rel=1e-5)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    written = json.loads(report.read_text())
    assert report.read_text() == json.dumps(written, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


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


def test_one_text(evaluate, causal, tmp_path):
    """The figure of the whole text read in windows that do not overlap: lm-evaluation-harness's, see its definition in
    tests/trainer_ext/metrics/test_language.py. Per word it does not depend on the tokenizer."""
    text, report = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text("the cat sat on a mat\n\nbirds sang of rain in spring\n\n" * 4)
    words = ["--model", causal, "--dataset", text, "--one_text", "--max_length", 16, "--report", report]
    assert evaluate(*words, "--metrics", "loss,perplexity,word_perplexity,bits_per_byte") == 0
    facts = read(report)
    raw = text.read_text()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(causal).eval(), AutoTokenizer.from_pretrained(causal)
    ids = tokenizer(raw, add_special_tokens=False)["input_ids"]
    stream, nats = [tokenizer.bos_token_id, *ids], 0.0
    for done in range(0, len(ids), 16):
        end = min(done + 16, len(ids))
        inputs = stream[max(0, end - 16) : end]
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([inputs])).logits[0].log_softmax(-1)
        nats -= sum(float(log_p[place - end, ids[place]]) for place in range(done, end))
    assert facts["documents"] == 1 and facts["one_text"] is True
    assert (facts["tokens"], facts["bytes"], facts["words"]) == (len(ids), len(raw.encode()), len(raw.split()))
    assert facts["loss"] == pytest.approx(nats / len(ids), rel=1e-5)
    assert facts["word_perplexity"] == pytest.approx(math.exp(nats / len(raw.split())), rel=1e-5)
    assert facts["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(raw.encode()), rel=1e-5)
    assert (facts["context_length"], facts["stride"]) == (16, 16)
    assert evaluate(*words, "--metrics", "loss", "--stride", 4) == 0
    assert read(report)["loss"] != facts["loss"] and read(report)["stride"] == 4


def test_a_report_names_no_place_and_shows_no_secret(evaluate, causal, held_out, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "planted-secret-0123")
    report = tmp_path / "report.json"
    words = ["--dataset", held_out, "--metrics", "loss", "--report", report, "--log_level", "debug"]
    assert evaluate("--model", causal, *words) == 0
    facts = read(report)
    assert (facts["model"], facts["dataset"]) == (causal.name, held_out.name)
    assert str(causal.parent) not in report.read_text()
    assert evaluate("--model", "https://me:planted-secret-0123@hub/m", *words) == 2
    assert "planted-secret" not in "".join(capfd.readouterr()) + report.read_text()


def test_what_was_scored_is_reported_where_writing_fails(evaluate, causal, corpus, tmp_path, monkeypatch, capfd):
    def fail(*args, **kwargs):
        raise Failed("no token can be drawn")

    monkeypatch.setattr("frankenlm.trainer_ext.evaluation.continuations.generate_texts", fail)
    report = tmp_path / "report.json"
    words = ["--max_length", 32, "--continuations", 1, "--prompt_tokens", 4, "--max_new_tokens", 4]
    assert evaluate("--model", causal, "--dataset", corpus, *words, "--report", report) == 1
    assert read(report)["perplexity"] > 1 and "bleu_1" not in read(report)
    assert capfd.readouterr().err.splitlines()[-1] == "stopped: no token can be drawn"


def test_nothing_to_score(evaluate, unbroken, tmp_path, capfd):
    """A text of special tokens alone leaves pseudo-perplexity nothing to mask."""
    text = tmp_path / "special.txt"
    text.write_text("<|endoftext|>\n")
    assert evaluate("--model", unbroken, "--dataset", text, "--method", "pseudo") == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: --method pseudo: the text has no token to score")


def test_a_tokenizer_of_another_model(evaluate, causal, tmp_path, held_out, capfd):
    folder = tmp_path / "mixed"
    shutil.copytree(causal, folder)
    tokenizer = AutoTokenizer.from_pretrained(causal)
    tokenizer.add_tokens(["cat sat"])
    tokenizer.save_pretrained(folder)
    assert evaluate("--model", folder, "--dataset", held_out, "--metrics", "loss") == 2
    assert "is of another model" in capfd.readouterr().err.splitlines()[-1]


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
    low, high = (facts["measures"]["bleu_1"][end] for end in ("low", "high"))
    assert low <= facts["bleu_1"] <= high and facts["measures"]["distinct_2"]["low"] is None


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
        (["--metrics", "blue"], "Known: all, loss, perplexity, bits_per_byte"),
        (["--split", "tset"], "unknown split 'tset'. Did you mean 'test'?"),
        (["--split", "all,test"], "'all' stands alone"),
        (["--split", "test,test"], "names a split twice"),
        (["--split", ","], "--split is empty"),
        (["--split", "test"], "has no test part of its own; name one with --test_dataset"),
        (["--split", "validation", "--test_dataset", "{corpus}"], "--test_dataset: goes with --split test"),
        (["--test_dataset", "{corpus}"], "go with --split"),
        (["--bootstrap_iters", "-1"], "must be at least 0"),
        (["--output_dir", "{corpus}"], "cannot write to"),
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
        (["--one_text"], "a text is scored as one by causal models"),
        (["--one_text", "--max_documents", "3"], "leave out --max_documents"),
        (["--one_text", "--split", "validation"], "leave out --split"),
        (["--metrics", "word_perplexity"], "is of causal models"),
        (["--device", "banana"], "no such device"),
        (["--device", "meta"], "no such device"),
        (["--device", "cpu:banana"], "no such device"),
        (["--max_documents", "few"], "invalid int value"),
    ],
)
def test_mistakes(words, message, evaluate, unbroken, corpus, capfd):
    words = [word.format(corpus=corpus, corpus_dir=corpus.parent) for word in words]
    assert evaluate("--model", unbroken, "--dataset", corpus, *words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_metric_names_and_methods():
    everything = [*SCORED, "text", *TEXT_METRICS]
    assert parse_metrics("all") == everything
    assert fitting_metrics(everything, "causal", asked_for_all=True) == everything
    masked = ["loss", "perplexity", "bits_per_byte", "accuracy", "text"]
    assert fitting_metrics(everything, "mlm", asked_for_all=True) == masked
    with pytest.raises(UserError, match="mlm models write none"):
        fitting_metrics(["bleu"], "mlm", asked_for_all=False)
    assert parse_metrics("loss, perplexity") == ["loss", "perplexity"]
    assert choose_method("m", ["BertForMaskedLM"], None) == "mlm"
    assert choose_method("m", ["FrankensteinForCausalLM"], None) == "causal"
    assert choose_method("m", ["BertForMaskedLM"], "pseudo") == "pseudo"
    assert choose_method("m", ["GPT2LMHeadModel"], None) == "causal"
    with pytest.raises(UserError, match="only masked and causal"):
        choose_method("m", ["BertForSequenceClassification"], None)


@pytest.mark.parametrize(
    ("facts", "apart"),
    [
        ({"packed_documents": "apart"}, True),
        ({"packed_documents": "joined"}, False),
        ({"packed_documents": None}, True),  # each had a row of its own
        ({}, False),  # a run from before there was a choice
        (None, True),  # no run of ours
    ],
)
def test_documents_are_packed_as_the_run_of_a_model_did(facts, apart, tmp_path):
    if facts is not None:
        (tmp_path / "metrics.json").write_text(json.dumps(facts))
    config = FrankensteinConfig(name_or_path=str(tmp_path))
    assert was_trained_apart(SimpleNamespace(config=config)) is apart


def test_what_is_told_apart(evaluate, causal, held_out, tmp_path):
    report, plain = tmp_path / "report.json", tmp_path / "plain.json"
    words = ["--model", causal, "--dataset", held_out, "--metrics", "loss,bits_per_byte"]
    words += ["--reference_tokenizer", causal, "--max_length", 64]
    more = ["--dynamic_evaluation", "0.01", "--minimal_pairs", "1"]
    assert evaluate(*words, *more, "--report", report) == evaluate(*words, "--report", plain) == 0
    facts, untouched = read(report), read(plain)
    assert facts["loss"] == untouched["loss"] and "dynamic_evaluation" not in untouched
    assert facts["dynamic_evaluation"]["rate"] == 0.01
    assert 0 < abs(facts["dynamic_evaluation"]["measures"]["loss"] - facts["loss"]) < 1
    assert facts["reference_tokens"] == facts["tokens"]  # its own tokenizer
    assert facts["reference_perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert facts["minimal_pairs"].keys() == {"causal"} and untouched["minimal_pairs"] is None


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA out of memory")])
def test_a_second_pass_that_fails_leaves_the_report(evaluate, causal, held_out, tmp_path, monkeypatch, capsys, error):
    def fails(*args, **options):
        raise error

    if error is not None:
        monkeypatch.setattr("frankenlm.trainer_ext.evaluation.scoring.dynamic_scores", fails)
    words = ["--model", causal, "--dataset", held_out, "--metrics", "loss", "--max_length", 64]
    assert evaluate(*words, "--dynamic_evaluation", "1e30", "--report", tmp_path / "report.json") == 1
    facts, told = read(tmp_path / "report.json"), capsys.readouterr().err.splitlines()[-1]
    assert facts["loss"] > 0 and "dynamic_evaluation" not in facts
    assert ("lower the rate" if error is None else "out of memory") in told and told.count("--dynamic_evaluation") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dynamic_evaluation", "0"], "--dynamic_evaluation 0.0: must be a positive learning rate"),
        (["--dynamic_evaluation", "0.1"], "--dynamic_evaluation: is of causal models"),
        (["--reference_tokenizer", "gpt2"], "--reference_tokenizer: is of causal models"),
        (["--minimal_pairs", "0"], "--minimal_pairs 0"),
    ],
)
def test_what_masked_models_are_not_asked(evaluate, unbroken, held_out, words, message, capsys):
    assert evaluate("--model", unbroken, "--dataset", held_out, "--metrics", "loss", *words) == 2
    assert message in capsys.readouterr().err
