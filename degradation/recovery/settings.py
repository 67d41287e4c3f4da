"""How a damaged model is trained, and on what text."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from frankenlm.trainer_ext.common.text_files import read_text
from frankenlm.trainer_ext.data.builtin_text import BUILTIN_NAMES, builtin_documents

from ..configs import MOST

ENOUGH = 2_000_000  # characters: more are not read


@dataclass(frozen=True)
class RecoverySettings:
    """Training after damage. All of it decides what rows hold.

    text: builtin, builtin-code or a text file. steps: of the optimizer; measured every `every` steps, at 0 and at the
    end. batch, length: rows of a step, tokens of a row. frozen: damaged elements keep their damaged values.
    """

    text: str = "builtin"
    steps: int = 100
    every: int = 25
    batch: int = 8
    length: int = 128
    learning_rate: float = 1e-4
    frozen: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "every", "batch", "length"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 1 and {MOST:,}.")
        if self.steps % self.every:
            raise ValueError(f"every={self.every} must divide steps={self.steps}: the last step is measured too.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate={self.learning_rate} must lie between 0 and 1.")

    @property
    def measured(self) -> tuple[int, ...]:
        """The steps after which the model is measured, the damaged model itself first."""
        return tuple(range(0, self.steps + 1, self.every))

    def identity(self, text: str) -> dict[str, Any]:
        """Return the fields that decide a row; the number of steps may grow."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("steps", "every", "text")}
        return fields | {"text": hashlib.sha256(text.encode()).hexdigest()[:16]}


def load_text(name: str) -> str:
    """Return the text to train on.

    Raises:
        ValueError: there is no such text.
    """
    if name in BUILTIN_NAMES:
        return "\n\n".join(document.text for document in builtin_documents(name))[:ENOUGH]
    if not Path(name).is_file():
        raise ValueError(f"train_text={name!r} is neither a file nor one of {', '.join(BUILTIN_NAMES)}.")
    return read_text(Path(name))[:ENOUGH]


class Blocks(Dataset):
    """A text as rows of equally many tokens, each input and target at once; what is left over at the end is not used.

    Raises:
        ValueError: the text has fewer tokens than a row.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, length: int):
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        if len(ids) < length:
            raise ValueError(f"train_text has {len(ids)} tokens, fewer than train_length={length}.")
        self.rows = ids[: len(ids) // length * length].view(-1, length)  # (rows, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[place], "labels": self.rows[place]}
