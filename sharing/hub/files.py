"""Which files of a folder make up a model for others, and why the rest stays here.

A trained folder holds more than its model: checkpoints with optimizer states, pickled arguments, the log of the run.
What is pushed is what somebody needs to open the model and to judge it.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frankenlm.trainer_ext.common.cli import ADAPTER_CONFIG, UserError

CARD = "README.md"
# Patterns of names, in the folder itself.
MODEL_FILES = (
    CARD,
    "LICENSE*",
    "NOTICE*",
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    "*.safetensors",
    "*.safetensors.index.json",
    "*.py",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
# What tells how it was made and how good it is.
RECORD_FILES = ("metrics.json", "packing.json", "training.csv", "timing.csv", "training.png", "evaluation.json")
FOLDERS = ("ema", "additional_chat_templates")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


@dataclass(frozen=True)
class ModelFile:
    """A file to push: where it lies, its name in the repository, its bytes on disk."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True)
class Collected:
    """The files of a folder that are pushed, and why each of the others is not."""

    files: list[ModelFile]
    left_out: dict[str, str]

    def named(self, name: str) -> ModelFile | None:
        """Return a file by its name in the repository."""
        return next((file for file in self.files if file.name == name), None)


def collect(folder: Path, include: Sequence[str] = ()) -> Collected:
    """Sort a folder's files into those that are pushed and those that are not.

    Args:
        include: patterns of further files, such as `evaluation_*.png`; never of pickles.
    Raises:
        UserError: no weights in safetensors, no configuration, or a pattern that fits nothing or a pickle.
    """
    files, left_out = [], {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name in FOLDERS:
            inside = sorted(each for each in path.iterdir() if each.is_file() and _reason(each.name, include) is None)
            files += [ModelFile(each, f"{path.name}/{each.name}", each.stat().st_size) for each in inside]
            continue
        reason = "a folder" if path.is_dir() else _reason(path.name, include)
        if path.is_dir() and path.name.startswith("checkpoint-"):
            reason = "a checkpoint of the run, with its optimizer"
        if reason is None:
            files.append(ModelFile(path, path.name, path.stat().st_size))
        else:
            left_out[path.name] = reason
    _check(folder, files, include)
    return Collected(files, left_out)


def _reason(name: str, include: Sequence[str]) -> str | None:
    """Why a file is not pushed; None where it is."""
    if _fits(name, PICKLES):
        return "a pickle, which nobody should have to trust"
    if name.startswith("."):
        return "hidden"
    if _fits(name, (*MODEL_FILES, *RECORD_FILES, *include)):
        return None
    return "the log of the run" if name.endswith(".log") else "not of the model; --include takes it"


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check(folder: Path, files: Sequence[ModelFile], include: Sequence[str]) -> None:
    names = [file.name for file in files]
    if not {"config.json", ADAPTER_CONFIG} & set(names):
        raise UserError(f"MODEL {folder}: holds no config.json; push the folder of a saved model.")
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise UserError(f"MODEL {folder}: holds no weights in safetensors; other formats are not pushed.")
    for pattern in include:
        found = [path.name for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern)]
        if not found:
            raise UserError(f"--include {pattern}: no file of {folder} fits.")
        pickled = [name for name in found if _fits(name, PICKLES)]
        if pickled:
            raise UserError(f"--include {pattern}: {pickled[0]} is a pickle; pickles are never pushed.")
