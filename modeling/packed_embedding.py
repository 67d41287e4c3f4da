"""PackedBitEmbedding: a ternary token table with two bits a weight; rows are decoded as they are looked up.

Shapes: V vocabulary, D width, ids (...), rows (..., D), weight (ceil(V/16), ceil(D/16), 64) as in `ternary.py`.
"""

import torch
import torch.nn.functional as F

from .group_scales import check_group_scales
from .packed_linear import as_codes, empty_scale, packed_scale, plain_scale
from .packed_operators import PackedModule
from .ternary import GROUP_SCALE_DTYPE, TILE, check_packed, pack_ternary, packed_shape, unpack_rows, unpack_ternary


class PackedBitEmbedding(PackedModule):
    """row(id) = codes[id] * scale[id], in the model's number format; frozen. Made by `BitEmbedding.pack()`.

    Attributes:
        weight: uint8 (ceil(V/16), ceil(D/16), 64).
        weight_scale: float32 (V,), or with a group_size bfloat16 or float16 (ceil(V/16), G, 16), see `group_scales.py`.
    """

    weight_bits = 2

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        group_size: int | None = None,
        scale_dtype: torch.dtype = GROUP_SCALE_DTYPE,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(dtype)
        self.group_size = group_size
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.hold(
            torch.empty(packed_shape(num_embeddings, embedding_dim), dtype=torch.uint8, device=device),
            weight_scale=empty_scale(num_embeddings, embedding_dim, group_size, scale_dtype, device),
        )

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        padding_idx: int | None = None,
        *,
        group_size: int | None = None,
        scale_dtype: torch.dtype = GROUP_SCALE_DTYPE,
        dtype: torch.dtype | None = None,
    ) -> "PackedBitEmbedding":
        """Pack a table `codes * scale`: codes (V, D) of -1, 0 and 1; scale one value, one per row, or of groups (V, G).

        Raises:
            ValueError: other codes, another number of scales, a scale that is not finite.
        """
        table = cls(
            *codes.shape, padding_idx, group_size=group_size, scale_dtype=scale_dtype, dtype=dtype, device="meta"
        )
        scale = packed_scale(scale, *codes.shape, group_size, scale_dtype).to(codes.device)
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
        scale = plain_scale(self.weight_scale, self.num_embeddings, self.embedding_dim, self.group_size)
        return (self.codes() * scale).to(dtype)

    def check(self, name: str) -> None:
        """Check the tensors, as after loading.

        Raises:
            ValueError: damaged tiles, or a scale that is not finite.
        """
        shape = (self.num_embeddings, self.embedding_dim)
        check_packed(self.weight, *shape, f"{name}.weight")
        if self.group_size is not None:
            check_group_scales(self.weight_scale, *shape, self.group_size, f"{name}.weight_scale")
        self.check_finite(name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids (...) to rows (..., D).

        Raises:
            IndexError: an id that is negative or not below V, as nn.Embedding; on a GPU the device asserts it.
        """
        scale = self._scale_of(ids)  # comes first, since it checks the ids
        return (unpack_rows(self.weight, ids, self.embedding_dim) * scale).to(self.dtype)

    def _scale_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the float32 scales of rows (...): (..., 1), or of groups (..., D)."""
        if self.group_size is None:
            return F.embedding(ids, self.weight_scale.unsqueeze(1))
        # The tiles' padding has scales too: an id in it must not pass for one of the table.
        known = F.embedding(ids, torch.ones(1, 1, device=ids.device).expand(self.num_embeddings, 1))
        by_tile = F.embedding(ids // TILE, self.weight_scale.flatten(1)).unflatten(-1, (-1, TILE))
        of_row = by_tile.gather(-1, (ids % TILE)[..., None, None].expand(*by_tile.shape[:-1], 1)).squeeze(-1)
        return of_row.float().repeat_interleave(self.group_size, -1)[..., : self.embedding_dim] * known

    def extra_repr(self) -> str:
        group = "" if self.group_size is None else f", group_size={self.group_size}"
        return f"{self.num_embeddings}, {self.embedding_dim}{group}"
