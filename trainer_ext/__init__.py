"""Training: data, the Trainer subclass, its callbacks, plots and model cards."""

import logging

# transformers imports bitsandbytes, which tells users of some CPUs that an optional kernel is missing: not their
# concern, and it would stand before every one-line error.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from .arguments import DataArguments, FrankenTrainingArguments, ModelArguments  # noqa: E402
from .trainer import FrankenTrainer  # noqa: E402

__all__ = ["DataArguments", "FrankenTrainer", "FrankenTrainingArguments", "ModelArguments"]
