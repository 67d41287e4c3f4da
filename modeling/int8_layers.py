"""Int8Embedding and Int8Linear: what is not ternary in a small model, in one byte a weight with a scale per row.

Symmetric round-to-nearest quantisation by rows, as in Dettmers et al. 2022 (LLM.int8(), arXiv:2208.07339, section 2).
Shapes: V rows, D columns, weight int8 (V, D), weight_scale float32 (V,), weight ~ codes * scale.
"""

import torch
import torch.nn.functional as F

from .packed_operators import PackedModule, int8_linear, with_input_gradient

LARGEST_CODE = 127
ROWS_AT_ONCE = 4096


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row of weight (V, D) to 255 levels spanning its largest magnitude.

    Returns:
        codes int8 (V, D) and scale float32 (V,); a row of zeros gets scale 1.

    Raises:
        ValueError: a weight that is not finite.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for first in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = weight[first : first + ROWS_AT_ONCE].detach().float()
        largest = rows.abs().amax(1)
        if not largest.isfinite().all():
            raise ValueError("the weight holds NaN or infinity and cannot be rounded to int8.")
        step = torch.where(largest > 0, largest / LARGEST_CODE, 1.0)
        codes[first : first + ROWS_AT_ONCE] = (rows / step.unsqueeze(1)).round().to(torch.int8)
        scale[first : first + ROWS_AT_ONCE] = step
    return codes, scale


class Int8Embedding(PackedModule):
    """row(id) = weight[id] * weight_scale[id], in the model's number format; frozen."""

    weight_bits = 8

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *, device=None, dtype=None
    ):
        super().__init__(dtype)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.hold(
            torch.empty(num_embeddings, embedding_dim, dtype=torch.int8, device=device),
            weight_scale=torch.empty(num_embeddings, dtype=torch.float32, device=device),
        )

    @classmethod
    def empty_of(cls, embedding: torch.nn.Embedding) -> "Int8Embedding":
        """Return a table of the same shape, on the same device, its rows not set."""
        weight = embedding.weight
        return cls(*weight.shape, embedding.padding_idx, device=weight.device, dtype=weight.dtype)

    @classmethod
    def of(cls, embedding: torch.nn.Embedding) -> "Int8Embedding":
        """Round an embedding; it is left as it is."""
        table = cls.empty_of(embedding)
        codes, scale = quantize_rows(embedding.weight)
        table.hold(codes, weight_scale=scale)
        return table

    @property
    def num_weights(self) -> int:
        """How many weights the layer stands for."""
        return self.weight.numel()

    def check(self, name: str) -> None:
        """Raise ValueError where a scale is not finite."""
        self.check_finite(name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids (...) to rows (..., D)."""
        return (F.embedding(ids, self.weight) * self.weight_scale[ids].unsqueeze(-1)).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Int8Linear(PackedModule):
    """y = round(x) (weight * weight_scale)^T + bias: inputs are rounded to int8 token by token; frozen.

    Meant for output layers, which outweigh all ternary layers of a small model. Gradients pass towards the input.
    """

    weight_bits = 8

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, device=None, dtype=None):
        super().__init__(dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.hold(
            torch.empty(out_features, in_features, dtype=torch.int8, device=device),
            weight_scale=torch.empty(out_features, dtype=torch.float32, device=device),
            bias=torch.empty(out_features, dtype=torch.float32, device=device) if bias else None,
        )

    @classmethod
    def empty_of(cls, linear: torch.nn.Linear) -> "Int8Linear":
        """Return a layer of the same shape, on the same device, its weights not set."""
        weight, has_bias = linear.weight, linear.bias is not None
        return cls(linear.in_features, linear.out_features, has_bias, device=weight.device, dtype=weight.dtype)

    @classmethod
    def of(cls, linear: torch.nn.Linear) -> "Int8Linear":
        """Round a linear layer; it is left as it is."""
        layer = cls.empty_of(linear)
        codes, scale = quantize_rows(linear.weight)
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        layer.hold(codes, weight_scale=scale, bias=bias)
        return layer

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weight (V, D) in full."""
        return (self.weight * self.weight_scale.unsqueeze(1)).to(dtype)

    @property
    def num_weights(self) -> int:
        """How many weights the layer stands for."""
        return self.weight.numel()

    def check(self, name: str) -> None:
        """Raise ValueError where a scale or bias is not finite."""
        self.check_finite(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return with_input_gradient(x, lambda: self._product(x.detach()), self.dequantized_weight)
        return self._product(x)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        return int8_linear(x, self.weight, self.weight_scale, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
