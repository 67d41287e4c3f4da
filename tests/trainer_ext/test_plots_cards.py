"""Figures, metrics.json and the model card, from made-up records."""

import json
import math

import yaml
from PIL import Image

from frankenlm.trainer_ext.cards import library_versions, model_card, write_json
from frankenlm.trainer_ext.common.objectives import ANSWERS_LOSS, OBJECTIVES
from frankenlm.trainer_ext.plots import plot_training

ROWS = [
    {"step": 0, "tokens_seen": 0, "eval_loss": 8.0},
    {"step": 1, "tokens_seen": 100, "loss": 8.0, "learning_rate": 0.0, "grad_norm": 2.0},
    {"step": 2, "tokens_seen": 200, "loss": math.nan, "learning_rate": 1e-3, "grad_norm": math.inf},
    {"step": 3, "tokens_seen": 300, "loss": 6.0, "learning_rate": 5e-4, "grad_norm": 1.0},
    {"step": 3, "tokens_seen": 300, "eval_loss": 6.5},
]
FACTS = {
    "adapter": None,
    "architecture": "FrankensteinForMaskedLM",
    "command": "scripts/train.py --preset mini",
    "dataset": "builtin",
    "device": "cpu",
    "eval_accuracy": None,
    "eval_loss": 6.5,
    "eval_perplexity": math.exp(6.5),
    "ln_vocab_size": math.log(8192),
    "loss_at_init": 8.0,
    "loss_meaning": OBJECTIVES["mlm"].loss,
    "model_name_or_path": None,
    "model_type": "frankenstein",
    "num_processes": 1,
    "objective": "mlm",
    "parameters": 1_000_000,
    "peak_memory_mib": 640.0,
    "precision": "fp32",
    "preset": "mini",
    "seed": 42,
    "steps": 3,
    "streaming": False,
    "tokens_per_second": 1234.5,
    "tokens_seen": 300,
    "train_tokens": 400_000,
    "unigram_cross_entropy": 7.0,
    "validation_tokens": 20_000,
    "versions": library_versions(),
    "vocab_size": 8192,
}


def test_figure_is_readable_png(tmp_path):
    plot_training(ROWS, tmp_path / "a.png", title="mini", unigram=7.0)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 800 and image.height > 600


def test_figure_of_an_empty_or_young_run(tmp_path):
    plot_training([], tmp_path / "a.png", title="nothing yet")
    plot_training(ROWS[:1], tmp_path / "b.png", title="before the first step", unit="document")


def test_json_is_sorted_and_finite(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"b": math.nan, "a": {"y": [1.0, math.inf], "x": 2}, "c": 3})
    text = path.read_text()
    assert json.loads(text) == {"a": {"x": 2, "y": [1.0, None]}, "b": None, "c": 3, "non_finite": ["a.y[1]", "b"]}
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_card_has_the_numbers():
    card = model_card("my-mini", FACTS)
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "fill-mask"
    for piece in ("6.5000", "8.0000", "7.0000", "1,234", "1,000,000", "training.png", "scripts/train.py --preset mini"):
        assert piece in card
    assert "None" not in card and "accuracy" not in card


def test_card_of_a_classifier():
    nothing = dict.fromkeys(("eval_perplexity", "ln_vocab_size", "unigram_cross_entropy", "train_tokens"))
    facts = {**FACTS, **nothing, "validation_tokens": None, "objective": "classification", "eval_accuracy": 0.875}
    card = model_card("classifier", facts)
    assert "0.8750" in card and "AutoModelForSequenceClassification" in card and "None" not in card


def test_card_of_a_model_that_learned_answers():
    card = model_card("chat", {**FACTS, "objective": "causal", "loss_meaning": ANSWERS_LOSS})
    assert f"The loss is the {ANSWERS_LOSS}." in card and "400,000 tokens of answers" in card


def test_card_of_an_adapter():
    adapter = {"base": "owner/base", "rank": 4, "alpha": 8, "dropout": 0.0, "layers": ["q_proj"], "parameters": 1234}
    card = model_card("adapter", {**FACTS, "adapter": adapter})
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and front["base_model"] == "owner/base"
    assert "1,234 parameters" in card and 'from_pretrained("owner/base"), "PATH")' in card
