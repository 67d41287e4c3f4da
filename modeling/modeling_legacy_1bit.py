"""Legacy-1bit: a causal pre-norm transformer whose matrices are ternary, down to embedding and head if so configured.

The C project Legacy-1bit-LLM names the sizes of the preset legacy-1bit (bytes, two layers of width 256). What it calls
attention copies each token's own value; here it is causal softmax attention with positions, and training is
straight-through (bitlinear.py) instead of snapping every weight at every token.
A block is x = x + attention(norm1(x)); x = x + ffn(norm2(x)); norm_f ends the stack.
Shapes: B batch, L length, D hidden, H heads, T keys, V vocabulary.
"""

from typing import Unpack

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .bit_embedding import BitEmbedding
from .bitlinear import LinearFactory, linear_factory
from .cache import StateCache
from .configuration_legacy_1bit import Legacy1BitConfig
from .context import SequenceContext
from .documents import DocumentBorders, borders_in
from .embeddings import FactorizedEmbedding, FactorizedHead
from .family import CausalHead, FamilyPreTrainedModel, FamilyStack, head_output
from .feedforward import FeedForward
from .generation import CachedGenerationMixin, resolve_cache, takes_old_cache_name
from .mixer_attention import StandardAttention
from .norms import build_norm
from .quantizer_ternary import TernaryHfQuantizer  # noqa: F401  loads packed checkpoints
from .task_heads import SequenceClassifier, SpanFinder, TokenClassifier
from .weight_groups import weight_groups


def _linear(config: Legacy1BitConfig, is_quantized: bool) -> LinearFactory:
    """Return the class that makes the projections of a part."""
    return linear_factory(config, config.use_bitnet and is_quantized)


def _make_embedding(config: Legacy1BitConfig) -> FactorizedEmbedding:
    size, width, pad = config.vocab_size, config.hidden_size, config.pad_token_id
    embedding = FactorizedEmbedding(
        size,
        width,
        num_positions=config.num_positions,
        is_causal=config.is_decoder,
        padding_idx=pad,
        normalize_rms=config.embedding_norm == "rms",
        dropout=config.dropout,
    )
    if config.use_bitnet and config.bitnet_embedding:
        embedding.embed_tokens = BitEmbedding(
            size,
            width,
            padding_idx=pad,
            scheme=config.w_scheme,
            scale_axis=config.scale_axis,
            group_size=config.group_size,
        )
    return embedding


class Legacy1BitBlock(GradientCheckpointingLayer):
    """One layer: attention and a feed-forward, each of the normalised stream and added to it."""

    def __init__(self, config: Legacy1BitConfig):
        super().__init__()
        self.norm1 = build_norm(config.norm_type, config.hidden_size, eps=config.layer_norm_eps)
        self.attention = StandardAttention(
            config.hidden_size,
            config.num_attention_heads,
            position_type=config.position_type,
            rope_theta=config.rope_theta,
            attention_dropout=config.attention_dropout,
            use_bias=config.use_bias,
            linear=_linear(config, config.bitnet_attention),
        )
        self.norm2 = build_norm(config.norm_type, config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = FeedForward(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            use_bias=config.use_bias,
            linear=_linear(config, config.bitnet_ffn),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, context: SequenceContext, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map x (B, L, D) to the next x, and the attention weights (B, H, L, T) or None."""
        delta, weights = self.attention(self.norm1(x), context, layer_idx)
        x = self.add(x, delta)
        x = self.add(x, self.ffn(self.norm2(x)))
        return context.zero_pads(x), weights

    def add(self, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(delta) if self.training else x + delta


class Legacy1BitPreTrainedModel(FamilyPreTrainedModel):
    """What the models of the family know of its configuration, blocks and weights."""

    config: Legacy1BitConfig
    config_class = Legacy1BitConfig
    auto_classes = {
        "AutoConfig": "configuration_legacy_1bit.Legacy1BitConfig",
        "AutoModel": "modeling_legacy_1bit.Legacy1BitModel",
        "AutoModelForCausalLM": "modeling_legacy_1bit.Legacy1BitForCausalLM",
        "AutoModelForSequenceClassification": "modeling_legacy_1bit.Legacy1BitForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_legacy_1bit.Legacy1BitForTokenClassification",
        "AutoModelForQuestionAnswering": "modeling_legacy_1bit.Legacy1BitForQuestionAnswering",
    }
    _no_split_modules = ["Legacy1BitBlock"]
    degradation_groups = weight_groups(r"attention\.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.embedding_initializer_range)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])


class Legacy1BitModel(FamilyStack, Legacy1BitPreTrainedModel):
    """The stack without a head."""

    def __init__(self, config: Legacy1BitConfig):
        super().__init__(config)
        self.embeddings = _make_embedding(config)
        self.layers = nn.ModuleList(Legacy1BitBlock(config) for _ in range(config.num_hidden_layers))
        self.norm_f = build_norm(config.norm_type, config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cache: StateCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[DocumentBorders],
    ) -> BaseModelOutputWithPast:
        """Run the stack.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 at real tokens, 0 at pads on either side; bool, integer or float. With a cache
                that holds P columns it may be (B, P + L).
            position_ids: (B, L); by default real tokens are counted. A token at 0 behind
                another one begins the next of several documents in its row.
            inputs_embeds: (B, L, D) rows of the embedding table in place of `input_ids`.
            cache: what earlier calls returned; the inputs are then the tokens that follow.
            use_cache: whether to return one; by default as the config says, but not while training.
            kwargs: other borders of documents: `seq_idx` (B, L), or `cu_seq_lens_q` and `cu_seq_lens_k` (N + 1,) for a
                batch of one row; see DocumentBorders. No document sees another one.

        Returns:
            last_hidden_state (B, L, D), zero at pads; cache; hidden_states, layers + 1 tensors (B, L, D):
            the embedding, each layer's output, the last one normalised; attentions, (B, H, L, T) of each layer, for
            eager attention.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, an empty sequence, a mask of another shape,
                more tokens than learned positions, a cache that is not its own, or borders of documents that cannot be
                or contradict each other.
        """
        config = self.config
        rows = self.look_up(input_ids, inputs_embeds)
        cache = resolve_cache(self, cache, use_cache)
        want_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_attentions = config.output_attentions if output_attentions is None else output_attentions
        borders = borders_in(kwargs)
        context = self.make_context(rows, attention_mask, position_ids, cache, want_attentions, borders)
        x = self.embeddings(rows, None, context)
        hidden_states, attentions = [], []
        for index, layer in enumerate(self.layers):
            if want_states:
                hidden_states.append(x)
            x, weights = layer(x, context=context, layer_idx=index)
            attentions.append(weights)
        x = context.zero_pads(self.norm_f(x))
        hidden_states.append(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            cache=cache,
            hidden_states=tuple(hidden_states) if want_states else None,
            attentions=tuple(weights for weights in attentions if weights is not None) if want_attentions else None,
        )


class Legacy1BitForCausalLM(CausalHead, CachedGenerationMixin, Legacy1BitPreTrainedModel):
    """A causal decoder that predicts the next token."""

    def __init__(self, config: Legacy1BitConfig):
        super().__init__(config)
        self.model = Legacy1BitModel(config)
        self.lm_head = FactorizedHead(
            config.hidden_size,
            config.vocab_size,
            bias=config.head_bias,
            linear=_linear(config, config.bitnet_head),
        )
        self.post_init()

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        cache: StateCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As Legacy1BitModel, with logits (B, L, V); `labels` (B, L) are the input ids with -100 at pads, shifted here.

        The first token of a document counts in no loss: none before it is of its document.
        Other `kwargs` go to transformers' loss function, above all the Trainer's `num_items_in_batch`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cache=cache,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **borders_in(kwargs),
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = self.next_token_loss(logits, labels, attention_mask, position_ids, **kwargs)
        return head_output(CausalLMOutputWithPast, outputs, loss=loss, logits=logits)

    def can_forget(self) -> bool:
        """Return whether the last tokens can be taken back, as assisted decoding must: unless a window is set."""
        return self.config.attention_window is None


class Legacy1BitForSequenceClassification(SequenceClassifier, Legacy1BitPreTrainedModel):
    """A classifier of rows, over the last real token (over their mean without causality)."""

    stack_class = Legacy1BitModel
    output_class = SequenceClassifierOutputWithPast


class Legacy1BitForTokenClassification(TokenClassifier, Legacy1BitPreTrainedModel):
    """A classifier of every token."""

    stack_class = Legacy1BitModel
    output_class = TokenClassifierOutput


class Legacy1BitForQuestionAnswering(SpanFinder, Legacy1BitPreTrainedModel):
    """Finds where the answer in a row begins and ends."""

    stack_class = Legacy1BitModel
    output_class = QuestionAnsweringModelOutput
