"""SIGKILL at any moment of training: no checkpoint is torn, and the run that goes on ends as if nothing had been."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from frankenlm.trainer_ext.saving.publishing import partials
from frankenlm.trainer_ext.saving.saved_checkpoints import checkpoint_folders, examine
from run_outcomes import assert_same_run, metrics

SERVER = Path(__file__).resolve().parents[2] / "tools" / "kill_training.py"
SAVING = "--eval_steps 3 --save_steps 2 --max_steps 6 --cpu_threads 1 --ema_decay 0.9"
INFINITO = (
    "--preset infinito-small --tokenizer train --vocab_size 300 --max_length 16 --model.hidden_size 16 "
    "--model.num_hidden_layers 2 --model.memory_layers [1] --model.num_attention_heads 2 --model.intermediate_size 16 "
    "--batch_size 4 --logging_steps 4 --disable_tqdm true --use_cpu --gradient_accumulation_steps 2"
)
# call, which of them (from the back if negative), what was on the disk when the process ended
QUICK = {
    "inside the optimizer's file of the second checkpoint": ("save", 11, 0.5),
    "before the second checkpoint is renamed": ("publish", 2, 0.0),
    "in the middle of rotation": ("remove", 30, 1.0),
    "inside metrics.json": ("text", -2, 0.5),
}
ALIKE = {"in the middle of rotation", "inside metrics.json"}
SLOW = 20


@pytest.fixture(scope="module")
def ask():
    """Ask the fork server to run scripts/train.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen([sys.executable, SERVER], env=environment, **pipes)

    def request(words, kill=None):
        print(json.dumps({"words": [str(word) for word in words], "kill": kill}), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    yield request
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope="module")
def runs(ask, tiny, corpus, cache, tmp_path_factory):
    """runs(kind) -> (words, folder, calls) of a run that nobody killed; made once."""
    made = {}

    def run(kind):
        if kind not in made:
            places = ["--dataset", corpus, "--cache_dir", cache]
            own = {
                "masked": [*tiny, "--save_total_limit", "1", "--matrix_optimizer", "galore", "--galore_rank", "2"],
                "exploring": [*INFINITO.split(), *places, "--save_total_limit", "2", "--matrix_optimizer", "muon"],
            }
            folder, words = tmp_path_factory.mktemp(kind) / "whole", [*own[kind], *SAVING.split()]
            answer = ask([*words, "--output_dir", folder])
            assert answer["code"] == 0, answer["said"]
            made[kind] = words, folder, answer["calls"], answer["seconds"]
        return made[kind]

    return run


def check_nothing_is_torn(folder):
    """Every folder that is named like a checkpoint is a whole, healthy one."""
    for checkpoint in checkpoint_folders(folder):
        saved = examine(checkpoint, 1)
        assert saved.is_whole, f"{checkpoint.name}: {saved.fault}"


def averages(folder):
    return load_file(folder / "ema" / "model.safetensors")


def kill_and_go_on(ask, words, folder, kill, *, hits=True):
    answer = ask([*words, "--output_dir", folder], kill)
    assert answer["killed"] or not hits, answer
    check_nothing_is_torn(folder)
    if not answer["killed"]:
        return
    resume = ["--resume_from_checkpoint", "last"] if checkpoint_folders(folder) or partials(folder) else []
    answer = ask([*words, "--output_dir", folder, *resume])
    if answer["code"] == 2 and "no whole checkpoint" in answer["said"]:  # killed inside the first one
        answer = ask([*words, "--output_dir", folder])
    assert answer["code"] == 0, answer["said"]


def check_the_end(whole, folder):
    assert_same_run(whole, folder)
    ours, theirs = averages(folder), averages(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(folder)["eval_loss"] == metrics(whole)["eval_loss"]
    assert not partials(folder)
    check_nothing_is_torn(folder)


@pytest.mark.parametrize(
    "where", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in QUICK]
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(ask, runs, tmp_path, where):
    words, whole, calls, _ = runs("masked")
    call, number, part = QUICK[where]
    number = number if number > 0 else calls[call] + 1 + number
    kill_and_go_on(ask, words, tmp_path, {"call": call, "number": number, "part": part})
    check_the_end(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "exploring"])
@pytest.mark.parametrize("number", range(SLOW))
def test_wherever_it_is_killed(ask, runs, tmp_path, kind, number):
    words, whole, calls, seconds = runs(kind)
    rng = random.Random(f"{kind} {number}")
    if number % 4 == 3:
        kill, hits = {"after": rng.uniform(0, seconds)}, False
    else:
        call = rng.choice(sorted(calls))
        kill = {"call": call, "number": rng.randint(1, calls[call]), "part": rng.choice((0.0, 0.3, 1.0))}
        hits = calls[call] > 0
    kill_and_go_on(ask, words, tmp_path, kill, hits=hits)
    check_the_end(whole, tmp_path)


def test_killed_again_and_again(ask, runs, tmp_path):
    """In the same checkpoint, twice, and in the one that replaces it."""
    words, whole, _, _ = runs("masked")
    for call, number, part in (("save", 11, 0.3), ("publish", 1, 1.0), ("publish", 1, 0.0)):
        resume = ["--resume_from_checkpoint", "last"] if checkpoint_folders(tmp_path) else []
        answer = ask([*words, "--output_dir", tmp_path, *resume], {"call": call, "number": number, "part": part})
        assert answer["killed"], answer
        check_nothing_is_torn(tmp_path)
    answer = ask([*words, "--output_dir", tmp_path, "--resume_from_checkpoint", "last"])
    assert answer["code"] == 0, answer["said"]
    check_the_end(whole, tmp_path)


@pytest.mark.parametrize("taken", [False, True])
def test_what_had_been_written_whole_is_published(ask, runs, tmp_path, taken):
    """Killed behind resume.json and before the rename, with something of another's in the way or not."""
    words, whole, _, _ = runs("masked")
    answer = ask([*words, "--output_dir", tmp_path], {"call": "publish", "number": 2, "part": 0.0})
    assert answer["killed"] and [path.name for path in partials(tmp_path)] == [".checkpoint-4.partial"]
    shutil.rmtree(tmp_path / "checkpoint-2")  # the only one left is the one that was on its way
    if taken:
        (tmp_path / "checkpoint-4").mkdir()
        (tmp_path / "checkpoint-4" / "notes.txt").write_text("precious")
    answer = ask([*words, "--output_dir", tmp_path, "--resume_from_checkpoint", "last"])
    assert answer["code"] == 0, answer["said"]
    check_the_end(whole, tmp_path)
    assert not taken or (tmp_path / "checkpoint-4" / "notes.txt").read_text() == "precious"
