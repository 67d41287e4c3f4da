"""The sizes of public ternary models. Needs nothing but Python: the engines' interpreters read it too."""

from typing import NamedTuple


class PublicShape(NamedTuple):
    """A decoder: heads share keys and values in groups, the feed-forward has a gate."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    feedforward: int
    vocabulary: int
    # Inputs that share a scale; None for a scale per row.
    group_size: int | None
    # One table serves as embedding and head: ternary too, or of one byte a weight.
    ternary_table: bool

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of the ternary matrices of one layer, by their names in GGUF files."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        return {
            "attn_q": (queries, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, queries),
            "ffn_gate": (self.feedforward, self.hidden),
            "ffn_up": (self.feedforward, self.hidden),
            "ffn_down": (self.hidden, self.feedforward),
        }

    def ternary_weights(self) -> int:
        table = self.vocabulary * self.hidden if self.ternary_table else 0
        return table + self.layers * sum(rows * columns for rows, columns in self.matrices().values())


SHAPES = {
    # microsoft/bitnet-b1.58-2B-4T
    "bitnet-2b": PublicShape("bitnet", 30, 2560, 20, 5, 128, 6912, 128256, None, False),
    # Qwen/Qwen3-1.7B, as prism-ml/Ternary-Bonsai-1.7B has it
    "qwen3-1.7b": PublicShape("qwen3", 28, 2048, 16, 8, 128, 6144, 151936, 128, True),
    # for tests
    "tiny": PublicShape("qwen3", 2, 512, 8, 2, 64, 512, 320, 128, True),
    "tiny-int8": PublicShape("bitnet", 2, 512, 8, 2, 64, 512, 320, None, False),
}
