"""The window of measurements, the probes, training.csv and the stop signal, each by itself."""

import logging
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from frankenlm.modeling.norms import Derf
from frankenlm.trainer_ext.callbacks import (
    DrawnWindow,
    ProgressBar,
    SaturationProbe,
    SignalStop,
    StepWindow,
    describe,
    peak_memory_mib,
)
from frankenlm.trainer_ext.saving.training_csv import CsvLog, read_csv

CPU = torch.device("cpu")


def test_window_averages_micro_batches_and_empties():
    window = StepWindow()
    window.start(tokens=100)
    window.add_routers(torch.tensor(2.0), torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    window.add_routers(torch.tensor(4.0), torch.tensor([[0.7, 1.3], [1.0, 1.0]]))
    values = window.drain(200, CPU)
    assert values["aux_loss"] == 3.0
    assert values["expert_load_min/layer_0"] == pytest.approx(0.6)
    assert values["expert_load_max/layer_0"] == pytest.approx(1.4)
    assert (values["expert_load_min"], values["expert_load_max"]) == pytest.approx((0.6, 1.4))
    assert values["tokens_per_second"] > 0
    assert "aux_loss" not in window.drain(300, CPU)


def test_window_takes_replicas_as_one_micro_batch():
    alone, together = StepWindow(), StepWindow()
    load = torch.tensor([[[0.5, 1.5], [1.0, 1.0]], [[0.7, 1.3], [0.2, 1.8]]])  # two replicas of two layers
    alone.add_routers(torch.tensor(3.0), load.mean(0))
    together.add_routers(torch.tensor([2.0, 4.0]), load.flatten(0, 1))
    assert together._router_values() == alone._router_values()


def test_window_survives_a_checkpoint():
    window, resumed = StepWindow(), StepWindow()
    window.add_routers(torch.tensor(2.5), torch.tensor([[0.25, 1.75]]))
    resumed.restore_routers(window.export_routers(), CPU)
    for each in (window, resumed):
        each.add_routers(torch.tensor(1.0), torch.tensor([[1.0, 1.0]]))
    assert window._router_values() == resumed._router_values()
    resumed.restore_routers(StepWindow().export_routers(), CPU)
    assert resumed.router_batches == 0


def test_the_bar_of_a_second_pass_begins_anew(capsys):
    bar, state, batches = ProgressBar(), TrainerState(is_world_process_zero=True), range(14)
    places = []
    for _ in (*batches, *batches):
        bar.on_prediction_step(None, state, None, eval_dataloader=batches)
        places.append(bar.prediction_bar.n)
    bar.on_evaluate(None, state, None)
    assert places == [n + 1 for n in (*batches, *batches)] and "28it" not in capsys.readouterr().err


def test_pauses_do_not_count_as_training():
    window = StepWindow()
    window.start(0)
    with window.pause():
        time.sleep(0.01)
    paused = window._paused_seconds
    assert paused >= 0.01
    window.drain(10, CPU)
    assert window._paused_seconds == 0.0


def test_starved_expert_and_saturated_norm_warn_once(caplog):
    window = StepWindow()
    for _ in range(2):
        window.add_routers(torch.tensor(2.0), torch.tensor([[1.0, 1.0], [0.04, 1.96]]))
        window.saturation.append(torch.tensor(0.95))
        with caplog.at_level(logging.WARNING, logger="frankenlm"):
            window.drain(0, CPU)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("layer_1: an expert gets 4.0 %")
    assert messages[1].startswith("norm_f: 95 %")


def test_probe_hooks_the_final_norm_only_before_a_log_event():
    norm = Derf(8)
    model = torch.nn.Module()
    model.base_model = SimpleNamespace(norm_f=norm)
    window = StepWindow()
    probe = SaturationProbe(window)
    args = SimpleNamespace(logging_first_step=False)
    state = SimpleNamespace(global_step=0, logging_steps=2, max_steps=10)
    for step in range(4):
        state.global_step = step
        probe.on_step_begin(args, state, None, model=model)
        norm(torch.full((1, 2, 8), 100.0))
        probe.on_step_end(args, state, None)
        norm(torch.zeros(1, 2, 8))  # not watched any more
    assert [value.item() for value in window.saturation] == [1.0, 1.0]
    assert not norm._forward_pre_hooks


def test_probe_leaves_other_models_alone():
    model = SimpleNamespace(base_model=SimpleNamespace())
    state = SimpleNamespace(global_step=0, logging_steps=1, max_steps=10)
    SaturationProbe(StepWindow()).on_step_begin(SimpleNamespace(logging_first_step=True), state, None, model=model)


def log_event(csv_log, step, **logs):
    state = SimpleNamespace(global_step=step, epoch=step / 10, num_input_tokens_seen=step * 7)
    csv_log.on_log(None, state, None, logs=logs)


def test_csv_continues_after_the_checkpoint(tmp_path):
    path = tmp_path / "training.csv"
    first = CsvLog(path)
    first.on_train_begin(None, None, None)
    for step in (1, 2, 3):
        log_event(first, step, loss=1 / 3 / step)
    log_event(first, 3, train_runtime=9.0)  # no loss, no row
    kept = read_csv(path)
    assert [row["step"] for row in kept] == [1, 2, 3]
    assert kept[2]["loss"] == 1 / 9  # bit for bit

    history = [{"step": step, "loss": 1 / 3 / step, "num_input_tokens_seen": 10 * step} for step in (1, 2)]
    second = CsvLog(path, TrainerState(global_step=2, log_history=history))
    second.on_train_begin(None, None, None)
    log_event(second, 3, eval_loss=2.0)
    rows = read_csv(path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "loss" not in rows[2] and rows[2]["eval_loss"] == 2.0
    assert rows[2]["seconds"] >= rows[1]["seconds"]


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    log_event(CsvLog(tmp_path / "training.csv"), 1, loss=1.0)
    assert not list(tmp_path.iterdir())


def test_describe():
    assert (
        describe({"loss": 2.0, "learning_rate": 1e-3, "grad_norm": 0.5}) == "loss 2.0000 | lr 1.00e-03 | grad norm 0.50"
    )
    assert describe({"eval_loss": 0.0}) == "eval loss 0.0000 | perplexity 1.0"
    assert describe({"eval_loss": 46.0}) == "eval loss 46.0000 | perplexity 9.496e+19"
    assert describe({"eval_loss": 0.5, "eval_accuracy": 0.75}) == "eval loss 0.5000 | accuracy 0.750"
    assert describe({"train_runtime": 3.0}) == ""


def test_signal_asks_for_a_checkpoint_and_a_second_one_ends_at_once():
    control = TrainerControl()
    before = signal.getsignal(signal.SIGTERM)
    with SignalStop(world_size=1) as stop:
        stop.on_train_begin(None, None, control)
        stop.on_step_end(None, None, control)
        assert not control.should_training_stop
        os.kill(os.getpid(), signal.SIGTERM)
        stop.on_step_end(None, None, control)
        assert control.should_save and control.should_training_stop and stop.signum == signal.SIGTERM
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("world_size", "training"), [(2, True), (1, False)])
def test_several_processes_and_preparations_end_at_once(world_size, training):
    with SignalStop(world_size) as stop, pytest.raises(SystemExit) as caught:
        stop.training = training
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130


def test_peak_memory_is_plausible():
    assert 50 < peak_memory_mib(CPU) < 1e6


def test_a_window_is_drawn_for_each_step_alone():
    """From the seed and the step: a run that goes on draws what it would have drawn."""
    windows, again = [], DrawnWindow(4, 7, seed=3)
    model = SimpleNamespace(set_training_window=windows.append)
    callback, state = DrawnWindow(4, 7, seed=3), TrainerState()
    for state.global_step in range(40):
        callback.on_step_begin(None, state, None, model=model)
    assert windows == [again.draw(step) for step in range(40)]
    assert set(windows) == {4, 5, 6, 7} and windows[20:] == [again.draw(step) for step in range(20, 40)]
    assert windows != [DrawnWindow(4, 7, seed=4).draw(step) for step in range(40)]
    callback.on_train_end(None, state, None, model=model)
    assert windows[-1] is None
