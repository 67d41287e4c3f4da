"""scripts/train.py --objective joint: one parameter set that both classes open, resumed bitwise, and its refusals."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

from frankenlm.trainer_ext.losses.evaluation_sums import MASKED, PLAIN, EvaluationSums
from frankenlm.trainer_ext.saving.training_csv import read_csv
from run_outcomes import assert_same_run, metrics

JOINT = ["--objective", "joint", "--causal_share", 0.4, "--model.layer_pattern", "[retnet, mamba]"]
JOINT += ["--model.mamba_head_dim", 16, "--gradient_accumulation_steps", 2, "--eval_steps", 2, "--save_steps", 2]
LEARNING = ["--learning_rate", 0.02, "--lr_scheduler_type", "constant", "--warmup_steps", 0]


@pytest.fixture(scope="module")
def joint(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "joint"
    assert train(folder, *JOINT, *LEARNING, "--max_steps", 4) == 0
    return folder


def test_both_losses_are_reported(joint):
    facts, row = metrics(joint), read_csv(joint / "training.csv")[-1]
    losses = [facts["eval_causal_loss"], facts["eval_masked_loss"]]
    assert [row["eval_causal_loss"], row["eval_masked_loss"]] == losses
    assert min(losses) < facts["eval_loss"] < max(losses)
    assert facts["eval_perplexity"] is None and facts["causal_share"] == 0.4
    card = (joint / "README.md").read_text()
    assert all(f"{loss:.4f}" in card for loss in losses) and "AutoModelForMaskedLM" in card


@pytest.mark.slow
def test_evaluate_finds_both_losses_again(joint, evaluate, corpus, tmp_path):
    for method, name in (("causal", "eval_causal_loss"), ("mlm", "eval_masked_loss")):
        report = tmp_path / f"{method}.json"
        words = ["--model", joint, "--dataset", corpus, "--split", "validation", "--max_length", 32, "--stride", 32]
        words += ["--method", method, "--metrics", "loss", "--bootstrap_iters", 0, "--report", report]
        assert evaluate(*words) == 0
        found = json.loads(report.read_text())["splits"]["validation"]["measures"]["loss"]["value"]
        # documents are cut elsewhere than in packed rows, so that of the causal windows is another cut's
        assert found == pytest.approx(metrics(joint)[name], rel=1e-5 if method == "mlm" else 0.1)


def test_both_classes_and_both_pipelines(joint):
    tokenizer = AutoTokenizer.from_pretrained(joint)
    causal, masked = (auto.from_pretrained(joint) for auto in (AutoModelForCausalLM, AutoModelForMaskedLM))
    assert (causal.config.is_decoder, masked.config.is_decoder) == (True, False)
    ids = tokenizer("the cat sat on a mat", return_tensors="pt")
    ids["input_ids"][0, 3] = tokenizer.mask_token_id
    with torch.no_grad():
        asked = causal(**ids, causal_rows=torch.tensor([False])).logits[0, 2]
        torch.testing.assert_close(masked(**ids).logits[0, 3], asked)
    best = pipeline("fill-mask", str(joint))(f"the {tokenizer.mask_token} sat")[0]
    assert best["token"] not in tokenizer.all_special_ids
    assert pipeline("text-generation", str(joint))("the cat", max_new_tokens=3)[0]["generated_text"]


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(joint, train, tmp_path):
    words = [*JOINT, *LEARNING, "--max_steps", 4]
    assert train(tmp_path / "again", *words, "--resume_from_checkpoint", joint / "checkpoint-2") == 0
    assert_same_run(joint, tmp_path / "again")


@pytest.mark.slow
def test_saved_weights_of_one_direction_go_on_in_two(unbroken, train, run_train, corpus, cache, tmp_path):
    words = ["--model_name_or_path", unbroken, "--dataset", corpus, "--cache_dir", cache, "--max_length", 32]
    words += ["--max_steps", 1, "--use_cpu", "--disable_tqdm", "true", "--objective", "joint"]
    assert run_train(*words, "--output_dir", tmp_path / "on") == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "on").config.two_directions


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "infinito", "--objective", "joint"], "infinito (--preset infinito) cannot be read in two"),
        (["--preset", "legacy-1bit", "--objective", "joint"], "legacy_1bit"),
        (["--objective", "joint", "--model.two_directions", "false"], "needs two_directions=True"),
        (["--objective", "joint", "--model.is_decoder", "false"], "needs is_decoder=True"),
        (["--objective", "causal", "--causal_share", "0.3"], "--causal_share 0.3 belongs to --objective joint"),
        (["--objective", "joint", "--causal_share", "1"], "--causal_share 1.0: must be in (0, 1)"),
        (["--objective", "joint", "--record_form", "messages"], "not joint"),
    ],
)
def test_refusals(words, message, run_train, corpus, tmp_path, capsys):
    preset = [] if "--preset" in words else ["--preset", "mini"]
    assert run_train(*preset, "--dataset", corpus, "--output_dir", tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_the_loss_is_that_of_the_mixture():
    """By hand: 0.25 of the rows predict 10 tokens each at 2 nats, the others 4 at 3 nats."""
    sums = EvaluationSums()
    sums.add(PLAIN, torch.tensor(20.0), torch.tensor(10))
    sums.add(MASKED, torch.tensor(12.0), torch.tensor(4))
    assert sums.losses(0.25) == {"loss": 14.0 / 5.5, "causal_loss": 2.0, "masked_loss": 3.0}
    assert EvaluationSums().losses(0.25) == {}
