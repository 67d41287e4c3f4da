"""Tiny random models with a tokenizer, and the command in this process, for the tests of generating."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, InfinitoConfig, InfinitoForCausalLM
from frankenlm.scripts import generate as script_module
from frankenlm.trainer_ext.common.checkpoints import load_model, open_checkpoint
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from frankenlm.trainer_ext.generation.conversation import Conversation
from frankenlm.trainer_ext.generation.sampling import Sampling

TEXT = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring, größer"
POSITIONS = 48


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([TEXT] * 4, vocab_size=310, mask=False)


@pytest.fixture(scope="session")
def gpt2(tokenizer, tmp_path_factory):
    """A random GPT-2 of 48 positions that never says its end token by itself."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mamba(tokenizer, tmp_path_factory):
    """A random Mamba: no attention, no positions."""
    folder = tmp_path_factory.mktemp("models") / "mamba"
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hybrid(tokenizer, tmp_path_factory):
    """A random Frankenstein whose layers keep states of three kinds, and positions without an end."""
    folder = tmp_path_factory.mktemp("models") / "hybrid"
    torch.manual_seed(0)
    config = FrankensteinConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        retention_heads=2,
        intermediate_size=16,
        layer_pattern=["retnet", "titan_attn", "mamba"],
        mamba_head_dim=8,
        mamba_state=4,
        position_type="rope",
        is_decoder=True,
        initializer_range=0.5,
        max_position_embeddings=POSITIONS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    FrankensteinForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def infinito(tokenizer, tmp_path_factory):
    """A random Infinito whose memory matters: at init its output is zero."""
    folder = tmp_path_factory.mktemp("models") / "infinito"
    torch.manual_seed(0)
    config = InfinitoConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=POSITIONS,
        memory_layers=[1],
        memory_slots=6,
        memory_dim=8,
        memory_heads=2,
        memory_segment=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = InfinitoForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generate():
    """generate(*words) runs the script in this process and returns its exit code."""

    def run(*words) -> int:
        return run_command(script_module.main, [str(word) for word in words])

    return run


@pytest.fixture
def texts(generate, gpt2, tmp_path):
    """texts(*words) generates with the random GPT-2 and returns the rows of the report."""

    def run(*words, model=gpt2):
        report = tmp_path / "report.json"
        assert generate("--model", model, "--max_new_tokens", 12, *words, "--json", report) == 0
        return json.loads(report.read_text(), parse_constant=pytest.fail)["texts"]

    return run


@pytest.fixture
def conversation(gpt2):
    """conversation(**settings) -> a Conversation with the random GPT-2, with .pieces and .notes."""

    def make(model=gpt2, **settings):
        checkpoint = open_checkpoint(str(model))
        pieces, notes = [], []
        sampling = Sampling(**{"max_new_tokens": 6, "temperature": 0.0} | settings)
        talk = Conversation(
            load_model(checkpoint, device="cpu"), checkpoint, sampling, write=pieces.append, say=notes.append
        )
        talk.pieces, talk.notes = pieces, notes
        return talk

    return make
