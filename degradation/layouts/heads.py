"""How wide the heads of an attention layer are, as its own module says: layers of one model may differ in that."""

from collections.abc import Iterator

from torch import nn

from .cuts import Heads

_KEYS = ("qk_head_dim", "head_k_dim", "qk_dim_per_head", "head_dim", "attention_head_size", "head_size", "dim_head")
_VALUES = ("v_head_dim", "head_v_dim", "value_head_dim", *_KEYS[3:])
WIDTHS = {"q": _KEYS, "k": _KEYS, "v": _VALUES, "o": _VALUES}
LATENT = ("num_heads", "qk_nope_head_dim", "v_head_dim")  # what multi-head latent attention states (DeepSeek V2)


def stated_width(model: nn.Module, name: str, part: str, size: int) -> int | None:
    """Return the width of a head of q, k, v or o that the nearest module around a parameter states; else None.

    size: of all heads; a width that does not divide it is of something else, and None.
    """
    for module in _around(model, name):
        stated = [module.__dict__[field] for field in WIDTHS[part] if _is_size(module.__dict__.get(field))]
        if stated:
            return stated[0] if size % stated[0] == 0 else None
        number = module.__dict__.get("num_heads")
        # keys and values may have fewer heads than are named
        if part in "qo" and _is_size(number) and size % number == 0:
            return size // number
    return None


def query_heads(model: nn.Module, name: str) -> int | None:
    """Return how many heads the projection out beside a parameter takes; None where there is none beside it."""
    parent = name.rpartition(".")[0].rpartition(".")[0]
    outs = [model.get_submodule(parent)._modules.get(out) for out in ("o_proj", "out_proj")]
    size = next((out.in_features for out in outs if isinstance(out, nn.Linear)), None)
    width = None if size is None else stated_width(model, f"{parent}.o_proj.weight", "o", size)
    return None if width is None else size // width


def latent_heads(model: nn.Module, name: str) -> Heads | None:
    """Return the heads of keys without position and of values that a latent attention around a parameter states."""
    for module in _around(model, name):
        stated = [module.__dict__.get(field) for field in LATENT]
        if all(map(_is_size, stated)):
            number, key, value = stated
            return Heads(number, number, key, value)
    return None


def _around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the modules around a projection, the nearest first, up to that of the first number: the layer."""
    parts = name.split(".")[:-2]
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    for stop in range(len(parts), first, -1):
        yield model.get_submodule(".".join(parts[:stop]))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
