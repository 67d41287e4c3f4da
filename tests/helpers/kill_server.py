"""A process that has imported everything, and forks a child for every try: a start costs milliseconds, not seconds.

A model and what an experiment imports are loaded here, before the first fork that asks for them.

One JSON request a line on standard input, one JSON answer a line on standard output:

    {"workload": "files", "model": null, "folder": "...", "kill": null}    runs to the end
    {..., "kill": {"after": 0.02}}                      SIGKILL from here after so many seconds
    {..., "kill": {"call": "write", "number": 3, "part": 0.5}}    SIGKILL inside the child's third os.write, half of
                                                                  whose bytes were written

The answer: {"hung": bool, "killed": bool, "status": int, "seconds": float, "acknowledged": [row keys],
"calls": {name: count}}.
`acknowledged` are the rows whose `Store.append` had returned. Calls are counted from the start of the workload.
"""

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from frankenlm.degradation.records import store
from frankenlm.degradation.records.journal import JournalReader
from frankenlm.degradation.records.row_keys import FINISHED
from frankenlm.degradation.records.store import Store
from record_rows import CONFIG, NAMES, lesion, make_row

CALLS = ("write", "fsync", "replace", "ftruncate", "unlink")
LEVELS, PROMPTS, BATCH = 2, 3, 2
HANGS_AFTER = 60.0  # seconds
real_write = os.write


def files(folder, model):
    """A run without a model: the files' traffic of an experiment of two cells, in batches of two rows."""
    with Store.open(folder, *NAMES, config_fields=CONFIG, manifest={"torch": "2"}) as store:
        for level in range(LEVELS):
            rows = [make_row(prompt, 0, level) for prompt in range(1, PROMPTS + 1)]
            missing = [row for row in rows if row["row_key"] not in store.finished]
            if missing:
                store.append_lesion(lesion(level))
            for start in range(0, len(missing), BATCH):
                store.append(missing[start : start + BATCH])
            store.export()


def experiment(folder, model):
    """The real thing: an experiment of 8 rows in four cells on a tiny model that was loaded before the fork."""
    run_all(folder, model, SMALLEST | {"levels": (0.0, 0.3), "n_rep": 2})


def several(folder, model):
    """Several methods, groups and windows in one command: 12 rows in two files."""
    configs = [{"method": method, "group": group} for method in ("mult_gauss", "ablation") for group in WINDOWS]
    run_all(folder, model, *(SMALLEST | {"levels": (0.3,)} | config for config in configs[:-1]))


def targeted(folder, model):
    """Chosen lesions and their control, with scores that are measured first: 8 rows in two files."""
    lesion = {"group": "attn_o", "unit": "head", "importance": "ablation", "levels": (1,)}
    run_all(folder, model, *(SMALLEST | lesion | {"method": method} for method in ("targeted", "matched")))


def recover(folder, model):
    """Two cells, damaged, trained for two steps, and measured at each: 12 rows in three files."""
    from frankenlm.degradation.configs import get_config
    from frankenlm.degradation.recovery import recover as flow
    from frankenlm.degradation.recovery.settings import RecoverySettings

    text = Path(folder).parent / "text.txt"
    text.write_text("the kettle sang and the dog slept. " * 40, encoding="utf-8")
    settings = RecoverySettings(str(text), steps=2, every=1, batch=2, length=16)
    lab = lab_in(folder, model)
    config = get_config("smoke") | SMALLEST | {"group": "mlp_only", "levels": (0.3,)}
    flow.recover(lab, lab.plan(config), settings)


def skills(folder, model):
    """Scores of given answers, a file a cell: the undamaged model's and two."""
    from frankenlm.degradation.configs import get_config
    from frankenlm.degradation.skills.measuring import measure_skills, plan_skills

    lab = lab_in(folder, model)
    config = get_config("smoke") | SMALLEST | {"levels": (0.3,), "n_rep": 2}
    measure_skills(lab, plan_skills(lab, [config]), Path(folder), progress=False)


SMALLEST = {"n_rep": 1, "max_prompts": 2, "max_new_tokens": 4, "dtype": "float32", "perplexity": False}
WINDOWS = ("attn_only@1of2", "mlp_only@2of2")


def lab_in(folder, model):
    from frankenlm.degradation.lab import Lab, RunOptions

    return Lab(model[0], RunOptions(output_dir=folder, progress=False), tokenizer=model[1])


def run_all(folder, model, *changes):
    from frankenlm.degradation.configs import get_config

    lab = lab_in(folder, model)
    for experiment in [lab.plan(get_config("smoke") | change) for change in changes]:
        lab.run(experiment)


WORKLOADS = {work.__name__: work for work in (files, experiment, several, targeted, recover, skills)}


@functools.cache
def load(folder):
    """Load a model, and all that an experiment imports, once for all children."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import frankenlm.degradation.lab
    import frankenlm.degradation.recovery.recover  # noqa: F401
    from frankenlm.degradation.run import limits

    limits.HostReader = lambda: lambda: 0.2  # what else the machine's memory holds must not end a child
    torch.set_num_threads(1)
    # tqdm's own lock is shared with forked processes: a child killed inside it would stop all that come after
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    model = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as results:  # once here, for what is imported and made at first use
        experiment(results, model)
    return model


def acknowledge(descriptor):
    """Report every row whose append has returned."""
    append = Store.append

    def reporting(self, rows):
        append(self, rows)
        real_write(descriptor, "".join(f"row {row['row_key']}\n" for row in rows).encode())

    Store.append = reporting


def count_and_kill(kill, descriptor):
    """Count the calls, and end the process inside the one asked for."""
    counts = dict.fromkeys(CALLS, 0)

    def wrap(name):
        # a kill leaves what the kernel has taken, written to the disk or not: the children need not wait for the disk
        real = getattr(os, name) if name != "fsync" else lambda descriptor: None

        def wrapped(*arguments, **options):
            counts[name] += 1
            if kill and (kill.get("call"), kill.get("number")) == (name, counts[name]):
                if name == "write":
                    real(arguments[0], arguments[1][: int(len(arguments[1]) * kill["part"])])
                elif kill["part"] >= 0.5:
                    real(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, wrapped)

    for name in CALLS:
        wrap(name)
    return lambda: real_write(descriptor, f"calls {json.dumps(counts)}\n".encode())


def child(request, model, descriptor):
    """Run a workload and leave without any clean-up of this process."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        acknowledge(descriptor)
        report = count_and_kill(request["kill"], descriptor)
        WORKLOADS[request["workload"]](request["folder"], model)
        report()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def serve(request):
    """Fork a child for a request, kill it when its time has come, and return the answer."""
    model = load(request["model"]) if request["model"] else None
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(request, model, writing)
    os.close(writing)
    after = (request["kill"] or {}).get("after")
    deadline = started + (HANGS_AFTER if after is None else after)
    said, signalled = b"", False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0, deadline - time.monotonic()))
        if ready:
            chunk = os.read(reading, 1 << 16)
            said += chunk
            if not chunk:
                break
        elif not signalled:
            os.kill(pid, signal.SIGKILL)
            signalled, deadline = True, started + HANGS_AFTER
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    lines = [line.split(" ", 1) for line in said.decode().splitlines()]
    calls = [json.loads(value) for name, value in lines if name == "calls"]
    return {
        "hung": signalled and after is None,
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "status": status,
        "seconds": time.monotonic() - started,
        "acknowledged": [value for name, value in lines if name == "row"],
        "calls": calls[0] if calls else {},
    }


# --- the tests' side: asking for runs and kills, and what must hold of the rows after any of them


@contextlib.contextmanager
def asking(model):
    """Yield request(workload, folder, kill=None) -> the server's answer; every workload but `files` uses the model."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def request(workload, folder, kill=None):
        needed = None if workload == "files" else str(model)
        asked = {"workload": workload, "model": needed, "folder": str(folder), "kill": kill}
        print(json.dumps(asked), file=server.stdin, flush=True)
        answer = json.loads(server.stdout.readline())
        assert not answer["hung"], "the run never ended"
        return answer

    try:
        yield request
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()


def journal_keys(folder, statuses=None):
    """(journal, row key) of all good rows of all ranks, read without repairing anything.

    Rows of a recovery's steps have the same keys, in a journal each.
    """
    return [
        (path.parent.name, line.row["row_key"])
        for path in folder.glob("*.journal/rank-*.jsonl")
        for line in JournalReader(path).new_lines()
        if statuses is None or line.row["status"] in statuses
    ]


def exported(folder):
    """Name -> the rows of a JSON file; each must be whole wherever it is there."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outputs_*.json"))}


def check_after_a_kill(folder, acknowledged):
    keys = journal_keys(folder, FINISHED)
    known = {key for _, key in keys}
    assert set(acknowledged) <= known, "a finished row is lost"
    assert len(keys) == len(set(keys)), "a row is there twice"
    assert {row["row_key"] for rows in exported(folder).values() for row in rows} <= known


def kill_often(ask, workload, folder, kills):
    """Kill a workload again and again in one folder and let it end; return how many kills came in time."""
    came, acknowledged = 0, []
    for kill in kills:
        answer = ask(workload, folder, kill)
        assert answer["killed"] or answer["status"] == 0, "the run failed by itself"
        came += answer["killed"]
        acknowledged += answer["acknowledged"]
        check_after_a_kill(folder, acknowledged)
    assert ask(workload, folder)["status"] == 0, "the last run failed"
    return came


if __name__ == "__main__":
    # an export after every cell, not when it is due by the clock: every run makes the same calls
    store.EXPORT_SHARE = 0
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
