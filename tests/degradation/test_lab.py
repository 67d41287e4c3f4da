"""Whole experiments on tiny models: what is resumed, refused, forced; and the model is left as it was."""

import dataclasses
import json
import os
import signal

import pytest
import torch

from frankenlm.degradation.answers.row_decoder import RowDecoder
from frankenlm.degradation.configs import NOT_IN_HASH, ExperimentConfig
from frankenlm.degradation.errors import ConfigConflict, MemoryStop
from frankenlm.degradation.lab import Lab
from frankenlm.degradation.records.store import Store
from frankenlm.degradation.run.runner import ExperimentRun
from frankenlm.degradation.weights.memory import MemoryPolicy
from frankenlm.trainer_ext.common.cli import Interrupted
from small_runs import SMALL, essence, rows_of


def test_rows_hold_what_was_done(unbroken):
    assert len(unbroken) == 2 * 2 * 4
    assert [(r["level_index"], r["repeat_index"], r["prompt_id"]) for r in unbroken] == sorted(
        (level, repeat, prompt) for level in range(2) for repeat in range(2) for prompt in range(1, 5)
    )
    for row in unbroken:
        assert row["std_dev"] == row["level_value"] == row["degrad_level"] == (0.0, 0.3)[row["level_index"]]
        assert row["seed"] == 42 + row["repeat_index"]
        assert row["output"].endswith(row["completion"])
        assert row["is_baseline"] == (row["level_index"] == 0) == (row["damage_rel_l2"] == 0)
        assert row["damage_rel_l2"] == pytest.approx(0.3 if row["level_index"] else 0, rel=0.1)
        assert row["perplexity"] is None
    texts = {(r["level_index"], r["repeat_index"], r["prompt_id"]): r["completion"] for r in unbroken}
    assert texts[0, 0, 1] != texts[0, 1, 1], "repeats draw their own text"


@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_text_does_not_depend_on_the_batch(size, lab, unbroken):
    rows = lab(SMALL | {"max_batch_size": size})
    assert [row["completion"] for row in rows] == [row["completion"] for row in unbroken]


@pytest.mark.parametrize("after", [1, 3, 4, 9, 12])
def test_a_run_stopped_anywhere_goes_on_to_the_same_rows(after, lab, unbroken, monkeypatch):
    append, written = Store.append, []

    def stop_after(self, rows):
        append(self, rows)
        written.extend(rows)
        if len(written) >= after:
            raise Interrupted(signal.SIGTERM, "stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stop_after)
        with pytest.raises(Interrupted):
            lab()
    assert len(written) < len(unbroken)
    found = lab()
    assert essence(found) == essence(unbroken)
    assert all(row["attempt"] == 1 for row in found)


def test_a_signal_ends_the_run_between_two_tokens(lab, unbroken, tmp_path, monkeypatch):
    step, calls = RowDecoder.forward_step, []

    def kick(self, cache, tokens):
        calls.append(1)
        if len(calls) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, cache, tokens)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(RowDecoder, "forward_step", kick)
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            lab()
    assert caught.value.signum == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    (exported,) = (tmp_path / "results").glob("*.json")
    assert 0 < len(rows_of(exported)) < len(unbroken)
    assert essence(lab()) == essence(unbroken)


def test_finished_cells_leave_the_weights_alone(lab, monkeypatch):
    lab()
    monkeypatch.setattr(ExperimentRun, "__init__", lambda *args: pytest.fail("nothing was missing"))
    lab()


OTHER_VALUES = {
    "system_prompt": "Be brief.", "model_variant": "base", "method": "ablation", "seed_base": 7,
    "noise_coupling": "independent", "tied_policy": "input_only", "norm_gain": False, "quant_range": "per_row",
    "quant_symmetric": True, "quant_percentile": 99.0, "unit": "row", "exact_count": True, "dtype": "bfloat16",
    "load_4bit": True, "quant_type": "fp4", "double_quant": True, "quant_target_mode": "requantise",
    "do_sample": False, "temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1,
    "max_new_tokens": 7, "max_seq_length": 400, "couple_levels": False, "invariance": "single",
    "legacy_rng": True, "force_requantise": True,
}  # fmt: skip


def test_every_field_that_decides_a_row_is_tried():
    assert set(OTHER_VALUES) == {field.name for field in dataclasses.fields(ExperimentConfig)} - NOT_IN_HASH


@pytest.mark.parametrize("name", sorted(set(OTHER_VALUES) - {"method"}))
def test_a_changed_field_under_the_same_name_is_a_conflict(name, lab, tmp_path, monkeypatch):
    lab(SMALL | {"n_rep": 1, "levels": (0.0,), "max_prompts": 1})
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    monkeypatch.setattr("frankenlm.degradation.lab.check_given", lambda model, config: None)
    with pytest.raises(ConfigConflict, match=f"{name}.*name_suffix"):
        lab(SMALL | {name: OTHER_VALUES[name]})
    for path, content in files.items():
        assert path.read_bytes() == content


def test_a_model_in_memory_must_be_what_the_experiment_says(lab):
    with pytest.raises(ValueError, match=r"dtype='bfloat16'.*torch\.float32"):
        lab(SMALL | {"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="load_4bit=True.*no 4-bit layers"):
        lab(SMALL | {"load_4bit": True})


def test_force_run_writes_chosen_rows_again(lab):
    lab()
    some = lab(SMALL | {"force_run": True, "force_where": "level=0.3,repeat_index=1"})
    assert len(some) == 16
    for row in some:
        assert row["attempt"] == (2 if row["level_value"] == 0.3 and row["repeat_index"] == 1 else 1)
    every = lab(SMALL | {"force_run": True})
    assert [row["attempt"] - old["attempt"] for row, old in zip(every, some, strict=True)] == [1] * 16


def test_the_model_is_bitwise_the_same_afterwards_also_after_an_error(lab, monkeypatch):
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in lab.model.state_dict().items()}
    lab(SMALL | {"group": "attn_qkvo+mlp_only"})
    calls = []

    def fail_late(self, cache, tokens):
        calls.append(1)
        if len(calls) > 16:
            raise ZeroDivisionError
        return step(self, cache, tokens)

    step = RowDecoder.forward_step
    monkeypatch.setattr(RowDecoder, "forward_step", fail_late)
    with pytest.raises(ZeroDivisionError):
        lab(SMALL | {"group": "mlp_only"})
    for name, tensor in lab.model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        assert tensor.data_ptr() == places[name]


def test_the_undamaged_level_is_the_untouched_model(lab, tiny_tokenizer):
    """Level 0 equals generate() on the model as loaded, greedily."""
    greedy = SMALL | {"do_sample": False, "levels": (0.0,), "n_rep": 1, "name_suffix": "greedy"}
    rows = lab(greedy)
    tokenizer = tiny_tokenizer()
    for row in rows:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt_text"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</turn>")]
        written = lab.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :]
        assert row["completion"] == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("fails_above", [10, 3])
def test_out_of_memory_halves_and_loses_nothing(fails_above, lab, monkeypatch):
    config = SMALL | {"prompts": "dreams_it", "max_batch_size": 40, "levels": (0.0,), "n_rep": 1}
    reference = lab(config, folder="reference")
    forward = type(lab.model).forward

    def fail(model, input_ids=None, **inputs):
        if len(input_ids) > fails_above:
            raise torch.OutOfMemoryError("no room")
        return forward(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(lab.model), "forward", fail)
    rows = lab(config, folder="crowded")
    assert essence(rows) == essence(reference)
    assert len(rows) == 38
    assert fails_above // 2 < max(row["batch_size_effective"] for row in rows) <= fails_above


def test_rows_without_any_room_are_recorded_and_the_third_ends_the_run(lab, tmp_path, monkeypatch):
    forward, limit = type(lab.model).forward, []

    def fail(model, input_ids=None, **inputs):
        if limit and input_ids.shape[1] < 100:
            raise torch.OutOfMemoryError("no room")
        return forward(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(lab.model), "forward", fail)
    begin = ExperimentRun.__init__

    def begin_then_fail(self, *args):
        begin(self, *args)
        limit.append(1)

    monkeypatch.setattr(ExperimentRun, "__init__", begin_then_fail)
    with pytest.raises(MemoryStop, match="no memory even alone"):
        lab()
    assert MemoryStop.exit_code == 3
    (exported,) = (tmp_path / "results").glob("*.json")
    assert [row["status"] for row in rows_of(exported)] == ["oom"] * 3
    limit.clear()
    monkeypatch.setattr(ExperimentRun, "__init__", begin)
    assert {row["status"] for row in lab()} == {"ok"}


def test_memory_nearly_used_up_ends_the_run_with_its_rows(lab, tmp_path, monkeypatch):
    readings = iter([0.5, 0.5, 0.96])
    monkeypatch.setattr(
        "frankenlm.degradation.lab.make_policy",
        lambda experiment, loaded: MemoryPolicy(4, 4, lambda: next(readings)),
    )
    with pytest.raises(MemoryStop, match="96%"):
        lab()
    (exported,) = (tmp_path / "results").glob("*.json")
    assert len(rows_of(exported)) == 12


def test_a_process_that_stops_alone_says_so_itself(lab, tmp_path, monkeypatch, caplog):
    """A command ends with one line of rank 0, which may be fine; and only rank 0 exports."""

    def stop_as_second_process(self, experiment, store, signals, state):
        store.rank = 1
        raise MemoryStop("by the test")

    monkeypatch.setattr(Lab, "_work", stop_as_second_process)
    with pytest.raises(MemoryStop):
        lab()
    assert "process 1 stops: by the test" in caplog.text
    assert not list((tmp_path / "results").glob("*.json"))


def test_perplexity_is_measured_once_a_level_or_in_every_repeat(lab, tmp_path):
    rows = lab(SMALL | {"perplexity": True, "n_rep": 2, "max_prompts": 1})
    assert [row["perplexity"] is not None for row in rows] == [True, False, True, False]
    cells = [json.loads(line)["row"] for line in next(tmp_path.rglob("cells.jsonl")).read_text().splitlines()]
    by_cell = {(cell["level_index"], cell["repeat_index"]): cell for cell in cells}
    assert by_cell[0, 0]["kl_to_baseline"] == 0 < by_cell[1, 0]["kl_to_baseline"]
    assert by_cell[1, 1]["kl_to_baseline"] is None
    rows = lab(SMALL | {"perplexity": True, "perplexity_per_repeat": True, "max_prompts": 1}, folder="every")
    assert all(row["perplexity"] is not None for row in rows)
