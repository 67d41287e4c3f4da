"""A shelf with the shipped models and a few random ones of other families, as a runs folder holds them."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from frankenlm.sharing.space.limits import Limits
from frankenlm.sharing.space.shelf import Shelf
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

ROOT = Path(__file__).resolve().parents[3]
POSITIONS = 24
PATIENCE = 120  # seconds; a busy machine takes its time to import
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Random models: two masked ones, of which RoBERTa counts positions from behind its pad token, a causal one, and a
    classifier, which the page has no use for."""
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=280, mask=True)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    models = {
        "bert": BertForMaskedLM(BertConfig(**sizes, **NARROW, max_position_embeddings=POSITIONS)),
        "roberta": RobertaForMaskedLM(RobertaConfig(**sizes, **NARROW, max_position_embeddings=POSITIONS + 2)),
        "deep/gpt2": GPT2LMHeadModel(GPT2Config(**sizes, **ends, n_embd=16, n_layer=1, n_head=2)),
        "classifier": BertForSequenceClassification(BertConfig(**sizes, **NARROW)),
    }
    root = tmp_path_factory.mktemp("space") / "runs"
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def shelf(runs) -> Shelf:
    return Shelf(runs, limits=Limits(kept_models=8))


@dataclass(frozen=True)
class Site:
    """A page that is served by a process of its own."""

    url: str
    pid: int


@contextmanager
def served(runs: Path, folder: Path) -> Iterator[Site]:
    """Serve the page as a visitor of a plain checkout does: python app.py, with nothing installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "app.py"), "--runs", str(runs)]
    with (
        (folder / "page.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            said = next((line for line in process.stdout if "Running on" in line), None)
            timer.cancel()
            if said is None:
                pytest.fail(f"the page does not start: {(folder / 'page.log').read_text()[-2000:]}")
            yield Site(f"http://127.0.0.1:{port}/", process.pid)
        finally:
            timer.cancel()
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory) -> Iterator[Site]:
    with served(runs, tmp_path_factory.mktemp("site")) as found:
        yield found
