"""What a run's flags need beside this package: loggers, optimizers, schedules; tried out before anything is touched."""

import contextlib
import importlib.util
import math
from collections.abc import Iterator

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import is_liger_kernel_available

from frankenlm.modeling.checks import suggest

from .arguments import FrankenTrainingArguments
from .common.cli import UserError, one_line

# Steps of the trial of a schedule.
TRIAL_STEPS = 20
# Optimizers that want the model's layers, and the package that each of them is in.
LAYERWISE = {"galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "adalomo": "lomo_optim"}


@contextlib.contextmanager
def needed_packages() -> Iterator[None]:
    """Turn what transformers raises for a missing package, account or connection into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (ImportError, OSError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise UserError(one_line(error)) from error


def check_requirements(args: FrankenTrainingArguments) -> None:
    """Try out what the flags name.

    Raises:
        UserError: a package is missing, a name is unknown, or the options do not fit what they are for.
    """
    check_reporters(args.report_to)
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("--use_liger_kernel needs the package liger-kernel: pip install liger-kernel.")
    check_schedule(args, try_optimizer(args))


def check_reporters(names: list[str]) -> None:
    """Raises UserError for a --report_to that transformers does not know, or whose package is missing."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = sorted(INTEGRATION_TO_CALLBACK)
            raise UserError(f"--report_to {name}: unknown.{suggest(name, known)} Known: {', '.join(known)}, all, none.")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError, OSError) as error:
            raise UserError(f"--report_to {name}: {one_line(error)}") from error


def try_optimizer(args: FrankenTrainingArguments) -> torch.optim.Optimizer:
    """Make the optimizer of --optim for one weight; layerwise ones, which want a model, are looked for only.

    Raises:
        UserError: its package is missing, or it does not take the options.
    """
    name = args.optim.value
    for prefix, package in LAYERWISE.items():
        if name.startswith(prefix):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"--optim {name} needs the package {package}: pip install {package.replace('_', '-')}.")
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 2))], lr=args.learning_rate)
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
        options = {"weight_decay": args.weight_decay, **options}
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        return optimizer_class([weight], **options)
    except (ImportError, ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise UserError(f"--optim {name}: {one_line(error)}") from error


def check_schedule(args: FrankenTrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    """Let the schedule of --lr_scheduler_type take some steps.

    Raises:
        UserError: it does not take --lr_scheduler_kwargs, gives no rate, or cannot be halved by --learning_rate_drop.
    """
    name = args.lr_scheduler_type.value
    options = args.lr_scheduler_kwargs or {}
    try:
        schedule = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(TRIAL_STEPS) if args.warmup_steps < 1 else 0,
            num_training_steps=TRIAL_STEPS,
            scheduler_specific_kwargs=dict(options),
        )
        if isinstance(schedule, LambdaLR):
            rates = [factor(step) for factor in schedule.lr_lambdas for step in range(TRIAL_STEPS + 1)]
            if not all(math.isfinite(rate) for rate in rates):
                raise ValueError("its rates are not finite numbers")
    except (ValueError, TypeError, ArithmeticError, KeyError) as error:
        raise UserError(f"--lr_scheduler_type {name}, --lr_scheduler_kwargs {options}: {one_line(error)}") from error
    if args.learning_rate_drop < 1 and not isinstance(schedule, LambdaLR):
        raise UserError(
            f"--learning_rate_drop {args.learning_rate_drop} needs a schedule that depends on the step alone, not "
            f"{name}: use --lr_scheduler_type linear, cosine or constant_with_warmup."
        )
