"""What a mixer needs to know about the batch besides its hidden states, computed once per forward pass.

Shapes: B batch, L length.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SequenceContext:
    """Direction, padding and positions of one batch.

    Attributes:
        is_causal: True when a token may see itself and the past only.
        position_ids: (B or 1, L) int64, the number of real tokens before each token; 0 at left pads.
        is_contiguous: True when position_ids rise by 0 or 1 from token to token; False when the caller chose them.
        mask: (B, L) bool, True at real tokens; None when there is no padding.
        visible: (B or 1, 1, L, L) bool, True where query row may see key column; None when no rule but
            `is_causal` restricts attention. Every row sees at least itself, so no softmax runs over nothing.
        attn_implementation: "eager" or "sdpa".
        keep_weights: True when mixers return their attention weights (eager attention only).
    """

    is_causal: bool
    position_ids: torch.Tensor
    is_contiguous: bool = True
    mask: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    attn_implementation: str = "sdpa"
    keep_weights: bool = False

    @classmethod
    def build(
        cls,
        *,
        batch_size: int,
        length: int,
        device: torch.device,
        is_causal: bool,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_window: int | None = None,
        attn_implementation: str = "sdpa",
        keep_weights: bool = False,
    ) -> "SequenceContext":
        """Derive the context from what a caller of the model gives.

        Raises:
            ValueError: `attention_mask` is not (B, L), or `position_ids` neither (B, L) nor (1, L).
        """
        mask = _real_tokens(attention_mask, batch_size, length)
        is_contiguous = position_ids is None
        if not is_contiguous and position_ids.shape not in ((batch_size, length), (1, length)):
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}, expected ({batch_size}, {length}) "
                f"or (1, {length})."
            )
        if is_contiguous:
            position_ids = _positions(mask, length, device)
        elif mask is not None:
            position_ids = _settle_pads(position_ids, mask)
        return cls(
            is_causal=is_causal,
            position_ids=position_ids,
            is_contiguous=is_contiguous,
            mask=mask,
            visible=_visible(mask, position_ids, is_causal, attention_window),
            attn_implementation=attn_implementation,
            keep_weights=keep_weights,
        )

    def visible_keys(self) -> torch.Tensor:
        """Return `visible` spelled out: (B or 1, 1, L, L) bool even where nothing but direction restricts attention."""
        if self.visible is not None:
            return self.visible
        length = self.position_ids.shape[1]
        everything = torch.ones(length, length, dtype=torch.bool, device=self.position_ids.device)
        return (everything.tril() if self.is_causal else everything)[None, None]

    def zero_pads(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, L, ...) with zeros at the pads."""
        return zero_pads(x, self.mask)


def zero_pads(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return x (B, L, ...) with zeros where mask (B, L) is False; x itself when mask is None."""
    if mask is None:
        return x
    # `where` and not a product: NaN * 0 is NaN.
    return torch.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0.0)


def _real_tokens(attention_mask: torch.Tensor | None, batch_size: int, length: int) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    if attention_mask.shape != (batch_size, length):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected (batch, length) = "
            f"({batch_size}, {length}) with 1 at real tokens and 0 at pads."
        )
    mask = attention_mask.bool()
    # A mask without pads costs as much as one with; under torch.compile the shortcut would depend on the data.
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask


def _positions(mask: torch.Tensor | None, length: int, device: torch.device) -> torch.Tensor:
    if mask is None:
        return torch.arange(length, device=device)[None]
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def _settle_pads(position_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give pads the position of the last real token before them (0 at the left), as counting would."""
    real = torch.where(mask, position_ids, 0)
    return torch.where(mask, real, real.cummax(1).values)


def _visible(
    mask: torch.Tensor | None, position_ids: torch.Tensor, is_causal: bool, window: int | None
) -> torch.Tensor | None:
    if mask is None and window is None:
        return None
    length = position_ids.shape[-1]
    visible = torch.ones(length, length, dtype=torch.bool, device=position_ids.device)
    if is_causal:
        visible = visible.tril()
    visible = visible[None]
    if window is not None:
        distance = (position_ids[:, :, None] - position_ids[:, None, :]).abs()
        visible = visible & (distance < window)
    if mask is not None:
        visible = visible & mask[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=position_ids.device)
    return (visible | itself)[:, None]
