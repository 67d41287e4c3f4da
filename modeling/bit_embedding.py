"""BitEmbedding: a token table whose rows take two to four values.

The quantisers of BitLinear (`ternary.py`; BitNet b1.58, arXiv:2402.17764) on an embedding table, with full-precision
master weights and straight-through gradients. There are no activations to round: the input is an index.
Shapes: V vocabulary, D width, ids (...), rows (..., D).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .adapters import RoundsItsWeight
from .column_groups import check_group, spread
from .fake_quantize import StartsUnrounded, fake_quantize_weight
from .packed_embedding import PackedBitEmbedding
from .packed_linear import check_packable
from .ternary import quantize_weight


class BitEmbedding(RoundsItsWeight, StartsUnrounded, nn.Embedding):
    """nn.Embedding that looks its rows up in the quantised table.

    A subclass of nn.Embedding, so that resizing, tying and weight-decay rules find it. The scale is that of the whole
    table (`scale_axis="tensor"`), of the row, or of `group_size` neighbours in it; the row of `padding_idx` starts at
    zero and stays there.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        scheme: str = "ternary_absmean",
        scale_axis: str = "tensor",
        group_size: int | None = None,
        device=None,
        dtype=None,
    ):
        check_group(scale_axis, group_size)
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.scheme = scheme
        self.scale_axis = scale_axis
        self.group_size = group_size

    def quantized_weight(self) -> torch.Tensor:
        """Return the table (V, D) as the forward pass sees it, in the master weight's dtype, without gradient."""
        codes, scale = self._codes_and_scale()
        return (codes * spread(scale, self.embedding_dim, self.group_size)).to(self.weight.dtype)

    def _codes_and_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        return quantize_weight(self.weight.detach(), self.scheme, self.scale_axis, self.group_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids (...) to rows (..., D)."""
        if self.computes_unrounded:
            return super().forward(ids)
        table = fake_quantize_weight(self.weight, self.scheme, self.scale_axis, group_size=self.group_size)
        return F.embedding(ids, table, self.padding_idx)

    def empty_packed(self) -> PackedBitEmbedding:
        """Return a packed table of this one's shape, on the same device, its rows not set.

        Raises:
            ValueError: the scheme is not ternary.
        """
        check_packable(self.scheme)
        return PackedBitEmbedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            group_size=self.group_size,
            dtype=self.weight.dtype,
            device=self.weight.device,
        )

    def pack(self) -> PackedBitEmbedding:
        """Return the table with two bits a weight, for inference; this one is left as it is.

        Raises:
            ValueError: the scheme is not ternary.
        """
        check_packable(self.scheme)
        codes, scale = self._codes_and_scale()
        return PackedBitEmbedding.from_codes(
            codes, scale, self.padding_idx, group_size=self.group_size, dtype=self.weight.dtype
        )

    def extra_repr(self) -> str:
        group = "" if self.group_size is None else f", group_size={self.group_size}"
        return f"{super().extra_repr()}, scheme={self.scheme}, scale_axis={self.scale_axis}{group}"
