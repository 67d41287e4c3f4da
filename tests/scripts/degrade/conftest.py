"""A tiny model in a folder, and the smallest experiment on it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch):
    """What else the machine's memory holds must not stop or slow a tiny experiment."""
    monkeypatch.setattr("frankenlm.degradation.run.limits.HostReader", lambda: lambda: 0.2)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny Llama with a byte tokenizer, saved."""
    from frankenlm.modeling.tokenization_bytes import byte_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALLEST = "--config smoke --dtype float32 --method mult_gauss --group attn_only --levels 0,0.1 --n_rep 2 --max_new_tokens 8 --max_batch_size 4 --perplexity false"  # noqa: E501


@pytest.fixture
def run(degrade, model, tmp_path):
    """run(more words) is the smallest experiment, with changes."""
    return lambda *more, folder=tmp_path / "results": degrade(
        "run", "--model", model, "--output_dir", folder, *SMALLEST.split(), *more
    )
