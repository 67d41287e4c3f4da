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


class Joined:
    """One row of all documents, with what is added to each of them, pads at its left, and what tells its borders.

    scattered: pads stand before every document.
    """

    def __init__(self, *told, before=(), behind=(), pads=0, scattered=False, blocks=None, mask=True):
        self.told, self.before, self.behind, self.blocks, self.mask = told, before, behind, blocks, mask
        self.pads, self.scattered = pads, scattered

    def __call__(self, features):
        ids, numbers, positions, labels = [], [], [], []
        for number, each in enumerate(features, 1):
            pads = self.pads if number == 1 or self.scattered else 0
            document = [*self.before, *each["input_ids"], *self.behind]
            ids += [0] * pads + document
            numbers += [0] * pads + [number] * len(document)
            positions += [0] * pads + list(range(len(document)))
            labels += [-100] * (pads + 1) + document[1:]
        every = {"position_ids": torch.tensor(positions), "seq_idx": torch.tensor(numbers)}
        every["labels"] = torch.tensor(labels)
        numbers = every["seq_idx"]
        real = numbers > 0
        batch = {"input_ids": torch.tensor([ids])}
        batch |= {name: every[name][None] for name in (*self.told, "labels")}
        if self.blocks is not None:
            seen = (numbers[:, None] == numbers[None]).tril() if self.blocks != "causal" else real[None] & real[:, None]
            seen = (seen & real[None])[None, None]
            added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)
            return {**batch, "attention_mask": {"added": added, "odd": seen[..., :3]}.get(self.blocks, seen)}
        return {**batch, "attention_mask": real.long()[None]} if self.mask else batch


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
        (Joined(behind=[2]), {APART}),
        (Joined(behind=[2], mask=False), {APART}),
        (Joined(before=[1]), {APART, LABELS}),
        (Joined(pads=4), {APART}),
        (Joined(pads=1, scattered=True), {APART}),
        (Joined("position_ids", pads=4, mask=False), {PADS}),
        (Joined(blocks="causal"), {APART}),
    ],
)
def test_a_fault_of_a_collator_is_found(collator, broken):
    findings, _ = collator_findings(collator)
    assert {each.promise for each in findings if each.verdict == "broken"} == broken


@pytest.mark.parametrize(
    ("collator", "by"),
    [
        (Joined("position_ids", behind=[2]), "position_ids"),
        (Joined("position_ids", behind=[2], mask=False), "position_ids"),
        (Joined("position_ids", "seq_idx", before=[1], behind=[2]), "position_ids, seq_idx"),
        (Joined("position_ids", "seq_idx", pads=4), "position_ids, seq_idx"),
        (Joined("seq_idx", pads=3, scattered=True), "seq_idx"),
        (Joined("position_ids", pads=3, scattered=True), "position_ids"),
        (Joined(blocks="seen"), "attention_mask"),
        (Joined(blocks="added", pads=4), "attention_mask"),
        (Joined(blocks="seen", behind=[2]), "attention_mask"),
    ],
)
def test_added_tokens_pads_and_masks_of_blocks_are_read(collator, by):
    """A token that closes or opens a document is of it; one that pads is of none."""
    findings, _ = collator_findings(collator)
    assert {each.verdict for each in findings} == {"holds"} and findings[0].note == f"by {by}"


def test_a_mask_that_cannot_be_read_proves_nothing():
    findings, _ = collator_findings(Joined(blocks="odd", pads=4))
    assert [each.verdict for each in findings] == ["cannot be told", "holds", "cannot be told"]


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
        (Joined("position_ids", before=[1], behind=[2], mask=False), None, "holds"),
        (Joined(behind=[2]), None, "broken"),
        (Joined(blocks="added", behind=[2]), None, "holds"),
    ],
)
def test_a_batch_goes_through_a_model(collator, fault, verdict):
    _, batch = collator_findings(collator)
    judge = faulty(fault)
    found = judge.judge("batch", lambda trial: through_model(trial, batch))
    assert found.verdict == verdict
