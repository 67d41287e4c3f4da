"""Where the numbers of a configuration may lie, and errors of one line where they do not.

The upper ends stand far above every model anyone trains: they stop a slip of the pen, such as 1e9 layers, before it
takes minutes and all the memory.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields as dataclass_fields
from typing import NamedTuple

from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError

LARGEST_MODEL = 10**13  # parameters
SHOWN = 60  # characters of a value in a message


class Range(NamedTuple):
    """From `lowest` to `highest`, both included unless said otherwise."""

    lowest: float
    highest: float
    lowest_is_out: bool = False
    highest_is_out: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.lowest if self.lowest_is_out else value >= self.lowest
        below = value < self.highest if self.highest_is_out else value <= self.highest
        return above and below

    def reason(self, value: float) -> str:
        """Say what is wrong with a value outside."""
        if not math.isfinite(value):
            return "must be a finite number"
        if self == SHARE:
            return "must lie in [0, 1)"
        if self == BITS:
            return f"must lie in {self.lowest}..{self.highest}"
        if value > self.highest:
            return f"must be at most {self.highest:,}"
        if self.lowest_is_out or self.lowest == 1:
            return "must be positive"
        return "must not be negative" if self.lowest == 0 else f"must be at least {self.lowest:,}"


SIZE = Range(1, 2**24)
OPTIONAL_SIZE = Range(0, 2**24)
DEPTH = Range(1, 4096)
FEW = Range(1, 65536)
POSITIONS = Range(1, 2**31)
OPTIONAL_FEW = Range(0, 65536)
SHARE = Range(0, 1, highest_is_out=True)
POSITIVE = Range(0, 1e30, lowest_is_out=True)
NOT_NEGATIVE = Range(0, 1e6)
BITS = Range(2, 8)
ANY = Range(-(2**24), 2**24)  # rules of their own say more
SEED = Range(0, 2**63 - 1)


class ConfigTypeError(ValueError, StrictDataclassError):
    """A field of a configuration got a value of another type."""


def check_ranges(fields: Mapping, ranges: Mapping[str, Range]) -> None:
    """Check the numbers of a configuration; None, where the type allows it, is in every range.

    Raises:
        ValueError: a number outside its range, or not finite.
    """
    for field, allowed in ranges.items():
        value = fields[field]
        if value is not None and not allowed.holds(value):
            raise ValueError(f"{field}={_shown(value)} {allowed.reason(value)}.")


def check_token_ids(fields: Mapping) -> None:
    """Check that every special token is one of the vocabulary.

    Raises:
        ValueError: an id below 0, or not below vocab_size.
    """
    size = fields["vocab_size"]
    for field in ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"):
        given = fields[field]
        for token in given if isinstance(given, list) else [given]:
            if token is not None and not 0 <= token < size:
                raise ValueError(f"{field}={_shown(given)} must lie in 0..vocab_size-1 = {size - 1}.")


def check_total(fields: Mapping, parameters: int, names: Iterable[str]) -> None:
    """Check a rough count of a model's parameters; `names` are the fields that make it.

    Raises:
        ValueError: above `LARGEST_MODEL`.
    """
    if parameters > LARGEST_MODEL:
        sizes = ", ".join(f"{name}={fields[name]}" for name in names)
        raise ValueError(
            f"{sizes} make about {parameters:.0e} parameters; at most {LARGEST_MODEL:.0e} can be built. Lower one of "
            "them."
        )


def with_plain_errors(config_class: type) -> type:
    """Let a strict configuration class say in one line which field got a value of the wrong type.

    What it raises is a ValueError, as for every other mistake in a configuration, and still a StrictDataclassError.
    """
    strict_setattr = config_class.__setattr__
    types = {field.name: _in_words(field.type) for field in dataclass_fields(config_class)}

    def __setattr__(self, name, value):  # noqa: N807
        try:
            strict_setattr(self, name, value)
        except StrictDataclassFieldValidationError as error:
            message = f"{name}={_shown(value)} is of type {type(value).__name__}, but must be {types[name]}."
            raise ConfigTypeError(message) from error

    config_class.__setattr__ = __setattr__
    return config_class


def _in_words(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    return text.replace("NoneType", "None").replace(" | ", " or ")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
