"""The architectures. Importing this module registers them with AutoConfig and the AutoModel classes."""

import transformers

from .configuration_frankenstein import FrankensteinConfig
from .configuration_infinito import InfinitoConfig
from .configuration_legacy_1bit import Legacy1BitConfig
from .exploration import ExplorationSampling
from .modeling_frankenstein import (
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForQuestionAnswering,
    FrankensteinForSequenceClassification,
    FrankensteinForTokenClassification,
    FrankensteinModel,
    FrankensteinPreTrainedModel,
)
from .modeling_infinito import (
    InfinitoForCausalLM,
    InfinitoForQuestionAnswering,
    InfinitoForSequenceClassification,
    InfinitoForTokenClassification,
    InfinitoModel,
    InfinitoPreTrainedModel,
)
from .modeling_legacy_1bit import (
    Legacy1BitForCausalLM,
    Legacy1BitForQuestionAnswering,
    Legacy1BitForSequenceClassification,
    Legacy1BitForTokenClassification,
    Legacy1BitModel,
    Legacy1BitPreTrainedModel,
)
from .preset_files import Preset, list_presets, read_preset
from .tokenization_bytes import byte_tokenizer

__all__ = [
    "ExplorationSampling",
    "FrankensteinConfig",
    "FrankensteinForCausalLM",
    "FrankensteinForMaskedLM",
    "FrankensteinForQuestionAnswering",
    "FrankensteinForSequenceClassification",
    "FrankensteinForTokenClassification",
    "FrankensteinModel",
    "FrankensteinPreTrainedModel",
    "InfinitoConfig",
    "InfinitoForCausalLM",
    "InfinitoForQuestionAnswering",
    "InfinitoForSequenceClassification",
    "InfinitoForTokenClassification",
    "InfinitoModel",
    "InfinitoPreTrainedModel",
    "Legacy1BitConfig",
    "Legacy1BitForCausalLM",
    "Legacy1BitForQuestionAnswering",
    "Legacy1BitForSequenceClassification",
    "Legacy1BitForTokenClassification",
    "Legacy1BitModel",
    "Legacy1BitPreTrainedModel",
    "Preset",
    "byte_tokenizer",
    "list_presets",
    "read_preset",
]

# The Auto classes find what is registered with them; what is registered "for auto class" carries its code along when it
# is saved, for those who load with trust_remote_code and without us.
FAMILIES = (FrankensteinPreTrainedModel, InfinitoPreTrainedModel, Legacy1BitPreTrainedModel)
for _family in FAMILIES:
    _config = _family.config_class
    transformers.AutoConfig.register(_config.model_type, _config)
    _config.register_for_auto_class()
    for _auto, _place in _family.auto_classes.items():
        if _auto != "AutoConfig":
            _model = globals()[_place.rpartition(".")[2]]
            getattr(transformers, _auto).register(_config, _model)
            _model.register_for_auto_class(_auto)
