"""Infinito: a causal transformer with a slot memory per row of text.

Read top to bottom: the block, the family's base class, the stack, the language model, the other heads.
A block is x = norm1(x + attention(x)); x = norm2(x + ffn(x)), or with `norm_style` "pre" x += attention(norm1(x));
x += ffn(norm2(x)); norm_f ends the stack. Each layer of `memory_layers` has a memory: in its attention, which reads
slots beside its window (attention_slots.py), or, by `memory_type` "slots", at its input (slot_memory.py). In training,
noise follows each block.
Shapes: B batch, L length, D hidden, V vocabulary, S memory slots.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .attention_slots import MemoryRead
from .cache import StateCache
from .configuration_infinito import InfinitoConfig
from .context import SequenceContext
from .documents import DocumentBorders, borders_in
from .embeddings import FactorizedEmbedding, FactorizedHead
from .exploration import ExplorationNoise
from .family import CausalHead, FamilyPreTrainedModel, FamilyStack, head_output
from .feedforward import FeedForward
from .generation import CachedGenerationMixin, resolve_cache, takes_old_cache_name
from .infinito_memories import (
    MemoryState,
    check_shuffling,
    make_attention,
    make_memories,
    read_apart,
    remember,
    starting_states,
    summarise_memories,
)
from .norms import build_norm
from .outputs_infinito import InfinitoCausalLMOutput, InfinitoModelOutput
from .task_heads import SequenceClassifier, SpanFinder, TaskHead, TokenClassifier
from .weight_groups import weight_groups


class InfinitoBlock(GradientCheckpointingLayer):
    """One layer: attention and a feed-forward, each followed by the norm of the sum."""

    def __init__(self, config: InfinitoConfig, layer_idx: int):
        super().__init__()
        self.is_post_norm = config.norm_style == "post"
        self.attention = make_attention(config, layer_idx)
        self.norm1 = build_norm("layer_norm", config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = FeedForward(
            config.hidden_size, config.intermediate_size, config.hidden_act, use_bias=config.use_bias
        )
        self.norm2 = build_norm("layer_norm", config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, context: SequenceContext, layer_idx: int, memory: MemoryRead | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, MemoryRead | None]:
        """Map x (B, L, D) to the next x, the attention weights or None, and what became of a memory in its attention.

        With `memory`, the attention reads slots beside its window, and has no weights to show.
        """
        normed, weights = x if self.is_post_norm else self.norm1(x), None
        if memory is None:
            delta, weights = self.attention(normed, context, layer_idx)
        else:
            delta, memory = self.attention(normed, context, layer_idx, memory)
        x = self.add(x, delta)
        if self.is_post_norm:
            x = self.norm1(x)
            return context.zero_pads(self.norm2(self.add(x, self.ffn(x)))), weights, memory
        return context.zero_pads(self.add(x, self.ffn(self.norm2(x)))), weights, memory

    def add(self, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(delta) if self.training else x + delta


class InfinitoPreTrainedModel(FamilyPreTrainedModel):
    """What the models of the family know of its configuration, blocks and weights."""

    config: InfinitoConfig
    config_class = InfinitoConfig
    auto_classes = {
        "AutoConfig": "configuration_infinito.InfinitoConfig",
        "AutoModel": "modeling_infinito.InfinitoModel",
        "AutoModelForCausalLM": "modeling_infinito.InfinitoForCausalLM",
        "AutoModelForSequenceClassification": "modeling_infinito.InfinitoForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_infinito.InfinitoForTokenClassification",
        "AutoModelForQuestionAnswering": "modeling_infinito.InfinitoForQuestionAnswering",
    }
    _no_split_modules = ["InfinitoBlock", "SlotMemory"]
    degradation_groups = weight_groups(r"attention\.") | {
        "memory": [r"text/memories\.\d+\.[qkvo]_proj\.weight"],
        "memory_read": [r"text/memories\.\d+\.(?:q_proj|o_proj|gate)\.weight"],
        "memory_write": [
            r"text/memories\.\d+\.(?:k_proj|v_proj|pooling|importance)\.weight",
            r"text/layers\.\d+\.attention\.importance\.weight",
        ],
    }

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay pulls at a parameter: not at vectors written as matrices of one row, and not at
        what votes on a token's importance, be it for one memory or for each head."""
        return super().decays(name, parameter) and parameter.shape[0] > 1 and ".importance." not in name

    def set_exploration(self, progress: float) -> None:
        """Tell the noise schedule how much of the training is done, in [0, 1]; a training callback calls it.

        Raises:
            ValueError: progress lies outside.
        """
        for module in self.modules():
            if isinstance(module, ExplorationNoise):
                module.set_progress(progress)


class InfinitoModel(FamilyStack, InfinitoPreTrainedModel):
    """The stack without a head."""

    def __init__(self, config: InfinitoConfig):
        super().__init__(config)
        self.embeddings = FactorizedEmbedding(
            config.vocab_size,
            config.hidden_size,
            conv_kernel=config.embedding_conv_kernel,
            conv_depthwise=config.embedding_conv_depthwise,
            num_positions=config.num_positions,
            is_causal=config.is_decoder,
            padding_idx=config.pad_token_id,
            dropout=config.dropout,
        )
        self.layers = nn.ModuleList(InfinitoBlock(config, index) for index in range(config.num_hidden_layers))
        self.memories = make_memories(config)
        self.exploration = ExplorationNoise(
            config.exploration_sigma, config.exploration_schedule, config.exploration_seed
        )
        self.norm_f = build_norm("layer_norm", config.hidden_size, eps=config.layer_norm_eps)
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
        memory_state: Sequence[MemoryState] | None = None,
        use_memory: bool | None = None,
        shuffle_memory: bool = False,
        output_memory_reads: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[DocumentBorders],
    ) -> InfinitoModelOutput:
        """Run the stack.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 at real tokens, 0 at pads on either side; bool, integer or float. With a cache
                that holds P columns it may be (B, P + L).
            position_ids: (B, L) for the learned positions; by default real tokens are counted. A token at 0 behind
                another one begins the next of several documents in its row.
            inputs_embeds: (B, L, D) rows of the embedding table in place of `input_ids`.
            cache: what earlier calls returned; the inputs are then the tokens that follow.
            use_cache: whether to return one; by default as the config says, but not while training.
            memory_state: the `memory_state` of an earlier window of the same rows: the memory goes on from there,
                while attention and positions start anew. With attention slots it also holds the window's last tokens,
                attention_window - 1 of them, as keys and values that were made at their positions in the earlier
                window: the attention that reads slots goes on over both, and positions come twice in it.
            use_memory: False runs the same weights without memory; None and True use what memory there is.
            shuffle_memory: row b reads the memory of row b + 1, the last row that of the first: an ablation, meant for
                rows of equal length.
            output_memory_reads: return `memory_reads`.
            kwargs: other borders of documents: `seq_idx` (B, L), or `cu_seq_lens_q` and `cu_seq_lens_k` (N + 1,) for a
                batch of one row; see DocumentBorders. No document sees another one; each starts with an empty memory,
                the first with `memory_state`, and the state returned is that of the last.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, an empty sequence, a mask of another shape,
                more tokens than positions, a cache that is not its own or was made with the memory switched the other
                way; a memory_state of another shape, beside a filled cache, or without memory; one row to shuffle, or
                rows of several documents; borders of documents that cannot be or contradict each other.
        """
        rows = self.look_up(input_ids, inputs_embeds)
        cache = resolve_cache(self, cache, use_cache)
        states = starting_states(self.config, use_memory, memory_state, cache, rows.shape[0], rows.device)
        if shuffle_memory:
            check_shuffling(bool(states), rows.shape[0])
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        context = self.make_context(rows, attention_mask, position_ids, cache, want_attentions, borders_in(kwargs))
        x = self.embeddings(rows, None, context)
        hidden_states, attentions, reads = [x], [], []
        for index, layer in enumerate(self.layers):
            memory = MemoryRead(states[index], shuffle_memory, output_memory_reads) if index in states else None
            if memory is not None and self.memories:
                x, memory = read_apart(self.memories[str(index)], x, context, memory)
                x, weights, _ = layer(x, context=context, layer_idx=index)
            else:
                x, weights, memory = layer(x, context=context, layer_idx=index, memory=memory)
            if memory is not None:
                states[index] = memory.state
                remember(memory.state, context, index)
                reads.append(memory.reads)
            x = self.exploration(x)
            hidden_states.append(x)
            attentions.append(weights)
        x = hidden_states[-1] = context.zero_pads(self.norm_f(x))
        keeps_graph = self.training or not torch.is_grad_enabled()  # without gradients there is nothing to cut off
        new_states = tuple(state if keeps_graph else state.detach() for state in states.values() if state is not None)
        is_replica = hasattr(self, "_is_replica")  # of nn.DataParallel, which gathers tensors and cannot rebuild states
        return InfinitoModelOutput(
            last_hidden_state=x,
            cache=cache,
            hidden_states=tuple(hidden_states) if want_states else None,
            attentions=(tuple(attentions) if context.keep_weights else ()) if want_attentions else None,
            memory_state=None if is_replica else new_states or None,
            memory_stats=summarise_memories(new_states),
            memory_reads=tuple(reads) if states and output_memory_reads else None,
        )


class InfinitoForCausalLM(CausalHead, CachedGenerationMixin, InfinitoPreTrainedModel):
    """A causal decoder that predicts the next token."""

    def __init__(self, config: InfinitoConfig):
        super().__init__(config)
        self.model = InfinitoModel(config)
        self.lm_head = FactorizedHead(config.hidden_size, config.vocab_size, bias=config.head_bias)
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
        memory_state: Sequence[MemoryState] | None = None,
        use_memory: bool | None = None,
        shuffle_memory: bool = False,
        output_memory_reads: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> InfinitoCausalLMOutput:
        """As InfinitoModel; `labels` (B, L) are the input ids with -100 at pads, and are shifted here.

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
            memory_state=memory_state,
            use_memory=use_memory,
            shuffle_memory=shuffle_memory,
            output_memory_reads=output_memory_reads,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **borders_in(kwargs),
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = self.next_token_loss(logits, labels, attention_mask, position_ids, **kwargs)
        return head_output(InfinitoCausalLMOutput, outputs, loss=loss, logits=logits)

    def can_forget(self) -> bool:
        """Return whether the last tokens can be taken back, as assisted decoding must: no memory and no window."""
        return not self.config.memory_layers and self.config.attention_window is None

    @takes_old_cache_name
    def prepare_inputs_for_generation(self, input_ids, cache=None, inputs_embeds=None, memory_state=None, **kwargs):
        """As in transformers; a carried memory enters with the prompt, and lives in the cache from then on."""
        inputs = super().prepare_inputs_for_generation(input_ids, cache=cache, inputs_embeds=inputs_embeds, **kwargs)
        if memory_state is not None and (cache is None or cache.get_seq_length() == 0):
            inputs["memory_state"] = memory_state
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, memory_state=None, **kwargs):
        """As in transformers, which repeats rows for beams and returned sequences, but knows tensors only."""
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, **kwargs)
        if memory_state is not None:
            rows = torch.arange(len(memory_state[0].count), device=memory_state[0].count.device)
            rows = rows.repeat_interleave(expand_size)
            model_kwargs["memory_state"] = tuple(state.select(rows) for state in memory_state)
        return input_ids, model_kwargs


class _InfinitoTaskHead(TaskHead, InfinitoPreTrainedModel):
    """What the heads that are no language models share: they take a memory that the stack has filled before.

    They return what transformers' own heads do. The state of the memory is the stack's to give, which is `model`:
    `head(..., memory_state=head.model(...).memory_state)`.
    """

    stack_class = InfinitoModel
    stack_options = (*TaskHead.stack_options, "memory_state", "use_memory")


class InfinitoForSequenceClassification(SequenceClassifier, _InfinitoTaskHead):
    """A classifier of rows, over the last real token (over their mean without causality)."""

    output_class = SequenceClassifierOutputWithPast


class InfinitoForTokenClassification(TokenClassifier, _InfinitoTaskHead):
    """A classifier of every token."""

    output_class = TokenClassifierOutput


class InfinitoForQuestionAnswering(SpanFinder, _InfinitoTaskHead):
    """Finds where the answer in a row begins and ends."""

    output_class = QuestionAnsweringModelOutput
