"""Where settings come from: precedence, strict keys, seed aliases, help."""

import pytest

from frankenlm.modeling import list_presets, read_preset
from frankenlm.trainer_ext.cli import UserError
from frankenlm.trainer_ext.presets import parse_run, parse_scalar, preset_table

BASE = ["--preset", "mini", "--dataset", "builtin", "--output_dir", "out"]


@pytest.mark.parametrize("name", sorted(list_presets()))
def test_every_preset_is_a_run(name):
    run = parse_run(["--preset", name, "--dataset", "builtin", "--output_dir", "out"])
    preset = read_preset(name)
    assert run.data.objective == preset.data["objective"]
    assert run.data.max_length == preset.data["max_length"]
    assert run.training.learning_rate == preset.training["learning_rate"]


def test_precedence(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {preset: mini, num_hidden_layers: 6, num_loops: 1}\n"
        "data: {objective: causal, max_length: 64}\n"
        "training: {learning_rate: 1e-3, warmup_steps: 5, bf16: true, lr_scheduler_kwargs: {num_cycles: 1}}\n"
    )
    words = ["--config", str(file), "--dataset", "builtin", "--output_dir", "out"]
    run = parse_run([*words, "--warmup_steps", "9", "--model.num_loops", "2"])
    assert run.training.warmup_steps == 9  # command line > run.yaml
    assert run.training.learning_rate == 1e-3  # run.yaml > preset, and 1e-3 is a number
    assert run.training.weight_decay == read_preset("mini").training["weight_decay"]  # preset > default
    assert run.training.bf16 is True
    assert run.training.lr_scheduler_kwargs == {"num_cycles": 1}
    assert (run.data.objective, run.data.max_length) == ("causal", 64)
    assert run.model_fields == {"num_hidden_layers": 6, "num_loops": 2}


@pytest.mark.parametrize(
    ("words", "tokenizer"),
    [
        (["--preset", "legacy-1bit"], "bytes"),
        (["--preset", "legacy-1bit-base", "--tokenizer", "train"], "train"),
        (["--preset", "mini"], None),
    ],
)
def test_a_preset_may_name_its_tokenizer(words, tokenizer):
    run = parse_run([*words, "--dataset", "builtin", "--output_dir", "out"])
    assert run.model.tokenizer == tokenizer


def test_flat_run_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: mini\nhidden_size: 48\ndataset: builtin\nmax_steps: 3\noutput_dir: out\npacking: false\n")
    run = parse_run(["--config", str(file)])
    assert run.model.preset == "mini"
    assert run.model_fields == {"hidden_size": 48}
    assert run.training.max_steps == 3
    assert run.data.packing is False
    assert run.training.train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {learning_rte: 1}", "section 'training': unknown key 'learning_rte'. Did you mean 'learning_rate'"),
        ("data: {max_lenght: 3}", "Did you mean 'max_length'"),
        ("model: {preset: mini, hidden_sze: 3}", "Did you mean 'hidden_size'"),
        ("hidden_sze: 3", "Did you mean 'hidden_size'"),
        ("training: {learning_rate: fast}", "invalid float value: 'fast'"),
        ("data: {objective: mlmm}", "invalid choice: 'mlmm'"),
        ("- a\n- b", "expected 'key: value' lines"),
        ("a: [", "not valid YAML"),
    ],
)
def test_run_file_is_read_strictly(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse_run([*BASE, "--config", str(file)])
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "mni"], "Did you mean 'mini'"),
        (["--dataset", "x"], "--preset is missing"),
        ([*BASE, "--model_name_or_path", "x"], "exclude each other"),
        ([*BASE, "--learning_rte", "1"], "Did you mean '--learning_rate'"),
        ([*BASE, "--model.hidden_sze", "1"], "Did you mean 'hidden_size'"),
        ([*BASE, "--model.hidden_size"], "expected a value"),
        ([*BASE, "--model.vocab_size", "9"], "use --vocab_size"),
        (["--model_name_or_path", "x", "--model.hidden_size", "9"], "changes a preset"),
        ([*BASE, "--config", "no/such.yaml"], "no such file"),
        ([*BASE, "--max_steps", "many"], "invalid int value"),
        ([*BASE, "stray"], "unknown argument 'stray'"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(UserError) as caught:
        parse_run(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seed_names_are_aliases():
    run = parse_run(["--config-name", "mini", "--dataset", "builtin", "--output_dir", "out", "--batch-size", "3"])
    assert run.model.preset == "mini"
    assert run.training.per_device_train_batch_size == 3


def test_resume_flag_may_stand_alone():
    assert parse_run([*BASE, "--resume_from_checkpoint"]).training.resume_from_checkpoint == "last"


@pytest.mark.parametrize(
    ("text", "value"), [("4", 4), ("1e-5", 1e-5), ("true", True), ("[retnet, mamba]", ["retnet", "mamba"]), ("a", "a")]
)
def test_model_values_are_yaml(text, value):
    assert parse_scalar(text) == value


def test_lists_and_help(capsys):
    assert parse_run(["--list-configs"]) is None
    assert capsys.readouterr().out.strip() == preset_table()
    assert "24,960,398" in preset_table()
    assert parse_run(["--help"]) is None
    short = capsys.readouterr().out
    assert "--max_steps" in short and "--adam_beta1" not in short
    assert parse_run(["--help_all"]) is None
    assert "--adam_beta1" in capsys.readouterr().out
