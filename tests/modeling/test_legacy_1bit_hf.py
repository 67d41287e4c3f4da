"""Legacy-1bit under transformers' own common model tests; see test_common_hf.py."""

import unittest
import unittest.mock

import pytest
import torch

from common_suite import ModelTesterMixin, ids_tensor, list_heads, random_attention_mask
from frankenlm.modeling import (
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
    Legacy1BitForQuestionAnswering,
    Legacy1BitForSequenceClassification,
    Legacy1BitForTokenClassification,
    Legacy1BitModel,
)

HEADS = (Legacy1BitModel, Legacy1BitForCausalLM)
OTHER_HEADS = (Legacy1BitForSequenceClassification, Legacy1BitForTokenClassification, Legacy1BitForQuestionAnswering)
list_heads("legacy_1bit", *HEADS, *OTHER_HEADS)

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
        return Legacy1BitConfig(
            **{
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "num_attention_heads": self.num_attention_heads,
                "num_hidden_layers": self.num_hidden_layers,
                "intermediate_size": 37,
                "max_position_embeddings": 64,
                "pad_token_id": 0,
                "scale_axis": "row",  # the suite resizes and compares rows that stay
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


class Legacy1BitTest(Common, unittest.TestCase):
    def test_model_get_set_embeddings(self):
        # The suite wants the output matrix; for a head that rounds it, the whole of it stands.
        with unittest.mock.patch.object(Legacy1BitForCausalLM, "_shows_matrix", True):
            super().test_model_get_set_embeddings()

    def test_resize_embeddings_untied(self):
        self.model_tester.fields = {"bitnet_head": False}
        super().test_resize_embeddings_untied()


@pytest.mark.slow
class ModernTwinTest(Common, unittest.TestCase):
    """In full precision: in fp16, an activation that rounds the other way is off by more than the suite tolerates."""

    all_model_classes = (*HEADS, *OTHER_HEADS)
    fields = {
        "use_bitnet": False,
        "attention_window": 3,
        "norm_type": "rms_norm",
        "position_type": "rope",
        "use_bias": False,
        "hidden_act": "relu2",
        "head_bias": False,
        "tie_word_embeddings": True,
        "bitnet_embedding": False,
        "bitnet_head": False,
        "embedding_norm": "rms",
        "embedding_initializer_range": 0.02,
    }
