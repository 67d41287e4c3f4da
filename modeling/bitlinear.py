"""BitLinear: a linear layer whose weights take two to four values and whose inputs take 256.

Paper: Ma et al. 2024, "The Era of 1-bit LLMs" (BitNet b1.58), arXiv:2402.17764.
Statistics run over the last axis only: a token's output never depends on another token.
Shapes: x (..., I), weight (O, I), y (..., O).
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .adapters import RoundsItsWeight
from .column_groups import check_group, spread
from .fake_quantize import StartsUnrounded, fake_quantize_activations, fake_quantize_weight
from .layer_calls import is_plainly_called
from .norms import RMS_EPS, rms_normalize
from .packed_linear import ACTIVATION_BITS, NO_NORM, PackedBitLinear, PreparedInput, check_packable
from .packed_operators import quantize_activations
from .packed_reference import sum_of_groups
from .ternary import quantize_weight

LinearFactory = Callable[..., nn.Linear]


def computing_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the type a matrix product takes this tensor in: autocast's where autocast is on, else its own."""
    device = tensor.device.type
    if device != "meta" and tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


class BitLinear(RoundsItsWeight, StartsUnrounded, nn.Linear):
    """nn.Linear with quantised weights and activations, full-precision master weights, straight-through gradients.

    Subclasses nn.Linear so that LoRA, GaLore and weight-decay rules find it. `input_norm=False` drops the
    parameter-free RMS normalisation of the input (transformers' AutoBitLinear has none). Under autocast the
    statistics stay in float32 and the quantised values come out in autocast's type. While `trains_unrounded` is set,
    training computes with the master weight and the normalised input as they are.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scheme: str = "ternary_absmean",
        scale_axis: str = "tensor",
        group_size: int | None = None,
        activation_bits: int = 8,
        input_norm: bool = True,
        device=None,
        dtype=None,
    ):
        check_group(scale_axis, group_size)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.scheme = scheme
        self.scale_axis = scale_axis
        self.group_size = group_size
        self.activation_bits = activation_bits
        self.input_norm = input_norm

    @property
    def input_settings(self) -> tuple:
        """Everything `prepare` depends on: layers that agree in it can share what it returns."""
        return self.in_features, self.activation_bits, self.input_norm, self.computes_unrounded

    def quantized_weight(self) -> torch.Tensor:
        """Return the weight (O, I) as the forward pass sees it, in the master weight's dtype, without gradient."""
        codes, scale = self._codes_and_scale()
        return (codes * spread(scale, self.in_features, self.group_size)).to(self.weight.dtype)

    def _codes_and_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        return quantize_weight(self.weight.detach(), self.scheme, self.scale_axis, self.group_size)

    def prepare(self, x: torch.Tensor) -> torch.Tensor | PreparedInput:
        """Return x (..., I) normalised and rounded; gradients pass straight through the rounding.

        In evaluation without gradients, float32 inputs come as codes and step: see `apply_prepared`.
        """
        if self.computes_unrounded:
            return rms_normalize(x) if self.input_norm else x
        norm_eps = RMS_EPS if self.input_norm else NO_NORM
        if self._computes_exactly(x):
            return PreparedInput(*quantize_activations(x, norm_eps), x.dtype, None)
        return fake_quantize_activations(x, self.activation_bits, norm_eps, computing_dtype(x))

    def _computes_exactly(self, x: torch.Tensor) -> bool:
        if self.training or torch.is_grad_enabled() or self.activation_bits != ACTIVATION_BITS:
            return False
        return x.dtype == self.weight.dtype == computing_dtype(x) == torch.float32

    def apply_prepared(self, prepared: torch.Tensor | PreparedInput) -> torch.Tensor:
        """Return (..., O) for what `prepare` of this layer, or of one with the same `input_settings`, returned.

        Codes are multiplied as whole numbers, which float32 sums without error, and scaled afterwards, as packed layers
        do it: the packed model's outputs are then this model's, to the last bit but for the scale's rounding. Products
        of rounded fractions differ by 1e-7, and a layer later that now and then turns a tie the other way.
        """
        if isinstance(prepared, PreparedInput):
            codes, scale = self._codes_and_scale()
            if self.group_size is None:
                y = F.linear(prepared.codes.float(), codes) * (prepared.scale.unsqueeze(-1) * scale.reshape(-1))
            else:
                y = sum_of_groups(prepared.codes.float(), codes, scale, self.group_size, F.linear)
                y = y * prepared.scale.unsqueeze(-1)
            return y if self.bias is None else y + self.bias
        if self.computes_unrounded:
            return F.linear(prepared, self.weight, self.bias)
        dtype = computing_dtype(self.weight)
        weight = fake_quantize_weight(self.weight, self.scheme, self.scale_axis, dtype, self.group_size)
        return F.linear(prepared, weight, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_prepared(self.prepare(x))

    def check_packable(self) -> None:
        """Check that `pack` can be called.

        Raises:
            ValueError: a scheme with other levels than -1, 0 and 1, or activations of other than 8 bits.
        """
        check_packable(self.scheme, self.activation_bits)

    def empty_packed(self) -> PackedBitLinear:
        """Return a packed layer of this one's shape and settings, on the same device, its weights not set."""
        self.check_packable()
        return PackedBitLinear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            input_norm=self.input_norm,
            group_size=self.group_size,
            device=self.weight.device,
        )

    def pack(self) -> PackedBitLinear:
        """Return the layer with two bits a weight, for inference; this one is left as it is."""
        self.check_packable()
        codes, scale = self._codes_and_scale()
        return PackedBitLinear.from_codes(codes, scale, self.bias, self.input_norm, group_size=self.group_size)

    def extra_repr(self) -> str:
        group = "" if self.group_size is None else f", group_size={self.group_size}"
        return f"{super().extra_repr()}, scheme={self.scheme}, scale_axis={self.scale_axis}{group}"


def apply_together(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """Apply several linear layers to one input, which is normalised and rounded once if they agree on how.

    Args:
        x: (..., I).
        layers: any; those with `prepare`, `apply_prepared` and equal `input_settings` share. A layer with hooks, or
            whose forward was replaced, is called like any other module, and so are all its companions.

    Returns:
        `tuple(layer(x) for layer in layers)`.
    """
    if all(_shares_input(layer, layers[0]) for layer in layers):
        prepared = layers[0].prepare(x)
        return tuple([layer.apply_prepared(prepared) for layer in layers])
    return tuple([layer(x) for layer in layers])


def _shares_input(layer: nn.Module, first: nn.Module) -> bool:
    if type(layer) is not type(first) or not hasattr(layer, "input_settings"):
        return False
    return is_plainly_called(layer) and layer.input_settings == first.input_settings


def linear_factory(config, is_quantized: bool) -> LinearFactory:
    """Return what makes the projections of a part: BitLinear with the configuration's scheme, or nn.Linear."""
    if not is_quantized:
        return nn.Linear
    return functools.partial(
        BitLinear,
        scheme=config.w_scheme,
        scale_axis=config.scale_axis,
        group_size=config.group_size,
        activation_bits=config.activation_bits,
    )
