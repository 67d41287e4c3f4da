"""The parts of configs/infinito_wikitext.yaml in one run: Muon, moving cuts, an average and an early stop, resumed."""

import json

import pytest
import yaml

from frankenlm.trainer_ext import recipe
from run_outcomes import assert_same_run, metrics

from .test_train import ROOT

TOGETHER = ["--objective", "causal", "--random_offsets", "--matrix_optimizer", "muon", "--ema_decay", 0.9]
TOGETHER += ["--weight_decay", 0.5, "--early_stopping_patience", 5, "--packed_documents", "joined", "--max_steps", 6]
TOGETHER += ["--max_documents", 9]  # several epochs
CLASHES = [
    (["--objective", "mlm"], "--objective mlm"),
    (["--objective", "causal", "--no_packing"], "--no_packing"),
    (["--objective", "causal", "--streaming", "--max_steps", 1], "--streaming"),
]


@pytest.mark.slow
def test_all_of_it_together_goes_on_to_the_last_bit(train, tmp_path):
    recipe = yaml.safe_load((ROOT / "configs" / "infinito_wikitext.yaml").read_text())
    assert {*recipe["training"], *recipe["data"]} >= {"matrix_optimizer", "ema_decay", "random_offsets"}
    assert train(tmp_path / "whole", *TOGETHER) == 0
    assert train(tmp_path / "again", *TOGETHER, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-3") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "again")
    facts = metrics(tmp_path / "whole")
    assert facts["ema_eval_loss"] == metrics(tmp_path / "again")["ema_eval_loss"]
    assert f"{facts['ema_eval_loss']:.4f}" in (tmp_path / "whole" / "README.md").read_text()
    fixed = [word for word in TOGETHER if word != "--random_offsets"]
    assert train(tmp_path / "fixed", *fixed) == 0
    assert metrics(tmp_path / "fixed")["eval_loss"] != facts["eval_loss"]


@pytest.mark.parametrize(("words", "clash"), CLASHES)
def test_what_has_no_cuts_to_move(run_train, corpus, tmp_path, words, clash, capsys):
    words = ["--preset", "mini", "--dataset", corpus, "--output_dir", tmp_path, "--random_offsets", *words]
    assert run_train(*words) == 2
    assert f"--random_offsets and {clash} exclude each other" in capsys.readouterr().err


def test_conversations_are_told_before_a_tokenizer_is_learned(run_train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "prepare_tokenizer", None)
    rows = [{"messages": [{"role": role, "content": f"{n}"} for role in ("user", "assistant")]} for n in range(9)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--preset", "mini", "--objective", "causal", "--random_offsets", "--output_dir", tmp_path / "o"]
    assert run_train(*words, "--dataset", tmp_path / "talks.jsonl", "--use_cpu", "--validation_fraction", "0.4") == 2
    assert "holds conversations, a row each, without cuts to move" in capsys.readouterr().err
