"""What a model's loss does with its labels, found out by asking the model.

transformers goes by names: whether labels are shifted by the class's, whether the loss is divided by the labels of the
whole batch by the signature. GPT-2's class and every subclass under a name of its own fall out of the first, BERT's
masked head and most classifiers of others out of the second, and then losses and gradients are off by a factor in
silence. A batch of the run answers both questions for any model.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from frankenlm.modeling.outputs import IGNORED_LABEL


@dataclass(frozen=True)
class LossConduct:
    """
    shifts: position i is asked for label i + 1, so that the first label of a row is never predicted.
    divides: the loss is a sum over the batch's labels, divided by `num_items_in_batch`; else a mean whatever is passed.
    """

    shifts: bool
    divides: bool


@torch.no_grad()
def ask_model(model: torch.nn.Module, inputs: Mapping[str, Any], takes_count: bool) -> LossConduct:
    """Find out what `model`'s loss does, from a batch with labels (B, L), (B,) or (B, C).

    The model computes its loss up to four times, in evaluation mode; modes and random numbers are left as they were.

    Args:
        takes_count: whether its forward takes `num_items_in_batch` at all.
    """
    labels = inputs["labels"]
    with _at_rest(model, labels.device):
        shifts = labels.dim() == 2 and not labels.is_floating_point() and _ignores_first_label(model, inputs)
        divides = takes_count and _minds_count(model, inputs)
    return LossConduct(shifts, divides)


def _ignores_first_label(model, inputs) -> bool:
    """Whether a label at the first position makes no difference (NaN of no labels at all included)."""
    nothing = torch.full_like(inputs["labels"], IGNORED_LABEL)
    first = nothing.clone()
    first[:, 0] = 0
    with_first, without = (_loss(model, {**inputs, "labels": labels}) for labels in (first, nothing))
    return torch.isclose(with_first, without, equal_nan=True).item()


def _minds_count(model, inputs) -> bool:
    """Whether a count a thousand times the labels' changes the loss."""
    labels = inputs["labels"]
    count = torch.tensor(1000.0 * labels.numel(), device=labels.device)
    plain, divided = _loss(model, inputs), _loss(model, {**inputs, "num_items_in_batch": count})
    return not torch.isclose(plain, divided, equal_nan=True).item()


def _loss(model, inputs) -> torch.Tensor:
    outputs = model(**inputs)
    return (outputs["loss"] if isinstance(outputs, dict) else outputs[0]).float().mean()


@contextlib.contextmanager
def _at_rest(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, module by module, and the random numbers of before."""
    training = [module for module in model.modules() if module.training]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def smoothing_term(
    logits: torch.Tensor, labels: torch.Tensor, shifts: bool, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Return what label smoothing of 1 would add to a cross-entropy; smoothing of e adds e times it.

    Smoothed cross-entropy is (1 - e) nll + e uniform = nll + e (uniform - nll), and uniform - nll is the label's logit
    minus the mean logit: so the model keeps its own loss, router losses included.

    Args:
        logits: (B, L, V), (labelled tokens, V) or (B, C).
        labels: (B, L) or (B,), integers; -100 counts for nothing.
    Raises:
        ValueError: the labels are no classes.
    """
    if labels.is_floating_point():
        raise ValueError("--label_smoothing_factor smooths the labels of classes, and these labels are real numbers.")
    if logits.dim() == 2 and labels.dim() == 2:
        labels = labels[labels != IGNORED_LABEL]  # sparse prediction: the logits of the labelled tokens alone
    elif shifts:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    labelled = labels != IGNORED_LABEL
    chosen = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1).float()
    excess = (chosen - logits.mean(-1, dtype=torch.float32)).masked_fill(~labelled, 0.0)
    return excess.sum() / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)
