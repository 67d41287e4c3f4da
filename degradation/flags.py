"""The fields of an experiment as flags of a command, and command lines back to experiments."""

import argparse
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from frankenlm.trainer_ext.common.checks import check_choice, suggest
from frankenlm.trainer_ext.common.cli import UserError

from .configs import CONFIGS, VARIANTS, ExperimentConfig, get_config

if TYPE_CHECKING:
    from .lab import Lab
    from .run.plan import Experiment
    from .run_options import RunOptions

logger = logging.getLogger(__name__)

# one experiment for each combination of these
LISTS = ("config", "method", "group", "prompts")
MOST_WINDOWS = 1000
DEVICES = ("cpu", *map(str, range(64)))
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
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


def read_memory(text: str) -> dict[int | str, str]:
    """Read `0=20GiB,cpu=60GiB`: devices by number or name, sizes as accelerate writes them."""
    sizes: dict[int | str, str] = {}
    for part in text.split(","):
        device, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"\d+(\.\d+)?[KMG]i?B", size, re.IGNORECASE) or device not in DEVICES:
            raise argparse.ArgumentTypeError(f"{part!r} is no DEVICE=SIZE such as 0=20GiB or cpu=60GiB")
        sizes[int(device) if device.isdigit() else device] = size
    return sizes


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="hub name or folder of a causal or masked language model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with the model")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the process's GPU if there is one)")
    parser.add_argument(
        "--device_map",
        choices=DEVICE_MAPS,
        help="spread the model over GPUs, main memory and --offload_folder, in place of --device",
    )
    parser.add_argument(
        "--max_memory",
        type=read_memory,
        metavar="DEVICE=SIZE",
        help="with --device_map: most of each; 0=20GiB,cpu=60GiB",
    )
    parser.add_argument("--offload_folder", help="with --device_map: folder for weights that memory has no room for")
    parser.add_argument("--force_fp16", action="store_true", help="allow float16 where it is known to overflow")


def add_log_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log_level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="what the console shows (default: info)",
    )


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait_lock", action="store_true", help="wait while another process works on the experiment")
    parser.add_argument(
        "--on_conflict",
        choices=["stop", "new-suffix", "archive"],
        default="stop",
        help="where rows of another configuration lie under the same name (default: stop)",
    )
    parser.add_argument("--rebuild", action="store_true", help="make a lost journal anew from the JSON file")


def options_of(args: argparse.Namespace) -> "RunOptions":
    """Return the options of a run that a command has flags for; the others are as they are by default."""
    from .run_options import RunOptions

    if args.device_map is None and (args.max_memory is not None or args.offload_folder is not None):
        raise UserError("--max_memory and --offload_folder say how --device_map spreads a model: give that too.")
    if args.device_map is not None and args.device is not None:
        raise UserError(f"--device {args.device} and --device_map {args.device_map}: leave one of them out.")
    return RunOptions(**{field.name: vars(args)[field.name] for field in fields(RunOptions) if field.name in args})


def add_experiment_flags(parser: argparse.ArgumentParser) -> None:
    """Add --config and a flag for every field of `ExperimentConfig`; one not given leaves the configuration's value."""
    group = parser.add_argument_group("the experiment (defaults: those of the configuration)")
    group.add_argument(
        "--config", nargs="+", required=True, metavar="NAME", help=f"one or more of {', '.join(CONFIGS)}"
    )
    group.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help=f"method and group by one name: {', '.join(VARIANTS)}",
    )
    group.add_argument(
        "--windows", type=int, metavar="N", help="every group in each of N windows of the depth by itself"
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
    """Return one configuration for every combination of --config, --prompts, and --method and --group or --variants.

    Several sets of prompts take their own names as suffixes, so that each has its files.

    Raises:
        UserError: a name or a value is wrong, or two experiments would be one.
    """
    changes = {
        field.name: getattr(args, field.name)
        for field in fields(ExperimentConfig)
        if field.name not in ("config_name", *LISTS) and getattr(args, field.name) is not None
    }
    prompts = words_of("prompts", args.prompts)
    try:
        configs = [
            get_config(name)
            | {**changes, **given(prompts=each), **given(method=method, group=group)}
            | (own_suffix(each, args.name_suffix) if len(prompts) > 1 else {})
            for name, each, (method, group) in itertools.product(
                words_of("config", args.config), prompts, methods_and_groups(args)
            )
        ]
    except ValueError as error:
        raise UserError(str(error)) from error
    refuse_equal(configs)
    return configs


def planned(lab: "Lab", configs: Sequence[ExperimentConfig], windows: bool) -> list["Experiment"]:
    """Return the experiments; of windows of the depth, those in which the model has the group.

    Raises:
        ValueError: a mistake, or no window has the group.
    """
    from .weights.groups import NothingThere

    experiments, empty = [], []
    for config in configs:
        try:
            experiments.append(lab.plan(config))
        except NothingThere:
            if not windows:
                raise
            empty.append(config.group)
    if empty and not experiments:
        raise ValueError(f"--windows: the model has nothing of {empty[0].partition('@')[0]} in any of them.")
    if empty:
        logger.warning("left out, for nothing of the group lies there: %s", ", ".join(dict.fromkeys(empty)))
    return experiments


def methods_and_groups(args: argparse.Namespace) -> list[tuple[str | None, str | None]]:
    """Return the damages that are asked for, each a method and a group; None: as the configuration says."""
    if args.variants is not None:
        if args.method is not None or args.group is not None:
            raise UserError("--variants names methods and groups: leave out --method and --group.")
        names = words_of("variants", args.variants)
        for name in names:
            check_choice("variants", name, VARIANTS)
        pairs = [VARIANTS[name] for name in names]
    else:
        pairs = list(itertools.product(words_of("method", args.method), words_of("group", args.group)))
    if args.windows is None:
        return pairs
    if not 1 <= args.windows <= MOST_WINDOWS:
        raise UserError(f"--windows {args.windows} must lie between 1 and {MOST_WINDOWS}.")
    for _, group in pairs:
        if group is None or "@" in group or "+" in group:
            raise UserError(f"--windows takes groups by --group or --variants, without layers and unions, not {group}.")
    depth = range(1, args.windows + 1)
    return [(method, f"{group}@{number}of{args.windows}") for method, group in pairs for number in depth]


def own_suffix(prompts: str, suffix: str | None) -> dict[str, str]:
    """Return the suffix of one set of prompts of several: the name of its task, behind the suffix given."""
    known = {config.prompts: config.name_suffix for config in CONFIGS.values()}
    name = known.get(prompts, Path(prompts).stem)
    return {"name_suffix": name if suffix is None else f"{suffix}_{name}"}


def refuse_equal(configs: Sequence[ExperimentConfig]) -> None:
    """Raise UserError where two experiments would write the same rows."""
    seen: dict[tuple, ExperimentConfig] = {}
    for config in configs:
        first = seen.setdefault((config.method, config.group, config.name_suffix), config)
        if first is not config:
            raise UserError(
                f"two experiments are called {config.method}, {config.group}, {config.name_suffix}: prompts "
                f"{first.prompts} and {config.prompts}; rename a file, or give each a --name_suffix of its own."
            )


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
