"""Figures, metrics.json and the model card, from made-up records."""

import json
import math

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from frankenlm.trainer_ext import plots
from frankenlm.trainer_ext.cards import library_versions, model_card, write_json
from frankenlm.trainer_ext.common.objectives import ANSWERS_LOSS, OBJECTIVES
from frankenlm.trainer_ext.plots import EVENTS, SHARES, plot_training, thinned

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
    "causal_share": None,
    "ema_eval_loss": None,
    "ema_step": None,
    "eval_accuracy": None,
    "eval_causal_loss": None,
    "eval_masked_loss": None,
    "eval_loss": 6.5,
    "eval_perplexity": math.exp(6.5),
    "ln_vocab_size": math.log(8192),
    "loss_at_init": 8.0,
    "loss_meaning": OBJECTIVES["mlm"].loss,
    "max_length": 128,
    "model_name_or_path": None,
    "model_type": "frankenstein",
    "num_processes": 1,
    "objective": "mlm",
    "packed_documents": "apart",
    "parameters": 1_000_000,
    "peak_memory_mib": 640.0,
    "precision": "fp32",
    "preset": "mini",
    "seed": 42,
    "steps": 3,
    "steps_unrounded": None,
    "streaming": False,
    "teacher": None,
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


def record(steps: int) -> list[dict]:
    """Every column of a long run, with a guard that had to do everything once."""
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "tokens_seen": 32 * step, "loss": 8 / step**0.2, "learning_rate": 1e-3 / step}
        row |= {"grad_norm": 1 + step % 7, "has_nan": 0.0, "has_inf": 0.0, "repair_action": "none"}
        row |= {"tokens_per_second": 900.0, **dict.fromkeys(SHARES, 0.5)}
        rows.append(row)
    for step, action in zip(range(3, steps), [name for name in EVENTS if not name.startswith("has_")], strict=False):
        rows[step] |= {"repair_action": action, "has_nan": float(action == "retry"), "has_inf": float(action == "skip")}
    rows[2]["grad_norm"] = 1e6
    evals = [{"step": step, "tokens_seen": 32 * step, "eval_loss": 9.0, "eval_ema_loss": 8.5} for step in (0, steps)]
    return [*rows, *evals]


@pytest.mark.parametrize("steps", [12, 5_000])
def test_figure_has_the_whole_record(tmp_path, monkeypatch, steps):
    drawn = []
    monkeypatch.setattr(plots, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    plot_training(record(steps), tmp_path / "a.png", title="a $ of mini", unigram=7.0)
    panels = drawn[0].axes
    assert [panel.get_ylabel() for panel in panels] == [
        "loss (nats per token)",
        "learning rate",
        "gradient norm",
        "tokens/s",
        "share",
    ]
    marks = {line.get_label() for line in panels[2].get_lines()}
    assert marks >= {f"{label} (1)" for label, _, _ in EVENTS.values()} and panels[2].get_yscale() == "log"
    assert {line.get_label() for line in panels[4].get_lines()} == {label for label, _ in SHARES.values()}
    assert all(len(line.get_xdata()) <= 400 for panel in panels for line in panel.get_lines())
    assert bool(panels[0].collections) is (steps > 400)  # the range around the means
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 800 and image.height < 2000


def test_thinning_keeps_means_and_extremes():
    points = [(step, float(step % 10)) for step in range(1, 1001)]
    stretches = thinned(points, 100)
    assert len(stretches) == 100 and stretches[-1] == (1000, 4.5, 0.0, 9.0)
    assert thinned(points[:3], 100) == [(1, 1.0, 1.0, 1.0), (2, 2.0, 2.0, 2.0), (3, 3.0, 3.0, 3.0)]
    assert thinned([]) == []


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


@pytest.mark.parametrize(
    ("objective", "named"), [("mlm", "per byte"), ("causal", "per word of the raw text and per byte")]
)
def test_card_says_with_what_a_perplexity_compares(objective, named):
    card = model_card("mine", {**FACTS, "objective": objective})
    assert "| perplexity per token, exp of it |" in card and "have the same tokenizer" in card
    assert f" measures {named}." in card and ("word_perplexity" in card) is (objective == "causal")
    assert "same tokenizer" not in model_card("mine", {**FACTS, "eval_perplexity": None})


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
