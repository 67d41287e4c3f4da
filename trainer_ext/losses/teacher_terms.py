"""What a student is told by a teacher: two sums over the labelled positions of a batch, as pure functions.

Logits: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2. Hidden states:
Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, equations 8 and 9; its attention loss is left out, as few of our mixers
have attention weights.
Shapes: B batch, L length, N labelled positions, V vocabulary, D width of the student, T of the teacher.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from frankenlm.modeling.outputs import IGNORED_LABEL


def asked_positions(labels: torch.Tensor, shifts: bool) -> torch.Tensor:
    """Return bool (B, L): the positions whose output is asked for a label, of labels (B, L).

    Args:
        shifts: position i is asked for label i + 1.
    """
    asked = labels != IGNORED_LABEL
    return F.pad(asked[:, 1:], (0, 1)) if shifts else asked


def rows_at(values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Return (N, V) of values (B, L, V); what has two axes comes from sparse prediction, and is these rows already."""
    return values if values.dim() == 2 else values[asked]


def logit_sum(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return temperature^2 KL(teacher || student), summed over positions, of logits (N, V) over the temperature."""
    ours = F.log_softmax(student.float() / temperature, dim=-1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)


def hidden_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of hidden states (N, T), mean over the width, summed over positions."""
    return (student.float() - teacher.float()).square().mean(-1).sum()


def layers_beside(student: int, teacher: int) -> tuple[int, ...]:
    """Return for each of a student's hidden states (embedding, then layers) the teacher's that it learns from.

    Layers are spread evenly, embedding to embedding and last to last, as in TinyBERT.

    Args:
        student, teacher: how many layers they have.
    """
    return tuple(layer * teacher // student for layer in range(student + 1))


def check_layers(layers: Sequence[int], student: int, teacher: int) -> None:
    """Raises ValueError where `layers` names no state of the teacher, or not as many as the student has."""
    if len(layers) != student + 1:
        raise ValueError(
            f"--teacher_layers {' '.join(map(str, layers))}: {student + 1} numbers are expected, for the student's "
            f"embedding and each of its {student} layers; found {len(layers)}."
        )
    beyond = [layer for layer in layers if not 0 <= layer <= teacher]
    if beyond:
        raise ValueError(
            f"--teacher_layers {' '.join(map(str, layers))}: the teacher's states are 0 (its embedding) to {teacher}, "
            f"and {beyond[0]} is none of them."
        )
