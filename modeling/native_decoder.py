"""A packed decoder in one call: the stack's forward where it runs on a CPU without gradients.

A packed model of transformers decodes one token in some two thousand operations of Python. `install` gives its stack a
class of the same name whose forward hands tokens to `frankenlm::decode_layers`, all layers at once, a long prompt in
blocks, and everything else to the forward it had: gradients, other devices, hooked or adapted layers, hidden states,
calls without a cache or with another one than a DynamicCache, masks of four axes, compiled calls. `generate()` is
transformers' own. Numbers are rounded where the layers called one by one round them; the sums of norms and of attention
are taken in another order, so results may differ in their last bits.
Shapes: B batch, L new tokens, T tokens kept and new, D width.
"""

import logging

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .decoder_shape import PAST, DecoderShape, NotThisShapeError, read_shape
from .growing_cache import grow_layers
from .native_ops import native_code_runs

logger = logging.getLogger("frankenlm.packed")
BLOCK = 128  # tokens at once, of all rows together: a weight read from memory then meets enough of them
MOST_ROWS = 256  # a block holds one token of each row at least
ATTENTIONS = ("eager", "sdpa")
DTYPES = (torch.float32, torch.bfloat16)
SHAPE, REASON = "_decoder_shape", "_no_decoder_because"  # where a stack keeps what was found out about it


class NativeForward:
    """What `install` puts before a stack's own class."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        native = False
        if not torch.compiler.is_compiling() and not kwargs and (input_ids is None) != (inputs_embeds is None):
            given = input_ids if inputs_embeds is None else inputs_embeds
            native = _goes_natively(self, given, attention_mask, position_ids, cache, use_cache)
        if native:
            inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            if inputs_embeds.dtype == self.norm.weight.dtype:
                cache = DynamicCache(config=self.config) if cache is None else cache
                return _decode(self, inputs_embeds, attention_mask, position_ids, cache)
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def __reduce_ex__(self, protocol):
        # The class is found under its own name nowhere; a copy gets it from the stack's, and looks at its own layers.
        state = {name: value for name, value in self.__dict__.items() if name != SHAPE}
        return _revive, (type(self).native_base,), state


_classes: dict[type, type] = {}


def _native_class(base: type) -> type:
    if base not in _classes:
        names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
        _classes[base] = type(base.__name__, (NativeForward, base), {**names, "native_base": base})
    return _classes[base]


def _revive(base: type) -> nn.Module:
    cls = _native_class(base)
    return cls.__new__(cls)


def install(stack: nn.Module) -> None:
    """Let a packed stack of a known shape decode natively, and log why another one of transformers does not.

    The weights may lie on any device: what can be decided only at a call is decided there.
    """
    is_theirs = type(stack).__module__.startswith("transformers.models.")
    if is_theirs and not hasattr(stack, "native_base") and _shape_of(stack) is not None:
        stack.__class__ = _native_class(type(stack))


def decodes_natively(stack: nn.Module) -> bool:
    """Whether few tokens of a stack's are decoded in one call, as far as can be said before one."""
    return hasattr(stack, "native_base") and _shape_of(stack) is not None and native_code_runs()


def _shape_of(stack: nn.Module) -> DecoderShape | None:
    """Return the shape of a stack as it is now; None, and one line in the log, where it is not one of ours."""
    shape = stack.__dict__.get(SHAPE)
    if shape is not None and shape.holds(stack):
        return shape
    reason = None
    try:
        shape = read_shape(stack)
    except NotThisShapeError as problem:
        shape, reason = None, str(problem)
    if reason is not None and reason != stack.__dict__.get(REASON):
        logger.info("Tokens are decoded layer by layer, not in one call: %s.", reason)
    stack.__dict__[SHAPE], stack.__dict__[REASON] = shape, reason
    return shape


def _goes_natively(stack, given, mask, position_ids, cache, use_cache) -> bool:
    """Whether a call of ids (B, L) or embeddings (B, L, D), `given`, is one that can be made natively."""
    config = stack.config
    if torch.is_grad_enabled() or stack.training or not (config.use_cache if use_cache is None else use_cache):
        return False
    if not given.shape[1] or not 0 < given.shape[0] <= MOST_ROWS or not _is_on_cpu(given, mask, position_ids):
        return False
    if config.output_hidden_states or config.output_attentions or config.return_dict is False:
        return False
    if config._attn_implementation not in ATTENTIONS or stack.norm.weight.dtype not in DTYPES:
        return False
    if torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or not native_code_runs():
        return False
    if cache is not None and type(cache) is not DynamicCache:
        return False
    past = 0 if cache is None else cache.get_seq_length()
    if mask is not None and (mask.dim() != 2 or mask.shape != (given.shape[0], past + given.shape[1])):
        return False
    # Without a cache, positions may say where documents begin.
    rows, length = given.shape[:2]
    if position_ids is not None and tuple(position_ids.shape) not in ((rows, length), (1, length)):
        return False
    if cache is None and position_ids is not None:
        return False
    shape = _shape_of(stack)
    if shape is None or cache is None:
        return shape is not None
    layers = grow_layers(cache, shape.layers)
    return layers is not None and all(layer.get_seq_length() == past for layer in layers)


def _is_on_cpu(*tensors) -> bool:
    """Whether what is given are plain tensors of a CPU."""
    return all(given is None or isinstance(given, torch.Tensor) and given.device.type == "cpu" for given in tensors)


def _visible(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Return which columns each of the last `length` tokens sees, bool (B, L, T), of a mask of pads (B, T)."""
    if mask is None:
        return None
    seen = mask.to(torch.bool).unsqueeze(1)
    columns = mask.shape[1]
    return seen if length == 1 else seen & torch.ones(length, columns, dtype=torch.bool).tril(columns - length)


def _decode(stack, x: torch.Tensor, mask, position_ids, cache: DynamicCache) -> BaseModelOutputWithPast:
    """Return what the stack's forward does, of x (B, L, D)."""
    shape: DecoderShape = stack.__dict__[SHAPE]
    layers = grow_layers(cache, shape.layers)
    rows, length, _ = x.shape
    past = layers[0].get_seq_length()
    if position_ids is None:
        position_ids = torch.arange(past, past + length).unsqueeze(0)
    tables = stack.rotary_emb(x, position_ids=position_ids)
    like = x.new_empty(rows, shape.facts.kv_heads, 0, shape.facts.head_width)
    at_once = max(1, BLOCK // rows)
    done = []
    for first in range(0, length, at_once):
        last = min(first + at_once, length)
        cos, sin = (table[:, first:last] for table in tables)
        visible = _visible(None if mask is None else mask[:, : past + last], last - first)
        rooms = [layer.rooms(like, length - first) for layer in layers]
        sizes = shape.sizes()
        sizes[PAST] = past + first
        done.append(
            torch.ops.frankenlm.decode_layers.default(
                x[:, first:last],
                cos,
                sin,
                visible,
                shape.tensors(),
                [keys for keys, _ in rooms],
                [values for _, values in rooms],
                sizes,
                shape.settings(),
            )
        )
        for layer in layers:
            layer.advance(last - first)
    y = done[0] if len(done) == 1 else torch.cat(done, 1)
    return BaseModelOutputWithPast(last_hidden_state=y, cache=cache)
