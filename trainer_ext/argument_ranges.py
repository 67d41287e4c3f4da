"""What numbers the flags of a run may have: one table, checked before a folder is made.

transformers checks few of them; a batch size of 0, a learning rate of nan or max_steps of -5 would be noticed late, or
never. Sentinels that mean something stay: max_steps -1 (go by epochs), max_grad_norm 0 (no clipping), local_rank -1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from frankenlm.modeling import FAMILIES
from frankenlm.modeling.mixer_attention import StandardAttention
from frankenlm.modeling.mixers import MIXERS


@dataclass(frozen=True)
class ArgumentRange:
    """From `low` to `high`, `low` itself left out with `above`, `high` with `below`; `also` are allowed beside it."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def takes(self, value: float) -> bool:
        """Whether a value is allowed; never one that is not finite."""
        if not math.isfinite(value):
            return False
        if value in self.also:
            return True
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            text = f"more than {self.low}" if self.above else f"at least {self.low}"
        else:
            text = f"in {'(' if self.above else '['}{self.low}, {self.high}{')' if self.below else ']'}"
        return text + "".join(f", or {value}" for value in self.also)


COUNT, NOT_NEGATIVE, POSITIVE = ArgumentRange(1), ArgumentRange(0), ArgumentRange(0, above=True)
SEED = ArgumentRange(0, 2**32 - 1)
SHARE = ArgumentRange(0, 1, below=True)

TRAINING_RANGES: Mapping[str, ArgumentRange] = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": COUNT,
    "num_train_epochs": POSITIVE,
    "max_steps": ArgumentRange(1, also=(-1,)),
    "learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "galore_rank": COUNT,
    "galore_update_gap": COUNT,
    "galore_bits": ArgumentRange(8, 32),
    "galore_scale": POSITIVE,
    "ema_decay": ArgumentRange(0, 1, above=True, below=True),
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": POSITIVE,
    "torch_empty_cache_steps": COUNT,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "save_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "save_total_limit": NOT_NEGATIVE,
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "local_rank": ArgumentRange(-1),
    "cpu_threads": NOT_NEGATIVE,
    "early_stopping_patience": COUNT,
    "learning_rate_drop": ArgumentRange(0, 1, above=True),
    "weight_decay_share": ArgumentRange(0, 1),
    "ternary_start": NOT_NEGATIVE,
}
DATA_RANGES: Mapping[str, ArgumentRange] = {
    "validation_fraction": ArgumentRange(0, 1, above=True, below=True),
    "mlm_probability": ArgumentRange(0, 1, above=True, below=True),
    "causal_share": ArgumentRange(0, 1, above=True, below=True),
    "split_seed": NOT_NEGATIVE,
    "max_length": ArgumentRange(2),
    "max_documents": ArgumentRange(2),
    "num_proc": COUNT,
}
MODEL_RANGES: Mapping[str, ArgumentRange] = {
    "vocab_size": COUNT,
    "lora_rank": COUNT,
    "lora_alpha": POSITIVE,
    "lora_dropout": SHARE,
    "teacher_weight": ArgumentRange(0, 1),
    "teacher_temperature": POSITIVE,
    "teacher_hidden_weight": NOT_NEGATIVE,
}


def check_ranges(settings: Any, ranges: Mapping[str, ArgumentRange]) -> None:
    """Check the fields of a settings object; one that is None is not set.

    Raises:
        ValueError: naming the flag, its value and what it may be.
    """
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        if value is not None and not allowed.takes(value):
            raise ValueError(f"--{name} {value}: must be {allowed}.")


def check_window_range(given: Sequence[int] | None, is_compiled: bool) -> None:
    """Check the ends of --attention_window_range; None is not set.

    Args:
        is_compiled: as transformers' arguments have it, who set --torch_compile for its backend or its mode.
    Raises:
        ValueError: not two, in order, from 1; or a compiled model, which every new window would compile again.
    """
    if given is None:
        return
    if len(given) != 2 or not 1 <= given[0] <= given[1]:
        shown = " ".join(map(str, given))
        raise ValueError(f"--attention_window_range {shown}: give the smallest and the largest window, such as 64 256.")
    if is_compiled:
        raise ValueError("--attention_window_range and --torch_compile: every window would be compiled; leave one out.")


def check_has_window(given: Sequence[int] | None, config: PreTrainedConfig) -> None:
    """Check that the model of a configuration has a window to draw by --attention_window_range; None is not set.

    Raises:
        ValueError: it is not of ours, or none of its layers is attention.
    """
    if given is None:
        return
    if not isinstance(config, tuple(family.config_class for family in FAMILIES)):
        raise ValueError(
            f"--attention_window_range: the model is a {config.model_type}; models of frankenlm alone can change their "
            "window: leave it out."
        )
    mixers = config.to_dict().get("layer_pattern")  # the other families attend in every layer
    if mixers is not None and not any(issubclass(MIXERS[name], StandardAttention) for name in mixers):
        raise ValueError(
            f"--attention_window_range: no layer of this model has a window, layer_pattern={list(mixers)}: leave it "
            "out, or add an attention layer."
        )
