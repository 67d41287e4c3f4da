"""The fields of an experiment as flags of a command, and command lines back to experiments."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import UserError

from .configs import CONFIGS, ExperimentConfig, get_config

if TYPE_CHECKING:
    from .lab import RunOptions

# one experiment for each combination of these
LISTS = ("config", "method", "group")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def flag_type(name: str):
    """Return the function that reads a field's flag, from the field's type."""
    hint = get_type_hints(ExperimentConfig)[name]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    if name == "levels":
        return read_levels
    (kind,) = kinds
    return read_bool if kind is bool else kind


def read_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def read_levels(text: str) -> tuple[float | int, ...]:
    """Read levels with commas between them; whole numbers stay whole."""
    levels = []
    for part in text.split(","):
        try:
            if "_" in part:
                raise ValueError("Python reads 0_1 as 1")
            levels.append(int(part) if part.strip().lstrip("+-").isdigit() else float(part))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no number; write --levels 0,0.1,0.2") from None
    return tuple(levels)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="hub name or folder of a causal or masked language model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with the model")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the process's GPU if there is one)")
    parser.add_argument("--force_fp16", action="store_true", help="allow float16 where it is known to overflow")


def add_log_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log_level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="what the console shows (default: info)",
    )


def options_of(args: argparse.Namespace) -> "RunOptions":
    """Return the options of a run that a command has flags for; the others are as they are by default."""
    from .lab import RunOptions

    return RunOptions(**{field.name: vars(args)[field.name] for field in fields(RunOptions) if field.name in args})


def add_experiment_flags(parser: argparse.ArgumentParser) -> None:
    """Add --config and a flag for every field of `ExperimentConfig`; one not given leaves the configuration's value."""
    group = parser.add_argument_group("the experiment (defaults: those of the configuration)")
    group.add_argument(
        "--config", nargs="+", required=True, metavar="NAME", help=f"one or more of {', '.join(CONFIGS)}"
    )
    for field in fields(ExperimentConfig):
        if field.name == "config_name":
            continue
        kind = flag_type(field.name)
        words: dict[str, Any] = {"type": kind, "help": field.metadata["help"], "metavar": "VALUE"}
        if field.name in LISTS:
            words |= {"nargs": "+"}
        elif kind is read_bool:
            words |= {"nargs": "?", "const": True, "metavar": "true|false"}
        elif field.metadata["choices"]:
            words |= {"metavar": "|".join(field.metadata["choices"])}
        group.add_argument(f"--{field.name}", **words)


def experiments_of(args: argparse.Namespace) -> list[ExperimentConfig]:
    """Return one configuration for every combination of --config, --method and --group.

    Raises:
        UserError: a name or a value is wrong.
    """
    changes = {
        field.name: getattr(args, field.name)
        for field in fields(ExperimentConfig)
        if field.name not in ("config_name", *LISTS) and getattr(args, field.name) is not None
    }
    lists = [words_of(name, getattr(args, name)) for name in ("method", "group")]
    try:
        return [
            get_config(name) | {**changes, **given(method=method, group=group)}
            for name, method, group in itertools.product(words_of("config", args.config), *lists)
        ]
    except ValueError as error:
        raise UserError(str(error)) from error


def words_of(name: str, values: Sequence[str] | None) -> list[str | None]:
    """Return the words of a list flag, which may be separated by spaces or commas; [None] where it was not given.

    Layers and experts have commas of their own (`attn_only@L3,7`, `mlp_experts#0,2`): what follows one and begins with
    a digit belongs to it.

    Raises:
        UserError: a word is empty, or there twice.
    """
    if values is None:
        return [None]
    words: list[str] = []
    for part in itertools.chain.from_iterable(value.split(",") for value in values):
        if words and part[:1].isdigit() and {"@", "#"} & set(words[-1]):
            words[-1] += f",{part}"
        else:
            words.append(part)
    for place, word in enumerate(words):
        if not word.strip():
            raise UserError(f"--{name} {','.join(values)!r}: a name is empty.")
        if word in words[:place]:
            raise UserError(f"--{name}: {word} is there twice.")
    return words


def given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Let options be written with dashes too: --wait-lock is --wait_lock."""
    return [
        "--" + word[2:].partition("=")[0].replace("-", "_") + "".join(word[2:].partition("=")[1:])
        if word.startswith("--")
        else word
        for word in argv
    ]


def check_command(name: str, known: Sequence[str]) -> None:
    """Raise UserError with a did-you-mean for a command that does not exist."""
    if name not in known:
        raise UserError(f"unknown command {name!r}.{suggest(name, known)} Commands: {', '.join(known)}.")
