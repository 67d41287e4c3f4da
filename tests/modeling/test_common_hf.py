"""Our classes under transformers' own common model tests (ModelTesterMixin).

`make test` lays those tests out under .cache first; see tests/tools/lay_out_common_tests.py.
What they check that ours do not: loading under device maps, meta-device init, tied-weight bookkeeping, resizing in all
its variants, training with and without reentrant checkpointing, tuple and dict outputs, head pruning leftovers, and
that every parameter is initialised by the model itself.
"""

import unittest
import unittest.mock

import pytest
import torch

from common_suite import ModelTesterMixin, ids_tensor, list_heads, random_attention_mask
from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForQuestionAnswering,
    FrankensteinForSequenceClassification,
    FrankensteinForTokenClassification,
    FrankensteinModel,
)

list_heads(
    "frankenstein",
    FrankensteinModel,
    FrankensteinForMaskedLM,
    FrankensteinForCausalLM,
    FrankensteinForSequenceClassification,
    FrankensteinForTokenClassification,
    FrankensteinForQuestionAnswering,
)

# The suite's own warnings are transformers' business.
pytestmark = pytest.mark.filterwarnings("default")


class TinyModels:
    """What the suite asks of a model tester; `fields` make the configuration."""

    batch_size, seq_length, vocab_size, num_labels = 3, 7, 99, 3
    is_training = True

    def __init__(self, parent, **fields):
        self.parent = parent
        self.fields = fields
        self.hidden_size = 32
        self.num_attention_heads = 4
        self.num_hidden_layers = 2

    def get_config(self):
        return FrankensteinConfig(
            **{
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "num_attention_heads": self.num_attention_heads,
                "num_hidden_layers": 2,
                "intermediate_size": 37,
                "max_position_embeddings": 64,
                "mamba_head_dim": 16,
                "mamba_state": 8,
                "chunk_size": 4,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "pad_token_id": 0,
                **self.fields,
            }
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": input_ids, "attention_mask": mask}


class Common(ModelTesterMixin):
    fields: dict = {}
    all_generative_model_classes = ()
    pipeline_model_mapping: dict = {}
    test_resize_embeddings = True

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = TinyModels(self, **self.fields)


ENCODERS = (FrankensteinModel, FrankensteinForMaskedLM, FrankensteinForSequenceClassification)
DECODERS = (FrankensteinModel, FrankensteinForCausalLM, FrankensteinForSequenceClassification)


class BertLikeEncoderTest(Common, unittest.TestCase):
    all_model_classes = (*ENCODERS, FrankensteinForTokenClassification, FrankensteinForQuestionAnswering)
    fields = {
        "layer_pattern": ["standard_attn"],
        "position_type": "learned",
        "norm_type": "layer_norm",
        "norm_style": "post",
        "embedding_norm": None,
        "head_transform": True,
        "use_bias": True,
        "hidden_act": "gelu",
        "type_vocab_size": 2,
    }


class HopeDecoderTest(Common, unittest.TestCase):
    all_model_classes = DECODERS
    fields = {"layer_pattern": ["titan_attn"], "is_decoder": True, "norm_type": "rms_norm"}


class RecurrentEncoderTest(Common, unittest.TestCase):
    all_model_classes = ENCODERS
    has_attentions = False
    fields = {
        "layer_pattern": ["retnet", "mamba"],
        "factorized_embedding_dim": 16,
        "embedding_conv_kernel": 3,
        "num_experts": 3,
    }

    def test_batching_equivalence(self):
        # The suite compares every output; expert_load describes a batch, so this one runs without experts.
        self.model_tester.fields = {**self.fields, "num_experts": 0}
        super().test_batching_equivalence()


@pytest.mark.slow  # its mixers are those of the encoder above
class RecurrentDecoderTest(Common, unittest.TestCase):
    all_model_classes = DECODERS
    has_attentions = False
    fields = {
        "layer_pattern": ["mamba", "retnet"],
        "is_decoder": True,
        "factorized_embedding_dim": 16,
        "embedding_conv_kernel": 4,
        "embedding_conv_depthwise": True,
        "norm_type": "dynamic_tanh",
        "use_bitnet": True,
    }

    def test_model_get_set_embeddings(self):
        # The suite wants an nn.Linear; what stands for a factorised head is the whole of it.
        with unittest.mock.patch.object(FrankensteinForCausalLM, "_shows_matrix", True):
            super().test_model_get_set_embeddings()


@pytest.mark.slow  # as an encoder like the others; what a field does is in the contract tests
class FieldEncoderTest(Common, unittest.TestCase):
    all_model_classes = ENCODERS
    has_attentions = False  # the field is evaluated several times a layer and shows no weights
    fields = {"layer_pattern": ["ode", "sigmoid_attn"], "position_type": "rope", "ode_solver": "rk4"}


class RememberingDecoderTest(Common, unittest.TestCase):
    all_model_classes = (FrankensteinForCausalLM,)  # the other heads are those of the decoder above
    fields = {
        "layer_pattern": ["titan_attn"],
        "use_titan_memory": True,
        "memory_chunk": 4,
        "attention_window": 3,
        "is_decoder": True,
        "norm_type": "rms_norm",
        "embedding_conv_kernel": 2,
    }


@pytest.mark.slow  # one more decoder by attention; what loops do is in test_loops.py
class LoopedDecoderTest(Common, unittest.TestCase):
    all_model_classes = DECODERS
    fields = {
        "layer_pattern": ["sigmoid_attn"],
        "num_loops": 2,
        "is_decoder": True,
        "position_type": "rope",
        "loop_embedding": True,
    }
