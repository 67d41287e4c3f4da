"""Weights that accelerate keeps away from their layers (`device_map`): in main memory or on a disk until a call.

A layer then holds parameters of the device meta, and its hook a map of what they are. Damage goes into private copies
that take the places of the values in that map, so nothing that others hold, and no file, is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import nn


def input_device(model: nn.Module) -> torch.device:
    """Return where a model takes its inputs: where its first parameter lies, or is brought when it is offloaded."""
    name, parameter = next(model.named_parameters())
    hook, _ = _hook_of(model, name)
    if parameter.device.type != "meta" or hook is None:
        return parameter.device
    return _device(hook.execution_device)


def computing_devices(model: nn.Module) -> list[str]:
    """Return the devices that a model computes on, in its order, each once."""
    found = []
    for name, parameter in model.named_parameters():
        hook, _ = _hook_of(model, name) if parameter.device.type == "meta" else (None, "")
        found.append(str(parameter.device if hook is None else _device(hook.execution_device)))
    return list(dict.fromkeys(found))


def is_offloaded(model: nn.Module, name: str) -> bool:
    """Whether a parameter is kept away from its layer."""
    return model.get_parameter(name).device.type == "meta" and _hook_of(model, name)[0] is not None


def value_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return the values of a parameter, wherever they are kept; of one on a disk a copy."""
    module, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    parameter = module._parameters[attribute]
    if parameter.device.type != "meta":
        return parameter
    hook, inside = _hook_of(model, name)
    return parameter if hook is None else hook.weights_map[inside]


def take_over(model: nn.Module, names: Iterable[str], others: Mapping[str, str]) -> Callable[[], None]:
    """Put private copies in main memory in the places of offloaded parameters; return the function that undoes it.

    Args:
        others: other name -> name, of parameters that are one tensor.
    """
    undo: list[tuple[MutableMapping, str, torch.Tensor | None]] = []
    copies = {name: value_of(model, name).detach().to("cpu", copy=True).contiguous() for name in names}
    copies |= {other: copies[name] for other, name in others.items()}
    for name, copy in copies.items():
        values, key = _place(*_hook_of(model, name))
        undo.append((values, key, values.get(key)))
        values[key] = copy

    def give_back() -> None:
        for values, key, before in undo:
            if before is None:
                del values[key]  # the disk holds it
            else:
                values[key] = before

    return give_back


def _place(hook: AlignDevicesHook, inside: str) -> tuple[MutableMapping, str]:
    """Return the mapping that a hook looks first for a value, and the key there."""
    values, key = hook.weights_map, inside
    while isinstance(values, PrefixedDataset):
        values, key = values.dataset, f"{values.prefix}{key}"
    return (values.state_dict if isinstance(values, OffloadedWeightsLoader) else values), key


def _hook_of(model: nn.Module, name: str) -> tuple[AlignDevicesHook | None, str]:
    """Return the hook that brings a parameter, and the parameter's name for it; it may belong to a layer around."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        for hook in _hooks(module.__dict__.get("_hf_hook")):
            brings = isinstance(hook, AlignDevicesHook) and hook.offload and hook.weights_map is not None
            if brings and (depth == len(parts) - 1 or hook.place_submodules):
                return hook, ".".join(parts[depth:])
    return None, ""


def _hooks(hook: object) -> Iterator[object]:
    if isinstance(hook, SequentialHook):
        for each in hook.hooks:
            yield from _hooks(each)
    elif hook is not None:
        yield hook


def _device(place: int | str | torch.device) -> torch.device:
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
