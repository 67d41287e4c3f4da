"""What torch.compile sees of each operator: shapes and dtypes, no values."""

import functools
from collections.abc import Callable, Iterable, Iterator

import torch


def _quantize_activations(x, norm_eps=-1.0):
    leading = x.shape[:-1]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(leading, dtype=torch.float32),
        x.new_empty(leading, dtype=torch.int32),
    )


def _ternary_linear(x, packed, scale, out_features, bias=None, norm_eps=-1.0, group_size=0):
    return x.new_empty((*x.shape[:-1], out_features))


def _ternary_linear_quantized(codes, x_scale, x_sum, packed, scale, out_features, bias=None, dtype=None, group_size=0):
    return codes.new_empty((*codes.shape[:-1], out_features), dtype=dtype or torch.float32)


def _int8_linear(x, weight, scale, bias=None):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_quantize_activations(x, bits=8, norm_eps=-1.0, dtype=None):
    return torch.empty_like(x, dtype=dtype or x.dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_quantize_activations_backward(gradient, x, factor):
    return torch.empty_like(x)


def _attend_step(query, keys, values, visible, scale):
    return query.new_empty(query.shape)


def _rotate_step(x, cos, sin):
    return x.new_empty(x.shape)


def _rms_norm(x, weight, eps):
    return x.new_empty(x.shape)


def _decode_layers(x, cos, sin, visible, tensors, keys, values, sizes, settings):
    return x.new_empty(x.shape)


FAKES: dict[str, Callable] = {
    "quantize_activations": _quantize_activations,
    "ternary_linear": _ternary_linear,
    "ternary_linear_quantized": _ternary_linear_quantized,
    "int8_linear": _int8_linear,
    "attend_step": _attend_step,
    "rotate_step": _rotate_step,
    "rms_norm": _rms_norm,
    "decode_layers": _decode_layers,
    "fake_quantize_activations": _fake_quantize_activations,
    "fake_quantize_activations_backward": _fake_quantize_activations_backward,
}


def _on_one_device(operator: str, fake: Callable) -> Callable:
    """Let a shape function refuse tensors of several devices.

    One meta tensor among others brings a call here, and the others' device would promise values that nobody computes.
    """

    @functools.wraps(fake)
    def checked(*args, **kwargs):
        devices = {str(tensor.device) for tensor in _tensors((*args, *kwargs.values()))}
        if len(devices) > 1:
            raise RuntimeError(f"{operator}: tensors lie on {' and '.join(sorted(devices))}; move them to one device.")
        return fake(*args, **kwargs)

    return checked


def _tensors(given: Iterable) -> Iterator[torch.Tensor]:
    """Every tensor among arguments, those in lists as well."""
    for argument in given:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def register_fakes(namespace: str, names: Iterable[str]) -> None:
    """Register the shape functions of `names` for the operators `namespace::name`, which must be defined already."""
    for name in names:
        operator = f"{namespace}::{name}"
        torch.library.register_fake(operator, _on_one_device(operator, FAKES[name]))
