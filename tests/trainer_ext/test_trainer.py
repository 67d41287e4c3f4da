"""FrankenTrainer at its seams: weight decay, exact evaluation, router statistics, and models that are not ours."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.data.epochs import EpochLengthSampler
from frankenlm.trainer_ext.trainer import own_randomness

VOCAB = 40


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Rows whose number of labels differs a lot, so that a mean of batch means would be wrong."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCAB, (10, 12), generator=generator)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(labels):
        row[: 1 + i] = ids[i, : 1 + i]
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def tiny_model(**fields) -> FrankensteinForMaskedLM:
    torch.manual_seed(0)
    config = FrankensteinConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "layer_pattern": ["retnet", "titan_attn"],
            "intermediate_size": 16,
            "num_experts": 2,
            "top_k_experts": 1,
            **fields,
        }
    )
    return FrankensteinForMaskedLM(config)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def make_trainer(model, rows, tmp_path, **fields) -> FrankenTrainer:
    settings = {"max_steps": 3, "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3}
    args = FrankenTrainingArguments(output_dir=str(tmp_path), **{**settings, **fields})
    return FrankenTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, data_collator=collate)


def test_weight_decay_follows_the_model(rows, tmp_path):
    model = tiny_model()
    optimizer = make_trainer(model, rows, tmp_path, weight_decay=0.1).create_optimizer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: {names[p] for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.0] == model.no_weight_decay_names() & set(names.values())
    assert groups[0.1] | groups[0.0] == set(names.values())
    assert groups[0.1]


@pytest.mark.parametrize("sparse", [False, True])
def test_evaluation_loss_is_the_mean_over_tokens(rows, tmp_path, sparse):
    model = tiny_model(sparse_prediction=sparse)
    trainer = make_trainer(model, rows, tmp_path)
    reported = trainer.evaluate()["eval_loss"]
    batch = collate(rows.to_list())
    model.eval().config.sparse_prediction = False
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    assert reported == pytest.approx(expected.item(), rel=1e-5)


def test_evaluation_of_a_foreign_model(rows, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertForMaskedLM(config)
    trainer = make_trainer(model, rows, tmp_path)
    batch = collate(rows.to_list())
    model.eval()
    with torch.no_grad():
        expected = model(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert trainer.state.global_step == 3


def test_log_events_carry_what_was_measured(rows, tmp_path):
    trainer = make_trainer(tiny_model(), rows, tmp_path, gradient_accumulation_steps=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert entry["aux_loss"] >= 1.0  # top-1 of 2 experts: 1 when balanced
        assert entry["expert_load_min/layer_0"] + entry["expert_load_max/layer_0"] == pytest.approx(1.0)
        assert 0.0 <= entry["norm_f_saturation"] <= 1.0
        assert entry["tokens_per_second"] > 0 and entry["peak_memory_mib"] > 0
    assert [entry["num_input_tokens_seen"] for entry in logs] == [
        48,
        96,
        120,
    ]  # 12 a row; the epoch ends with one batch


def test_dense_post_norm_models_have_nothing_to_balance(rows, tmp_path):
    model = tiny_model(
        num_experts=0,
        norm_type="layer_norm",
        norm_style="post",
        layer_pattern=["standard_attn"],
        position_type="learned",
        head_bias_init="zeros",
    )
    trainer = make_trainer(model, rows, tmp_path)
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert "aux_loss" not in logs and "norm_f_saturation" not in logs


def test_accumulated_micro_batches_equal_one_batch(rows, tmp_path):
    finals = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        model = tiny_model(num_experts=0, dropout=0.0, attention_dropout=0.0)
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(model, rows, tmp_path, max_steps=2, eval_strategy="no", **sizes)
        trainer.train()
        finals.append(model.lm_head.decoder.weight.detach().clone())
    torch.testing.assert_close(*finals, rtol=1e-5, atol=1e-7)


def test_the_number_of_evaluations_does_not_change_training(rows, tmp_path):
    losses = []
    for strategy in ("no", "steps"):
        trainer = make_trainer(tiny_model(), rows, tmp_path, eval_strategy=strategy, eval_steps=1, max_steps=4)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_saved_model_generates_with_its_cache(rows, tmp_path):
    model = tiny_model()
    trainer = make_trainer(model, rows, tmp_path)
    assert model.config.use_cache is False  # while it trains
    trainer.save_model(tmp_path)
    assert FrankensteinConfig.from_pretrained(tmp_path).use_cache is True


def test_own_randomness_gives_the_state_back():
    before = torch.get_rng_state()
    with own_randomness(1):
        first = torch.rand(3)
    with own_randomness(1):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


def test_order_by_length_depends_on_seed_and_epoch_alone():
    lengths = [3, 9, 4, 8, 5, 7, 6, 10] * 4
    sampler = EpochLengthSampler(4, lengths, seed=1)
    first = list(sampler)
    torch.rand(7)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert sorted(sampler) == list(range(32))
    other = EpochLengthSampler(4, lengths, seed=0)
    other.set_epoch(1)
    assert list(other) == first  # seed + epoch, as accelerate's random sampler
