"""Sizes of the tiny models, and these models without weights, for the tests of groups; imported by path."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

H, I, V, LAYERS = 32, 48, 272, 4  # hidden, intermediate, vocabulary, layers of the tiny models
Q, KV = H, 16  # outputs of the projections with two of four heads for keys and values


@pytest.fixture(scope="session")
def meta_model(tiny_config):
    """meta_model(name, **fields) -> the tiny model without weights."""

    def make(name, **fields):
        config = tiny_config(name, **fields)
        with torch.device("meta"):
            if name in ("bert", "roberta"):
                return AutoModelForMaskedLM.from_config(config)
            return AutoModelForCausalLM.from_config(config)

    return make
