"""A data set with parts and a tiny causal model, made without training."""

import json
from pathlib import Path

import pytest
import torch

from frankenlm.modeling import InfinitoForCausalLM
from frankenlm.trainer_ext.data.splits import load_splits
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer
from tiny_infinito import tiny_infinito


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A data set with parts, as on the hub: train, validation and test; each text tells whose it is."""
    folder = tmp_path_factory.mktemp("parts")
    rows = {
        "train": [f"the cat of train sat on mat {n} and saw dogs run over hill {n * 7}" for n in range(30)],
        "validation": [f"birds of validation sang in spring {n} while rain fell on hill {n * 5}" for n in range(9)],
        "test": [f"fish of test swam in stream {n} and no bird sang of rain {n * 3}" for n in range(7)],
    }
    for name, texts in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="session")
def model(parts, tmp_path_factory) -> Path:
    """A causal model of ours that knows nothing, and a tokenizer of the training text."""
    folder = tmp_path_factory.mktemp("model")
    texts = [row["text"] for row in load_splits(str(parts))["train"]]
    tokenizer = load_tokenizer("train", documents=texts, objective="causal", vocab_size=300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    InfinitoForCausalLM(tiny_infinito(vocab_size=len(tokenizer), initializer_range=0.3)).save_pretrained(folder)
    return folder
