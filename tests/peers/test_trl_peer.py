"""TRL over our checkpoints: the losses of SFTTrainer and DPOTrainer are those of the model's own logits."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.loss.loss_utils import ForCausalLMLoss
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from frankenlm.modeling import FrankensteinConfig
from peer_cells import WORKS, cells_of
from peer_models import open_peer

pytestmark = pytest.mark.filterwarnings("default", "error:::frankenlm")  # TRL's own warnings are its own

TEXTS = ["the cat sat on a mat", "dogs run over green hills"]
PAIRS = {"prompt": ["the cat", "dogs"], "chosen": [" sat on a mat", " run"], "rejected": [" mat a", " fly high"]}
BETA = 0.3


def options(folder) -> dict:
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "max_length": 40,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def tokenizer_of(folder):
    """The tokenizer, such that the end token which TRL writes behind a text is one token and not five bytes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.split_special_tokens = False
    return tokenizer


def test_without_the_switch_an_end_token_in_a_text_is_text(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved("infinito"))
    assert tokenizer("a<eos>").input_ids == list(b"a<eos>")
    assert tokenizer_of(saved("infinito"))("a<eos>").input_ids == [*b"a", tokenizer.eos_token_id]


def log_probability(model, ids, begin) -> torch.Tensor:
    """Of the tokens from `begin` on, given those before them."""
    scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return scores[begin - 1 : -1].gather(1, torch.tensor(ids[begin:])[:, None]).sum()


def is_refused(cell, train) -> bool:
    if cell.verdict == WORKS:
        return False
    with pytest.raises((ValueError, AttributeError), match=cell.message):
        train()
    return True


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@cells_of("sft")
def test_sft(family, cell, saved, tmp_path):
    """Also where the model is opened by its name; each text ends with the end token."""

    def train():
        trainer = SFTTrainer(
            model=str(saved(family)),
            args=SFTConfig(**options(tmp_path)),
            train_dataset=Dataset.from_dict({"text": TEXTS}),
            processing_class=tokenizer_of(saved(family)),
        )
        trainer.train()
        return trainer

    if is_refused(cell, train):
        return
    trainer, model = train(), open_peer(family, saved(family))
    ids = [[*text.encode(), model.config.eos_token_id] for text in TEXTS]
    with torch.no_grad():
        nats = -sum(log_probability(model, row, 1) for row in ids)
    first, second = losses(trainer)
    assert first == pytest.approx(float(nats) / sum(len(row) - 1 for row in ids), rel=1e-4) and second < first
    trainer.save_model(str(tmp_path / "tuned"))
    tuned = open_peer(family, tmp_path / "tuned")
    with torch.no_grad():
        expected = log_probability(trainer.model.eval(), ids[0], 1)
        torch.testing.assert_close(log_probability(tuned, ids[0], 1), expected, rtol=1e-5, atol=1e-5)
    # what it was trained with is no fault of the next training's
    args = SFTConfig(**options(tmp_path / "again") | {"max_steps": 1})
    again = SFTTrainer(
        str(tmp_path / "tuned"), args, train_dataset=trainer.train_dataset, processing_class=tokenizer_of(saved(family))
    )
    again.train()
    assert losses(again)[0] == pytest.approx(second, rel=0.2)


def test_the_routers_balance_can_be_in_it(saved, tmp_path):
    """With the function of docs/recipes.md SFT's loss is the model's own of training, in two micro-batches too."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    model, tokenizer = open_peer("decoder", saved("decoder")), tokenizer_of(saved("decoder"))
    model.config.router_aux_loss_coef = 0.7
    names = {"model": model, "ForCausalLMLoss": ForCausalLMLoss}
    exec(re.search(r"^def with_balance.*?(?=\n\n\n)", text, re.DOTALL | re.MULTILINE)[0], names)
    own = []
    for batch in (TEXTS, TEXTS[:1], TEXTS[1:]):
        inputs = tokenizer([each + "<eos>" for each in batch], padding=True, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        own.append((float(model.train()(**inputs, labels=labels).loss.detach()), int((labels[:, 1:] != -100).sum())))
    weighted = sum(loss * count for loss, count in own[1:]) / sum(count for _, count in own[1:])
    for size, expected in ((2, own[0][0]), (1, weighted)):
        args = options(tmp_path) | {"max_steps": 1, "per_device_train_batch_size": size, "learning_rate": 0.0}
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**args, gradient_accumulation_steps=2 // size),
            train_dataset=Dataset.from_dict({"text": TEXTS}),
            processing_class=tokenizer,
            compute_loss_func=names["with_balance"],
        )
        trainer.train()
        assert losses(trainer)[0] == pytest.approx(expected, rel=1e-4)


def test_nobody_takes_a_frankenstein_for_a_model_that_returns_logits_of_routers():
    config = FrankensteinConfig(output_router_logits=False, num_experts=2)  # as TRL leaves it in config.json
    assert not hasattr(config, "output_router_logits") and "output_router_logits" not in config.to_dict()
    with pytest.raises(ValueError, match="output_router_logits=True: routers' logits are not returned"):
        FrankensteinConfig(output_router_logits=True, num_experts=2)


@cells_of("dpo")
def test_dpo(family, cell, saved, tmp_path):
    """-log sigmoid(beta ((log p(chosen) - log p(rejected)) - the reference's difference)); ln 2 at the first step."""

    def train():
        trainer = DPOTrainer(
            model=str(saved(family)),
            args=DPOConfig(beta=BETA, **options(tmp_path)),
            train_dataset=Dataset.from_dict(PAIRS),
            processing_class=tokenizer_of(saved(family)),
        )
        trainer.train()
        return trainer

    if is_refused(cell, train):
        return
    trainer, model = train(), open_peer(family, saved(family))
    first, second = losses(trainer)
    assert first == pytest.approx(0.6931, abs=1e-3) and second < first

    def margins(each) -> torch.Tensor:
        rows = []
        for prompt, *answers in zip(*PAIRS.values(), strict=True):
            ids = [[*(prompt + answer).encode(), model.config.eos_token_id] for answer in answers]
            chosen, rejected = (log_probability(each, row, len(prompt)) for row in ids)
            rows.append(chosen - rejected)
        return torch.stack(rows)

    with torch.no_grad():
        trainer.model.eval()
        expected = -F.logsigmoid(BETA * (margins(trainer.model) - margins(model))).mean()
        batch = next(iter(trainer.get_train_dataloader()))
        found = trainer.compute_loss(trainer.model, batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-3)
