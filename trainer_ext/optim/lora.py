"""LoRA: a model stays as it is, and two thin matrices beside each of its linear layers learn (PEFT's, in ours and any).

Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3: W x becomes W x + (alpha / r) B A x, with A (r, I), B (O, r), B = 0 at
the start. Beside layers that round their weight (BitLinear) the same holds; there the two are never merged
(modeling/adapters.py says why).
"""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from frankenlm.modeling.checks import suggest

from ..common.cli import UserError
from .galore import hidden_linears


def check_peft() -> None:
    """Raises UserError where PEFT is missing."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("--lora needs the package peft: pip install peft.")


def lora_targets(model: nn.Module, wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the layers that get an adapter, as PEFT reads them.

    Args:
        model: also one on the meta device. wanted: names, or ends of names, of linear layers and tables;
            None for every linear layer inside the stack: no routers and gates, poolings, heads and embeddings.
    Raises:
        UserError: a name that no such layer has, or a model without linear layers.
    """
    if wanted is None:
        found = hidden_linears(model)
        if not found:
            raise UserError("--lora: this model has no linear layers inside its stack; name others by --lora_targets.")
        return found
    layers = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D, nn.Embedding))]
    for name in wanted:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            ends = sorted({layer.rpartition(".")[2] for layer in layers})
            raise UserError(
                f"--lora_targets {name}: no layer of that name.{suggest(name, ends)} Known: {', '.join(ends)}."
            )
    return list(dict.fromkeys(wanted))


def add_lora(
    model: PreTrainedModel,
    base: str,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str] | None = None,
    causal: bool = True,
) -> nn.Module:
    """Return the PeftModel around a model, whose own weights are frozen.

    Args:
        base: the name by which the adapter's folder will find the model again, folder or hub name.
        causal: it generates; PEFT has a class of its own for that (AutoPeftModelForCausalLM).
    Raises:
        UserError: see `lora_targets`.
    """
    from peft import LoraConfig, get_peft_model

    folder = Path(base).expanduser()
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=lora_targets(model, targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
        task_type="CAUSAL_LM" if causal else None,
    )
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that transformers has given another
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapted = get_peft_model(model, config)
    # PEFT has put down what the model was opened by, which may be a way from where this run stands
    adapted.active_peft_config.base_model_name_or_path = str(folder.resolve()) if folder.is_dir() else base
    return adapted
