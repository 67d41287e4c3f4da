"""Training on packed documents is training on the documents: with our collator, transformers' and TRL's.

All documents make one batch, in whichever way: after two steps of SGD, losses and weights must be those of the run that
has a document a row.
"""

import datasets
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from frankenlm.modeling import FrankensteinConfig, Legacy1BitConfig
from frankenlm.modeling.mixers import MIXERS
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.data.collators import build_collator
from frankenlm.trainer_ext.data.packing import prepare_dataset
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from tiny_infinito import tiny_infinito
from tiny_legacy import MODERN
from tiny_legacy import TINY as TINY_LEGACY

TEXTS = [f"the cat {'sat on ' * (n % 6)}a mat" for n in range(11)]
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "dropout": 0.0, "attention_dropout": 0.0}
TOLERANCE = 1e-5
# int8 activations are rounded: one that flips moves a weight's gradient by a step of theirs
ROUNDED = {"legacy_1bit": 1e-3}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300, mask=True)


def config_of(family, tokenizer, decoder):
    fields = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    fields |= {"vocab_size": len(tokenizer), "is_decoder": decoder}
    if family == "infinito":
        return tiny_infinito(**fields, max_position_embeddings=128)
    if family == "legacy_1bit":
        return Legacy1BitConfig(**TINY_LEGACY | MODERN | fields | {"dropout": 0.0, "max_position_embeddings": 128})
    return FrankensteinConfig(**SIZES, layer_pattern=list(MIXERS), num_hidden_layers=len(MIXERS), **fields)


def model_of(family, tokenizer, decoder=True):
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if decoder else AutoModelForMaskedLM
    return auto.from_config(config_of(family, tokenizer, decoder))


def options(folder, rows):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "max_steps": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def trained(trainer):
    """Return the losses of the steps, and the weights after them."""
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    return losses, trainer.model.state_dict()


def assert_same_training(packed, alone, tolerance=TOLERANCE):
    (losses, weights), (expected, values) = packed, alone
    assert losses == pytest.approx(expected, rel=TOLERANCE)
    for name, value in values.items():
        error = (weights[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)
        assert error <= tolerance, f"{name}: {error:.1e}"


def with_trainer(model, rows, collator, folder):
    arguments = TrainingArguments(**options(folder, len(TEXTS)), remove_unused_columns=False)
    return trained(Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator))


FAMILIES = ("frankenstein", "infinito", "legacy_1bit")
FORMS = {
    "position_ids": {},
    "seq_idx": {"return_position_ids": False, "return_seq_idx": True},
    "cu_seq_lens": {"return_position_ids": False, "return_flash_attn_kwargs": True},
    "all": {"return_seq_idx": True, "return_flash_attn_kwargs": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_flattened_by_transformers(family, tokenizer, tmp_path):
    documents = datasets.Dataset.from_dict({"text": TEXTS})
    rows = prepare_dataset(documents, tokenizer, max_length=64, packing=False, objective="causal", cache_dir=tmp_path)
    rows = rows.remove_columns("length")
    alone = with_trainer(model_of(family, tokenizer), rows, build_collator("causal", tokenizer), tmp_path)
    for form in FORMS.values():
        flat = with_trainer(model_of(family, tokenizer), rows, DataCollatorWithFlattening(**form), tmp_path)
        assert_same_training(flat, alone, ROUNDED.get(family, TOLERANCE))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_by_ours(family, tokenizer, tmp_path):
    documents = datasets.Dataset.from_dict({"text": TEXTS})
    shared = {"objective": "causal", "cache_dir": tmp_path}
    collator = build_collator("causal", tokenizer)
    alone = prepare_dataset(documents, tokenizer, max_length=64, packing=False, **shared)
    packed = prepare_dataset(documents, tokenizer, max_length=512, **shared)
    assert len(alone) == len(TEXTS) and len(packed) == 1
    results = [with_trainer(model_of(family, tokenizer), rows, collator, tmp_path) for rows in (packed, alone)]
    assert_same_training(*results, ROUNDED.get(family, TOLERANCE))
    joined = prepare_dataset(documents, tokenizer, max_length=512, document_borders=False, **shared)
    losses, _ = with_trainer(model_of(family, tokenizer), joined, collator, tmp_path)
    assert losses != pytest.approx(results[1][0], rel=TOLERANCE)


@pytest.mark.parametrize("family", ("frankenstein",))
def test_masked_documents_packed_by_ours(family, tokenizer, tmp_path):
    """One batch, masked, and the same with each document in a row of its own."""
    documents = datasets.Dataset.from_dict({"text": TEXTS})
    (row,) = prepare_dataset(documents, tokenizer, max_length=512, objective="mlm", cache_dir=tmp_path)
    batch = build_collator("mlm", tokenizer, mlm_probability=0.4)([row])
    cuts = torch.tensor(row["seq_lengths"]).cumsum(0)[:-1].tolist()
    model = model_of(family, tokenizer, decoder=False)
    packed = model(**batch).loss
    apart = [batch[name][0].tensor_split(cuts) for name in ("input_ids", "labels")]
    losses = [
        torch.nn.functional.cross_entropy(
            model(input_ids=ids[None]).logits[0], labels, reduction="sum", ignore_index=-100
        )
        for ids, labels in zip(*apart, strict=True)
    ]
    torch.testing.assert_close(packed, sum(losses) / (batch["labels"] != -100).sum(), rtol=TOLERANCE, atol=0)


@pytest.mark.filterwarnings("default")  # TRL's own warnings are its own
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_by_trl(family, tokenizer, tmp_path):
    """TRL's packing without padding; the documents fill two rows, which make one batch."""

    def run(packing):
        arguments = SFTConfig(packing=packing, padding_free=packing, max_length=64, **options(tmp_path, len(TEXTS)))
        documents = datasets.Dataset.from_dict({"text": TEXTS})
        model = model_of(family, tokenizer)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=documents, processing_class=tokenizer)
        assert len(trainer.train_dataset) == (2 if packing else len(TEXTS))
        return trained(trainer)

    assert_same_training(run(True), run(False), ROUNDED.get(family, TOLERANCE))


def test_our_trainer_keeps_documents_apart(tokenizer, tmp_path):
    """FrankenTrainer by its defaults, as `frankenlm train` makes it: the same as with a document a row."""
    runs = []
    for packing in (True, False):
        rows = prepare_dataset(
            datasets.Dataset.from_dict({"text": TEXTS}),
            tokenizer,
            max_length=400,
            packing=packing,
            objective="causal",
            cache_dir=tmp_path,
        )
        arguments = FrankenTrainingArguments(**options(tmp_path, len(TEXTS)), eval_strategy="no", gradient_guard=False)
        collator = build_collator("causal", tokenizer)
        model = model_of("frankenstein", tokenizer)
        runs.append(trained(FrankenTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)))
        assert len(rows) == (1 if packing else len(TEXTS))
    assert_same_training(*runs)
