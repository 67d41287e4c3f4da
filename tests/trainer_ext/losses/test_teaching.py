"""A teacher beside a model that trains: its terms against plain loops, and all that must not change because of it."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForMaskedLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.losses.teacher_terms import layers_beside
from frankenlm.trainer_ext.losses.teaching import FILE, PROJECTION, Teaching, TeachingPlan
from frankenlm.trainer_ext.optim.guard import GradientGuard

VOCAB, LENGTH, STEPS = 23, 8, 4
SIZES = {"vocab_size": VOCAB, "num_attention_heads": 2, "intermediate_size": 16}
CALM = {"dropout": 0.0, "attention_dropout": 0.0}
PLAN = TeachingPlan(own=0.4, logits=0.6, hidden=0.3, temperature=2.0)


def legacy(width=16, layers=2, seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {**SIZES, "hidden_size": width, "num_hidden_layers": layers, "max_position_embeddings": 16}
    config = Legacy1BitConfig(**sizes | CALM | fields)
    return Legacy1BitForCausalLM(config)


def frankenstein(width=16, layers=2, seed=0, **fields):
    torch.manual_seed(seed)
    parts = {"layer_pattern": ["retnet"], "is_decoder": False, "num_experts": 0}
    config = FrankensteinConfig(**SIZES, **CALM, **parts, hidden_size=width, num_hidden_layers=layers, **fields)
    return FrankensteinForMaskedLM(config)


def gpt2(width=16, layers=2, seed=0):
    torch.manual_seed(seed)
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=width, n_layer=layers, n_head=2, n_positions=16, **none, **ends)
    )


# student, teacher, whether positions are asked for the next token
PAIRS = {
    "causal": (lambda: legacy(), lambda: legacy(seed=1, use_bitnet=False), True),
    "wider, deeper": (lambda: legacy(), lambda: legacy(width=24, layers=4, seed=1), True),
    "another family": (lambda: gpt2(), lambda: legacy(width=24, layers=5, seed=1), True),
    "masked": (lambda: frankenstein(), lambda: frankenstein(width=24, layers=3, seed=1), False),
    "masked, sparse": (
        lambda: frankenstein(sparse_prediction=True),
        lambda: frankenstein(layers=4, seed=1, sparse_prediction=True),
        False,
    ),
}


def batch_of(rows=3, seed=2, documents=False):
    """Rows with pads at the right, labels that are missing here and there, and two documents each if asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (rows, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, LENGTH - 3 :] = 0
    labels = ids.masked_fill((torch.rand(ids.shape, generator=generator) < 0.4) | (mask == 0), IGNORED_LABEL)
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
    if documents:
        batch["seq_idx"] = (torch.arange(LENGTH) >= 3).long().expand(rows, -1)
        batch["labels"][:, 3] = IGNORED_LABEL  # as the collator has it: nobody is asked for a document's first token
    return batch


def trainer_of(folder, student, teacher=None, plan=PLAN, rows=(), layers=None, **fields):
    args = FrankenTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "no", "per_device_train_batch_size": 2} | fields,
    )
    teaching = None if teacher is None else Teaching(student, teacher, plan, layers)
    trainer = FrankenTrainer(student, args, train_dataset=list(rows) or None)
    if teaching is not None:
        trainer.take_teacher(teaching)
    return trainer


def oracle(student, teacher, batch, shifts, plan, count, projection):
    """The loss as the definitions have it, position by position, in float64."""
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        student.train(), teacher.eval()
        ours, theirs = (model(**inputs, output_hidden_states=True) for model in (student, teacher))
    beside = layers_beside(len(ours.hidden_states) - 1, len(theirs.hidden_states) - 1)
    own = logits = hidden = 0.0
    for row in range(len(batch["labels"])):
        for place in range(LENGTH):
            asked = place + shifts
            if asked >= LENGTH or batch["labels"][row, asked] == IGNORED_LABEL:
                continue
            label = int(batch["labels"][row, asked])
            p, q = (out.logits[row, place].double() for out in (theirs, ours))
            own -= float(q[label] - q.exp().sum().log())
            p, q = p / plan.temperature, q / plan.temperature
            p, q = p - p.exp().sum().log(), q - q.exp().sum().log()
            logits += plan.temperature**2 * sum(
                math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True)
            )
            for state, layer in zip(ours.hidden_states, beside, strict=True):
                mine = state[row, place].double()
                mine = mine if projection is None else projection.double() @ mine
                hidden += float((mine - theirs.hidden_states[layer][row, place].double()).square().mean()) / len(beside)
    return (plan.own * own + plan.logits * logits + plan.hidden * hidden) / count


@pytest.mark.parametrize(
    ("pair", "documents"),
    [(pair, documents) for pair in PAIRS for documents in (False, True) if pair != "another family" or not documents],
)
def test_the_loss_is_the_definitions(tmp_path, pair, documents):
    """Over two micro-batches with different numbers of labels, divided by those of both; and alone, by its own."""
    make, make_teacher, shifts = PAIRS[pair]
    student, teacher = make(), make_teacher()
    trainer = trainer_of(tmp_path, student, teacher)
    batches = [batch_of(documents=documents), batch_of(rows=2, seed=3, documents=documents)]
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    projection = trainer.teaching.projection
    matrix = None if projection is None else projection.weight.detach()
    student.train()
    found = [trainer.compute_loss(student, dict(batch), num_items_in_batch=count).item() for batch in batches]
    alone = trainer.compute_loss(student, dict(batches[0])).item()
    with trainer.teaching.apart():
        expected = [oracle(student, teacher, batch, shifts, PLAN, int(count), matrix) for batch in batches]
        asked = int(trainer._predicted(batches[0]["labels"]).ne(IGNORED_LABEL).sum())
    assert found == pytest.approx(expected, rel=2e-5)
    assert alone == pytest.approx(expected[0] * int(count) / asked, rel=2e-5)
    assert (matrix is not None) == (pair in ("wider, deeper", "another family", "masked"))


def test_layers_are_spread_and_can_be_chosen(tmp_path):
    assert (
        layers_beside(2, 4) == (0, 2, 4)
        and layers_beside(4, 2) == (0, 0, 1, 1, 2)
        and layers_beside(3, 3) == (0, 1, 2, 3)
    )
    trainer = trainer_of(tmp_path, legacy(), legacy(layers=4, seed=1), layers=[0, 1, 3])
    assert trainer.teaching.layers == (0, 1, 3)


@pytest.mark.parametrize(
    ("teacher", "layers", "message"),
    [
        (lambda: legacy(layers=4), [0, 1], "3 numbers are expected"),
        (lambda: legacy(layers=4), [0, 1, 5], "states are 0 .its embedding. to 4, and 5 is none"),
        (
            lambda: legacy(vocab_size=31),
            None,
            "logits for 31 tokens, and the model for 23: add --vocab_size 31",
        ),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, teacher, layers, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, legacy(), teacher(), layers=layers)


@pytest.mark.parametrize("make", [lambda: legacy(use_bitnet=False), frankenstein, gpt2])
def test_a_model_is_its_own_best_teacher(tmp_path, make):
    """Taught by itself it has nothing to learn from the teacher: the terms and their gradients are zero."""
    student = make()
    trainer = trainer_of(tmp_path, student, make(), TeachingPlan(own=0.0, logits=1.0, hidden=1.0))
    batch = batch_of()
    trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    student.train()
    loss = trainer.compute_loss(student, dict(batch))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(weight.grad.abs().max().item() for weight in student.parameters() if weight.grad is not None) < 1e-6


def rows_of(count=STEPS * 4):
    generator = torch.Generator().manual_seed(5)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(1, VOCAB, (count, LENGTH), generator=generator)]


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("fields", [{"gradient_accumulation_steps": 2}, {"ema_decay": 0.9, "matrix_optimizer": "muon"}])
def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path, fields):
    """With dropout, a matrix to a wider teacher, and the guard; the teacher stays as it is and is in no checkpoint."""
    saves = {"save_strategy": "steps", "save_steps": 2}
    runs = []
    for resumed in (False, True):
        student, teacher = legacy(dropout=0.1), legacy(width=24, layers=2, seed=1)
        before = weights_of(teacher)
        trainer = trainer_of(tmp_path, student, teacher, rows=rows_of(), **saves, **fields)
        if trainer.args.ema_decay is not None:
            trainer.take_average(trainer.args.ema_decay)
        trainer.take_guard(GradientGuard())
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resumed else None)
        assert_equal(before, weights_of(teacher))
        assert all(weight.grad is None for weight in teacher.parameters()) and not teacher.training
        logged = [logs for logs in trainer.state.log_history if "loss" in logs]
        runs.append((weights_of(student), [(logs["loss"], logs["teacher_loss"]) for logs in logged[-2:]]))
    assert_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] and PROJECTION not in str(runs[0][0].keys())
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert not [name for name in saved if PROJECTION in name]
    matrix = load_file(tmp_path / "checkpoint-2" / FILE)["weight"]
    assert matrix.shape == (24, 16)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]


def test_the_matrix_learns_and_a_run_without_weight_has_no_teacher_in_it(tmp_path):
    student, teacher = legacy(), legacy(width=24, seed=1)
    trainer = trainer_of(tmp_path / "a", student, teacher, rows=rows_of())
    before = trainer.teaching.projection.weight.detach().clone()
    matrix = trainer.teaching.projection.weight
    trainer.train()
    assert not torch.equal(before, matrix) and trainer.teaching.projection is None
    plain, taught = legacy(), legacy()
    trainer_of(tmp_path / "b", plain, rows=rows_of()).train()
    trainer_of(tmp_path / "c", taught, legacy(seed=1), TeachingPlan(1.0, 0.0, 0.0), rows_of()).train()
    assert_equal(weights_of(plain), weights_of(taught))


def test_what_is_logged_is_of_the_step_whatever_the_micro_batches(tmp_path):
    logs = []
    for size, parts in ((4, 1), (2, 2)):
        trainer = trainer_of(
            tmp_path / str(parts),
            legacy(),
            legacy(seed=1),
            rows=rows_of(),
            gradient_accumulation_steps=parts,
            per_device_train_batch_size=size,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        first = next(logs for logs in trainer.state.log_history if "loss" in logs)
        logs.append([first[name] for name in ("loss", "label_loss", "teacher_loss", "teacher_hidden_loss")])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    whole = PLAN.own * logs[0][1] + PLAN.logits * logs[0][2] + PLAN.hidden * logs[0][3]
    assert logs[0][0] == pytest.approx(whole, rel=1e-5)


def test_evaluations_are_of_the_models_own_loss(tmp_path):
    rows = rows_of(4)
    alone = trainer_of(tmp_path, legacy()).evaluate(rows)["eval_loss"]
    assert trainer_of(tmp_path, legacy(), legacy(width=24, seed=1)).evaluate(rows)["eval_loss"] == alone
