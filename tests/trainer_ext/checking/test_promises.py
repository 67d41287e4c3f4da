"""Each planted fault breaks the promise that it is about, and what has no fault breaks none."""

import pytest
import torch
from transformers import LlamaConfig

from faulty_llama import NumberedGru, faulty, judge_of, verdicts
from frankenlm.trainer_ext.checking.promises.table import PROMISES
from frankenlm.trainer_ext.checking.tiny import tiny_config

PADS = {f"padding {side}, batch {size}" for side in ("left", "right") for size in (1, 2)}
PACKED = {f"packed rows, {form}" for form in ("position_ids", "seq_idx", "cu_seq_lens")}
REPEATED = "same input, same output"
FAULTS = {
    "pads": PADS - {"padding right, batch 1", "padding right, batch 2"},  # what a causal mask hides anyway
    "drift": {"cache", "prefill in pieces", "cropping"},
    "borders": PACKED | {"no gradient across documents"},
    "gradient": {"no gradient from the future", "no gradient across documents"},
    "batch": {"batch independence", "padding left, batch 2", "padding right, batch 2"},
    "saving": {"save and load"},
    "rows": {"batch independence", "padding left, batch 2", "padding right, batch 2"},
    "state": {REPEATED},
    "dropout": {REPEATED},
}


def broken(judge):
    return {name for name, verdict in verdicts(judge).items() if verdict == "broken"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else_is_blamed(fault):
    assert broken(faulty(fault)) == FAULTS[fault]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_see_each_other_raise_no_tolerance(dtype):
    """Among copies a row moves as well, and that does not shrink with the format."""
    judge = faulty("rows", 1e-4, dtype)
    assert judge.judge("batch", PROMISES["batch independence"]).verdict == "broken"


def test_of_what_is_not_deterministic_nothing_else_is_said():
    found = verdicts(faulty("state", dtype=torch.bfloat16))
    assert found.pop(REPEATED) == "broken" and set(found.values()) == {"cannot be told"}


def test_a_fault_of_few_tokens_is_no_jump():
    """It is not there on all rows; where it is, another format shows as much of it."""
    judge, promise = faulty("rare"), PROMISES["packed rows, position_ids"]
    assert [promise(judge.trial.on_other_rows(which)).difference < 1e-6 for which in (1, 2)] == [True, True]
    assert judge.judge("packed", promise).verdict == "broken"


def test_an_off_by_one_of_the_mask_is_found():
    """One token too far, where the model makes the mask; with a cache, which has no future, it says something else."""
    found = broken(faulty("future"))
    assert {"causality", "no gradient from the future", "cache", "prefill in pieces"} <= found
    assert not {"batch independence", "save and load"} & found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_what_has_no_fault_keeps_every_promise(dtype):
    judge = faulty(dtype=dtype)
    assert set(verdicts(judge).values()) == {"holds"}
    assert judge.noise.calm >= torch.finfo(dtype).eps


@pytest.mark.parametrize("fault", ["drift", "gradient"])
def test_bf16_hides_no_small_fault(fault):
    """A thousandth is less than a step of bf16; in float32 it is a thousand times its rounding."""
    assert broken(faulty(fault, 1e-3, torch.bfloat16)) == FAULTS[fault]


def test_a_fault_of_one_format_is_not_called_broken(monkeypatch):
    """Nor does it pass: what float32 does not do may be rounding, or not."""
    judge = faulty("batch", 0.5, torch.bfloat16)
    monkeypatch.setattr(judge.wider.trial.subject.model, "fault", None)
    assert verdicts(judge)["batch independence"] == "cannot be told"


def test_what_a_model_does_not_take_is_refused_or_cannot_be_told():
    found = verdicts(judge_of(NumberedGru(tiny_config(LlamaConfig))))
    assert "broken" not in found.values()
    refused = {name for name, verdict in found.items() if verdict == "refuses"}
    assert refused == {"packed rows, position_ids", "packed rows, cu_seq_lens"}
    assert {name for name, verdict in found.items() if verdict == "cannot be told"} == PADS | {
        *("cache", "prefill in pieces", "cropping")
    }
    assert found["packed rows, seq_idx"] == found["no gradient across documents"] == "holds"
