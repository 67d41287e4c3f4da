"""Tiny causal models with random weights, saved with a tokenizer, for whatever opens models by name."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    InfinitoForCausalLM,
    Legacy1BitForCausalLM,
    byte_tokenizer,
)
from frankenlm.sharing.live.models import LoadedModel, open_model
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

TEXT = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring, größer"
POSITIONS = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'boss' %}{{ raise_exception('no bosses here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def random_gpt2(tokenizer):
    """Standard attention, learned positions; it never says its end token by itself."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def random_hybrid(tokenizer):
    """Layers that keep states of three kinds, and positions without an end."""
    config = FrankensteinConfig(
        vocab_size=len(tokenizer),
        **SIZES | {"num_hidden_layers": 3},
        retention_heads=2,
        layer_pattern=["retnet", "titan_attn", "mamba"],
        mamba_head_dim=8,
        mamba_state=4,
        position_type="rope",
        is_decoder=True,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return FrankensteinForCausalLM(config)


def random_infinito(tokenizer):
    from tiny_infinito import tiny_infinito

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return InfinitoForCausalLM(
        tiny_infinito(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, initializer_range=0.5, **ids)
    )


def random_ternary(tokenizer):
    from tiny_legacy import tiny_legacy

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return Legacy1BitForCausalLM(tiny_legacy(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **ids))


MODELS = {"gpt2": random_gpt2, "hybrid": random_hybrid, "infinito": random_infinito, "ternary": random_ternary}
BYTES = ("infinito", "ternary")  # these read and write bytes


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(name) is the folder of one of MODELS."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            tokenizer = byte_tokenizer() if name in BYTES else train_tokenizer([TEXT] * 4, vocab_size=330, mask=False)
            if name != "gpt2":
                tokenizer.chat_template = CHAT_TEMPLATE
            torch.manual_seed(0)
            MODELS[name](tokenizer).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def opened(saved):
    """opened(name) is one of MODELS in memory."""
    loaded: dict[str, LoadedModel] = {}

    def open_it(name: str) -> LoadedModel:
        if name not in loaded:
            loaded[name] = open_model(name, str(saved(name)))
        return loaded[name]

    return open_it
