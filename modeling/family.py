"""What the models of all families share around their own blocks, stacks and heads.

`FamilyPreTrainedModel` initialises, loads and saves; `FamilyStack` stands before it among the bases of a model without
head, `LanguageModelHead` or `CausalHead` among those of a model that predicts tokens.
Shapes: B batch, L length, D hidden, V vocabulary.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, strtobool

from .cache import StateCache
from .context import SequenceContext
from .documents import BORDER_NAMES, DocumentBorders, borders_in, documents_begin
from .loading import LoadsClearly
from .outputs import IGNORED_LABEL
from .scan_fla import check_scan_backend


class FamilyPreTrainedModel(LoadsClearly, PreTrainedModel):
    """Initialisation, loading, saving and weight decay.

    `auto_classes` are what a checkpoint that carries its code along offers: Auto class -> file.Class.
    """

    auto_classes: dict[str, str]
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config, *inputs, **kwargs):
        config.check_consistency()
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and hasattr(module, "ends_branch"):
            # 2 branches a layer add up in the stream: its variance stays that of one, however deep the model
            depth_scale = (2 * self.config.num_hidden_layers) ** -0.5
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range * depth_scale)
        elif hasattr(module, "initialize_parameters"):
            module.initialize_parameters()

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; config.json names every Auto class, so that each of them can open the checkpoint."""
        self.config.auto_map = dict(self.auto_classes)
        return super().save_pretrained(save_directory, **kwargs)

    def set_scan_backend(self, scan_backend: str) -> None:
        """Choose what retention, Mamba-2 and delta memories scan with, as `set_attn_implementation` does for attention.

        A checkpoint does not keep the choice. A single token, as in decoding, is one step of the recurrence either way.

        Args:
            scan_backend: "torch", the default, anywhere; "fla", flash-linear-attention's kernels, on CUDA in up to
                float32.

        Raises:
            ValueError: no such backend, or no layer of this model scans.
            ImportError: "fla" without flash-linear-attention.
        """
        check_scan_backend(scan_backend)
        if not any(getattr(module, "scans", False) for module in self.modules()):
            raise ValueError(
                f"scan_backend={scan_backend!r} does nothing: no layer of this {type(self).__name__} is a retnet, a "
                "mamba, or a titan_attn with use_titan_memory=True."
            )
        for module in self.modules():
            if isinstance(module, FamilyStack):
                module.scan_backend = scan_backend

    def set_training_window(self, attention_window: int | None) -> None:
        """Let attention reach so many tokens back (and ahead) in training mode, whatever the configuration says.

        A checkpoint does not keep the choice, evaluation mode has no part in it, and None takes it back. A forward pass
        under it refuses a cache, which keeps what the configuration's window needs.

        Raises:
            ValueError: a window without tokens.
        """
        if attention_window is not None and attention_window < 1:
            raise ValueError(f"attention_window={attention_window} must be positive, or None for the configuration's.")
        for module in self.modules():
            if isinstance(module, FamilyStack):
                module.training_window = attention_window

    def no_weight_decay_names(self) -> set[str]:
        """Return the parameters that must not decay: all vectors and scalars, and what the family says."""
        return {name for name, parameter in self.named_parameters() if not self.decays(name, parameter)}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay pulls at a parameter."""
        return parameter.ndim >= 2


class FamilyStack:
    """What happens to the inputs before the first layer; the stack has `embeddings`, a FactorizedEmbedding."""

    scan_backend = "torch"
    training_window: int | None = None

    def look_up(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Return rows of the token table (B, L, R): those of `input_ids`, or the ones given in their place.

        Raises:
            ValueError: both or neither is given, or the sequence is empty.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        rows = self.embeddings.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if rows.shape[1] == 0:
            raise ValueError("The sequence is empty: give at least one token.")
        return rows

    def make_context(
        self,
        rows: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: StateCache | None,
        want_attentions: bool,
        borders: DocumentBorders | None = None,
        is_causal: bool | None = None,
    ) -> SequenceContext:
        """Return what every layer must know of the rows (B, L, R); a cache learns of them here.

        is_causal: the direction, where it is not the configuration's.
        """
        config = self.config
        drawn = self.training_window if self.training else None
        return SequenceContext.build(
            batch_size=rows.shape[0],
            length=rows.shape[1],
            device=rows.device,
            is_causal=config.is_decoder if is_causal is None else is_causal,
            attention_mask=attention_mask,
            position_ids=position_ids,
            borders=borders,
            attention_window=config.attention_window if drawn is None else drawn,
            attn_implementation=config._attn_implementation,
            keep_weights=want_attentions and config._attn_implementation == "eager",
            scan_backend=self.scan_backend,
            max_positions=self.max_positions(),
            cache=cache,
        )

    def max_positions(self) -> int | None:
        """Return the size of the position table; None when positions go on for ever."""
        return self.config.num_positions or None

    def new_cache(self) -> StateCache:
        """Return an empty cache, with one entry per logical layer."""
        return StateCache(self.config.num_hidden_layers, self.config.attention_window)


class LanguageModelHead:
    """A model with `lm_head`, a FactorizedHead whose output matrix can be the token table."""

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embeddings.embed_tokens.weight"}

    _shows_matrix = False

    @contextlib.contextmanager
    def showing_its_matrix(self) -> Iterator[None]:
        """Let `get_output_embeddings` return the output matrix itself for as long, as those expect who resize it or
        ask whether it is the table's."""
        self._shows_matrix = True
        try:
            yield
        finally:
            self._shows_matrix = False

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer with the output matrix.

        Of a causal model it has a `weight` (V, D) and a `bias` with logits = h weight^T + bias, as those expect who
        compute them on their own (TRL): where the matrix alone has not, the whole head stands for it, and makes its
        `weight` or says why there is none (see FactorizedHead). Under FSDP it is the matrix always: accelerate finds
        shared weights by asking whether this layer's weight is the table's.
        """
        head = self.lm_head
        stands_alone = head.decoder_is_all or hasattr(head.decoder, "is_packed_layer")
        is_asked_for_ties = self._shows_matrix or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
        return head if self.config.is_decoder and not stands_alone and not is_asked_for_ties else head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head.set_decoder(new_embeddings)

    def set_unigram_bias(self, counts: torch.Tensor) -> None:
        """Start the output bias from the unigram distribution; see `FactorizedHead.set_unigram_bias`."""
        self.lm_head.set_unigram_bias(counts)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """As in transformers; a quantised table or head stays quantised.

        Raises:
            ValueError: the model is packed, and another size is asked for.
        """
        packed = [
            type(layer).__name__
            for layer in (self.get_input_embeddings(), self.get_output_embeddings())
            if hasattr(layer, "is_packed_layer")
        ]
        if not packed:
            with self.showing_its_matrix():
                return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens in (None, self.config.vocab_size):
            return self.get_input_embeddings()
        raise ValueError(
            f"the vocabulary of {self.config.vocab_size} tokens cannot become one of {new_num_tokens}: {packed[0]} "
            "holds packed weights. Resize the model it was packed from, and pack that."
        )


class CausalHead(LanguageModelHead):
    """A decoder that predicts the next token.

    A CachedGenerationMixin stands beside it among a model's own bases: by their names transformers tells who generates.
    """

    def __init__(self, config):
        if not config.is_decoder:
            raise ValueError(f"{type(self).__name__} needs is_decoder=True.")
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # a subclass's own name would say nothing to transformers

    def next_token_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor | None:
        """Return the mean cross-entropy of the labels (B, L), shifted here, by logits (B, L, V); None without labels.

        Nobody is asked for the first token of a document, which mask, positions and borders tell. `kwargs` are what
        else the model was called with; they go to transformers' loss function, above all the Trainer's
        `num_items_in_batch`.
        """
        labels, kwargs = within_documents(labels, kwargs, attention_mask, position_ids)
        if labels is None:
            return None
        return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)


def within_documents(
    labels: torch.Tensor | None,
    kwargs: dict,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> tuple[torch.Tensor | None, dict]:
    """Return labels (B, L) such that no token is asked of the last one of another document, and the loss's `kwargs`.

    Args:
        labels: not shifted; those of the last tokens when logits were kept of these alone.
        kwargs: what the model was called with. `shift_labels`, which are shifted already, change with the labels; the
            borders of documents, which no loss asks for, are left out.
        attention_mask, position_ids: as the model took them.
    """
    borders = borders_in(kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name not in BORDER_NAMES}
    starts = None if labels is None else documents_begin(labels.shape, attention_mask, position_ids, borders)
    if starts is None:
        return labels, kwargs
    starts = starts[:, -labels.shape[1] :]
    if kwargs.get("shift_labels") is not None:
        kwargs["shift_labels"] = kwargs["shift_labels"].masked_fill(F.pad(starts[:, 1:], (0, 1)), IGNORED_LABEL)
    return labels.masked_fill(starts, IGNORED_LABEL), kwargs


STACK_KEYS = ("output_hidden_states", "output_attentions", "cache", "use_cache", "causal_rows", *BORDER_NAMES)


def for_stack(kwargs: dict) -> dict:
    """Return what of a head's keyword arguments goes on to the stack, which is to return its fields by name."""
    return {"return_dict": True} | {key: value for key, value in kwargs.items() if key in STACK_KEYS}


def head_output(kind: type[ModelOutput], stack: ModelOutput, **own: torch.Tensor | None) -> ModelOutput:
    """Return a head's output: its own loss and logits, and what the stack returned as far as `kind` has a field."""
    known = kind.__dataclass_fields__  # what dataclasses.fields() reads, which torch.compile cannot trace
    return kind(**own, **{name: value for name, value in stack.items() if name in known})


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None, take_last: bool) -> torch.Tensor:
    """Return (B, D): the last real token of hidden (B, L, D), or the mean of the real ones; zeros for an empty row."""
    if attention_mask is None:
        return hidden[:, -1] if take_last else hidden.mean(1)
    mask = attention_mask[:, -hidden.shape[1] :].bool()
    if take_last:
        order = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, order, 0).argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    total = (hidden * mask.unsqueeze(-1)).sum(1)
    return total / mask.sum(1, keepdim=True).clamp_min(1)
