"""A folder like one of train.py, to push."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from frankenlm.modeling import InfinitoForCausalLM
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from tiny_infinito import tiny_infinito

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- frankenlm
---

# run

tokenizer = AutoTokenizer.from_pretrained("PATH")
"""


@pytest.fixture(scope="module")
def facts() -> dict:
    """What metrics.json of a run tells."""
    return {
        "adapter": None,
        "dataset": "Salesforce/wikitext:wikitext-2-raw-v1",
        "eval_accuracy": None,
        "eval_loss": 4.25,
        "eval_perplexity": 70.105412,
        "model_name_or_path": None,
        "model_type": "infinito",
        "objective": "causal",
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, facts) -> Path:
    """A folder like one of train.py: a tiny model, its records, and what must stay here."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=280, mask=False)
    torch.manual_seed(0)
    model = InfinitoForCausalLM(tiny_infinito(vocab_size=len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(facts))
    (folder / "README.md").write_text(CARD)
    (folder / "training.log").write_text("step 1")
    torch.save({}, folder / "training_args.bin")
    (folder / "checkpoint-1").mkdir()
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))
