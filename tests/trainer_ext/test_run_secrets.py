"""Secrets of a run's flags and surroundings stay out of its command, its settings, its arguments, its reports."""

import json
import logging

import pytest
import torch

from frankenlm.trainer_ext.common.logs import FILE_FORMAT
from frankenlm.trainer_ext.common.redaction import redact, redact_facts, redact_words, without_secrets
from frankenlm.trainer_ext.presets import parse_run

RUN = ["--preset", "standard", "--dataset", "x.txt", "--output_dir", "out", "--max_steps", "10", "--use_cpu"]
FLAGS = [
    ["--hub_token", "planted-in-a-flag"],
    ["--hub_token=planted-in-a-flag"],
    ["--hub-token", "planted-in-a-flag"],
    ["--optim_args", "api_key=planted-in-a-flag"],
    ["--accelerator_config", '{"split_batches": false}', "--hub_token", "planted-in-a-flag"],
    ["--lr_scheduler_kwargs", '{"password": "planted-in-a-flag"}'],
    ["--dataset", "https://me:planted-in-a-flag@example.org/x"],
]


@pytest.mark.parametrize("words", FLAGS)
def test_no_flag_shows_its_secret(words, tmp_path):
    run = parse_run([*RUN, *words])
    assert "planted" not in run.command
    assert "planted" not in json.dumps(redact_facts({"command": run.command, "dataset": run.data.dataset}))
    torch.save(without_secrets(run.training), tmp_path / "training_args.bin")
    assert b"planted" not in (tmp_path / "training_args.bin").read_bytes()


def test_a_secret_once_given_is_hidden_everywhere():
    parse_run([*RUN, "--hub_token", "planted-for-everywhere"])
    assert redact("the hub said no to planted-for-everywhere") == "the hub said no to ***"
    record = logging.LogRecord("frankenlm", logging.INFO, "x", 1, "token %s", ("planted-for-everywhere",), None)
    assert "planted" not in FILE_FORMAT.format(record)


def test_a_token_in_a_run_file_is_hidden(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {hub_token: planted-in-a-file}")
    run = parse_run([*RUN, "--config", str(tmp_path / "run.yaml")])
    assert run.training.hub_token == "planted-in-a-file"
    assert redact("planted-in-a-file") == "***"


def test_ordinary_words_stay():
    words = [
        "--tokenizer",
        "bytes",
        "--average_tokens_across_devices",
        "true",
        "--include_num_input_tokens_seen",
        "all",
    ]
    assert redact_words(words) == words
    run = parse_run([*RUN, *words])
    assert without_secrets(run.training).lr_scheduler_type is run.training.lr_scheduler_type
    assert without_secrets(run.training).output_dir == run.training.output_dir
