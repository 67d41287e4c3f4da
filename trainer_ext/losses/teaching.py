"""A teacher beside a model that trains: a frozen model whose logits and hidden states the student is drawn to.

    loss = own * (the model's own) + logits * (KL of the logits) + hidden * (squared distance of the hidden states)

The last two are over the labelled positions alone, and divided by the labels of the whole batch, as the first is. The
teacher is no part of the model: it is neither trained nor saved. Where the widths differ, a matrix maps the student's
hidden states to the teacher's; it trains with the student, is kept in checkpoints and dropped at the end.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from .teacher_terms import asked_positions, check_layers, hidden_sum, layers_beside, logit_sum, rows_at

logger = logging.getLogger("frankenlm.teaching")

PROJECTION = "teacher_projection"
FILE = f"{PROJECTION}.safetensors"


@dataclass(frozen=True)
class TeachingPlan:
    """How much each part of the loss counts, and how the logits are softened."""

    own: float
    logits: float
    hidden: float
    temperature: float = 1.0

    def total(self, loss: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the model's own loss and the teacher's terms, weighed; what does not count is left out, as 0 times Inf
        is NaN.
        """
        weighed = [(self.own, loss), *((getattr(self, name), term) for name, term in terms.items())]
        return sum(weight * term for weight, term in weighed if weight)


class Teaching(TrainerCallback):
    """See the module.

    Args:
        student, teacher: models with the same vocabulary. The teacher is set to evaluation and frozen.
        layers: for each hidden state of the student (its embedding, its layers) the teacher's; None spreads them.

    Raises:
        ValueError: the vocabularies differ in size, a layer that is none, a model that returns no hidden states.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        plan: TeachingPlan,
        layers: Sequence[int] | None = None,
    ):
        self.plan = plan
        self.model = teacher.eval().requires_grad_(False)
        if hasattr(self.model.config, "use_cache"):
            self.model.config.use_cache = False
        self._student = student
        self.layers: tuple[int, ...] = ()
        shapes = [_shapes(model, bool(plan.hidden)) for model in (student, self.model)]
        ours, theirs = (logits for logits, _ in shapes)
        if ours != theirs:
            raise ValueError(
                f"--teacher: it has logits for {theirs} tokens, and the model for {ours}: add --vocab_size {theirs}."
            )
        if plan.hidden:
            self._match_layers(*(widths for _, widths in shapes), layers)

    def _match_layers(self, ours: Sequence[int], theirs: Sequence[int], layers: Sequence[int] | None) -> None:
        """Choose the teacher's state for each of the student's; where the widths differ, give the student a matrix."""
        student, teacher = len(ours) - 1, len(theirs) - 1
        if layers is not None:
            check_layers(layers, student, teacher)
        self.layers = layers_beside(student, teacher) if layers is None else tuple(layers)
        for widths in (ours, theirs):
            if len(set(widths)) > 1:
                raise ValueError(f"--teacher: hidden states of several widths ({sorted(set(widths))}) are not matched.")
        if ours[0] == theirs[0]:
            return
        # Drawn apart from torch's own random numbers: dropout is then what it is without a teacher.
        matrix = nn.init.orthogonal_(torch.empty(theirs[0], ours[0]), generator=torch.Generator().manual_seed(0))
        projection = nn.utils.skip_init(nn.Linear, ours[0], theirs[0], bias=False)
        projection.weight.data.copy_(matrix)
        # Part of the student while it trains: the optimizer, clipping, the guard and other processes then see it.
        self._student.add_module(PROJECTION, projection.to(self._student.device))

    @property
    def projection(self) -> nn.Linear | None:
        """The matrix (T, D) from the student's hidden states to the teacher's; None where the widths agree."""
        return self._student._modules.get(PROJECTION)

    def asks(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the student is called with: its inputs, and a wish for hidden states where they count."""
        return {**inputs, "output_hidden_states": True} if self.plan.hidden else dict(inputs)

    def terms(
        self, inputs: Mapping[str, Any], outputs: Any, shifts: bool, count: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """Return the terms that count, "logits" and "hidden" (mean over the layers): sums over the labelled positions,
        divided by `count`.

        Args:
            inputs: of the student, with labels (B, L). outputs: what it returned for them.
            shifts: position i is asked for label i + 1.
            count: the labels of the whole batch; None for those of these inputs.
        """
        asked = asked_positions(inputs["labels"], shifts)
        count = asked.sum().clamp_min(1) if count is None else count
        with torch.no_grad():
            theirs = self.model(**self.asks({name: inputs[name] for name in inputs if name != "labels"}))
        found = {}
        if self.plan.logits:
            logits = outputs.get("logits")
            if logits is None:
                raise ValueError("--teacher needs the logits, and the model does not return them.")
            pair = rows_at(logits, asked), rows_at(theirs["logits"], asked)
            found["logits"] = logit_sum(*pair, self.plan.temperature) / count
        if self.plan.hidden:
            found["hidden"] = self._hidden(outputs["hidden_states"], theirs["hidden_states"], asked) / count
        return found

    def _hidden(self, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], asked: torch.Tensor):
        total = torch.zeros((), device=asked.device)
        for state, layer in zip(ours, self.layers, strict=True):
            rows = state[asked]
            if self.projection is not None:
                rows = self.projection(rows)
            total = total + hidden_sum(rows, theirs[layer][asked])
        return total / len(self.layers)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """The student without the matrix, to be saved as what it will be."""
        projection = self._student._modules.pop(PROJECTION, None)
        try:
            yield
        finally:
            if projection is not None:
                self._student.add_module(PROJECTION, projection)

    def on_train_end(self, args, state, control, **kwargs):
        """Take the matrix off the student for good."""
        self._student._modules.pop(PROJECTION, None)

    def save(self, folder: Path) -> None:
        """Write the matrix, where there is one, into a checkpoint."""
        if self.projection is not None:
            save_file({"weight": self.projection.weight.detach()}, folder / FILE)

    def resume(self, folder: Path) -> None:
        """Take up the matrix of a checkpoint; without one it begins anew, which is told."""
        if self.projection is None:
            return
        if not (folder / FILE).is_file():
            logger.warning("%s has no %s: the matrix to the teacher's width begins anew", folder, FILE)
            return
        with torch.no_grad():
            self.projection.weight.copy_(load_file(folder / FILE)["weight"])


@torch.no_grad()
def _shapes(model: PreTrainedModel, wants_states: bool) -> tuple[int, list[int]]:
    """How many logits a model has, and the widths of its hidden states (the embedding's, then each layer's)."""
    was_training = [module for module in model.modules() if module.training]
    ids = torch.arange(4, device=model.device).remainder(model.config.vocab_size).unsqueeze(0)
    try:
        outputs = model.eval()(input_ids=ids, output_hidden_states=wants_states)
    finally:
        for module in was_training:
            module.training = True
    states = outputs["hidden_states"] if wants_states else ()
    if states is None:
        raise ValueError(f"--teacher_hidden_weight: {type(model).__name__} returns no hidden states.")
    return outputs["logits"].shape[-1], [state.shape[-1] for state in states]
