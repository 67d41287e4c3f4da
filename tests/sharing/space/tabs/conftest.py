"""Tiny models with random weights, as the page's shelf hands them out.

on_shelf(name)              -> infinito or ternary (of bytes), hybrid (of words: retention, Titan memory, Mamba-2, Derf)
                               or encoder (masked), made once a process: a test that changes one puts it back
same_bits(opened)           -> a function that says whether the model still keeps what it kept then, bit for bit
shelf                       -> all of them, by their names
"""

import functools

import pytest
import torch

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoForCausalLM,
    Legacy1BitForCausalLM,
    byte_tokenizer,
)
from frankenlm.sharing.live.models import Catalogue
from frankenlm.sharing.space.shelf import Opened, Shelf
from frankenlm.trainer_ext.common.checkpoints import keep_token_ids_only
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from tiny_infinito import tiny_infinito
from tiny_legacy import tiny_legacy

WORDS = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring, größer"
POSITIONS = 128
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32, "initializer_range": 0.5}
HYBRID = {
    "layer_pattern": ["retnet", "titan_attn", "mamba"],
    "num_hidden_layers": 3,
    "retention_heads": 4,
    "mamba_head_dim": 16,
    "mamba_state": 4,
    "use_titan_memory": True,
    "norm_type": "derf",
    "position_type": "rope",
    "is_decoder": True,
}


def _tokenizer(name: str):
    if name in ("infinito", "ternary"):
        return byte_tokenizer()
    return train_tokenizer([WORDS] * 4, vocab_size=330, mask=name == "encoder")


def _model(name: str, vocab_size: int):
    if name == "infinito":
        return InfinitoForCausalLM(
            tiny_infinito(vocab_size=vocab_size, max_position_embeddings=POSITIONS, initializer_range=0.5)
        )
    if name == "ternary":
        return Legacy1BitForCausalLM(tiny_legacy(vocab_size=vocab_size, max_position_embeddings=POSITIONS))
    if name == "hybrid":
        return FrankensteinForCausalLM(FrankensteinConfig(vocab_size=vocab_size, **SIZES, **HYBRID))
    kinds = {"layer_pattern": ["standard_attn", "retnet"], "num_hidden_layers": 2, "retention_heads": 4}
    return FrankensteinForMaskedLM(
        FrankensteinConfig(vocab_size=vocab_size, max_position_embeddings=POSITIONS, **SIZES, **kinds)
    )


@functools.cache
def _opened(name: str) -> Opened:
    tokenizer = _tokenizer(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _model(name, len(tokenizer)).eval()
    masked = name == "encoder"
    if not masked:
        keep_token_ids_only(model, tokenizer)
    return Opened(model, tokenizer, name, "masked" if masked else "causal", None if name == "hybrid" else POSITIONS)


class ModelsAtHand(Shelf):
    """A shelf whose models are these."""

    def __init__(self, *names: str):
        super().__init__()
        self.catalogue = Catalogue(dict.fromkeys(names, "nowhere"))

    def _load(self, name: str, place: str) -> Opened:
        return _opened(name)


@pytest.fixture(scope="session")
def on_shelf():
    return _opened


@pytest.fixture(scope="session")
def same_bits():
    """same_bits(opened) remembers what a model keeps; what it returns says whether that is so again."""

    def remember(opened: Opened):
        before = {name: value.clone() for name, value in opened.model.state_dict().items()}

        def same() -> bool:
            now = opened.model.state_dict()
            return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())

        return same

    return remember


@pytest.fixture(scope="session")
def shelf():
    return ModelsAtHand("infinito", "ternary", "hybrid", "encoder")
