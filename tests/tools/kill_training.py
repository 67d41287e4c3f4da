"""A process that has imported everything and forks a child for every training run, to kill it where it is asked to.

One JSON request a line on standard input, one JSON answer a line on standard output:

    {"words": ["--preset", ...], "kill": null}                          runs scripts/train.py to its end
    {..., "kill": {"call": "save", "number": 3, "part": 0.5}}           SIGKILL inside the third file saved, half of
                                                                        which is on the disk
    {..., "kill": {"after": 0.4}}                                       SIGKILL after so many seconds

The answer: {"killed": bool, "code": exit code, "calls": {name: count}, "seconds": float, "said": standard error}.
Calls: `save` (weights, optimizer, random numbers), `text` (JSON and the like), `row` (of training.csv), `publish` (a
folder's last step into its place), `move` (a file's), `flush`, `remove` (a file), `discard` (a folder) and
`step`.
"""

import csv
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers.modeling_utils
from transformers import Trainer

from frankenlm.scripts.train import main
from frankenlm.trainer_ext.commands import train as _everything  # noqa: F401
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.optim import weight_average

COUNTS = dict.fromkeys(("save", "text", "row", "publish", "move", "flush", "remove", "discard", "step"), 0)


def wrap(owner, name, kind, kill, file_of=None):
    """Count the calls of owner.name, and end the process inside the one asked for."""
    real = getattr(owner, name)

    def wrapped(*arguments, **options):
        COUNTS[kind] += 1
        if kill and (kill.get("call"), kill.get("number")) == (kind, COUNTS[kind]):
            if file_of is not None:
                real(*arguments, **options)
                path = Path(file_of(*arguments))
                os.truncate(path, int(path.stat().st_size * kill["part"]))
            elif kill["part"] >= 0.5:
                real(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, name, wrapped)


def prepare(kill):
    def second(data, path, *more, **options):
        return path

    wrap(torch, "save", "save", kill, second)
    wrap(transformers.modeling_utils, "safe_save_file", "save", kill, second)
    wrap(weight_average, "save_file", "save", kill, second)
    wrap(Path, "write_bytes", "text", kill, lambda path, data: path)
    wrap(Path, "write_text", "text", kill, lambda path, *text, **options: path)
    wrap(csv.DictWriter, "writerow", "row", kill)
    wrap(os, "fsync", "flush", kill)
    wrap(Path, "rename", "publish", kill)
    wrap(Path, "replace", "move", kill)
    wrap(os, "unlink", "remove", kill)
    wrap(shutil, "rmtree", "discard", kill)
    wrap(Trainer, "training_step", "step", kill)


def child(request, report):
    code = 99
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        prepare(request["kill"])
        code = run_command(main, request["words"])
        os.write(report, json.dumps({"calls": COUNTS, "code": code}).encode())
    finally:
        os._exit(code)


def serve(request):
    with tempfile.TemporaryDirectory() as folder:
        report, said, started = Path(folder) / "report", Path(folder) / "said", time.monotonic()
        with report.open("wb") as facts, said.open("wb") as errors:
            pid = os.fork()
            if pid == 0:
                os.dup2(errors.fileno(), 2)
                child(request, facts.fileno())
        after = (request["kill"] or {}).get("after")
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        found = json.loads(report.read_text() or '{"calls": {}, "code": null}')
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return {**found, "killed": killed, "seconds": time.monotonic() - started, "said": said.read_text()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
