"""The training objectives: one table of what each of them means to every part that asks.

transformers' classes are imported when they are asked for: a help page lists the objectives and needs no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    head: the end of its classes' names, e.g. MaskedLM. pipeline: what transformers calls its use. loss: what its
    evaluation loss is, in words. continues: whether it learns the next token, left to right. masks: whether it learns
    hidden tokens.
    """

    head: str
    pipeline: str
    loss: str
    continues: bool = False
    masks: bool = False

    @property
    def goes_both_ways(self) -> bool:
        """Whether one parameter set learns both."""
        return self.continues and self.masks

    @property
    def auto_class(self) -> str:
        """The name of the class that opens its models."""
        return f"AutoModelFor{self.head}"

    @property
    def auto_model(self) -> type:
        """The class that opens its models."""
        import transformers

        return getattr(transformers, self.auto_class)

    def has_head_for(self, config: "PreTrainedConfig") -> bool:
        """Whether the family of a configuration has a model for it."""
        listed = type(config) in _listed_heads()[self.head][0]
        return listed and (not self.goes_both_ways or "two_directions" in config.to_dict())

    def is_head(self, architecture: str) -> bool:
        """Whether a class is a model for it: by its name's end, or by transformers' list (GPT2LMHeadModel)."""
        return architecture.endswith(f"For{self.head}") or architecture in _listed_heads()[self.head][1].values()


def form_of_text(objective: str, two_directions: bool) -> str:
    """Return the objective whose tokenizer and rows a run has: a model of two directions has those of joint training
    whatever it learns, as it predicts each token at the one before it, a hidden one too."""
    return "joint" if two_directions and objective != "classification" else objective


def _listed_heads() -> dict[str, tuple[Mapping, Mapping[str, str]]]:
    """What transformers lists for each head: configuration -> class, and model type -> name of the class."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    return {
        "MaskedLM": (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        "CausalLM": (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        "SequenceClassification": (
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        ),
    }


ANSWERS_LOSS = (
    "cross-entropy of the next token of the answers in held-out conversations; what they answer to is read, not "
    "predicted"
)
OBJECTIVES = {
    "mlm": Objective(
        "MaskedLM",
        "fill-mask",
        "cross-entropy of the hidden tokens of held-out text, the same masks at every evaluation",
        masks=True,
    ),
    "causal": Objective(
        "CausalLM", "text-generation", "cross-entropy of the next token of held-out text", continues=True
    ),
    "joint": Objective(
        "CausalLM",
        "text-generation",
        "cross-entropy of held-out text in the mixture of training: of the next token in --causal_share of the rows, "
        "of the hidden tokens in the others",
        continues=True,
        masks=True,
    ),
    "classification": Objective(
        "SequenceClassification", "text-classification", "cross-entropy of the label of held-out documents"
    ),
}
