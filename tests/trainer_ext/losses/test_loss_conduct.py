"""Losses of models of ours and of others, whatever their classes are called: shift, count, smoothing, evaluation."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForSequenceClassification,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.losses.loss_conduct import LossConduct, ask_model, smoothing_term

VOCAB, ROWS, LENGTH, SMOOTHING = 40, 6, 9, 0.3
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OURS = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
EXPERTS = {
    **OURS,
    "router_aux_loss_coef": 0.0,
    "router_z_loss_coef": 0.0,
    "layer_pattern": ["retnet"],
    "num_experts": 2,
    "top_k_experts": 1,
}


class Aardvark(FrankensteinForCausalLM):
    """Names that tell transformers nothing."""


class Badger(FrankensteinForMaskedLM):
    pass


class Crane(FrankensteinForSequenceClassification):
    pass


class Dormouse(InfinitoForCausalLM):
    pass


class Eland(Legacy1BitForCausalLM):
    pass


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def infinito(model_class=InfinitoForCausalLM):
    config = InfinitoConfig.from_preset("infinito-small", **SMALL, memory_layers=[], exploration_sigma=0.0)
    return model_class(config)


def legacy(model_class=Legacy1BitForCausalLM):
    tokens = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 1}
    return model_class(Legacy1BitConfig.from_preset("legacy-1bit", **SMALL, **tokens))


GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 16,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
# name: (model, conduct of its loss)
MODELS = {
    "causal": (lambda: FrankensteinForCausalLM(FrankensteinConfig(**EXPERTS, is_decoder=True)), (True, True)),
    "masked": (lambda: FrankensteinForMaskedLM(FrankensteinConfig(**EXPERTS)), (False, True)),
    "sparse": (
        lambda: FrankensteinForMaskedLM(FrankensteinConfig(**EXPERTS, sparse_prediction=True)),
        (False, True),
    ),
    "classes": (lambda: FrankensteinForSequenceClassification(FrankensteinConfig(**EXPERTS)), (False, True)),
    "infinito": (infinito, (True, True)),
    "legacy": (legacy, (True, True)),
    "causal by another name": (lambda: Aardvark(FrankensteinConfig(**EXPERTS, is_decoder=True)), (True, True)),
    "masked by another name": (lambda: Badger(FrankensteinConfig(**EXPERTS)), (False, True)),
    "classes by another name": (lambda: Crane(FrankensteinConfig(**EXPERTS)), (False, True)),
    "infinito by another name": (lambda: infinito(Dormouse), (True, True)),
    "legacy by another name": (lambda: legacy(Eland), (True, True)),
    "Llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
            )
        ),
        (True, True),
    ),
    "GPT-2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), (True, True)),
    "BERT, causal": (lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True)), (True, True)),
    "BERT": (lambda: BertForMaskedLM(BertConfig(**BERT)), (False, False)),
    "BERT, classes": (lambda: BertForSequenceClassification(BertConfig(**BERT)), (False, False)),
}


@pytest.fixture(params=list(MODELS))
def case(request):
    torch.manual_seed(0)
    build, conduct = MODELS[request.param]
    return build(), LossConduct(*conduct), "classes" in request.param


def rows_for(classes: bool) -> Dataset:
    """Rows whose number of labels differs a lot, so that a mean of means shows."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=generator)
    if classes:
        return Dataset.from_dict({"input_ids": ids.tolist(), "labels": [i % 2 for i in range(ROWS)]})
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(labels):
        row[: 2 + i] = ids[i, : 2 + i]
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def make_trainer(model, rows, tmp_path, **fields) -> FrankenTrainer:
    settings = {"max_steps": 1, "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": ROWS, "per_device_eval_batch_size": 4, "eval_strategy": "no"}
    settings |= {"learning_rate": 0.0, "max_grad_norm": 0.0}
    args = FrankenTrainingArguments(output_dir=str(tmp_path), **{**settings, **fields})
    return FrankenTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, data_collator=collate)


def loss_by_hand(model, rows, shifts: bool, smoothing: float) -> float:
    batch = collate(rows.to_list())
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"]).logits
    labels = batch["labels"]
    if shifts:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=smoothing).item()


def test_what_the_loss_does_is_found_out(case):
    model, conduct, classes = case
    model.train()
    random_numbers, problem = torch.get_rng_state(), model.config.to_dict().get("problem_type")
    assert ask_model(model, collate(rows_for(classes).to_list()), takes_count=True) == conduct
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert problem is None or model.config.problem_type == problem


def check_losses(model, conduct, classes, tmp_path, smoothing):
    """The loss logged over three micro-batches is the whole batch's; the evaluation's is free of smoothing."""
    rows = rows_for(classes)
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    trainer = make_trainer(model, rows, tmp_path, label_smoothing_factor=smoothing, **sizes)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    evaluated = trainer.evaluate()["eval_loss"]
    model.config.sparse_prediction = False
    assert logged == pytest.approx(loss_by_hand(model, rows, conduct.shifts, smoothing), rel=2e-4)
    assert evaluated == pytest.approx(loss_by_hand(model, rows, conduct.shifts, 0.0), rel=2e-4)


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] if "another name" in name else []) for name in MODELS],
    indirect=True,
)
def test_smoothed_training_and_unsmoothed_evaluation(case, tmp_path):
    check_losses(*case, tmp_path, SMOOTHING)


@pytest.mark.parametrize("name", ["causal", "GPT-2", "BERT", "BERT, classes"])
def test_accumulated_micro_batches_weigh_by_their_labels(name, tmp_path):
    torch.manual_seed(0)
    build, conduct = MODELS[name]
    check_losses(build(), LossConduct(*conduct), "classes" in name, tmp_path, 0.0)


@pytest.mark.parametrize("name", ["causal", "masked", "sparse", "classes"])
def test_router_losses_are_kept_and_not_smoothed(name, tmp_path):
    model, (shifts, _) = MODELS[name][0](), MODELS[name][1]
    model.config.router_aux_loss_coef, model.config.router_z_loss_coef = 10.0, 0.0
    rows = rows_for(name == "classes")
    trainer = make_trainer(model, rows, tmp_path, label_smoothing_factor=SMOOTHING)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    model.config.sparse_prediction = False
    expected = loss_by_hand(model, rows, shifts, SMOOTHING) + 10.0 * entry["aux_loss"]
    assert entry["loss"] == pytest.approx(expected, rel=2e-4)


def test_smoothing_term_by_hand():
    logits = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]])
    labels = torch.tensor([[2, 1]])
    assert smoothing_term(logits, labels, False, None).item() == pytest.approx(((2 - 1) + (3 - 1)) / 2)
    assert smoothing_term(logits, labels, True, None).item() == pytest.approx(0 - 1)  # position 0 is asked for label 1
    assert smoothing_term(logits, labels, False, 4).item() == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="real numbers"):
        smoothing_term(logits[0], torch.tensor([0.5, 0.5]), False, None)
