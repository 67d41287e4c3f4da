"""The architectures. Importing this module registers them with AutoConfig and the AutoModel classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from .configuration_frankenstein import FrankensteinConfig
from .configuration_infinito import InfinitoConfig
from .configuration_legacy_1bit import Legacy1BitConfig
from .exploration import ExplorationSampling
from .modeling_frankenstein import (
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForSequenceClassification,
    FrankensteinModel,
    FrankensteinPreTrainedModel,
)
from .modeling_infinito import InfinitoForCausalLM, InfinitoModel, InfinitoPreTrainedModel
from .modeling_legacy_1bit import Legacy1BitForCausalLM, Legacy1BitModel, Legacy1BitPreTrainedModel
from .preset_files import Preset, list_presets, read_preset
from .tokenization_bytes import byte_tokenizer

__all__ = [
    "ExplorationSampling",
    "FrankensteinConfig",
    "FrankensteinForCausalLM",
    "FrankensteinForMaskedLM",
    "FrankensteinForSequenceClassification",
    "FrankensteinModel",
    "FrankensteinPreTrainedModel",
    "InfinitoConfig",
    "InfinitoForCausalLM",
    "InfinitoModel",
    "InfinitoPreTrainedModel",
    "Legacy1BitConfig",
    "Legacy1BitForCausalLM",
    "Legacy1BitModel",
    "Legacy1BitPreTrainedModel",
    "Preset",
    "byte_tokenizer",
    "list_presets",
    "read_preset",
]

AutoConfig.register(FrankensteinConfig.model_type, FrankensteinConfig)
AutoModel.register(FrankensteinConfig, FrankensteinModel)
AutoModelForMaskedLM.register(FrankensteinConfig, FrankensteinForMaskedLM)
AutoModelForCausalLM.register(FrankensteinConfig, FrankensteinForCausalLM)
AutoModelForSequenceClassification.register(FrankensteinConfig, FrankensteinForSequenceClassification)
AutoConfig.register(InfinitoConfig.model_type, InfinitoConfig)
AutoModel.register(InfinitoConfig, InfinitoModel)
AutoModelForCausalLM.register(InfinitoConfig, InfinitoForCausalLM)
AutoConfig.register(Legacy1BitConfig.model_type, Legacy1BitConfig)
AutoModel.register(Legacy1BitConfig, Legacy1BitModel)
AutoModelForCausalLM.register(Legacy1BitConfig, Legacy1BitForCausalLM)

# From here on save_pretrained carries the code along, for those who load with trust_remote_code and without us.
FrankensteinConfig.register_for_auto_class()
FrankensteinModel.register_for_auto_class("AutoModel")
FrankensteinForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
FrankensteinForCausalLM.register_for_auto_class("AutoModelForCausalLM")
FrankensteinForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
InfinitoConfig.register_for_auto_class()
InfinitoModel.register_for_auto_class("AutoModel")
InfinitoForCausalLM.register_for_auto_class("AutoModelForCausalLM")
Legacy1BitConfig.register_for_auto_class()
Legacy1BitModel.register_for_auto_class("AutoModel")
Legacy1BitForCausalLM.register_for_auto_class("AutoModelForCausalLM")
