"""The heads of all families that are no language models: one linear layer on the stack, for rows, tokens or spans.

A family makes a model of each by naming its stack (`stack_class`) and what it returns (`output_class`). Losses are
transformers' own, by the task's name; a causal stack shows each token its past alone, whatever the head.
Shapes: B batch, L length, D hidden, C classes.
"""

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from .documents import BORDER_NAMES, check_one_document
from .family import head_output, pool
from .full_linear import UnroundedLinear
from .generation import takes_old_cache_name
from .outputs import IGNORED_LABEL


class TaskHead:
    """What the heads share; a family's own base class stands behind it among a model's bases.

    Attributes:
        task: the name of transformers' loss; from a subclass's own name it would be guessed wrongly.
        stack_class, output_class: the family's model without a head, and what the forward pass returns.
        stack_options: keyword arguments that are the stack's; what else is given goes to the loss.
    """

    task: str
    stack_class: type[nn.Module]
    output_class: type[ModelOutput]
    stack_options: tuple[str, ...] = (
        "output_hidden_states",
        "output_attentions",
        "cache",
        "use_cache",
        *BORDER_NAMES,
    )

    def __init__(self, config):
        super().__init__(config)
        self.loss_type = self.task
        self.num_labels = config.num_labels
        self.model = self.stack_class(config)
        self.dropout = nn.Dropout(config.dropout)
        self.add_layer(config)
        self.post_init()

    def add_layer(self, config) -> None:
        """Add the linear layer, `classifier`."""
        self.classifier = UnroundedLinear(config.hidden_size, config.num_labels)

    def run_stack(
        self, input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, kwargs: dict
    ) -> tuple[ModelOutput, dict]:
        """Return what the stack makes of the inputs, and those of `kwargs` that are the loss's.

        No cache is kept unless it is asked for: nothing follows a text that is classified.

        Raises:
            ValueError: token types for a family that has none.
        """
        options = {"use_cache": False} | {name: kwargs[name] for name in self.stack_options if name in kwargs}
        if "token_type_ids" in self.stack_options:
            options["token_type_ids"] = token_type_ids
        elif token_type_ids is not None and not torch.compiler.is_compiling() and bool(token_type_ids.any()):
            raise ValueError(f"token_type_ids are given, but the family {self.config.model_type} has no token types.")
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **options,
        )
        return outputs, {name: value for name, value in kwargs.items() if name not in self.stack_options}

    def task_loss(self, outputs: ModelOutput, labels: torch.Tensor, loss_inputs: dict) -> torch.Tensor:
        """Return the task's loss, a scalar.

        Args:
            outputs: the stack's.
            labels: of any shape, -100 where none is.
            loss_inputs: what transformers' loss function of the task takes, and what else the model was called with for
                its loss, above all the Trainer's `num_items_in_batch`.
        """
        return self.loss_function(**loss_inputs)


class SequenceClassifier(TaskHead):
    """A classifier over the mean of the real tokens, or over the last real one when causal."""

    task = "ForSequenceClassification"

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """As the stack, with logits (B, C); `labels` (B,) class ids, or floats for regression and multi-label problems.

        Raises:
            ValueError: also for several documents in a row, which has one label.
        """
        check_one_document(input_ids, inputs_embeds, attention_mask, position_ids, kwargs)
        outputs, loss_kwargs = self.run_stack(
            input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, kwargs
        )
        pooled = pool(outputs.last_hidden_state, self.real_tokens(input_ids, attention_mask), self.config.is_decoder)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            inputs = {"labels": labels, "pooled_logits": logits, "config": self.config}
            loss = self.task_loss(outputs, labels, inputs | loss_kwargs)
        return head_output(self.output_class, outputs, loss=loss, logits=logits)

    def real_tokens(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return a mask (B, L) of the tokens that are no pads, None where nothing tells.

        Without attention_mask a causal classifier takes the ids that are not config.pad_token_id, as those of
        transformers do: what stands behind a text changes nothing before it.
        """
        pad = self.config.pad_token_id
        if attention_mask is None and input_ids is not None and self.config.is_decoder and pad is not None:
            return input_ids != pad
        return attention_mask

    def loss_function(self, labels, pooled_logits, config, num_items_in_batch=None, **kwargs) -> torch.Tensor:
        """As transformers' loss; over the items of all micro-batches where the Trainer counts them.

        transformers does that for classes alone: of regression and multi-label problems it takes the mean, which with
        gradient accumulation would be added up as if it were each micro-batch's share.
        """
        loss_function = super().loss_function
        classes = config.num_labels > 1 and not labels.is_floating_point()
        if config.problem_type is not None:
            classes = config.problem_type == "single_label_classification"
        if not classes:
            labels = labels.to(pooled_logits.dtype)  # whole numbers, too, are what a regression is to find
        if not classes and num_items_in_batch is not None:
            share = (labels != IGNORED_LABEL).sum() / num_items_in_batch
            return share * loss_function(labels=labels, pooled_logits=pooled_logits, config=config, **kwargs)
        return loss_function(
            labels=labels, pooled_logits=pooled_logits, config=config, num_items_in_batch=num_items_in_batch, **kwargs
        )


class TokenClassifier(TaskHead):
    """A classifier of every token."""

    task = "ForTokenClassification"

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """As the stack, with logits (B, L, C); `labels` (B, L) class ids, -100 where a token counts in no loss.

        Packed documents stay apart, as in the stack.
        """
        outputs, loss_kwargs = self.run_stack(
            input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, kwargs
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            inputs = {"labels": labels, "logits": logits, "config": self.config}
            loss = self.task_loss(outputs, labels, inputs | loss_kwargs)
        return head_output(self.output_class, outputs, loss=loss, logits=logits)


class SpanFinder(TaskHead):
    """Finds a span of a row, an answer to a question in it: how likely each token begins it and ends it."""

    task = "ForQuestionAnswering"

    def add_layer(self, config) -> None:
        """Add the linear layer, `qa_outputs`, whatever `num_labels` says."""
        self.qa_outputs = UnroundedLinear(config.hidden_size, 2)

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """As the stack, with start_logits and end_logits (B, L), the type's least number at pads.

        Args:
            start_positions, end_positions: (B,), the first and the last token of the span; -100, or a place behind the
                row, counts in no loss.

        Raises:
            ValueError: also for several documents in a row, for one of the two positions without the other, and for a
                position at a pad.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("give both start_positions and end_positions, or neither: a span has two ends.")
        check_one_document(input_ids, inputs_embeds, attention_mask, position_ids, kwargs)
        outputs, loss_kwargs = self.run_stack(
            input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, kwargs
        )
        ends = self.qa_outputs(self.dropout(outputs.last_hidden_state))  # (B, L, 2)
        mask = None
        if attention_mask is not None:
            # no span begins at a pad: how far a row is padded changes neither its spans nor its loss
            mask = attention_mask[:, -ends.shape[1] :].bool()
            ends = ends.masked_fill(~mask[..., None], torch.finfo(ends.dtype).min)
        start_logits, end_logits = (each.contiguous() for each in ends.unbind(-1))
        loss = None
        if start_positions is not None:
            starts = _real_positions("start_positions", start_positions, mask, ends.shape[1])
            stops = _real_positions("end_positions", end_positions, mask, ends.shape[1])
            inputs = {"start_logits": start_logits, "end_logits": end_logits}
            inputs |= {"start_positions": starts, "end_positions": stops}
            loss = self.task_loss(outputs, starts, inputs | loss_kwargs)
        return head_output(self.output_class, outputs, loss=loss, start_logits=start_logits, end_logits=end_logits)


def _real_positions(name: str, positions: torch.Tensor, mask: torch.Tensor | None, length: int) -> torch.Tensor:
    """Return positions (B,) with `length`, which transformers' loss leaves out, for -100.

    Raises:
        ValueError: one is negative, or a pad of mask (B, L).
    """
    positions = positions.squeeze(-1) if positions.ndim > 1 else positions
    positions = torch.where(positions == IGNORED_LABEL, length, positions)
    if torch.compiler.is_compiling():
        return positions
    if bool((positions < 0).any()):
        row = int((positions < 0).nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is {int(positions[row])}: give the place of a token, counted from 0, or {IGNORED_LABEL} "
            "where there is none."
        )
    if mask is None:
        return positions
    places = positions.clamp(0, length - 1)[:, None]
    at_pads = (positions < length) & ~mask.gather(1, places)[:, 0]
    if bool(at_pads.any()):
        row = int(at_pads.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is {int(positions[row])}, which is a pad of row {row}: give the place of a real token, or "
            f"{IGNORED_LABEL} where there is none."
        )
    return positions
