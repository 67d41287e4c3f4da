"""Where the weights of a group lie in each model family: the only place that knows families by name.

A table of full-match patterns over canonical names (see groups.py), for those families whose layout we know, and one
set of patterns over the usual child names for the others. Fused tensors come with the cut that says which of their
elements belong to a group.

Layouts: Phi-3 stacks rows [q; k; v] and [gate; up]; GPT-2's Conv1D (inputs, outputs) has columns [q, k, v]; GPT-NeoX
has rows in the order (head, q k v, width); mixtures of experts stack theirs in one tensor (expert, rows, columns).
RWKV's receptance, which gates what is read, stands for the query.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

QKV = "qkv"


@dataclass(frozen=True)
class Slice:
    """A part of a contiguous tensor: `tensor.view(view_shape).narrow(dim, start, length)`."""

    view_shape: tuple[int, ...]
    dim: int
    start: int
    length: int

    @property
    def numel(self) -> int:
        return math.prod(self.view_shape) // self.view_shape[self.dim] * self.length

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (flat start, length) of each contiguous run of elements, in ascending order."""
        inner = math.prod(self.view_shape[self.dim + 1 :])
        step = self.view_shape[self.dim] * inner
        for outer in range(math.prod(self.view_shape[: self.dim])):
            yield outer * step + self.start * inner, self.length * inner


class Heads(NamedTuple):
    """Heads of an attention layer: number of query heads, number of key and value heads, width of each."""

    query: int
    key_value: int
    width: int

    def rows(self, part: str) -> int:
        """Return how many outputs the projection q, k or v has."""
        return (self.query if part == "q" else self.key_value) * self.width


Cut = Callable[[tuple[int, ...], Heads], Slice]


@dataclass(frozen=True)
class Pick:
    """Parameters by the full match of their canonical names; `cut` takes a part of each, called `part`."""

    pattern: str
    part: str | None = None
    cut: Cut | None = None


@dataclass(frozen=True)
class Family:
    """The groups of one layout.

    Attributes:
        groups: group -> picks. Each pick of attn_* and mlp_* hits exactly one parameter of every layer if `uniform`;
            otherwise (mixtures of experts) every layer has at least one hit among them.
        shared_kv: configuration field with the number of layers that have no keys and values of their own.
        equal_heads: all layers have heads of the configuration's number and width; sizes are checked against them.
        everywhere: every layer has an attention and a feed-forward; where the layout is guessed, some may have
            neither, or several of one.
    """

    groups: Mapping[str, tuple[Pick, ...]]
    uniform: bool = True
    shared_kv: str | None = None
    equal_heads: bool = True
    everywhere: bool = True


# --- cuts


def stacked(part: str, axis: int) -> Cut:
    """Cut q, k or v out of a matrix in which they stand one after the other along an axis: 0, its rows; 1, columns."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        start = sum(heads.rows(other) for other in QKV[: QKV.index(part)])
        return Slice(shape, axis, start, heads.rows(part))

    return cut


def rows_by_head(part: str) -> Cut:
    """Cut q, k or v out of a matrix whose rows are (head, q k v, width)."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        return Slice((heads.query, 3, heads.width, *shape[1:]), 1, QKV.index(part), 1)

    return cut


def half_of_rows(index: int) -> Cut:
    """Cut the first (0) or second (1) half of the rows out of a matrix, or of each matrix of a stack."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        *stack, rows, columns = shape
        return Slice((*stack, 2, rows // 2, columns), len(stack), index, 1)

    return cut


# --- the table


def _attention(prefix: str, q: str, k: str, v: str, o: str) -> dict[str, tuple[Pick, ...]]:
    names = {"attn_q": q, "attn_k": k, "attn_only": v, "attn_o": o}
    return {group: (Pick(rf"{prefix}{name}\.weight"),) for group, name in names.items()}


def _fused_attention(pattern: str, cut: Callable[[str], Cut], o: str) -> dict[str, tuple[Pick, ...]]:
    parts = {"attn_q": "q", "attn_k": "k", "attn_only": "v"}
    fused = {group: (Pick(pattern, part, cut(part)),) for group, part in parts.items()}
    return fused | {"attn_o": (Pick(o),)}


def _mlp(prefix: str, up: str, down: str, gate: str | None = None) -> dict[str, tuple[Pick, ...]]:
    names = {"mlp_up": up, "mlp_down": down} | ({"mlp_gate": gate} if gate else {})
    return {group: (Pick(rf"{prefix}{name}\.weight"),) for group, name in names.items()}


def _guessed_mlp(layer: str) -> dict[str, tuple[Pick, ...]]:
    """The usual names, and the shared feed-forward of Granite's hybrids, whose rows are [gate; up]."""
    plain = _mlp(
        layer,
        r"(?:up_proj|fc1|c_fc|lin1|dense_h_to_4h|feed_forward\.w3|proj_up)",
        r"(?:down_proj|fc2|mlp\.c_proj|lin2|dense_4h_to_h|feed_forward\.w2|proj_down|shared_mlp\.output_linear)",
        r"(?:gate_proj|feed_forward\.w1|proj_up_gate)",
    )
    fused = layer + r"shared_mlp\.input_linear\.weight"
    halves = {"mlp_gate": Pick(fused, "gate", half_of_rows(0)), "mlp_up": Pick(fused, "up", half_of_rows(1))}
    return plain | {group: (*plain[group], half) for group, half in halves.items()}


def _guessed_experts(layer: str) -> dict[str, tuple[Pick, ...]]:
    """Stacks of experts or lists of them, and what chooses among them."""
    stacks = (r"experts\.(?:\d+\.\w+\.weight|\w+_proj)", r"\w*experts\.(?:in|out)put_linear\.weight")
    router = r"(?:mlp|feed_forward|\w*moe|mixer)\.(?:gate|router)\.(?:(?!\w*norm)\w+\.)*weight"
    return {"mlp_experts": tuple(Pick(layer + stack) for stack in stacks), "router": (Pick(layer + router),)}


def _tables(embedding: str, head: str = r"text/lm_head") -> dict[str, tuple[Pick, ...]]:
    return {"embed_only": (Pick(rf"{embedding}\.weight"),), "lm_head": (Pick(rf"{head}\.weight"),)}


LAYER = r"text/layers\.\d+\."
GPT2_LAYER = r"text/h\.\d+\."
# masked models that count positions from the one behind the padding token's
SKIPS_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
BERT_LAYER = r"text/encoder\.layer\.\d+\."
EXPERTS = LAYER + r"mlp\.experts\."
SHARED = LAYER + r"mlp\.shared_expert\."

_LLAMA = (
    _attention(LAYER + r"self_attn\.", "q_proj", "k_proj", "v_proj", "o_proj")
    | _mlp(LAYER + r"mlp\.", "up_proj", "down_proj", "gate_proj")
    | _tables(r"text/embed_tokens")
)


def _mixture() -> dict[str, tuple[Pick, ...]]:
    """Llama's attention; a layer's feed-forward is a stack of routed experts, perhaps with a shared one, or dense."""
    stacked_in, stacked_out = EXPERTS + "gate_up_proj", EXPERTS + "down_proj"

    def dense(name: str) -> tuple[Pick, Pick]:
        return Pick(rf"{SHARED}{name}\.weight"), Pick(rf"{LAYER}mlp\.{name}\.weight")

    return _LLAMA | {
        "mlp_gate": (Pick(stacked_in, "gate", half_of_rows(0)), *dense("gate_proj")),
        "mlp_up": (Pick(stacked_in, "up", half_of_rows(1)), *dense("up_proj")),
        "mlp_down": (Pick(stacked_out), *dense("down_proj")),
        "mlp_experts": (Pick(stacked_in), Pick(stacked_out)),
        "router": (Pick(LAYER + r"mlp\.gate\.weight"),),
    }


LLAMA = Family(_LLAMA)
SHARED_KV = Family(_LLAMA, shared_kv="num_kv_shared_layers", equal_heads=False)
MIXTURE = Family(_mixture(), uniform=False)
PHI3 = Family(
    _fused_attention(
        LAYER + r"self_attn\.qkv_proj\.weight", partial(stacked, axis=0), LAYER + r"self_attn\.o_proj\.weight"
    )
    | {
        "mlp_gate": (Pick(LAYER + r"mlp\.gate_up_proj\.weight", "gate", half_of_rows(0)),),
        "mlp_up": (Pick(LAYER + r"mlp\.gate_up_proj\.weight", "up", half_of_rows(1)),),
        "mlp_down": (Pick(LAYER + r"mlp\.down_proj\.weight"),),
    }
    | _tables(r"text/embed_tokens")
)
GPT2 = Family(
    _fused_attention(
        GPT2_LAYER + r"attn\.c_attn\.weight", partial(stacked, axis=1), GPT2_LAYER + r"attn\.c_proj\.weight"
    )
    | _mlp(GPT2_LAYER + r"mlp\.", "c_fc", "c_proj")
    | _tables(r"text/wte")
)
GPT_NEOX = Family(
    _fused_attention(LAYER + r"attention\.query_key_value\.weight", rows_by_head, LAYER + r"attention\.dense\.weight")
    | _mlp(LAYER + r"mlp\.", "dense_h_to_4h", "dense_4h_to_h")
    | _tables(r"text/embed_in")
)
_RWKV_LAYER = r"text/blocks\.\d+\."
RWKV = Family(
    _attention(_RWKV_LAYER + r"attention\.", "receptance", "key", "value", "output")
    | _mlp(_RWKV_LAYER + r"feed_forward\.", "key", "value", "receptance")
    | _tables(r"text/embeddings", r"text/head")
)
BERT = Family(
    _attention(BERT_LAYER + r"attention\.", r"self\.query", r"self\.key", r"self\.value", r"output\.dense")
    | _mlp(BERT_LAYER, r"intermediate\.dense", r"output\.dense")
    | _tables(r"text/embeddings\.word_embeddings", r"text/(?:cls\.predictions|lm_head)\.decoder")
)

# model_type of the text configuration -> layout
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "granite",
            "llama",
            "ministral",
            "mistral",
            "olmo",
            "olmo2",
            "olmo3",
            "qwen2",
            "qwen3",
            "smollm3",
            "stablelm",
        ),
        LLAMA,
    ),
    **dict.fromkeys(("gemma3n_text", "gemma4_text"), SHARED_KV),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), MIXTURE),
    "phi3": PHI3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "rwkv": RWKV,
    "bert": BERT,
    "roberta": BERT,
}

# model_type (of the text configuration) -> activations beyond float16's range, undamaged (transformers #36822)
OVERFLOWS_FLOAT16 = frozenset({"gemma3", "gemma3_text"})
# model_type -> the layer whose weight it multiplies with by itself, not by a call (transformers 5.24): in 4 bits that
# is a list of codes
READS_WEIGHTS = {"mamba": "dt_proj"}

# For families that are not in the table: children that are called as they are nearly everywhere.
_ANY_LAYER = r"text/(?:\w+\.)*?(?:layers|h|blocks|layer|block)\.\d+\.(?:\w+\.)*?"
STRUCTURAL = Family(
    _attention(
        _ANY_LAYER,
        "(?:q_proj|query|q_lin)",
        "(?:k_proj|key|k_lin)",
        "(?:v_proj|value|v_lin)",
        r"\w*att\w*\.(?:\w+\.)*?(?:o_proj|out_proj|out_lin|dense)",
    )
    | _guessed_mlp(_ANY_LAYER)
    | _guessed_experts(_ANY_LAYER)
    | _tables(
        r"text/(?:\w+\.)*?(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings|word_embedding|tokens_embed)",
        r"text/(?:lm_head|embed_out|output|head|lm_loss)",
    ),
    everywhere=False,
)

# The same in every model. Norms are told by name (ln_1, q_norm, LayerNorm, ...); vision layers by SigLIP's and CLIP's.
_VISION_LAYER = r"vision/(?:\w+\.)*?layers\.\d+\."
EVERYWHERE: dict[str, tuple[Pick, ...]] = {
    "norm": (Pick(r"text/(?:\w+\.)*(?:\w*[Nn]orm\w*|ln_\w+|ln\d|pre_ln)\.weight"),),
    "bias": (Pick(r"text/(?:\w+\.)*bias"),),
    "vision_attn": (Pick(_VISION_LAYER + r"self_attn\.v_proj\.weight"),),
    "vision_mlp": (Pick(_VISION_LAYER + r"mlp\.fc1\.weight"), Pick(_VISION_LAYER + r"mlp\.fc2\.weight")),
    "projector": (Pick(r"projector/(?:\w+\.)*(?!\w*norm)\w+(?:\.weight|_weight)"),),
}
