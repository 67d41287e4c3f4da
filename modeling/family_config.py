"""What the configurations of all families have in common: the checks. Each family's fields stand in its own file.

A family names its `CHOICES`, `RANGES` and `SIZES`; what only it can get wrong, it checks in `check_family`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar, Self

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .checks import check_choice, check_keys
from .column_groups import check_group
from .preset_files import read_preset
from .ranges import (
    ANY,
    DEPTH,
    NOT_NEGATIVE,
    POSITIONS,
    POSITIVE,
    SHARE,
    SIZE,
    Range,
    check_ranges,
    check_token_ids,
    check_total,
)

COMMON_CHOICES = {
    "hidden_act": ("gelu", "silu", "relu", "relu2", "swiglu"),
    "head_bias_init": ("unigram", "zeros"),
}
# Those of a family whose matrices can be quantised.
BIT_CHOICES = {
    "w_scheme": ("binary", "ternary_absmean", "ternary_absmedian", "ternary_twn", "int2", "int2_pow"),
    "scale_axis": ("tensor", "row", "group"),
}
COMMON_RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), SIZE),
    "num_hidden_layers": DEPTH,
    "max_position_embeddings": POSITIONS,
    **dict.fromkeys(("dropout", "attention_dropout"), SHARE),
    "layer_norm_eps": POSITIVE,
    "initializer_range": NOT_NEGATIVE,
    "attention_window": ANY,
}


class FamilyConfig(PreTrainedConfig):
    """A configuration that is checked when it is made, and again when a model is built from it."""

    CHOICES: ClassVar[Mapping[str, tuple]] = COMMON_CHOICES
    RANGES: ClassVar[Mapping[str, Range]] = COMMON_RANGES
    # What a model's number of parameters mostly comes from.
    SIZES: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
    )

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_consistency()

    @classmethod
    def known_keys(cls) -> set[str]:
        """Return every key a preset or a command line may set."""
        return {field.name for field in fields(cls)}

    @classmethod
    def from_preset(cls, name: str, **overrides) -> Self:
        """Build the configuration of a preset, with fields replaced by `overrides`.

        Raises:
            ValueError: unknown preset, one of another family, unknown key (with a did-you-mean), wrong type or
                impossible combination.
        """
        preset = read_preset(name)
        if preset.model_type != cls.model_type:
            raise ValueError(f"preset {name!r} is of model_type {preset.model_type!r}, not {cls.model_type!r}.")
        check_keys(f"preset {name!r}, section 'model'", preset.model, cls.known_keys())
        check_keys("overrides", overrides, cls.known_keys())
        try:
            return cls(**{**preset.model, **overrides})
        except StrictDataclassError as error:
            raise ValueError(f"preset {name!r}: {error}") from error

    @property
    def num_positions(self) -> int:
        """Rows of the table of learned positions; 0 without one."""
        return self.max_position_embeddings if self.position_type == "learned" else 0

    def check_consistency(self) -> None:
        """Check every cross-field rule; the model calls it again, since attributes may have been set by hand.

        Raises:
            ValueError: a value outside its choices or its range, or a combination that cannot be built.
        """
        for field, choices in self.CHOICES.items():
            value = self.__dict__[field]
            if value not in choices:
                check_choice(field, value, [choice for choice in choices if choice is not None])
        check_ranges(self.__dict__, self.RANGES)
        check_token_ids(self.__dict__)
        check_total(self.__dict__, self.count_roughly(), self.SIZES)
        self.check_heads("num_attention_heads")
        if "scale_axis" in self.CHOICES:
            check_group(self.__dict__["scale_axis"], self.__dict__["group_size"])
        if self.attention_window is not None and self.attention_window <= 0:
            raise ValueError(f"attention_window={self.attention_window} must be positive, or None for no window.")
        self.check_family()

    def count_roughly(self) -> int:
        """Return about how many parameters a model has: its tables, and the matrices of its layers."""
        tables = self.hidden_size * (self.vocab_size + self.num_positions)
        layer = self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)
        return tables + self.num_hidden_layers * layer

    def check_heads(self, field: str) -> None:
        """Check that the heads of a field share the width evenly."""
        heads = self.__dict__[field]
        if self.hidden_size % heads:
            raise ValueError(f"{field}={heads} must divide hidden_size={self.hidden_size}.")

    def check_family(self) -> None:
        """Check what only this family can get wrong."""
