"""Adapters (PEFT) beside our layers: none is merged into a layer that rounds its weight, none decides, ties are kept.

An adapter (PEFT) adds B A x beside a layer; merging adds B A to the layer's weight. Where the layer rounds that weight
whenever it runs, most of B A is rounded away, and the merged model is not the one that was trained. PEFT has no word by
which a layer could refuse, so the refusal is put in place at the moment an adapter takes the layer in.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


class RoundsItsWeight:
    """What layers inherit that compute with other weights than those they hold: quantised as they run, or packed."""

    rounds_its_weight = True  # how they are known, whichever copy of the code they come from


def _refusal(name: str, layer: nn.Module) -> ValueError:
    return ValueError(
        f"an adapter cannot be merged into {name} ({type(layer).__name__}): the layer rounds its weight to a few "
        "levels, and most of what the adapter learnt would be rounded away. Keep the adapter beside the model: "
        "save_pretrained() of the PEFT model saves it, unload() takes it off."
    )


def _refuse_merge(adapted: nn.Module, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
    """What stands in for `adapted.merge`; an adapter that has no part in this layer passes."""
    names = adapted.active_adapters if adapter_names is None else adapter_names
    if any(name in getattr(adapted, part) for name in names for part in adapted.adapter_layer_names):
        raise _refusal("this layer", adapted.base_layer)


def _check_merge(model: nn.Module, check: Callable[[], None]) -> None:
    """What stands in for the adapted model's own check, so that nothing is merged before the first refusal."""
    for name, module in model.named_modules():
        layer = module._modules.get("base_layer")
        if hasattr(layer, "rounds_its_weight"):
            raise _refusal(name, layer)
    check()


def _show_matrix(model: nn.Module, method: Callable[..., Any], *args, **kwargs) -> Any:
    """What stands in for methods that ask for the output matrix: to leave it out, or whether it is the table."""
    with model.showing_its_matrix():
        return method(*args, **kwargs)


def _inject(
    model: nn.Module, tuner: nn.Module, inject: Callable[..., Any], whole, adapter: str, *args, **kwargs
) -> Any:
    """What stands in for `tuner.inject_adapter`: "all-linear" leaves out what decides and does not compute, unless
    the configuration says itself what it leaves out, or is of a method that cannot leave anything out; a packed model
    without linear layers is refused."""
    config = tuner.peft_config[adapter]
    takes_all = str(config.target_modules).lower() == "all-linear"
    if takes_all:
        _check_linear(model)
    deciding = [name for name, layer in model.named_modules() if hasattr(layer, "decides")]
    can_leave_out = hasattr(config, "exclude_modules")  # VeRA, ROAD and others have no such field
    if can_leave_out and takes_all and not config.exclude_modules and deciding:
        config.exclude_modules = deciding
    if hasattr(model, "showing_its_matrix"):
        return _show_matrix(model, inject, whole, adapter, *args, **kwargs)
    return inject(whole, adapter, *args, **kwargs)


def _check_linear(model: nn.Module) -> None:
    packed = next((layer for layer in model.modules() if hasattr(layer, "is_packed_layer")), None)
    if packed is not None and not any(isinstance(layer, nn.Linear) for layer in model.modules()):
        raise ValueError(
            f"target_modules='all-linear': this model is packed, and a {type(packed).__name__} is no linear layer that "
            "PEFT knows. Adapt the model it was packed from."
        )


def _watch(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Called by torch whenever a module becomes part of another."""
    if name == "base_layer" and hasattr(child, "rounds_its_weight") and hasattr(parent, "merge"):
        parent.merge = functools.partial(_refuse_merge, parent)
    elif name == "model" and hasattr(parent, "_check_merge_allowed"):
        if _rounds_weights(child):
            parent._check_merge_allowed = functools.partial(_check_merge, child, parent._check_merge_allowed)
        if hasattr(child, "showing_its_matrix"):
            unload = parent._unload_and_optionally_merge
            parent._unload_and_optionally_merge = functools.partial(_show_matrix, child, unload)
        if hasattr(child, "showing_its_matrix") or _has_layers_for_nobody(child):
            parent.inject_adapter = functools.partial(_inject, child, parent, parent.inject_adapter)


def _has_layers_for_nobody(model: nn.Module) -> bool:
    """Whether there are layers that "all-linear" does not mean, whatever head the model has."""
    return any(hasattr(module, "decides") or hasattr(module, "is_packed_layer") for module in model.modules())


def _rounds_weights(model: nn.Module) -> bool:
    return any(hasattr(module, "rounds_its_weight") for module in model.modules())


register_module_module_registration_hook(_watch)
