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
from .exploration import ExplorationSampling
from .modeling_frankenstein import (
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    FrankensteinForSequenceClassification,
    FrankensteinModel,
    FrankensteinPreTrainedModel,
)
from .modeling_infinito import InfinitoForCausalLM, InfinitoModel, InfinitoPreTrainedModel
from .preset_files import Preset, list_presets, read_preset

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
    "Preset",
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

# From here on save_pretrained carries the code along, for those who load with trust_remote_code and without us.
FrankensteinConfig.register_for_auto_class()
FrankensteinModel.register_for_auto_class("AutoModel")
FrankensteinForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
FrankensteinForCausalLM.register_for_auto_class("AutoModelForCausalLM")
FrankensteinForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
InfinitoConfig.register_for_auto_class()
InfinitoModel.register_for_auto_class("AutoModel")
InfinitoForCausalLM.register_for_auto_class("AutoModelForCausalLM")
