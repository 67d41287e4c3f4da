"""TernaryConfig: what config.json says of a packed checkpoint, its quantization_config."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from .checks import check_choice, check_keys
from .column_groups import GROUP_SIZES
from .packed_model import Place, PlainLayers, find_places
from .ternary import GROUP_SCALE_DTYPE

QUANT_METHOD = "frankenlm_ternary"
PLAIN, GROUPS = FORMATS = (1, 2)  # without and with scales of groups
SCALE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# What was not in the first format: written only where it says something.
LATER_KEYS = ("plain_layers", "ternary_embeddings", "group_size", "other_group_sizes", "scale_dtype")
KEYS = ("int8_embeddings", "int8_head", "modules_to_not_convert", "bitnet_linear_class", "format", "quant_method")


class TernaryConfig(QuantizationConfigMixin):
    """What config.json says of a packed checkpoint.

    Args:
        int8_embeddings: the token table has one byte a weight.
        int8_head: so has the output layer.
        modules_to_not_convert: names of layers, or of their parents, that stayed as they are.
        bitnet_linear_class: the model came as a BitNet checkpoint of transformers with this `linear_class`; implies
            plain_layers.
        plain_layers: the model is of another library: packed layers stand where it has nn.Linear, and round their
            inputs without normalising them.
        ternary_embeddings: of such a model, the token table is ternary too.
        group_size: of such a model, how many inputs share a scale: 32, 64 or 128; None: a row has one.
        other_group_sizes: name of a layer -> group size, where it is another one.
        scale_dtype: of the groups' scales, "bfloat16" or "float16".
        format: 2 where scales belong to groups, 1 where to rows.

    Raises:
        ValueError: an unknown key, format, group size or number format.
    """

    def __init__(
        self,
        int8_embeddings: bool = False,
        int8_head: bool = False,
        modules_to_not_convert: Iterable[str] | None = None,
        bitnet_linear_class: str | None = None,
        plain_layers: bool = False,
        ternary_embeddings: bool = False,
        group_size: int | None = None,
        other_group_sizes: Mapping[str, int | None] | None = None,
        scale_dtype: str | None = None,
        format: int = PLAIN,
        quant_method: str = QUANT_METHOD,
        **unknown,
    ):
        check_keys("quantization_config", unknown, (*KEYS, *LATER_KEYS))
        if quant_method != QUANT_METHOD:
            raise ValueError(f"quantization_config: quant_method={quant_method!r} is not {QUANT_METHOD!r}.")
        if format not in FORMATS:
            known = " and ".join(map(str, FORMATS))
            raise ValueError(
                f"quantization_config: format={format!r}; this version of frankenlm reads formats {known}. Update it."
            )
        self.quant_method = QUANT_METHOD
        self.format = format
        self.int8_embeddings = int8_embeddings
        self.int8_head = int8_head
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        self.bitnet_linear_class = bitnet_linear_class
        self.plain_layers = plain_layers
        self.ternary_embeddings = ternary_embeddings
        self.group_size = group_size
        self.other_group_sizes = dict(other_group_sizes or {})
        self.scale_dtype = scale_dtype
        self._check_groups()
        self.note_groups([self.group_size, *self.other_group_sizes.values()])

    def _check_groups(self) -> None:
        for name, size in {"group_size": self.group_size, **self.other_group_sizes}.items():
            if size is not None and size not in GROUP_SIZES:
                sizes = ", ".join(map(str, GROUP_SIZES))
                raise ValueError(f"quantization_config: {name}={size!r} must be one of {sizes}, or null.")
        if self.scale_dtype is not None:
            check_choice("quantization_config: scale_dtype", self.scale_dtype, SCALE_DTYPES)

    @property
    def of_another_library(self) -> bool:
        """Whether packed layers stand where the model has plain ones."""
        return self.plain_layers or self.bitnet_linear_class is not None

    def note_groups(self, group_sizes: Iterable[int | None]) -> None:
        """Set the format to 2 where any of the packed layers' group sizes is one."""
        if any(size is not None for size in group_sizes):
            self.format = GROUPS

    def find_places(self, model: PreTrainedModel) -> list[Place]:
        """Return the layers of an unpacked model that are packed under this configuration."""
        plain = PlainLayers(
            self.ternary_embeddings,
            self.group_size,
            self.other_group_sizes,
            SCALE_DTYPES.get(self.scale_dtype, GROUP_SCALE_DTYPE),
        )
        return find_places(
            model,
            int8_embeddings=self.int8_embeddings,
            int8_head=self.int8_head,
            modules_to_not_convert=self.modules_to_not_convert,
            plain=plain if self.of_another_library else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; keys that came later are left out where they say nothing."""
        return {key: value for key, value in super().to_dict().items() if value or key not in LATER_KEYS}
