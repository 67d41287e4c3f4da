"""The degradation lab: damage the weights of any language model, let it answer, and measure what breaks.

    from frankenlm.degradation import get_config, run_experiment

    config = get_config("smoke") | {"group": "mlp_only", "levels": (0.0, 0.1, 0.3)}
    path = run_experiment(config, model="HuggingFaceTB/SmolLM2-135M-Instruct", output_dir="results")

Names are imported when they are asked for: reading results needs neither torch nor transformers.
"""

import importlib
from typing import Any

_HOMES = {
    "Baseline": "weights.restore",
    "ExperimentConfig": "configs",
    "Lab": "lab",
    "MethodOptions": "damage.methods",
    "RunOptions": "run_options",
    "Store": "records.store",
    "apply_damage": "weights.restore",
    "describe_groups": "weights.groups",
    "get_config": "configs",
    "load_prompts": "prompts",
    "measure_row": "measures.measure",
    "run_experiment": "lab",
    "select_group": "weights.groups",
    "write_report": "report.write",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
