"""Where settings come from: precedence, strict keys, seed aliases, help."""

import pytest

from frankenlm.modeling import list_presets, preset_files, read_preset
from frankenlm.trainer_ext.commands.help_page import help_page
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.preflight import preset_config
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
        ("- a\n- b", "expected 'key: value' lines, found list"),
        ("a: [", "not valid YAML: line 1, column 5"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("seed: 1\nseed: 2", "line 2, column 1: key 'seed' stands twice, first in line 1"),
        ("seed: 1\ntraining: {seed: 2}", "'seed' stands twice, in different sections"),
        ("training: [1, 2]", "section 'training': expected 'key: value' lines, found list"),
        ("model: mini", "section 'model': expected 'key: value' lines, found str"),
        (
            "training:\n\tseed: 1",
            "line 2, column 1: found character '\\t' that cannot start any token (indent with spaces)",
        ),
        ("seed: [1, 2]", "seed: one value is expected, not a list"),
        ("label_names: []", "label_names: the list is empty"),
        ("seed: {a: 1}", "invalid int value"),
        ("seed: 1.5", "invalid int value: '1.5'"),
        ("1: x", "the key 1 is no text"),
        ("config: other.yaml", "'config' belongs on the command line"),
        ("seed: !!python/object:os.system x", "could not determine a constructor for the tag"),
        ("seed: !!binary aGk=", "could not determine a constructor"),
        ("seed: *a", "found undefined alias 'a'"),
        ("a: &a [*a]", "has more than 100000 values"),
        ("seed: 1\n---\nseed: 2", "found another document"),
        ('run_name: "\\ud800"', "half a surrogate pair"),
        ("a: " + "[" * 100_000, "nested too deep"),
        ("a: " + "{b: " * 100_000, "nested too deep"),
        ("seed: " + "9" * 5000, "is no usable number"),
    ],
)
def test_run_file_is_read_strictly(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse_run([*BASE, "--config", str(file)])
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run_name: café".encode("latin1"), "line 1: not UTF-8 (byte 0xe9)"),
        ("seed: 3".encode("utf-16"), "UTF-16, not UTF-8. Convert the file first, for example with: iconv -f utf-16"),
        ("seed: 3".encode("utf-16-le"), "UTF-16LE, not UTF-8"),
        (b"seed: 3\0", "special characters are not allowed"),
    ],
)
def test_run_file_in_another_encoding(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        parse_run([*BASE, "--config", str(file)])
    assert message in str(caught.value) and f"--config {file}" in str(caught.value)
    assert "\n" not in str(caught.value)


def from_file(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    return parse_run([*BASE, "--config", str(file)])


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 2e-2", "learning_rate", 0.02),
        ("learning_rate: 1E-5", "learning_rate", 1e-5),
        ("weight_decay: .5", "weight_decay", 0.5),
        ("max_steps: 1e4", "max_steps", 10_000),
        ("max_steps: 1_000", "max_steps", 1000),
        ("seed: 010", "seed", 10),  # YAML 1.1: 8
        ("seed: 0x10", "seed", 16),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr_rate: 1e-1",
            "lr_scheduler_kwargs",
            {"min_lr_rate": 0.1},
        ),
        ("lr_scheduler_kwargs: {a: [1E2, no, 'no', 3]}", "lr_scheduler_kwargs", {"a": [100.0, False, "no", 3]}),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("save_strategy: no", "save_strategy", "no"),
        ("bf16: on", "bf16", True),
        ("logging_first_step: off", "logging_first_step", False),
        ("run_name: 010", "run_name", "010"),
        ("run_name: 1e5", "run_name", "1e5"),
        ("run_name: 2026-01-02", "run_name", "2026-01-02"),
        ("run_name: 1:30", "run_name", "1:30"),
        ("run_name: no", "run_name", "no"),
        ("run_name: a\u2028b\x85c", "run_name", "a\u2028b\x85c"),
        ("run_name: 'a\u2028b\ue000'", "run_name", "a\u2028b\ue000"),
        ("seed: null", "seed", 42),
        ("training:\ndata:", "seed", 42),
    ],
)
def test_values_of_run_files_are_what_they_look_like(tmp_path, text, name, value):
    found = getattr(from_file(tmp_path, text).training, name)
    assert found == value and type(found) in (type(value), type(found) if isinstance(found, str) else type(value))


@pytest.mark.parametrize(
    ("text", "join", "packing"),
    [("join_articles: no\npacking: no", "no", False), ("join_articles: yes\npacking: on", "yes", True)],
)
def test_words_of_data_flags(tmp_path, text, join, packing):
    run = from_file(tmp_path, text)
    assert (run.data.join_articles, run.data.packing) == (join, packing)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("initializer_range", "2e-2", 0.02),
        ("hidden_size", "6.4e1", 64),
        ("use_bias", "no", False),
        ("use_bias", "true", True),
        ("hidden_act", "no", "no"),
        ("layer_pattern", "[retnet, mamba]", ["retnet", "mamba"]),
        ("pad_token_id", "null", None),
    ],
)
def test_model_fields_take_what_their_types_say(tmp_path, name, text, value):
    fields = [
        from_file(tmp_path, f"model:\n  {name}: {text}").model_fields,
        from_file(tmp_path, f"{name}: {text}").model_fields,
    ]
    fields.append(parse_run([*BASE, f"--model.{name}", text]).model_fields)
    for found in fields:
        assert found == {name: value} and type(found[name]) is type(value)


def test_a_number_in_scientific_notation_reaches_the_model(tmp_path):
    run = from_file(tmp_path, "model:\n  initializer_range: 2e-2")
    assert preset_config(run, {}).initializer_range == 0.02


@pytest.mark.parametrize("value", ["[a", "{", "[" * 100_000, "9" * 5000, "!!int x"])
def test_model_values_that_are_no_yaml(value):
    with pytest.raises(UserError, match=r"^--model\.hidden_size ") as caught:
        parse_run([*BASE, "--model.hidden_size", value])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [1", "not valid YAML: line 1"),
        ("model: {model_type: a, model_type: b}", "key 'model_type' stands twice"),
        ("café".encode("latin1"), "can't decode byte 0xe9"),
        ("", "expected a mapping of the sections"),
        ("[model]", "expected a mapping of the sections"),
        ("model: no", "expected a mapping of the sections"),
    ],
)
def test_a_damaged_preset_is_named(tmp_path, monkeypatch, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(preset_files, "PRESET_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="preset 'mine'") as caught:
        read_preset("mine")
    assert message in str(caught.value)


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
    short = help_page()
    assert "--max_steps" in short and "--adam_beta1" not in short
    assert parse_run(["--help_all"]) is None
    assert "--adam_beta1" in capsys.readouterr().out
