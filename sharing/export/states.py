"""What a causal model remembers between calls, as named tensors: what an exported program takes and returns.

Shapes: B batch, P columns of the past, H heads, K head width.
"""

import torch

from frankenlm.modeling.cache import KeyValues, StateCache

BATCH, PAST = "batch", "past"


def cache_to_tensors(cache: StateCache) -> dict[str, torch.Tensor]:
    """Return the cache's tensors by name, in a fixed order: "embedding.conv", "layers.0.keys", "layers.0.retained", ...

    Keys and values are (B, H, P, K); those of an ODE block's later evaluations are numbered ("layers.0.keys.1").
    Everything else has a size that no text changes.
    """
    named = {}
    for place, entry in _entries(cache):
        for index, store in enumerate(entry.key_values):
            end = f".{index}" if index else ""
            keys, values = store.view()
            named[f"{place}.keys{end}"], named[f"{place}.values{end}"] = keys, values
        named |= {f"{place}.{name}": entry.tensors[name] for name in sorted(entry.tensors)}
    return named


def cache_from_tensors(model, named: dict[str, torch.Tensor], past_mask: torch.Tensor) -> StateCache:
    """Return the cache of a causal model of ours that `cache_to_tensors` of another one tells.

    Args:
        model: has `new_cache()`.
        named: the tensors.
        past_mask: (B, P), 1 at real tokens of the past.
    """
    cache, mask = model.new_cache(), past_mask.bool()
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    cache.book(positions, mask, past_mask.shape[0], True)
    for place, entry in _entries(cache):
        own = {name.removeprefix(f"{place}."): tensor for name, tensor in named.items() if name.startswith(f"{place}.")}
        for name in [name for name in own if name.split(".")[0] == "keys"]:
            store = KeyValues()
            store.append(own.pop(name), own.pop(name.replace("keys", "values", 1)), 0, None)
            entry.key_values.append(store)
        entry.tensors = own
    return cache


def moving_axes(name: str) -> dict[int, str]:
    """Return which axes of a state's tensor are of no fixed size, and what they count."""
    is_of_keys = {"keys", "values"} & set(name.split(".")[2:3])
    return {0: BATCH, 2: PAST} if is_of_keys else {0: BATCH}


def _entries(cache: StateCache):
    return [("embedding", cache.embedding), *((f"layers.{index}", entry) for index, entry in enumerate(cache.layers))]
