"""What the models return: the usual fields of transformers plus the routers' losses and loads."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .cache import StateCache

IGNORED_LABEL = -100  # a label that counts in no loss: the ignore_index of torch's cross_entropy and of transformers


@dataclass
class FrankensteinModelOutput(ModelOutput):
    """
    last_hidden_state: (B, L, D), zero at pads.
    cache: the StateCache for the tokens that follow, when one is kept.
    hidden_states: logical layers + 1 tensors (B, L, D): the embedding, each layer's output, the last one normalised.
    attentions: (B, H, L, L) of each standard, Titan and sigmoid attention layer, in order of the logical layers; empty
        unless the attention is eager (`attn_implementation="eager"`).
    aux_loss: mean balancing loss over logical layers, unweighted: top-k when experts are used evenly.
    router_z_loss: mean z-loss over logical layers, unweighted.
    expert_load: (logical layers, E) share of the real tokens that each expert gets; a row sums to top-k.
    The last three are of the batch, and None in evaluation without gradients, whose outputs have a row for each input.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cache: StateCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    aux_loss: torch.FloatTensor | None = None
    router_z_loss: torch.FloatTensor | None = None
    expert_load: torch.FloatTensor | None = None


@dataclass
class FrankensteinHeadOutput(ModelOutput):
    """
    loss: scalar; in training it includes the weighted router losses, in evaluation it is the task's loss alone.
    logits: (B, L, V), (labelled tokens, V) with sparse prediction, or (B, classes) and (B, L, classes).
    The other fields are those of FrankensteinModelOutput.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cache: StateCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    aux_loss: torch.FloatTensor | None = None
    router_z_loss: torch.FloatTensor | None = None
    expert_load: torch.FloatTensor | None = None


@dataclass
class FrankensteinSpanOutput(ModelOutput):
    """
    loss: scalar, as FrankensteinHeadOutput's.
    start_logits, end_logits: (B, L), the type's least number at pads.
    The other fields are those of FrankensteinModelOutput.
    """

    loss: torch.FloatTensor | None = None
    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    cache: StateCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    aux_loss: torch.FloatTensor | None = None
    router_z_loss: torch.FloatTensor | None = None
    expert_load: torch.FloatTensor | None = None
