"""The promises, one table: what each is called, and what tries it."""

from collections.abc import Callable
from functools import partial

from ..measure import Difference
from ..trial import Trial
from .continuing import cache, cropping, pieces
from .lasting import save_and_load
from .packing import packed, packed_gradient
from .reading import batch_independence, causality, future_gradient, padding, repeated

PROMISES: dict[str, Callable[[Trial], Difference]] = {
    "same input, same output": repeated,
    "causality": causality,
    "no gradient from the future": future_gradient,
    "padding left, batch 1": partial(padding, side="left", batch=1),
    "padding left, batch 2": partial(padding, side="left", batch=2),
    "padding right, batch 1": partial(padding, side="right", batch=1),
    "padding right, batch 2": partial(padding, side="right", batch=2),
    "batch independence": batch_independence,
    "cache": cache,
    "prefill in pieces": pieces,
    "cropping": cropping,
    "packed rows, position_ids": partial(packed, form="position_ids"),
    "packed rows, seq_idx": partial(packed, form="seq_idx"),
    "packed rows, cu_seq_lens": partial(packed, form="cu_seq_lens"),
    "no gradient across documents": packed_gradient,
    "save and load": save_and_load,
}
