"""Mixers that carry a state or convolve, found from the modules: which of their weights do what.

A mixer is the smallest module inside a layer that holds a mark of a state (MARKS, a class of KINDS) or, where it has no
keys, a convolution, together with a projection out. Its weights are told apart by their names
within it; a fused projection counts by its largest part: Mamba's `in_proj` (gate, input, B, C, step) and Qwen3-Next's
`in_proj_qkvz` are `mixer_in`, `in_proj_ba` (write gate and decay) is `mixer_gate`.
"""

import re
from collections.abc import Iterable

from torch import nn

from ..layouts.cuts import Pick
from .parameter_index import Entry

# What only mixers with a state have: parameters and buffers, and children by name.
MARKS = frozenset({"A_log", "dt_bias", "time_decay", "recurrent_param", "slope_rate", "fgate_preact"})
# Mixers whose decay is computed and not learned have no mark; their classes say what they are.
KINDS = re.compile("LightningAttention|Retention|RetNet")
OUT = re.compile(r"(?:out_proj|o_proj|output|linear_out)\.weight")
KEYS = re.compile(r"(?:\w+\.)*(?:k_proj|key)\.weight")
# in this order: the first that is found in the name within the mixer
ROLES: tuple[tuple[str, re.Pattern], ...] = (
    ("mixer_conv", re.compile(r"conv|time_mix")),  # RWKV's token shift is a convolution of two taps
    (
        "mixer_decay",
        re.compile(r"\b(?:A_log|dt_\w+|time_decay|recurrent_\w+|forget\w*|fgate\w*|f_[ab]?_?proj|in_proj_a|a_proj)\b"),
    ),
    (
        "mixer_gate",
        re.compile(
            r"\b(?:g_proj|g_[ab]_proj|in_proj_z|in_proj_b|in_proj_ba|b_proj|output_gate|[io]gate\w*|receptance|input_gate"
            r"\w*|linear_y)\b"
        ),
    ),
    ("mixer_skip", re.compile(r"\b(?:D|time_first)\b")),
    ("mixer_out", OUT),
)
MIXER_GROUPS = ("mixer_in", "mixer_out", "mixer_gate", "mixer_decay", "mixer_conv", "mixer_skip")
STATE_NORM = "state_norm"


def mixer_picks(entries: Iterable[Entry], roots: Iterable[str]) -> dict[str, tuple[Pick, ...]]:
    """Return group -> picks of the text model's mixers with a state or a convolution; empty where it has none."""
    found: dict[str, list[Pick]] = {}
    for entry in entries:
        root = root_of(entry, roots)
        role = None if root is None else role_of(entry, entry.name.removeprefix(f"{root}."))
        if role is not None:
            found.setdefault(role, []).append(Pick(re.escape(entry.canonical)))
    order = (*MIXER_GROUPS, STATE_NORM)
    return {role: tuple(found[role]) for role in order if role in found}


def mixer_roots(model: nn.Module, entries: Iterable[Entry]) -> list[str]:
    """Return the paths of the mixers in the text model, each once."""
    inside = [entry for entry in entries if entry.modality == "text" and entry.layer is not None]
    seen = dict.fromkeys(path for entry in inside for path in _ancestors(entry))
    states = {root for path in seen if _keeps_a_state(model, path) for root in [_with_projection_out(model, path)]}
    convolutions = {root for path in seen if _convolves(model, path) for root in [_with_projection_out(model, path)]}
    # attention may convolve its keys without becoming another kind of mixer
    found = states | {root for root in convolutions if root and not has_keys(model, root)}
    return [path for path in seen if path in found]


def root_of(entry: Entry, roots: Iterable[str]) -> str | None:
    """Return the mixer that a parameter lies in."""
    return next((path for path in roots if entry.name.startswith(f"{path}.")), None)


def _ancestors(entry: Entry) -> list[str]:
    """Return the modules that a parameter lies in, its own first, none of them the layer or above it."""
    depth = re.match(r"(?:[^.\d][^.]*\.)*?\d+(?=\.)", entry.name)[0].count(".") + 1  # the layer: up to the first number
    parts = entry.name.split(".")[:-1]
    return [".".join(parts[:stop]) for stop in range(len(parts), depth, -1)]


def _keeps_a_state(model: nn.Module, path: str) -> bool:
    module = model.get_submodule(path)
    names = {*module._parameters, *module._buffers, *module._modules}
    return bool(names & MARKS or KINDS.search(type(module).__name__))


def _convolves(model: nn.Module, path: str) -> bool:
    return any(isinstance(child, nn.Conv1d) for child in model.get_submodule(path).children())


def has_keys(model: nn.Module, path: str) -> bool:
    """Whether a module has a projection to keys of its own, by its usual names."""
    return any(KEYS.fullmatch(name) for name, _ in model.get_submodule(path).named_parameters())


def _with_projection_out(model: nn.Module, path: str) -> str | None:
    """Return the marked module, or the nearest around it, that projects out; None where that would be the layer."""
    while path and not path.rpartition(".")[2].isdigit():
        names = [name for name, _ in model.get_submodule(path).named_parameters()]
        if any(OUT.fullmatch(name) for name in names):
            return path
        path = path.rpartition(".")[0]
    return None


def role_of(entry: Entry, inside: str) -> str | None:
    """Return the group of a mixer's parameter by its name within the mixer; None for biases, which have their own."""
    if "norm" in type(entry.module).__name__.lower():
        return STATE_NORM if entry.attribute == "weight" else None
    if entry.attribute == "bias":
        return None
    role = next((name for name, pattern in ROLES if pattern.search(inside)), None)
    if role is None and len(entry.shape) > 1:
        return "mixer_in"
    return role
