"""Tiny corpora and in-process runs of the scripts."""

import importlib
import json
import random
from pathlib import Path
from types import ModuleType

import pytest
from transformers.utils import logging as transformers_logging

from frankenlm.trainer_ext.common.cli import run_command

TEXT = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring"
WORDS = TEXT.split()


@pytest.fixture(autouse=True)
def quiet_transformers():
    """What a command's own process begins with: a training run in this process may have left its level behind."""
    transformers_logging.set_verbosity_warning()


def load_script(name: str) -> ModuleType:
    return importlib.import_module(f"frankenlm.scripts.{name}")


def write_corpus(path: Path, documents: int, seed: int) -> Path:
    """Documents of 20 to 60 words; label 1 where the first word comes late in the alphabet."""
    rng = random.Random(seed)
    rows = []
    for _ in range(documents):
        words = rng.choices(WORDS, k=rng.randint(20, 60))
        rows.append({"text": " ".join(words), "label": "late" if words[0] > "m" else "early"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl", documents=60, seed=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(corpus, cache) -> list[str]:
    """Arguments of a run that takes a second: two layers, 16 wide, on the tiny corpus."""
    places = ["--dataset", str(corpus), "--cache_dir", str(cache)]  # their paths may hold spaces
    words = "--preset mini --tokenizer train --vocab_size 300 --max_length 32"
    model = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_loops": 1,
        "num_attention_heads": 2,
        "retention_heads": 2,
        "layer_pattern": "[retnet, titan_attn]",
        "intermediate_size": 16,
        "factorized_embedding_dim": 8,
        "num_experts": 2,
        "top_k_experts": 1,
    }
    training = "--batch_size 4 --logging_steps 1 --eval_steps 3 --save_steps 3 --disable_tqdm true --use_cpu"
    changes = [word for name, value in model.items() for word in (f"--model.{name}", value)]
    return [*words.split(), *places, *map(str, changes), *training.split()]


@pytest.fixture(scope="session")
def run_train():
    """run_train(*words) runs scripts/train.py in this process and returns its exit code."""
    main = load_script("train").main
    return lambda *words: run_command(main, [str(word) for word in words])


@pytest.fixture(scope="session")
def train(tiny, run_train):
    """train(output_dir, *more) is the tiny run, with changes."""
    return lambda output_dir, *more: run_train(*tiny, "--output_dir", output_dir, *more)


@pytest.fixture(scope="session")
def unbroken(train, tmp_path_factory) -> Path:
    """A finished masked run of 6 steps, with checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert train(folder, "--max_steps", 6) == 0
    return folder


@pytest.fixture(scope="session")
def evaluate():
    """evaluate(*words) runs scripts/evaluate.py in this process and returns its exit code."""
    main = load_script("evaluate").main
    return lambda *words: run_command(main, [str(word) for word in words])


@pytest.fixture(scope="session")
def degrade():
    """degrade(*words) runs scripts/degrade.py in this process and returns its exit code."""
    main = load_script("degrade").main
    return lambda *words: run_command(main, [str(word) for word in words])
