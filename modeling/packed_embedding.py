"""PackedBitEmbedding: a ternary token table with two bits a weight; rows are decoded as they are looked up.

Shapes: V vocabulary, D width, ids (...), rows (..., D), weight (ceil(V/16), ceil(D/16), 64) as in `ternary.py`.
"""

import torch
import torch.nn.functional as F

from .packed_linear import as_codes, expand_scale
from .packed_operators import PackedModule
from .ternary import check_packed, pack_ternary, packed_shape, unpack_rows, unpack_ternary


class PackedBitEmbedding(PackedModule):
    """row(id) = codes[id] * scale[id], in the model's number format; frozen. Made by `BitEmbedding.pack()`.

    Attributes:
        weight: uint8 (ceil(V/16), ceil(D/16), 64).
        weight_scale: float32 (V,).
    """

    weight_bits = 2

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(dtype)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.hold(
            torch.empty(packed_shape(num_embeddings, embedding_dim), dtype=torch.uint8, device=device),
            weight_scale=torch.empty(num_embeddings, dtype=torch.float32, device=device),
        )

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        padding_idx: int | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> "PackedBitEmbedding":
        """Pack a table `codes * scale`: codes (V, D) of -1, 0 and 1; scale one value, or one per row.

        Raises:
            ValueError: other codes, another number of scales, a scale that is not finite.
        """
        table = cls(*codes.shape, padding_idx, dtype=dtype, device="meta")
        scale = expand_scale(scale, codes.shape[0]).to(codes.device)
        table.hold(pack_ternary(as_codes(codes)), weight_scale=scale)
        return table

    @property
    def num_weights(self) -> int:
        """How many weights the layer stands for."""
        return self.num_embeddings * self.embedding_dim

    def codes(self) -> torch.Tensor:
        """Return the codes, int8 (V, D)."""
        return unpack_ternary(self.weight, self.num_embeddings, self.embedding_dim)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the table (V, D) in full."""
        return (self.codes() * self.weight_scale.unsqueeze(1)).to(dtype)

    def check(self, name: str) -> None:
        """Check the tensors, as after loading.

        Raises:
            ValueError: damaged tiles, or a scale that is not finite.
        """
        check_packed(self.weight, self.num_embeddings, self.embedding_dim, f"{name}.weight")
        self.check_finite(name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids (...) to rows (..., D).

        Raises:
            IndexError: an id that is negative or not below V, as nn.Embedding; on a GPU the device asserts it.
        """
        scale = F.embedding(ids, self.weight_scale.unsqueeze(1))  # comes first, since it checks the ids
        return (unpack_rows(self.weight, ids, self.embedding_dim) * scale).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
