"""The models that other people's tools open: a folder each, saved once."""

import pytest
from transformers.utils import logging as transformers_logging

from peer_models import save_peer


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(family) -> the folder of its model and tokenizer; nothing is written there."""
    made = {}
    parent = tmp_path_factory.mktemp("peers")

    def make(family):
        if family not in made:
            made[family] = save_peer(family, parent)
        return made[family]

    return make


@pytest.fixture(autouse=True)
def quiet_transformers():
    """What a process begins with: another test's tool may have left its level behind."""
    transformers_logging.set_verbosity_warning()
