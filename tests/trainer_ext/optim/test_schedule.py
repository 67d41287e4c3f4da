"""Two stages: the learning rate drops in the middle, weight decay ends where told."""

import pytest
import torch
from transformers import get_scheduler

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.optim.schedule import TwoStages, dropped


@pytest.fixture
def train(tmp_path):
    """train(drop, share, steps, **arguments) -> (learning rate, weight decay) of each step, by the real trainer."""

    def run(drop, share, steps=8, **arguments):
        torch.manual_seed(0)
        config = Legacy1BitConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=16
        )
        args = FrankenTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            learning_rate=1.0,
            weight_decay=0.1,
            use_cpu=True,
            eval_strategy="no",
            save_strategy="no",
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            **arguments,
        )
        rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 256, (4, 12))]
        trainer = FrankenTrainer(Legacy1BitForCausalLM(config), args, train_dataset=rows)
        trainer.add_callback(TwoStages(drop, share))
        seen = []

        class Watch(type(trainer.callback_handler.callbacks[0])):
            def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
                group = next(group for group in optimizer.param_groups if group["initial_lr"] and group["params"])
                seen.append((group["lr"], group["weight_decay"]))

        trainer.add_callback(Watch())
        trainer.train()
        return seen

    return run


def test_rate_and_decay_by_step(train):
    seen = train(0.5, 0.75, lr_scheduler_type="linear", warmup_steps=0)
    rates = [1 - step / 8 for step in range(8)]
    assert [rate for rate, _ in seen] == pytest.approx([*rates[:4], *(0.5 * rate for rate in rates[4:])])
    assert [decay for _, decay in seen] == [0.1] * 6 + [0.0] * 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_decay_alone(train, share):
    seen = train(1.0, share, lr_scheduler_type="constant")
    assert seen == [(1.0, 0.1 if step < 8 * share else 0.0) for step in range(8)]


def test_a_schedule_without_a_formula_is_refused():
    with pytest.raises(ValueError, match="needs a schedule that depends on the step alone, not ReduceLROnPlateau"):
        TwoStages(0.5, 0.5).on_train_begin(
            None, None, None, lr_scheduler=get_scheduler("reduce_lr_on_plateau", torch.optim.SGD([torch.zeros(1)]))
        )


def test_dropped():
    assert [dropped(lambda step: step + 1.0, at=2, factor=0.5)(step) for step in range(4)] == [1.0, 2.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate_drop", 0.0), ("learning_rate_drop", 1.5), ("weight_decay_share", -0.1)]
)
def test_impossible_settings_are_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"--{name} {value}: must be in"):
        FrankenTrainingArguments(output_dir=str(tmp_path), **{name: value})
