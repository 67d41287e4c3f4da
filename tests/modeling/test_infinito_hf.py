"""Infinito under transformers' own common model tests; see test_common_hf.py."""

import unittest

import pytest
import torch

from common_suite import ModelTesterMixin, ids_tensor, list_heads, random_attention_mask
from frankenlm.modeling import (
    InfinitoConfig,
    InfinitoForCausalLM,
    InfinitoForQuestionAnswering,
    InfinitoForSequenceClassification,
    InfinitoForTokenClassification,
    InfinitoModel,
)

HEADS = (InfinitoModel, InfinitoForCausalLM)
OTHER_HEADS = (InfinitoForSequenceClassification, InfinitoForTokenClassification, InfinitoForQuestionAnswering)
list_heads("infinito", *HEADS, *OTHER_HEADS)

# The suite's own warnings are transformers' business.
pytestmark = pytest.mark.filterwarnings("default")


class TinyModels:
    """What the suite asks of a model tester; `fields` change the configuration."""

    batch_size, seq_length, vocab_size = 3, 7, 99
    hidden_size, num_attention_heads, num_hidden_layers = 32, 4, 2
    is_training = True

    def __init__(self, parent, **fields):
        self.parent = parent
        self.fields = fields

    def get_config(self):
        return InfinitoConfig(
            **{
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "num_attention_heads": self.num_attention_heads,
                "num_hidden_layers": self.num_hidden_layers,
                "intermediate_size": 37,
                "max_position_embeddings": 64,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "pad_token_id": 0,
                "memory_layers": [0, 1],
                "memory_slots": 2,  # seven tokens write three times
                "memory_dim": 8,
                "memory_heads": 2,
                "memory_segment": 2,
                "exploration_sigma": 0.0,  # the suite compares two passes in training
                **self.fields,
            }
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": input_ids, "attention_mask": mask}


class Common(ModelTesterMixin):
    fields: dict = {}
    all_model_classes = HEADS
    all_generative_model_classes = ()
    pipeline_model_mapping: dict = {}
    test_resize_embeddings = True

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = TinyModels(self, **self.fields)


class InfinitoTest(Common, unittest.TestCase):
    pass


@pytest.mark.slow
class TiedRoomyInfinitoTest(Common, unittest.TestCase):
    all_model_classes = (*HEADS, *OTHER_HEADS)
    fields = {"tie_word_embeddings": True, "memory_slots": 8, "attention_window": 3}


@pytest.mark.slow
class AttentionSlotsTest(Common, unittest.TestCase):
    has_attentions = False  # a layer whose attention reads slots has none to show
    all_model_classes = (*HEADS, *OTHER_HEADS)
    fields = {"memory_type": "attention_slots", "attention_window": 2, "norm_style": "pre", "embedding_conv_kernel": 2}
