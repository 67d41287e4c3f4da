"""The contract of every mixer (see mixers.py for the table of them)."""

import torch
from torch import nn

from .context import SequenceContext


class Mixer(nn.Module):
    """Moves information between the tokens of a sequence: (B, L, D) -> (B, L, D).

    The contract, which the tests hold every mixer to:
    - it is called as `mixer(x, context, logical_layer_idx)` with the normalised stream x, and returns
      `(delta, attention_weights)`: what to add to the stream, and (B, H, L, L) weights or None;
    - one that `takes_raw_stream` gets the stream as it is and, as a fourth argument, the function that normalises it.
      It is a function: a module among the arguments would be moved about by whatever moves the inputs of a call to
      where its layer computes (accelerate's offloading does), though it belongs to the block and lies with its hooks;
    - direction comes from `context.is_causal` alone; parameters are the same either way;
    - a row padded at its left or right gives its real tokens what the unpadded row gets (pads amid a text are not
      supported: convolutions would see them); what it returns at pads is unspecified but finite;
    - documents packed into one row stay apart: each gets what it gets by itself. `context.documents` tells them; what
      attends asks `context.blocks()`, what scans takes `context.document_ids`, what convolves `Documents.convolve`;
    - `carries_position` says whether it can tell the order of its tokens by itself;
    - `scans` says whether its cost is linear by a recurrence, which `context.scan_backend` runs;
    - `keeps_keys_only` says whether what it keeps in a cache are the keys and values of each token, which can be taken
      back; a state that sums tokens up cannot.
    """

    carries_position = False
    keeps_keys_only = False
    takes_raw_stream = False
    scans = False

    @classmethod
    def options(cls, config) -> dict:
        """Return the arguments that build it from a FrankensteinConfig: what the configuration's fields mean to it."""
        raise NotImplementedError(f"{cls.__name__} must implement options()")

    def forward(
        self, x: torch.Tensor, context: SequenceContext, logical_layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} must implement forward()")


def ends_branch(linear: nn.Linear) -> nn.Linear:
    """Mark the projection that ends a residual branch; the model scales its init down by the depth."""
    linear.ends_branch = True
    return linear
