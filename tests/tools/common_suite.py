"""transformers' own common model tests, of the installed version: what a test of ours takes to run them on our classes.

Importing this skips the importing test file where they are not laid out; see lay_out_common_tests.py.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto

# the tests of the installed version: others would ask for what it does not promise
CACHE = Path(__file__).resolve().parents[2] / ".cache" / f"transformers-{version('transformers')}"
if not (CACHE / "transformers_tests" / "complete").is_file():
    pytest.skip(f"the tests of {CACHE.name} are not laid out; `make test` does it", allow_module_level=True)

sys.path.insert(0, str(CACHE))
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask  # noqa: E402

sys.path.remove(str(CACHE))

__all__ = ["ModelTesterMixin", "ids_tensor", "list_heads", "random_attention_mask"]

LISTS = {
    "Model": modeling_auto.MODEL_MAPPING_NAMES,
    "ForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "ForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "ForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}


def list_heads(model_type: str, *classes: type) -> None:
    """Put a family's classes where the suite looks: it chooses labels by class name."""
    for each in classes:
        (end,) = (end for end in LISTS if each.__name__.endswith(end))
        LISTS[end][model_type] = each.__name__
