"""From the command line, a run's YAML file and a preset to the settings of one run.

Precedence: command line > run.yaml > preset > defaults. The three sources become one list of command-line words,
weakest first, so that argparse checks every value the same way and the last one wins.
"""

import argparse
import dataclasses
import functools
import json
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, HfArgumentParser

from frankenlm.modeling import list_presets, read_preset
from frankenlm.modeling.checks import check_keys
from frankenlm.modeling.yaml_text import YamlFloat, YamlInt, YamlWord, load_yaml, plain

from .arguments import DataArguments, FrankenTrainingArguments
from .common.cli import OneLineParserMixin, UserError, user_mistakes
from .common.objectives import OBJECTIVES
from .common.redaction import learn_secrets, redact_words
from .common.text_files import read_text
from .model_arguments import ModelArguments

SECTIONS = {"model": ModelArguments, "data": DataArguments, "training": FrankenTrainingArguments}
MODEL_PREFIX = "--model."

USAGE = """frankenlm train --preset NAME --dataset DATA --output_dir DIR [options]
       accelerate launch -m frankenlm.scripts.train ...      several processes; in a clone also scripts/train.py"""
EPILOG = """\
--model.FIELD VALUE changes one field of the preset's model, for example --model.num_hidden_layers 4
or --model.layer_pattern "[retnet, mamba]".
Precedence: command line > --config run.yaml > preset > defaults shown here.
Exit codes: 0 done, 1 failed, 2 a mistake in the input, 6 storage full or read-only, 130/143 stopped by a signal
(one process: after writing a checkpoint; continue with --resume_from_checkpoint last). They are those of the
command: `accelerate launch` turns every failure into 1, and prints a traceback of its own unless called with -q.
Going on from a checkpoint is exact to the last bit on a CPU in float32 with one process: data order, random numbers,
optimizer, schedule, guard, average of the weights, curves. It is not across other hardware, versions, or numbers of
threads; other settings or data are refused, or told with --allow_inexact_resume. docs/train.md has the whole table.
"""

# What a newcomer meets in --help; --help_all shows the rest of TrainingArguments too.
COMMON_TRAINING_FLAGS = frozenset(
    (
        "output_dir",
        "overwrite_output_dir",
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_type",
        "weight_decay",
        "max_grad_norm",
        "bf16",
        "seed",
        "logging_steps",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "early_stopping_patience",
        "resume_from_checkpoint",
        "allow_inexact_resume",
        "gradient_guard",
        "guard_policy",
        "matrix_optimizer",
        "galore_rank",
        "ema_decay",
        "log_level",
        "use_cpu",
        "activation_checkpointing",
        "torch_compile",
    )
)


@dataclass(frozen=True)
class RunSettings:
    """Everything that defines one run. `model_fields` are the changes to the preset's model configuration."""

    model: ModelArguments
    data: DataArguments
    training: FrankenTrainingArguments
    model_fields: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


class RunParser(OneLineParserMixin, HfArgumentParser):
    """The parser behind scripts/train.py: three argument groups, short help, errors in one line."""

    def __init__(self):
        super().__init__(
            list(SECTIONS.values()),
            prog="train.py",
            usage=USAGE,
            epilog=EPILOG,
            description="Train a small language model, from a preset to a checkpoint that AutoModel loads.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="store_true", help="this page")
        self.add_argument("--help_all", "--help-all", action="store_true", help="every flag of TrainingArguments too")

    def hide_uncommon_flags(self):
        """Leave only the flags of a first run in the help."""
        shown = {f.name for section in ("model", "data") for f in dataclasses.fields(SECTIONS[section])}
        for action in self._actions:
            if action.dest not in shown | COMMON_TRAINING_FLAGS | {"help", "help_all"}:
                action.help = argparse.SUPPRESS


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each help text (unless None); the epilog as it is written."""

    def _get_help_string(self, action):
        if action.default is None or action.default is argparse.SUPPRESS or action.const is True:
            return action.help
        return super()._get_help_string(action)

    def _format_action_invocation(self, action):
        # `--max_steps N` once, without the twin in hyphens
        if not action.option_strings:
            return super()._format_action_invocation(action)
        twins = {option.replace("_", "-") for option in action.option_strings if "_" in option}
        options = [option for option in action.option_strings if option not in twins or "_" in option]
        value = "" if action.nargs == 0 else " " + self._format_args(action, action.dest.upper().rpartition("_")[2])
        return ", ".join(options) + ("" if action.const is True else value)


def parse_run(argv: Sequence[str]) -> RunSettings | None:
    """Read the settings of a run from command-line words (without the program's name).

    Returns None when the words only asked for something to be printed (help, list of presets), which is then done.

    Raises:
        UserError: unknown preset, key or flag, a value of the wrong type, settings that exclude each other.
    """
    with user_mistakes():
        words, command_fields = split_model_fields(argv)
        first = RunParser().parse_strictly(words)
        if first.help or first.help_all:
            RunParser().print_help()
            return None
        if first.list_presets:
            print(preset_table())
            return None
        run_words, run_fields = read_run_file(first.config) if first.config else ([], {})
        weak = RunParser().parse_strictly(run_words + words)
        preset_words = read_preset_words(weak.preset) if weak.preset else []
        model, data, training = parse_dataclasses(default_words(weak) + preset_words + run_words + words)
        fields = {**run_fields, **command_fields}
        fields = check_model_fields(model, fields)
    if data.streaming and training.accelerator_config.dispatch_batches is None:
        # each process reads the stream and takes its own rows of every batch, instead of waiting for rank 0's
        training.accelerator_config.dispatch_batches = False
    program = (
        ["frankenlm", "train"] if sys.argv[0].startswith("frankenlm ") else ["accelerate", "launch", "scripts/train.py"]
    )
    command = shlex.join([*program, *redact_words(argv)])
    return RunSettings(model, data, training, fields, command)


def parse_dataclasses(words: Sequence[str]) -> tuple[ModelArguments, DataArguments, FrankenTrainingArguments]:
    """Turn command-line words into the three dataclasses."""
    values = vars(RunParser().parse_strictly(words))
    learn_secrets(values)
    return tuple(
        section(**{f.name: values[f.name] for f in dataclasses.fields(section) if f.init})
        for section in SECTIONS.values()
    )


def split_model_fields(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--model.FIELD VALUE` and `--model.FIELD=VALUE` out of `argv`; values are read as YAML."""
    words, fields = [], {}
    rest = iter(argv)
    for word in rest:
        if not word.startswith(MODEL_PREFIX):
            words.append(word)
            continue
        name, equals, value = word.removeprefix(MODEL_PREFIX).partition("=")
        if not equals:
            value = next(rest, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{MODEL_PREFIX}{name}: expected a value, as in {MODEL_PREFIX}num_hidden_layers 4.")
        try:
            fields[name] = parse_scalar(value)
        except ValueError as error:
            raise UserError(f"{word.partition('=')[0]} {value[:40]!r}: {error}") from error
    return words, fields


def parse_scalar(text: str) -> Any:
    """Read a value as YAML. Raises ValueError for what is none."""
    return load_yaml(text)


def read_run_file(path: str) -> tuple[list[str], dict[str, Any]]:
    """Read a run's YAML file: (command-line words, model fields).

    Sections model, data and training, or all keys flat; unknown keys stop with a suggestion. In section model (and
    flat) the fields of the model's configuration stand beside --preset, --tokenizer and the like.
    """
    content = load_yaml_mapping(path)
    everything = {name for section in SECTIONS.values() for name in field_names(section)}
    settings = flat_settings(path, content)
    arguments = {key: value for key, value in settings.items() if key in everything}
    model_fields = {key: value for key, value in settings.items() if key not in everything}
    check_keys(f"--config {path}", model_fields, everything | set(SECTIONS) | all_config_fields())
    for name in ("config", "list_presets"):
        if name in arguments:
            raise UserError(f"--config {path}: {name!r} belongs on the command line; here it does nothing.")
    try:
        words = to_words(arguments)
        RunParser().parse_strictly(words)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    return words, model_fields


def flat_settings(path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all sections and those outside any.

    Raises:
        UserError: a section that is no mapping, a key that belongs to another section or stands in two.
    """
    parts = []
    for name, values in content.items():
        if name not in SECTIONS:
            parts.append({name: values})
            continue
        values = {} if values is None else values  # a section with nothing below it
        if not isinstance(values, Mapping):
            raise UserError(
                f"--config {path}, section {name!r}: expected 'key: value' lines, found {type(values).__name__}."
            )
        if name != "model":
            check_keys(f"--config {path}, section {name!r}", values, field_names(SECTIONS[name]))
        parts.append(values)
    settings: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if not isinstance(key, str):
                raise UserError(f"--config {path}: the key {key!r} is no text.")
            if key in settings:
                raise UserError(f"--config {path}: {key!r} stands twice, in different sections.")
            settings[key] = value
    return settings


def load_yaml_mapping(path: str) -> dict[str, Any]:
    """Load a YAML file that holds a mapping; see modeling/yaml_text.py for what YAML is here."""
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file.")
    try:
        text = read_text(path)
    except ValueError as error:
        raise UserError(f"--config {error}") from error
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise UserError(f"--config {path}: {error}") from error
    if content is None:
        raise UserError(f"--config {path}: the file is empty; 'key: value' lines are expected.")
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected 'key: value' lines, found {type(content).__name__}.")
    return content


def read_preset_words(name: str) -> list[str]:
    """The data and training sections of a preset as command-line words; `data` may name the tokenizer."""
    preset = read_preset(name)
    check_keys(f"preset {name!r}, section 'data'", preset.data, field_names(DataArguments) | {"tokenizer"})
    check_keys(f"preset {name!r}, section 'training'", preset.training, field_names(FrankenTrainingArguments))
    return to_words({**preset.data, **preset.training})


def default_words(weak: argparse.Namespace) -> list[str]:
    """Defaults that depend on other settings: rows of unequal length are batched by length."""
    unequal = not weak.packing or weak.objective == "classification"
    return ["--train_sampling_strategy=group_by_length"] if unequal and not weak.streaming else []


def to_words(values: Mapping[str, Any]) -> list[str]:
    """Write settings as command-line words; None leaves the default.

    Raises:
        UserError: a list for a flag that takes one value, or an empty one.
    """
    words, kinds = [], field_kinds()
    for key, value in values.items():
        if isinstance(value, list):
            if list not in kinds[key]:
                raise UserError(f"{key}: one value is expected, not a list.")
            if not value:
                raise UserError(f"{key}: the list is empty; leave {key} out, or name something.")
            words += [f"--{key}", *(as_word(item, kinds[key]) for item in value)]
        elif value is not None:
            words.append(f"--{key}={as_word(value, kinds[key])}")
    return words


def as_word(value: Any, kinds: set[type]) -> str:
    """Write one value as a person would on the command line, for a field of one of `kinds`."""
    if isinstance(value, (dict, list)):
        return json.dumps(plain(value))
    if isinstance(value, YamlWord):
        return str(value.truth) if bool in kinds and str not in kinds else str(value)
    if isinstance(value, (YamlInt, YamlFloat)) and str in kinds and not kinds & {int, float}:
        return value.written
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # 1e4 steps are 10000 steps
    return str(value)


@functools.cache
def field_kinds() -> dict[str, set[type]]:
    """The types that the value of each flag may have: {list, str} for `list[str] | None`; strings for enumerations."""
    found = {}
    for section in SECTIONS.values():
        hints = typing.get_type_hints(section)
        for name in field_names(section):
            options = typing.get_args(hints[name]) if is_union(hints[name]) else (hints[name],)
            kinds = {typing.get_origin(option) or option for option in options} - {type(None)}
            found[name] = {str if isinstance(kind, type) and issubclass(kind, str) else kind for kind in kinds}
    return found


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def field_names(section: type) -> set[str]:
    """Names of a dataclass's fields that a user may set."""
    return {f.name for f in dataclasses.fields(section) if f.init}


@functools.cache  # presets are files of the package, and a sweep asks for each of its sections
def all_config_fields() -> frozenset[str]:
    """Field names of the configurations that presets describe, aliases included."""
    names = set()
    for config_class in {CONFIG_MAPPING[read_preset(name).model_type] for name in list_presets()}:
        names |= config_class.known_keys()
    return frozenset(names)


def check_model_fields(model: ModelArguments, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a model was named, and that the fields to change belong to it; return them as the fields need them."""
    if model.preset and model.model_name_or_path:
        raise UserError("--preset and --model_name_or_path exclude each other: give one.")
    if not model.preset and not model.model_name_or_path:
        raise UserError(f"--preset is missing. Known: {', '.join(list_presets())}.")
    if not fields:
        return {}
    if model.model_name_or_path:
        name = next(iter(fields))
        raise UserError(f"--model.{name} changes a preset, and the saved weights of --model_name_or_path are fixed.")
    config_class = CONFIG_MAPPING[read_preset(model.preset).model_type]
    check_keys("--model.FIELD", fields, config_class.known_keys())
    if "vocab_size" in fields:
        raise UserError("--model.vocab_size: the tokenizer decides it; use --vocab_size.")
    hints = {field.name: field.type for field in dataclasses.fields(config_class)}
    return {name: as_field(value, hints.get(name)) for name, value in fields.items()}


def as_field(value: Any, hint: Any) -> Any:
    """Return a value for a field of a configuration: a plain `no` is a word or False, 1e3 is 1000, as its type says."""
    kinds = set(typing.get_args(hint) if is_union(hint) else (hint,))
    if isinstance(value, YamlWord):
        return value.truth if bool in kinds else str(value)
    if isinstance(value, YamlFloat) and int in kinds and float not in kinds and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [str(item) if isinstance(item, YamlWord) else plain(item) for item in value]
    return plain(value)


def preset_table() -> str:
    """A table of the presets: name, parameters, objective, path of the file."""
    import torch

    lines = [f"{'preset':<16} {'parameters':>12}  {'objective':<9} file"]
    for name, path in list_presets().items():
        preset = read_preset(name)
        objective = preset.data["objective"]
        config = CONFIG_MAPPING[preset.model_type].from_preset(name, is_decoder=objective == "causal")
        with torch.device("meta"):
            parameters = OBJECTIVES[objective].auto_model.from_config(config).num_parameters()
        lines.append(f"{name:<16} {parameters:>12,}  {objective:<9} {path}")
    return "\n".join(lines)
