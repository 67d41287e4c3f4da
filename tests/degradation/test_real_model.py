"""The lab on a real instruction-tuned model: `make test-real-model`, or DEGRADATION_TEST_MODEL=folder of one."""

import json
import os
from pathlib import Path

import pytest
import torch

from frankenlm.degradation import apply_damage, get_config, run_experiment
from frankenlm.degradation.answers.text_probe import TextProbe
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.measures.measure import perplexity_text
from frankenlm.degradation.run.plan import render_experiment
from frankenlm.degradation.weights.loading import open_model
from frankenlm.degradation.weights.restore import Baseline

FOLDER = os.environ.get("DEGRADATION_TEST_MODEL")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="DEGRADATION_TEST_MODEL names no model: see make test-real-model"),
]


@pytest.fixture(scope="module")
def loaded():
    return open_model(str(Path(FOLDER)), dtype="float32")


@pytest.fixture
def run(tmp_path):
    def run(config, folder="results"):
        path = run_experiment(config, model=str(Path(FOLDER)), output_dir=tmp_path / folder, progress=False)
        return json.loads(path.read_text(encoding="utf-8"))

    return run


@pytest.mark.parametrize("group", ["attn_only", "mlp_only", "embed_only"])
def test_log_perplexity_rises_with_sigma_on_average(group, loaded):
    """Means over four repeats; level 0 is the untouched model exactly."""
    probe = TextProbe(loaded.model, loaded.tokenizer, perplexity_text()[:1200])
    untouched = probe.remember().log_perplexity
    means = []
    with Baseline(loaded.model, group) as baseline:
        for level in (0.0, 0.1, 0.3, 0.6):
            scores = []
            for repeat in range(4 if level else 1):
                apply_damage(baseline, "mult_gauss", level, 42, repeat)
                scores.append(probe.measure().log_perplexity)
            means.append(sum(scores) / len(scores))
    assert means[0] == untouched == probe.measure().log_perplexity
    assert means == sorted(means) and means[-1] > means[0] + 0.05


def test_the_undamaged_model_answers_sensibly(run):
    config = get_config("iq_it") | {
        "levels": (0.0,),
        "n_rep": 1,
        "do_sample": False,
        "max_new_tokens": 24,
        "dtype": "float32",
        "perplexity": False,
        "max_batch_size": 16,
    }
    rows = run(config)
    capital = [row["completion"] for row in rows if "dodecagon" in row["prompt_text"]]
    assert capital and "12" in capital[0]
    assert sum(row["finish_reason"] == "eos" for row in rows) > len(rows) / 4


def test_text_does_not_change_with_the_batch(run):
    """In fp32 on the CPU, at a level that hurts."""
    config = get_config("iq_it") | {
        "levels": (0.0, 0.5),
        "n_rep": 1,
        "max_prompts": 16,
        "max_new_tokens": 32,
        "dtype": "float32",
        "perplexity": False,
    }
    texts = {
        size: [row["completion"] for row in run(config | {"max_batch_size": size}, f"at_{size}")]
        for size in (1, 3, 8, 16)
    }
    assert len(texts[1]) == 32
    assert texts[1] == texts[3] == texts[8] == texts[16]


def test_rendering_adds_no_bos_and_shares_the_system_message(loaded):
    lab = Lab(loaded.model, RunOptions(), tokenizer=loaded.tokenizer)
    rendering = render_experiment(lab.plan(get_config("dreams_it") | {"dtype": "float32"}), loaded.tokenizer)
    text = loaded.tokenizer.decode(rendering.prefix)
    assert text.startswith("<|im_start|>system") and text.endswith("<|im_start|>user\n")
    assert torch.tensor(rendering.prompts[0].ids).eq(loaded.tokenizer.bos_token_id).sum() == 3
