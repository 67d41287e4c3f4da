"""Where the weights of a group lie in each model family: the only place that knows families by name.

A table of full-match patterns over canonical names (see `weights/groups.py`), for those families whose layout we know,
and one set of patterns over the usual child names for the others. Fused tensors come with the cut that says which of
their elements belong to a group.

Layouts: Phi-3 stacks rows [q; k; v] and [gate; up]; GPT-2's Conv1D (inputs, outputs) has columns [q, k, v]; GPT-NeoX
has rows in the order (head, q k v, width), Falcon's and GPT-BigCode's in (key head, its queries k v, width), CodeGen's
in (quarter of the heads, q v k); mixtures of experts stack theirs in one tensor (expert, rows, columns).
RWKV's receptance, which gates what is read, stands for the query.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from . import usual_names
from .cuts import Cut, Pick, half_of_rows, rows_by_group, rows_by_head, rows_by_quarter, stacked


@dataclass(frozen=True)
class Family:
    """The groups of one layout.

    Attributes:
        groups: group -> picks. Each pick of attn_* and mlp_* hits exactly one parameter of every layer if `uniform`;
            otherwise (mixtures of experts) every layer has at least one hit among them.
        shared_kv: configuration field with the number of layers that have no keys and values of their own.
        equal_heads: all layers have heads of the configuration's number and width; sizes are checked against them.
        grouped_rows: how many heads keys and values have is what the rows of their fused projection leave for them;
            the configuration names it by switches (Falcon's multi_query).
        everywhere: every layer has an attention and a feed-forward; where the layout is guessed, some may have
            neither, or several of one.
    """

    groups: Mapping[str, tuple[Pick, ...]]
    uniform: bool = True
    shared_kv: str | None = None
    equal_heads: bool = True
    grouped_rows: bool = False
    everywhere: bool = True


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

# For families that are not in the table: children that are called as they are nearly everywhere.
STRUCTURAL = Family(
    usual_names.attention()
    | usual_names.feed_forward()
    | usual_names.experts()
    | _tables(
        r"text/(?:\w+\.)*?(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings|word_embedding|tokens_embed)",
        r"text/(?:lm_head|embed_out|output|head|lm_loss)",
    ),
    everywhere=False,
)


def _fused(name: str, cut: Callable[[str], Cut], *, o: str | None = None, grouped_rows: bool = False) -> Family:
    """The usual names, but for a fused projection of queries, keys and values in every layer."""
    fused = _fused_attention(usual_names.inside_layers(name), cut, usual_names.inside_layers(o or ""))
    kept = {} if o else {"attn_o": STRUCTURAL.groups["attn_o"]}
    return Family({**STRUCTURAL.groups, **fused, **kept}, uniform=False, grouped_rows=grouped_rows)


BY_HEAD = _fused(r"(?:query_key_value|attention\.self\.in_proj)", rows_by_head)
STACKED = _fused(r"attn\.Wqkv", partial(stacked, axis=0))
FALCON = _fused("query_key_value", rows_by_group, grouped_rows=True)
GPT_BIGCODE = _fused(r"attn\.c_attn", rows_by_group, o=r"attn\.c_proj", grouped_rows=True)
CODEGEN = _fused(r"attn\.qkv_proj", rows_by_quarter)
OPENAI_GPT = Family({**GPT2.groups, **_tables(r"text/tokens_embed")})

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
    **dict.fromkeys(("phi3", "phi4_multimodal"), PHI3),
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "rwkv": RWKV,
    "bert": BERT,
    "roberta": BERT,
    **dict.fromkeys(("bloom", "deberta", "gpt_neox_japanese", "persimmon"), BY_HEAD),
    **dict.fromkeys(("modernbert", "mpt"), STACKED),
    "falcon": FALCON,
    "gpt_bigcode": GPT_BIGCODE,
    "codegen": CODEGEN,
    "openai-gpt": OPENAI_GPT,
}

# model_type (of the text configuration) -> activations beyond float16's range, undamaged (transformers #36822)
OVERFLOWS_FLOAT16 = frozenset({"gemma3", "gemma3_text"})
# model_type -> the layer whose weight it multiplies with by itself, not by a call (transformers 5.24): in 4 bits that
# is a list of codes
READS_WEIGHTS = {"mamba": "dt_proj"}

# The same in every model. Norms are told by name (ln_1, q_norm, LayerNorm, ...); vision layers by SigLIP's and CLIP's.
_VISION_LAYER = r"vision/(?:\w+\.)*?layers\.\d+\."
EVERYWHERE: dict[str, tuple[Pick, ...]] = {
    "norm": (Pick(r"text/(?:\w+\.)*(?:\w*[Nn]orm\w*(?:\.\d+)?|ln_\w+|ln\d?|pre_ln)\.weight"),),
    "bias": (Pick(r"text/(?:\w+\.)*bias"),),
    "vision_attn": (Pick(_VISION_LAYER + r"self_attn\.v_proj\.weight"),),
    "vision_mlp": (Pick(_VISION_LAYER + r"mlp\.fc1\.weight"), Pick(_VISION_LAYER + r"mlp\.fc2\.weight")),
    "projector": (Pick(r"projector/(?:\w+\.)*(?!\w*norm)\w+(?:\.weight|_weight)"),),
}
