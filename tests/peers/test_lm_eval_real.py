"""lm-evaluation-harness and `frankenlm evaluate --one_text` on a real model: `make test-real-model`."""

import importlib
import json
import os
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from frankenlm.trainer_ext.common.cli import run_command

FOLDER = os.environ.get("DEGRADATION_TEST_MODEL")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="DEGRADATION_TEST_MODEL names no model: see make test-real-model"),
]
WINDOW = 256
TEXT = Path(__file__).resolve().parents[2] / "README.md"


def test_rolling_log_likelihood_is_that_of_evaluate(tmp_path):
    """The last window of the text is shorter and is filled up from before it, by both."""
    raw = TEXT.read_text(encoding="utf-8")[:6000]
    (tmp_path / "text.txt").write_text(raw, encoding="utf-8")
    harness = HFLM(pretrained=FOLDER, device="cpu", dtype="float32", max_length=WINDOW, batch_size=1)
    asked = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(raw,), idx=0)]
    (nats,) = harness.loglikelihood_rolling(asked, disable_tqdm=True)
    report = tmp_path / "report.json"
    line = ["--model", FOLDER, "--dataset", tmp_path / "text.txt", "--one_text", "--max_length", WINDOW]
    line += ["--metrics", "loss", "--report", report, "--device", "cpu"]
    main = importlib.import_module("frankenlm.scripts.evaluate").main
    assert run_command(main, [str(word) for word in line]) == 0
    (measured,) = json.loads(report.read_text())["splits"].values()
    assert measured["tokens"] > 4 * WINDOW and measured["tokens"] % WINDOW
    assert -nats == pytest.approx(measured["measures"]["loss"]["value"] * measured["tokens"], rel=1e-4)
