"""Perplexity of a list of texts under a saved model, in one call: what the evaluate module of that name does."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes

from ..common.checkpoints import check_device, default_device
from ..common.cli import UserError
from ..common.opening import read_config
from ..metrics.language import NATS, TOKENS
from .scoring import choose_method, load_scorer, score


def perplexity_of_texts(
    texts: Sequence[str],
    model_id: str,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return loss, perplexity, bits_per_byte, accuracies, tokens, bytes, method, and `losses`, nats a token of each.

    Of a causal model also word_perplexity. Masked models are scored by pseudo-perplexity. Windows: see scoring.py.
    Bytes and words are those of what was scored; None where that is not known (lengths.py).

    Raises:
        UserError: a model that cannot be scored, or settings it cannot be scored with.
        ValueError: no text.
    """
    if not texts:
        raise ValueError("perplexity needs at least one text.")
    for name, value, least in (("max_length", max_length, 2), ("stride", stride, 1), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be at least {least}.")
    device = device or default_device()
    check_device(device, "device")
    config = read_config(model_id, trust_remote_code=trust_remote_code, adapters=True)
    kind = choose_method(model_id, config.architectures or [], None)
    scorer = load_scorer(
        model_id,
        "pseudo" if kind == "mlm" else kind,  # every token is scored, not a sample
        max_length=max_length,
        stride=stride,
        batch_size=batch_size,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    scored = score(scorer, Dataset.from_dict({"text": list(texts)}), mlm_probability=0.0, seed=0)
    sums = scored.summed[0].parts
    return {
        **scored.measures(),
        "bytes": scored.facts.get("bytes"),
        "losses": [float(row[NATS] / row[TOKENS]) if row[TOKENS] else None for row in sums],
        "method": scorer.method,
        "tokens": scored.facts["tokens"],
    }
