"""A tiny configuration of any family: the fields that say how large a model is, made small; the others as they are.

Small, but so that nothing which could leak is out of sight: windows, chunks and blocks are shorter than the rows of the
check, there is a layer of each kind that the family has, and there are several heads and groups.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from .tiny_sizes import GROUPS, HEAD_DIM, INNER, LAYERS, TINY, VOCABULARY

LARGEST = 5_000_000  # parameters of what is still tiny
NOTES = ("transformers_version", "architectures", "dtype", "_name_or_path", "auto_map", "model_type")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# Families whose sizes are bound to each other in a way of their own, or whose defaults hide a kind of layer.
_HYBRID = ["linear_attention", "full_attention"]
_SHARED = {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 4}
OF_FAMILIES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 3},
    "gemma3n_text": {"num_kv_shared_layers": 2, "intermediate_size": INNER},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "infinito": {"memory_layers": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "nemotron": {"head_dim": HEAD_DIM, "num_key_value_heads": GROUPS},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "zamba": _SHARED,
    "zamba2": _SHARED,
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), {"global_head_dim": HEAD_DIM}),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": HEAD_DIM}),
}


CHOSEN = ("attention_window",)  # numbers that may be None, and are nobody's to derive


def tiny_config(
    config_class: type[PreTrainedConfig], like: PreTrainedConfig | None = None, **fields: Any
) -> PreTrainedConfig:
    """Return a small configuration of a family.

    Args:
        like: a configuration of it whose kinds of layers and other choices are kept (default: the family's own).
        fields: what is to be as given.

    Raises:
        ValueError and others: what the family itself says of sizes that do not fit together.
    """
    like = config_class() if like is None else like
    known = _without_derived(config_class, like.to_dict())
    small = {name: size for name, size in TINY.items() if _is_number(known.get(name)) and known[name] > size}
    small |= _as_many_heads(known, small) | _one_layer_of_each_kind(known) | _token_ids(known, small)
    return config_class(**{**known, **small, **OF_FAMILIES.get(config_class.model_type, {}), **fields})


def _without_derived(config_class: type[PreTrainedConfig], known: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a family derives from other fields where it is not given, and notes of how it was saved."""
    if not dataclasses.is_dataclass(config_class):
        return {name: value for name, value in known.items() if name not in NOTES}
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    own_names = {there: here for here, there in config_class.attribute_map.items()}
    kept = {}
    for name, value in known.items():
        own = name if name in declared else own_names.get(name)
        derived = _is_number(value) and declared.get(own) is None and name not in CHOSEN
        if name not in NOTES and own in declared and not derived:
            kept[name] = value
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_many_heads(known: Mapping[str, Any], small: Mapping[str, int]) -> dict[str, int]:
    """Families that have as many heads of keys as of queries may know nothing else."""
    if known.get("num_key_value_heads") != known.get("num_attention_heads") or "num_attention_heads" not in small:
        return {}
    return {"num_key_value_heads": small["num_attention_heads"]} if "num_key_value_heads" in known else {}


def _one_layer_of_each_kind(known: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the lists that have an entry for each layer, so that every kind of layer stays once."""
    (counter, count) = next(((name, known[name]) for name in LAYER_COUNTS if _is_number(known.get(name))), ("", 0))
    lists = {name: value for name, value in known.items() if isinstance(value, list) and len(value) == count > 1}
    pattern = known.get("layer_pattern")  # of ours, gone through in loops
    if isinstance(pattern, list):
        kinds = list(dict.fromkeys(pattern))
        return {"layer_pattern": kinds, counter: len(kinds) * known["num_loops"]}
    if not lists:
        return {}
    seen: dict[tuple, int] = {}
    for place, kinds in enumerate(zip(*lists.values(), strict=True)):
        seen.setdefault(tuple(map(str, kinds)), place)
    places = sorted(seen.values()) if len(seen) > 1 else list(range(min(LAYERS, count)))
    return {name: [value[place] for place in places] for name, value in lists.items()} | {counter: len(places)}


def _token_ids(known: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, int]:
    """Bring the ids of special tokens into a vocabulary that has become smaller."""
    size = small.get("vocab_size", known.get("vocab_size"))
    ids = {name: value for name, value in known.items() if name.endswith("token_id")}
    order = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {
        name: order.get(name, 3)
        for name, value in ids.items()
        if size and any(_is_number(each) and each >= size for each in (value if isinstance(value, list) else [value]))
    }
