"""Whole experiments on models whose layers are of several kinds: run, stopped, gone on with, and reported."""

import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from frankenlm.degradation import get_config, run_experiment
from frankenlm.degradation.records.store import Store
from frankenlm.degradation.report.write import write_report
from frankenlm.trainer_ext.checking.opening import plan_type
from frankenlm.trainer_ext.checking.weights import redraw
from frankenlm.trainer_ext.common.cli import Interrupted
from meta_models import HYBRIDS
from small_runs import essence, rows_of

BRIEFLY = {("qwen3_next", "float32"), ("lfm2", "bfloat16")}
TOKENS = {"vocab_size": 272, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
CASES = [
    pytest.param(name, dtype, marks=[] if (name, dtype) in BRIEFLY else pytest.mark.slow)
    for name in HYBRIDS
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_hybrid_is_damaged_stopped_gone_on_with_and_reported(name, dtype, tiny_tokenizer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    tokens = {field: value for field, value in TOKENS.items() if (name, field) != ("rwkv", "pad_token_id")}
    model = AutoModelForCausalLM.from_config(plan_type(name, tokens).config).eval()
    redraw(model, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.2)  # or a tied table copies the last token for certain
    model = model.to(getattr(torch, dtype))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = get_config("smoke") | {
        "dtype": dtype,
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
