"""The tiny models without weights, for the tests of groups."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM


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
