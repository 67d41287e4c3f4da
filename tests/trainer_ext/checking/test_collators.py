"""Collators that tell their documents apart, and those with a planted fault."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from faulty_llama import faulty
from frankenlm.trainer_ext.checking.collators import collator_findings, find_collator, through_model


class SharedRow(DataCollatorWithFlattening):
    """Flattens, and keeps to itself where a document ends."""

    def __init__(self):
        super().__init__(return_position_ids=False)


class LateBorders(DataCollatorWithFlattening):
    def __call__(self, features, **options):
        batch = super().__call__(features, **options)
        return {**batch, "position_ids": batch["position_ids"].roll(1, 1)}


class AcrossBorders(DataCollatorWithFlattening):
    def __call__(self, features, **options):
        batch = super().__call__(features, **options)
        return {**batch, "labels": batch["input_ids"].clone()}


class UntoldPads:
    def __call__(self, features):
        rows = [torch.tensor(each["input_ids"]) for each in features]
        return {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


class PredictedPads(UntoldPads):
    def __call__(self, features):
        batch = super().__call__(features)
        return {**batch, "attention_mask": (batch["input_ids"] > 0).long(), "labels": batch["input_ids"]}


def lost_tokens(features):
    return {"input_ids": torch.tensor([features[0]["input_ids"]])}


APART, LABELS, PADS = "collator: documents told apart", "collator: no label across a border", "collator: pads told"


@pytest.mark.parametrize(
    ("name", "arguments", "note"),
    [
        ("DataCollatorWithFlattening", None, "by position_ids"),
        ("DataCollatorWithFlattening", '{"return_seq_idx": true, "return_flash_attn_kwargs": true}', "cu_seq_lens"),
        ("DataCollatorWithPadding", None, "a row of its own"),
        ("DataCollatorForLanguageModeling", None, "a row of its own"),
        ("trl.trainer.sft_trainer:DataCollatorForLanguageModeling", '{"padding_free": true}', "by position_ids"),
    ],
)
def test_documents_are_told_apart(name, arguments, note):
    findings, _ = collator_findings(find_collator(name, arguments))
    assert not [each for each in findings if each.verdict not in ("holds", "cannot be told")]
    assert findings[0].promise == APART and note in findings[0].note


@pytest.mark.parametrize(
    ("collator", "broken"),
    [
        (SharedRow(), {APART}),
        (LateBorders(), {APART}),
        (AcrossBorders(), {LABELS}),
        (UntoldPads(), {PADS}),
        (PredictedPads(), {PADS}),
    ],
)
def test_a_fault_of_a_collator_is_found(collator, broken):
    findings, _ = collator_findings(collator)
    assert {each.promise for each in findings if each.verdict == "broken"} == broken


def test_a_collator_that_gives_no_such_batch_refuses():
    for collator in (find_collator("DefaultDataCollator"), lost_tokens, lambda features: None):
        findings, batch = collator_findings(collator)
        assert [each.verdict for each in findings] == ["refuses"] and batch is None


@pytest.mark.parametrize(
    ("collator", "fault", "verdict"),
    [
        (DataCollatorWithFlattening(), None, "holds"),
        (DataCollatorWithFlattening(), "borders", "broken"),
        (SharedRow(), None, "broken"),
        (find_collator("DataCollatorWithPadding"), None, "holds"),
    ],
)
def test_a_batch_goes_through_a_model(collator, fault, verdict):
    _, batch = collator_findings(collator)
    judge = faulty(fault)
    found = judge.judge("batch", lambda trial: through_model(trial, batch))
    assert found.verdict == verdict
