"""Names for groups of weights, for tools that damage, count or freeze them (see degradation/weights/groups.py)."""

LAYER = r"text/layers\.\d+\."


def weight_groups(attention: str) -> dict[str, list[str]]:
    """Return group -> patterns, each to match a whole canonical name, for a stack of blocks with `ffn`.

    Args:
        attention: pattern of the path from a layer to its q_proj, k_proj, v_proj and o_proj, with its last dot.
    """
    letters = {"attn_q": "q", "attn_k": "k", "attn_only": "v", "attn_o": "o"}
    projections = {"mlp_gate": "gate_proj", "mlp_up": "up_proj", "mlp_down": "down_proj"}
    return {
        **{group: [rf"{LAYER}{attention}{letter}_proj\.weight"] for group, letter in letters.items()},
        **{group: [rf"{LAYER}ffn\.(?:experts\.\d+\.)?{name}\.weight"] for group, name in projections.items()},
        "mlp_experts": [LAYER + r"ffn\.experts\.\d+\.\w+_proj\.weight"],
        "router": [LAYER + r"ffn\.router\.weight"],
        "embed_only": [r"text/embeddings\.embed_tokens\.weight"],
        "lm_head": [r"text/lm_head\.decoder\.weight"],
    }
