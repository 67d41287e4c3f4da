"""What projections are called nearly everywhere: the patterns for families that the table does not name.

Multi-head latent attention (DeepSeek V2, arXiv:2405.04434) presses queries, keys and values into short vectors first:
those projections are `attn_latent`; `q_b_proj` makes queries of them and `kv_b_proj`, head by head, keys and values.
ModernBERT's `Wi` and GLM's `gate_up_proj` hold two halves, of which the first goes through the activation: the gate.
"""

from .cuts import Pick, half_of_rows, rows_of_latent

Picks = dict[str, tuple[Pick, ...]]
LISTS = r"(?:layers|h|blocks|layer|block|attentions|ffns|layer_norm[12]|albert_layer_groups)"  # of layers, in modules
_LAYER = rf"text/(?:\w+\.)*?{LISTS}\.\d+\."
_ANYWHERE = _LAYER + r"(?:(?!\w*(?:indexer|compressor))\w+\.)*?"  # DeepSeek V3.2's and V4's choose what is attended to
# a projection of the feed-forward lies in no attention, norm, indexer (DeepSeek V3.2) or router
_NO_MLP = r"(?!\w*(?:att|[Nn]orm|indexer)|(?:gate|router)\.)"
_FEED_FORWARD = rf"{_LAYER}(?:{_NO_MLP}\w+\.)*?{_NO_MLP}"

_Q = r"(?:q_proj|query|query_proj|q_lin|q_b_proj|Wq|project_q|q_head|att\w*\.q)"
_K = r"(?:k_proj|key|key_proj|k_lin|Wk|project_k|k_head|att\w*\.k)"
_V = r"(?:v_proj|value|value_proj|v_lin|Wv|project_v|v_head|att\w*\.v)"
_O_IN_ATTENTION = r"(?:o_proj|out_proj|out_lin|dense|Wo|attention_out|post_proj|o)"
_O = rf"(?:\w*att\w*\.(?:\w+\.)*?{_O_IN_ATTENTION}|(?:mixer|temporal_block)\.o_proj|post_attention\.conv1d)"
_UP = (
    r"(?:up_proj|fc1|c_fc|lin1|dense_h_to_4h|feed_forward\.w3|proj_up|fc_in|intermediate\.(?:dense|conv1d)|ffn|ffn\.0"
    r"|ffn\.linear_1|ff\.layer_1|w_in\.w_1)"
)
_DOWN = (
    r"(?:down_proj|fc2|mlp\.c_proj|lin2|dense_4h_to_h|feed_forward\.w2|proj_down|shared_mlp\.output_linear|fc_out"
    r"|output\.(?:dense|conv1d)|ffn_output|ffn\.2|ffn\.linear_2|ff\.layer_2|w_out|mlp\.Wo)"
)
_GATE = r"(?:gate_proj|feed_forward\.w1|proj_up_gate|w_in\.w_0)"
_HALVES = r"(?:shared_mlp\.input_linear|gate_up_proj|mlp\.Wi)"


def attention() -> Picks:
    """Return the picks of queries, keys, values, outputs, and of what latent attention presses them into."""
    of_head = inside_layers("kv_b_proj")
    return {
        "attn_q": (_projection(_Q),),
        "attn_k": (_projection(_K), Pick(of_head, "k", rows_of_latent("k"), holds="kv")),
        "attn_only": (_projection(_V), Pick(of_head, "v", rows_of_latent("v"), holds="kv")),
        "attn_o": (_projection(_O), Pick(r"text/(?:\w+\.)*?attentions\.\d+\.out_lin\.weight")),  # the second: XLM's
        "attn_latent": (Pick(inside_layers("(?:q_a_proj|kv_a_proj_with_mqa)")),),
    }


def inside_layers(name: str) -> str:
    """Return the pattern of a projection by its name, anywhere within a layer."""
    return rf"{_ANYWHERE}{name}\.weight"


def _projection(name: str) -> Pick:
    return Pick(inside_layers(rf"{name}(?:\.linear)?"))


def feed_forward() -> Picks:
    """Return the picks of gate, up and down, shared experts among them, and of what holds gate and up as halves."""
    shared = _LAYER + r"(?:\w+\.)*?shared_experts\."  # of which some keep theirs in stacks of a few
    plain = {"mlp_gate": (_GATE, "gate_proj"), "mlp_up": (_UP, "up_proj"), "mlp_down": (_DOWN, "down_proj")}
    picks = {
        group: (Pick(rf"{_FEED_FORWARD}{names}\.weight"), Pick(shared + stack, stacked=True))
        for group, (names, stack) in plain.items()
    }
    fused = rf"{_FEED_FORWARD}{_HALVES}\.weight"
    picks["mlp_gate"] += (Pick(fused, "gate", half_of_rows(0)),)
    picks["mlp_up"] += (Pick(fused, "up", half_of_rows(1)),)
    return picks


def experts() -> Picks:
    """Return the picks of stacks of experts or lists of them, and of what chooses among them."""
    listed = _FEED_FORWARD + r"experts\.(?:\d+\.\w+\.weight|\w+_proj)"
    stacks = _FEED_FORWARD + r"\w*experts\.(?:in|out)put_linear\.weight"
    own = Pick(_FEED_FORWARD + r"mlp\.(?:in|out)put_linear\.weight", stacked=True)  # JetMoE's
    router = r"(?:mlp|feed_forward|\w*moe|mixer)\.(?:gate|router)\.(?:(?!\w*norm)\w+\.)*weight"
    return {
        "mlp_experts": (Pick(listed), Pick(stacks), own),
        "router": (Pick(_ANYWHERE + router),),
    }
