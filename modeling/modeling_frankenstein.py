"""Frankenstein: one stack in which every layer may mix its tokens in another way.

Read the block in frankenstein_block.py, then here, top to bottom: the family's base class, the stack with its logical
loops, the heads. With `norm_style="pre"` norm_f ends the stack; with "post", BERT's, each block normalises its sums.
Shapes: B batch, L length, D hidden, V vocabulary, R width of the embedding table, E experts.
"""

from typing import Unpack

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .bert_weights import bert_to_ours, ours_to_bert
from .bitlinear import linear_factory
from .cache import StateCache
from .configuration_frankenstein import FrankensteinConfig
from .documents import DocumentBorders, borders_in
from .embeddings import EmbeddingConv, FactorizedEmbedding, FactorizedHead
from .family import (
    STACK_KEYS,
    FamilyPreTrainedModel,
    FamilyStack,
    LanguageModelHead,
    for_stack,
    head_output,
    within_documents,
)
from .feedforward import ACTIVATIONS, summarize_routers, weighted_router_loss
from .frankenstein_block import FrankensteinBlock, make_norm
from .generation import CachedGenerationMixin, resolve_cache, takes_old_cache_name
from .mixers import MIXERS
from .outputs import IGNORED_LABEL, FrankensteinHeadOutput, FrankensteinModelOutput, FrankensteinSpanOutput
from .quantizer_ternary import TernaryHfQuantizer  # noqa: F401  its import makes packed checkpoints loadable
from .task_heads import SequenceClassifier, SpanFinder, TaskHead, TokenClassifier
from .two_directions import facing, needs_two_passes, read_each_way, those_before
from .weight_groups import weight_groups


class FrankensteinPreTrainedModel(FamilyPreTrainedModel):
    """What the models of the family know of its configuration, blocks and weights."""

    config: FrankensteinConfig
    config_class = FrankensteinConfig
    auto_classes = {
        "AutoConfig": "configuration_frankenstein.FrankensteinConfig",
        "AutoModel": "modeling_frankenstein.FrankensteinModel",
        "AutoModelForMaskedLM": "modeling_frankenstein.FrankensteinForMaskedLM",
        "AutoModelForCausalLM": "modeling_frankenstein.FrankensteinForCausalLM",
        "AutoModelForSequenceClassification": "modeling_frankenstein.FrankensteinForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_frankenstein.FrankensteinForTokenClassification",
        "AutoModelForQuestionAnswering": "modeling_frankenstein.FrankensteinForQuestionAnswering",
    }
    _no_split_modules = ["FrankensteinBlock"]
    degradation_groups = weight_groups(r"mixer\.(?:attention\.)?") | {
        "mixer": [r"text/layers\.\d+\.mixer\.(?:attention\.)?\w+_proj\.weight"],  # Mamba has no q, k and v
        # of Titan attention, which shares its queries, keys and values
        "memory": [r"text/layers\.\d+\.mixer\.memory\.(?:forget|write|read)_proj\.weight"],
        "memory_read": [r"text/layers\.\d+\.mixer\.memory\.read_proj\.weight"],
        "memory_write": [r"text/layers\.\d+\.mixer\.memory\.(?:forget|write)_proj\.weight"],
    }
    # Matrices that must not decay; norms, biases, A_log, D, dt_bias and the like are vectors.
    _not_decaying = ("router.weight", "loop_embedding", "forget_proj.weight", "write_proj.weight", "read_proj.weight")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FrankensteinModel) and module.loop_embedding is not None:
            init.zeros_(module.loop_embedding)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay pulls at a parameter: not at routers, gates and loop embeddings either."""
        return super().decays(name, parameter) and not name.endswith(self._not_decaying)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers; a checkpoint of the other direction has its embedding convolution shifted on the way."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            if isinstance(module, EmbeddingConv):
                module.align()
        return loaded


class FrankensteinModel(FamilyStack, FrankensteinPreTrainedModel):
    """The stack without a head."""

    def __init__(self, config: FrankensteinConfig):
        super().__init__(config)
        is_post_norm = config.norm_style == "post"
        self.embeddings = FactorizedEmbedding(
            config.vocab_size,
            config.hidden_size,
            rank=config.factorized_embedding_dim,
            conv_kernel=config.embedding_conv_kernel,
            conv_depthwise=config.embedding_conv_depthwise,
            num_positions=config.num_positions,
            num_types=config.type_vocab_size,
            is_causal=config.is_decoder or config.two_directions,  # one kernel for both
            padding_idx=config.pad_token_id,
            norm=make_norm(config, config.norm_alpha_other) if is_post_norm else None,
            normalize_rms=config.embedding_norm == "rms",
            dropout=config.dropout,
            linear=linear_factory(config, config.use_bitnet),
        )
        self.layers = nn.ModuleList(FrankensteinBlock(config, name) for name in config.physical_mixers)
        self.norm_f = None if is_post_norm else make_norm(config, config.norm_alpha_other, config.final_norm_type)
        self.loop_embedding = (
            nn.Parameter(torch.empty(config.num_loops, config.hidden_size)) if config.loop_embedding else None
        )
        self.gradient_checkpointing = False
        if "mamba" in config.layer_pattern:
            self._keep_in_fp32_modules_strict = ["A_log", "dt_bias", "D"]
        self.post_init()

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cache: StateCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[DocumentBorders],
    ) -> FrankensteinModelOutput:
        """Run the stack.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 at real tokens, 0 at pads on either side; bool, integer or float. With a cache
                that holds P columns it may be (B, P + L).
            position_ids: (B, L) for learned, rotary and hyperbolic positions; by default real tokens are counted. A
                token at 0 behind another one begins the next of several documents in its row.
            token_type_ids: (B, L), when the config has `type_vocab_size`.
            inputs_embeds: (B, L, R) rows of the embedding table in place of `input_ids`.
            cache: what earlier calls returned; the inputs are then the tokens that follow.
            use_cache: whether to return one; by default as the config says, but not while training.
            kwargs: other borders of documents: `seq_idx` (B, L), or `cu_seq_lens_q` and `cu_seq_lens_k` (N + 1,) for a
                batch of one row; see DocumentBorders. No document sees another one. `causal_rows` (B,) bool, of a model
                with `two_directions`: which rows are read left to right; by default as `is_decoder` says.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, an empty sequence, a mask of another shape,
                more tokens than learned positions, token types the model does not have, a cache that is not its own,
                borders of documents that cannot be or contradict each other, or causal_rows that cannot be.
        """
        rows = self.look_up(input_ids, inputs_embeds)
        self._check_types(token_type_ids)
        causal_rows = kwargs.pop("causal_rows", None)
        if needs_two_passes(self.config, causal_rows, rows.shape[0], cache is not None or bool(use_cache)):
            asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
            texts = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "token_type_ids": token_type_ids}
            places = {"attention_mask": attention_mask, "position_ids": position_ids}
            return read_each_way(self.forward, causal_rows, {**texts, **places, **asked, **kwargs})
        is_causal = self.config.is_decoder if causal_rows is None else bool(causal_rows.all())
        cache = resolve_cache(self, cache, use_cache if causal_rows is None else False)
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        borders = borders_in(kwargs)
        context = self.make_context(rows, attention_mask, position_ids, cache, want_attentions, borders, is_causal)
        x = self.embeddings(rows, token_type_ids, context)
        states = [] if want_states else None
        attentions = [] if want_attentions else None
        x, routers = self._run_layers(x, context, states, attentions)
        is_learning = self.training or torch.is_grad_enabled()  # else pipelines take an output apart, row by row
        return FrankensteinModelOutput(
            last_hidden_state=x,
            cache=cache,
            hidden_states=tuple(states) if want_states else None,
            attentions=tuple(attentions) if want_attentions else None,
            **summarize_routers(routers if is_learning else []),
        )

    def _run_layers(self, x, context, states: list | None, attentions: list | None):
        """Run every logical layer; index j * num_physical_layers + i is pass j through layer i.

        Returns the normalised stream and the routers' statistics; fills the two lists that are wanted.
        """
        routers = []
        if states is not None:
            states.append(x)
        for loop in range(self.config.num_loops):
            if self.loop_embedding is not None:
                x = context.zero_pads(x + self.loop_embedding[loop].to(x.device))
            for index, layer in enumerate(self.layers):
                logical_layer_idx = loop * len(self.layers) + index
                x, weights, router = layer(x, context=context, logical_layer_idx=logical_layer_idx)
                if states is not None:
                    states.append(x)
                if attentions is not None and weights is not None:
                    attentions.append(weights)
                if router is not None:
                    routers.append(router)
        if self.norm_f is not None:
            x = context.zero_pads(self.norm_f(x))
        if states is not None:
            states[-1] = x
        return x, routers

    def _check_types(self, token_type_ids):
        if token_type_ids is None or self.config.type_vocab_size or torch.compiler.is_compiling():
            return
        if bool(token_type_ids.any()):
            raise ValueError("token_type_ids are given but type_vocab_size=0: this model has no token types.")


class _FrankensteinHead(FrankensteinPreTrainedModel):
    """What the heads share: router losses and the fields passed through."""

    shifts_labels = False  # True where the loss predicts each token from the ones before it
    task: str  # name of transformers' loss; from a subclass's own name it would be guessed wrongly

    def __init__(self, config: FrankensteinConfig):
        super().__init__(config)
        self.loss_type = self.task

    def compute_loss(self, labels, outputs, kwargs, **loss_inputs) -> torch.Tensor | None:
        """Return the task's loss from transformers' loss function, plus the router losses; None without labels."""
        if labels is None:
            return None
        loss_kwargs = {key: value for key, value in kwargs.items() if key not in STACK_KEYS}
        loss = self.loss_function(labels=labels, **loss_inputs, **loss_kwargs)
        predicted = labels[..., 1:] if self.shifts_labels else labels
        return self.add_router_losses(loss, predicted, outputs, loss_kwargs.get("num_items_in_batch"))

    def add_router_losses(self, loss, labels, outputs, num_items_in_batch):
        """Add the weighted router losses while training; evaluation reports the task's loss alone."""
        if outputs.aux_loss is None or not self.training:
            return loss
        return loss + weighted_router_loss(self.config, outputs, labels, num_items_in_batch).to(loss.device)


class _FrankensteinLanguageModel(LanguageModelHead, _FrankensteinHead):
    """What the two language-model heads share."""

    def __init__(self, config: FrankensteinConfig):
        super().__init__(config)
        self.model = FrankensteinModel(config)
        self.lm_head = FactorizedHead(
            config.hidden_size,
            config.vocab_size,
            rank=config.factorized_embedding_dim,
            bias=config.head_bias,
            activation=ACTIVATIONS[config.hidden_act],
            transform_norm=make_norm(config, config.norm_alpha_other) if config.head_transform else None,
            linear=linear_factory(config, config.use_bitnet and config.bitnet_head),
        )
        self.post_init()


class FrankensteinForMaskedLM(_FrankensteinLanguageModel):
    """A bidirectional encoder that fills masked tokens."""

    task = "ForMaskedLM"

    def __init__(self, config: FrankensteinConfig):
        config = facing(config, is_decoder=False)
        if config.is_decoder:
            raise ValueError(
                "FrankensteinForMaskedLM needs is_decoder=False; a causal model is FrankensteinForCausalLM."
            )
        super().__init__(config)

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
    ) -> FrankensteinHeadOutput:
        """As FrankensteinModel; `labels` (B, L) hold the original token where one was masked and -100 elsewhere.

        The logits at position i are for token i, also of a model with `two_directions`.
        """
        outputs = self.model(
            input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, **for_stack(kwargs)
        )
        hidden = outputs.last_hidden_state
        if self.config.two_directions:
            hidden = those_before(hidden, attention_mask, position_ids, borders_in(kwargs))
        if self.config.sparse_prediction and labels is not None:
            labelled = labels != IGNORED_LABEL
            hidden, labels = hidden[labelled], labels[labelled]
        logits = self.lm_head(hidden)
        loss = self.compute_loss(labels, outputs, kwargs, logits=logits, vocab_size=self.config.vocab_size)
        return head_output(FrankensteinHeadOutput, outputs, loss=loss, logits=logits)

    @classmethod
    def from_bert(cls, bert) -> "FrankensteinForMaskedLM":
        """Build a model of BERT's layout from a transformers `BertForMaskedLM`, with the same weights.

        Raises:
            ValueError: the BERT is a decoder, has cross-attention, or uses an activation we do not have.
        """
        config, weights = bert_to_ours(bert, FrankensteinConfig)
        model = cls(config).to(bert.dtype)
        model.load_state_dict(weights, strict=True)
        model.tie_weights()
        return model.train(bert.training)

    def to_bert(self):
        """Return a transformers `BertForMaskedLM` with the same weights.

        Raises:
            ValueError: the configuration is not of BERT's layout; the message names the field.
        """
        return ours_to_bert(self)


class FrankensteinForCausalLM(CachedGenerationMixin, _FrankensteinLanguageModel):
    """A causal decoder that predicts the next token."""

    shifts_labels = True
    task = "ForCausalLM"

    def __init__(self, config: FrankensteinConfig):
        config = facing(config, is_decoder=True)
        if not config.is_decoder:
            raise ValueError("FrankensteinForCausalLM needs is_decoder=True; an encoder is FrankensteinForMaskedLM.")
        super().__init__(config)

    @takes_old_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cache: StateCache | None = None,
        use_cache: bool | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> FrankensteinHeadOutput:
        """As FrankensteinModel; `labels` (B, L) are the input ids with -100 at pads, and are shifted here.

        The first token of a document counts in no loss: none before it is of its document.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            cache=cache,
            use_cache=use_cache,
            **for_stack(kwargs),
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        labels, kwargs = within_documents(labels, kwargs, attention_mask, position_ids)
        loss = self.compute_loss(labels, outputs, kwargs, logits=logits, vocab_size=self.config.vocab_size)
        return head_output(FrankensteinHeadOutput, outputs, loss=loss, logits=logits)

    def can_forget(self) -> bool:
        """Return whether the last tokens can be taken back, as assisted decoding must: attention alone, no window."""
        config = self.config
        keeps_keys_only = all(MIXERS[name].keeps_keys_only for name in config.layer_pattern)
        sums_up = config.use_titan_memory or config.embedding_conv_kernel
        return keeps_keys_only and not sums_up and config.attention_window is None


class _FrankensteinTaskHead(TaskHead, _FrankensteinHead):
    """What the heads that are no language models share: token types, and the routers' losses."""

    stack_class = FrankensteinModel
    output_class = FrankensteinHeadOutput
    stack_options = (*TaskHead.stack_options, "token_type_ids")

    def task_loss(self, outputs, labels, loss_inputs):
        loss = super().task_loss(outputs, labels, loss_inputs)
        return self.add_router_losses(loss, labels, outputs, loss_inputs.get("num_items_in_batch"))


class FrankensteinForSequenceClassification(SequenceClassifier, _FrankensteinTaskHead):
    """A classifier over the mean of the real tokens, or over the last real one when causal."""


class FrankensteinForTokenClassification(TokenClassifier, _FrankensteinTaskHead):
    """A classifier of every token."""


class FrankensteinForQuestionAnswering(SpanFinder, _FrankensteinTaskHead):
    """Finds where the answer in a row begins and ends."""

    output_class = FrankensteinSpanOutput
