"""Training: data, the Trainer subclass, its callbacks, plots and model cards; evaluation and generation.

Names are imported when they are asked for: a command's help page needs neither torch nor transformers.
"""

import importlib
import logging
from typing import Any

# transformers imports bitsandbytes, which tells users of some CPUs that an optional kernel is missing: not their
# concern, and it would stand before every one-line error.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "DataArguments": "arguments",
    "FrankenTrainer": "trainer",
    "FrankenTrainingArguments": "arguments",
    "GradientGuard": "optim.guard",
    "ModelArguments": "model_arguments",
    "SafeCheckpoints": "saving.safe_checkpoints",
    "newest_healthy": "saving.safe_checkpoints",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
