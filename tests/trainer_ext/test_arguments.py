"""Defaults, derived settings and refusals of FrankenTrainingArguments, and the shared command-line manners."""

import errno
import math
import os

import pytest

from frankenlm.trainer_ext import FrankenTrainingArguments
from frankenlm.trainer_ext.common.cli import (
    Interrupted,
    OneLineParser,
    UserError,
    check_output_dir,
    is_storage_error,
    run_command,
    user_mistakes,
)


def make(tmp_path, **fields):
    return FrankenTrainingArguments(output_dir=str(tmp_path), **fields)


def test_losses_are_never_prettified(tmp_path):
    assert make(tmp_path).logging_nan_inf_filter is False


def test_early_stopping_saves_and_evaluates_at_the_same_steps(tmp_path):
    args = make(tmp_path, early_stopping_patience=3, eval_steps=7)
    assert args.load_best_model_at_end
    assert args.metric_for_best_model == "eval_loss"
    assert args.greater_is_better is False
    assert args.save_steps == args.eval_steps == 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fp16": True, "use_cpu": True}, "fp16 needs a GPU"),
        ({"early_stopping_patience": 0}, "at least 1"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "needs evaluations"),
        ({"attention_window_range": [64]}, "--attention_window_range 64: give the smallest and the largest"),
        ({"attention_window_range": [9, 8]}, "--attention_window_range 9 8: give"),
        ({"attention_window_range": [0, 8]}, "--attention_window_range 0 8: give"),
        ({"attention_window_range": [4, 8], "torch_compile": True}, "leave one out"),
        ({"attention_window_range": [4, 8], "torch_compile_backend": "eager"}, "leave one out"),
        ({"attention_window_range": [4, 8], "torch_compile_mode": "default"}, "leave one out"),
    ],
)
def test_impossible_combinations_are_refused(tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **fields)


def test_a_cpu_pins_no_memory(tmp_path):
    assert make(tmp_path, use_cpu=True).dataloader_pin_memory is False


def test_exit_codes(capsys):
    def failing(error):
        def main(argv):
            raise error

        return main

    assert run_command(lambda argv: None) == 0
    assert run_command(failing(UserError("no such\npreset"))) == 2
    assert capsys.readouterr().err == "error: no such preset\n"
    assert run_command(failing(OSError(errno.ENOSPC, "No space left on device"))) == 6
    assert run_command(failing(RuntimeError("I/O error: Read-only file system (os error 30)"))) == 6
    assert run_command(failing(Interrupted(15, "stopped at step 3"))) == 143
    assert run_command(failing(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        run_command(failing(ZeroDivisionError()))


def test_only_rank_0_tells_a_mistake(monkeypatch, capsys):
    def main(argv):
        raise UserError("twice")

    monkeypatch.setenv("RANK", "1")
    assert run_command(main) == 2
    assert capsys.readouterr().err == ""


def test_user_mistakes_keeps_storage_errors_apart():
    with pytest.raises(UserError, match="no such file"), user_mistakes():
        raise ValueError("no such file")
    with pytest.raises(OSError) as caught, user_mistakes():
        raise OSError(errno.EROFS, "Read-only file system")
    assert is_storage_error(caught.value)


def test_output_dir_is_checked_without_a_trace(tmp_path, monkeypatch):
    def made(*args, **kwargs):
        raise AssertionError("a check must make no folder: other processes look at the same place")

    monkeypatch.setattr(os, "mkdir", made)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        check_output_dir(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/inside", "link", "link/inside", "n" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot write to"):
        check_output_dir(tmp_path / name)


def test_unknown_option_comes_with_a_suggestion():
    parser = OneLineParser()
    parser.add_argument("--model", type=str)
    parser.add_argument("--max_documents", type=int)
    with pytest.raises(UserError, match="Did you mean '--model'"):
        parser.parse_strictly(["--modle", "x"])
    with pytest.raises(UserError, match="invalid int value"):
        parser.parse_strictly(["--max_documents", "many"])


def test_ratio_steps_are_kept(tmp_path):
    assert math.isclose(make(tmp_path, logging_steps=0.1).logging_steps, 0.1)
