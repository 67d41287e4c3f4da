"""Several experiments of one command: one after the other, whatever becomes of one of them."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from frankenlm.trainer_ext.common.cli import Interrupted, UserError, is_main_process, is_storage_error, one_line

if TYPE_CHECKING:
    from .lab import Lab
    from .run.plan import Experiment

logger = logging.getLogger("frankenlm.degradation")

LOGS = "logs"
LONGEST_LOG_NAME = 200


def run_each(
    experiments: Sequence["Experiment"],
    args: argparse.Namespace,
    lab: "Lab",
    work: Callable[["Experiment"], Iterable[Path]],
) -> tuple[list[Path], list[Exception]]:
    """Do `work` for each experiment, with a log file of its own; one that fails does not keep the others from running.

    Where there are several processes, one in which it failed ends instead, and its launcher ends the others.

    Returns:
        The result files, each once, and what failed.
    """
    from frankenlm.trainer_ext.common.logs import RunLog

    failures: list[Exception] = []
    paths: dict[Path, None] = {}
    for experiment in experiments:
        try:
            with RunLog(args.log_level) as log:
                log.write_to(log_path(Path(args.output_dir), experiment), append=True)
                logger.info("%s, group %s", experiment.experiment_id, experiment.config.group)
                for path in work(experiment):
                    paths[path] = None
                    logger.info("done: %s", path)
        except Interrupted:
            raise
        except Exception as error:
            if is_storage_error(error) or not lab.in_step:
                raise  # the next experiment would meet the same storage, or wait for processes that are elsewhere
            failures.append(error)
            if len(experiments) == 1:
                break
            if not (hasattr(error, "exit_code") or isinstance(error, UserError)):
                logger.error("failed", exc_info=error)
            if is_main_process():
                print(
                    f"failed: {experiment.experiment_id}, group {experiment.config.group}: {one_line(error)}",
                    file=sys.stderr,
                )
    return list(paths), failures


def tell_failures(failures: Sequence[Exception], total: int) -> None:
    """Raise the one failure of one experiment, or how many of several have failed; nothing where none has."""
    if failures:
        raise failures[0] if total == 1 else SomeFailed(len(failures), total)


class SomeFailed(Exception):
    """Some experiments of a list failed; each has said why."""

    exit_code = 1

    def __init__(self, failed: int, total: int):
        super().__init__(f"{failed} of {total} experiments failed; the others are done.")


def log_path(output_dir: Path, experiment: "Experiment") -> Path:
    """Return results/logs/{experiment_id}_{time}.log, without what file names cannot hold."""
    folder = output_dir / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    # the group may name many layers, and a name holds 255 bytes
    name = re.sub(r"[^\w.+@-]+", "_", f"{experiment.experiment_id}_{experiment.config.group}")
    name = name.encode()[:LONGEST_LOG_NAME].decode(errors="ignore")
    return folder / f"{name}_{datetime.now():%Y%m%d-%H%M%S}_{os.getpid()}.log"
