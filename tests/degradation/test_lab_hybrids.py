"""Whole experiments on models whose layers are of several kinds: run, stopped, gone on with, and reported."""

import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from frankenlm.degradation import get_config, run_experiment
from frankenlm.degradation.layouts.families import READS_WEIGHTS
from frankenlm.degradation.records.store import Store
from frankenlm.degradation.report.write import write_report
from frankenlm.degradation.weights.groups import describe_groups
from frankenlm.degradation.weights.loading import open_model
from frankenlm.degradation.weights.model_checks import check_quantization
from frankenlm.trainer_ext.checking.opening import plan_type
from frankenlm.trainer_ext.checking.weights import redraw
from frankenlm.trainer_ext.common.cli import Interrupted
from meta_models import HYBRIDS
from small_runs import essence, rows_of

BRIEFLY = {("qwen3_next", "float32"), ("lfm2", "bfloat16")}
TOKENS = {"vocab_size": 272, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
CASES = [
    pytest.param(name, dtype, "dense", marks=[] if (name, dtype) in BRIEFLY else pytest.mark.slow)
    for name in HYBRIDS
    for dtype in ("float32", "bfloat16")
] + [
    pytest.param(name, dtype, "4bit", marks=pytest.mark.slow)
    for name in HYBRIDS
    for dtype in ("float32", "bfloat16")
    if name not in READS_WEIGHTS
]


def tiny_hybrid(name):
    torch.manual_seed(0)
    tokens = {field: value for field, value in TOKENS.items() if (name, field) != ("rwkv", "pad_token_id")}
    model = AutoModelForCausalLM.from_config(plan_type(name, tokens).config).eval()
    redraw(model, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.2)  # or a tied table copies the last token for certain
    return model


@pytest.fixture
def hybrid(tiny_tokenizer, tmp_path):
    """hybrid(name, dtype, stored) -> the tiny model, dense or in 4 bits."""

    def make(name, dtype, stored):
        if stored == "dense":
            return tiny_hybrid(name).to(getattr(torch, dtype))
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'frankenlm[lab]'")
        for each in (tiny_hybrid(name), tiny_tokenizer()):
            each.save_pretrained(tmp_path / name)
        return open_model(str(tmp_path / name), dtype=dtype, load_4bit=True, device="cpu").model

    return make


@pytest.mark.parametrize(("name", "dtype", "stored"), CASES)
def test_a_hybrid_is_damaged_stopped_gone_on_with_and_reported(
    name, dtype, stored, hybrid, tiny_tokenizer, tmp_path, monkeypatch
):
    model = hybrid(name, dtype, stored)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert "mixer" in {row["group"] for row in describe_groups(model)}
    config = get_config("smoke") | {
        "dtype": dtype,
        "load_4bit": stored == "4bit",
        "group": "mixer",
        "levels": (0.0, 0.5),
        "max_new_tokens": 4,
        "invariance": "single",
        "perplexity": False,
    }
    append, written = Store.append, []

    def run(folder):
        return run_experiment(
            config, model=model, tokenizer=tiny_tokenizer(), output_dir=tmp_path / folder, progress=False
        )

    def stop_after(self, rows):
        append(self, rows)
        written.extend(rows)
        if len(written) >= 5:
            raise Interrupted(signal.SIGTERM, "stopped by the test")

    unbroken = rows_of(run("unbroken"))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stop_after)
        with pytest.raises(Interrupted):
            run("stopped")
    path = run("stopped")
    rows = rows_of(path)
    assert len(rows) == 16 and essence(rows) == essence(unbroken)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    damaged, undamaged = ([row for row in rows if row["is_baseline"] is kind] for kind in (False, True))
    assert [row["mean_logprob"] for row in damaged] != [row["mean_logprob"] for row in undamaged]
    assert all(row["damage_rel_l2"] == pytest.approx(0.5, rel=0.35) for row in damaged)
    if dtype == "float32":
        page = write_report([path], tmp_path / "report")
        assert "mixer" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READS_WEIGHTS)
def test_a_family_that_cannot_compute_in_4_bits_is_refused_by_name(name):
    config = plan_type(name, TOKENS).config
    with pytest.raises(ValueError, match=rf"load_4bit=True: tiny \({name}\) multiplies with the weight of dt_proj"):
        check_quantization("tiny", config, load_4bit=True)
    check_quantization("tiny", config, load_4bit=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", READS_WEIGHTS)
def test_what_is_refused_in_4_bits_does_not_work_indeed(name, hybrid, monkeypatch):
    """Once transformers calls the layer, the refusal can go."""
    monkeypatch.setattr("frankenlm.degradation.weights.model_checks.READS_WEIGHTS", {})
    with pytest.raises(RuntimeError):
        hybrid(name, "float32", "4bit")(torch.tensor([[257, 3, 5]]))
