"""Token embeddings, plain or factorised, and the head that shares their table.

Factorised table: Lan et al. 2019 (ALBERT), arXiv:1909.11942, h = P E[ids]; the convolution over the narrow space
follows EmbBERT (arXiv:2502.10001), which calls it a nano embedder.
Shapes: B batch, L length, V vocabulary, R width of the table (D when not factorised), D hidden, K kernel.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .bitlinear import LinearFactory
from .cache import slide_window
from .context import SequenceContext
from .full_linear import UnroundedLinear
from .layer_calls import is_plainly_called
from .norms import rms_normalize


def conv_origin(kernel: int, is_causal: bool) -> int:
    """Return the tap that meets the current token."""
    return kernel - 1 if is_causal else kernel // 2


class EmbeddingConv(nn.Conv1d):
    """A convolution over neighbouring embeddings, called as any convolution is: (B, R, T) -> (B, R, T - kernel + 1).

    The checkpoint records which tap meets the current token, since it differs between the directions:
    `align` shifts a kernel that was trained in the other one. Starts as the identity.
    """

    def __init__(self, width: int, kernel: int, *, depthwise: bool, is_causal: bool):
        super().__init__(width, width, kernel, groups=width if depthwise else 1)
        self.expected_origin = conv_origin(kernel, is_causal)
        self.register_buffer("origin", torch.tensor(self.expected_origin))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        identity = torch.zeros(self.weight.shape)
        per_group = self.weight.shape[1]
        rows = torch.arange(self.weight.shape[0])
        identity[rows, rows % per_group, self.expected_origin] = 1.0
        init.copy_(self.weight, identity)
        init.zeros_(self.bias)
        init.constant_(self.origin, self.expected_origin)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.align()

    @torch.no_grad()
    def align(self) -> None:
        """Shift a kernel loaded from the other direction; taps that would look at the future are dropped.

        Raises:
            ValueError: there is something to shift, but the weights are not in memory.
        """
        shift = self.expected_origin - int(self.origin)
        if shift == 0:
            return
        if self.weight.device.type == "meta":
            raise ValueError(
                "the embedding convolution was trained in the other direction and must be shifted, but its weights are "
                "offloaded: load the model without a device_map to the disk, save it, and load that."
            )
        aligned = torch.zeros_like(self.weight)
        if shift > 0:
            aligned[..., shift:] = self.weight[..., :-shift]
        else:
            aligned[..., :shift] = self.weight[..., -shift:]
        self.weight.copy_(aligned)
        self.origin.fill_(self.expected_origin)


class FactorizedEmbedding(nn.Module):
    """h = P(conv(E[ids] + positions + types)); without `rank`, a dense table and no P.

    Learned positions and token types live in the table's own (narrow) space, before the convolution.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        rank: int | None = None,
        conv_kernel: int = 0,
        conv_depthwise: bool = False,
        num_positions: int = 0,
        num_types: int = 0,
        is_causal: bool = False,
        padding_idx: int | None = None,
        norm: nn.Module | None = None,
        normalize_rms: bool = False,
        dropout: float = 0.0,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        width = rank or hidden_size
        self.embed_tokens = nn.Embedding(vocab_size, width, padding_idx=padding_idx)
        self.embed_positions = nn.Embedding(num_positions, width) if num_positions else None
        self.embed_types = nn.Embedding(num_types, width) if num_types else None
        self.conv = (
            EmbeddingConv(width, conv_kernel, depthwise=conv_depthwise, is_causal=is_causal) if conv_kernel else None
        )
        self.conv_kernel, self.conv_origin = conv_kernel, conv_origin(conv_kernel, is_causal)
        self.projection = linear(rank, hidden_size, bias=False) if rank else None
        self.norm = norm
        self.normalize_rms = normalize_rms
        self.dropout = nn.Dropout(dropout)

    def narrow(self, inputs_embeds, token_type_ids, context: SequenceContext) -> torch.Tensor:
        """Add positions and types to the looked-up rows (B, L, R)."""
        x = inputs_embeds
        if self.embed_types is not None:
            types = torch.zeros_like(context.position_ids) if token_type_ids is None else token_type_ids
            x = x + self.embed_types(types)
        if self.embed_positions is not None:
            x = x + self.embed_positions(context.position_ids)
        return x

    def surround(self, x: torch.Tensor, context: SequenceContext) -> torch.Tensor:
        """Put beside x (B, L, R), zero at pads, what the convolution needs to keep the length: (B, R, L + K - 1).

        With a cache, the last inputs are remembered in it.
        """
        if context.cache is None:
            return F.pad(x.transpose(1, 2), (self.conv_origin, self.conv_kernel - 1 - self.conv_origin))
        state, width = context.cache.embedding.tensors, self.conv_kernel - 1
        inputs, state["conv"] = slide_window(x, state.get("conv"), width, context.mask, context.document_ids)
        return inputs.transpose(1, 2)

    def convolve(self, x: torch.Tensor, context: SequenceContext) -> torch.Tensor:
        """Mix x (B, L, R), zero at pads, with its neighbours in the same document."""
        inputs = self.surround(x, context)
        if context.documents is None:
            return self.conv(inputs).transpose(1, 2)
        return context.documents.convolve(self.conv, inputs.transpose(1, 2), self.conv_origin)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        context: SequenceContext,
    ) -> torch.Tensor:
        """Map rows of the table (B, L, R) to hidden states (B, L, D), zero at pads."""
        x = context.zero_pads(self.narrow(inputs_embeds, token_type_ids, context))
        if self.conv is not None:
            x = self.convolve(x, context)
        if self.projection is not None:
            x = self.projection(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.normalize_rms:
            x = rms_normalize(x)
        return context.zero_pads(self.dropout(x))


class FactorizedHead(nn.Module):
    """logits = E A (transform(h)) + b, (B, L, D) -> (B, L, V); the model ties E, as `decoder.weight`, to the table.

    Those who compute logits = h weight^T + bias on their own (TRL) get the `weight` that makes it true, or are told
    that there is none.

    Args:
        transform_norm: the norm of BERT's head transform, norm(act(dense(h))); None leaves the transform out.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        rank: int | None = None,
        bias: bool = True,
        activation=F.gelu,
        transform_norm: nn.Module | None = None,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.dense = UnroundedLinear(hidden_size, hidden_size) if transform_norm is not None else None
        self.activation = activation
        self.norm = transform_norm
        # loaders in 4 and 8 bits leave out the output layer alone, and what leads to it is of the head too
        narrowing = UnroundedLinear if linear is nn.Linear else linear
        self.projection = narrowing(hidden_size, rank, bias=False) if rank else None
        self.decoder = linear(rank or hidden_size, vocab_size, bias=bias)

    @property
    def in_features(self) -> int:
        """D, the width of the hidden states."""
        return self.decoder.in_features if self.projection is None else self.projection.in_features

    @property
    def out_features(self) -> int:
        """V."""
        return self.decoder.out_features

    @property
    def bias(self) -> torch.Tensor | None:
        """(V,), or None."""
        if hasattr(self.decoder, "bias"):
            return self.decoder.bias
        return self.decoder(self._units() * 0)[0]  # inside PEFT's wrapper of new tokens, which has none of its own

    @property
    def weight(self) -> torch.Tensor:
        """(V, D), the matrix with logits = h weight^T + bias; of a factorised head E A, made anew at each access.

        Its layers are called, on the unit vectors, so that adapters and 4-bit layers are in it, and gradients reach
        them.

        Raises:
            AttributeError: there is none, because of the transform or because a layer rounds what enters it.
        """
        if self._why_no_matrix() is not None:
            raise AttributeError  # torch asks __getattr__ then, which says why
        if self.projection is None:
            return self.decoder.weight
        narrow = self._units()
        if is_plainly_called(self.decoder) and type(self.decoder) is nn.Linear:
            return self.decoder.weight @ narrow.T
        return (self.decoder(narrow) - self.decoder(narrow[:1] * 0)).T  # what it gives for 0 is the bias

    def _units(self) -> torch.Tensor:
        """(D, R), A^T: what the projection makes of the unit vectors."""
        one = next(weight for weight in self.parameters() if weight.is_floating_point())
        units = torch.eye(self.in_features, dtype=one.dtype, device=one.device)
        return units if self.projection is None else self.projection(units)

    def __getattr__(self, name: str):
        if name == "weight" and (reason := self._why_no_matrix()) is not None:
            raise AttributeError(
                f"{reason}: its logits are no product of the hidden states and one matrix. Call the "
                "model for them, as transformers' Trainer does."
            )
        return super().__getattr__(name)

    @property
    def decoder_is_all(self) -> bool:
        """Whether logits = h decoder.weight^T + bias: no transform, no projection, and nothing is rounded."""
        return self.projection is None and self._why_no_matrix() is None

    def _why_no_matrix(self) -> str | None:
        if self.dense is not None:
            return "this head has BERT's transform before its matrix (head_transform=True)"
        if any(hasattr(layer, "rounds_its_weight") for layer in (self.projection, self.decoder)):
            return "this head rounds its weight and what it multiplies (bitnet_head=True)"
        return None

    def set_decoder(self, layer: nn.Module) -> None:
        """Set the output layer: what every model's `set_output_embeddings` does.

        A quantised one stays so: it takes over the parameters of a plain nn.Linear, which is what
        `resize_token_embeddings` makes. A layer of any other kind takes its place as it is.
        """
        if type(layer) is nn.Linear and isinstance(self.decoder, nn.Linear) and type(self.decoder) is not nn.Linear:
            self.decoder.weight, self.decoder.bias = layer.weight, layer.bias
            self.decoder.in_features, self.decoder.out_features = layer.in_features, layer.out_features
        else:
            self.decoder = layer

    @torch.no_grad()
    def set_unigram_bias(self, counts: torch.Tensor) -> None:
        """Set the output bias to log((count + 1) / N), so that training starts from the unigram distribution.

        Args:
            counts: (V,) occurrences of each token in the training text; N is their smoothed sum.

        Raises:
            ValueError: the head has no bias, or counts is not (V,).
        """
        bias = self.decoder.bias
        if bias is None:
            raise ValueError("head_bias=False: there is no bias to set; use head_bias_init='zeros'.")
        if counts.shape != bias.shape:
            raise ValueError(
                f"counts has shape {tuple(counts.shape)}, expected one count per token, {tuple(bias.shape)}."
            )
        smoothed = counts.to(torch.float64) + 1
        bias.copy_((smoothed / smoothed.sum()).log())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.dense is not None:
            hidden = self.norm(self.activation(self.dense(hidden)))
        if self.projection is not None:
            hidden = self.projection(hidden)
        return self.decoder(hidden)
