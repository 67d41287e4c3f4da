"""Which files of a folder make up a model for others, and why the rest stays here.

A trained folder holds more than its model: checkpoints with optimizer states, pickled arguments, the log of the run.
What is pushed is what somebody needs to open the model and to judge it.
"""

import fnmatch
import json
from collections.abc import Collection, Sequence
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
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
# What tells how it was made and how good it is.
RECORD_FILES = ("metrics.json", "packing.json", "training.csv", "timing.csv", "training.png", "evaluation.json")
FOLDERS = ("ema", "additional_chat_templates")
MODULES = "modules.json"  # of sentence-transformers; names the folders of its parts
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy", "*.npz")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's archives, and pickles


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
    taken = {*FOLDERS, *_module_folders(folder)}
    for path in sorted(folder.iterdir()):
        reason = _reason(path, folder, include, taken)
        if reason is not None:
            left_out[path.name] = reason
        elif path.is_dir():
            inside = [each for each in sorted(path.iterdir()) if _reason(each, folder, include, ()) is None]
            files += [ModelFile(each, f"{path.name}/{each.name}", each.stat().st_size) for each in inside]
        else:
            files.append(ModelFile(path, path.name, path.stat().st_size))
    _check(folder, files, include)
    return Collected(files, left_out)


def _module_folders(folder: Path) -> set[str]:
    """The folders that the modules.json of sentence-transformers names."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        return {each["path"] for each in modules if each["path"]}
    except FileNotFoundError:
        return set()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"MODEL {folder}: its {MODULES} cannot be read: {error!r}") from error


def _reason(path: Path, folder: Path, include: Sequence[str], folders: Collection[str]) -> str | None:
    """Why a file or folder is not pushed; None where it is."""
    name = path.name
    if not _lies_inside(path, folder):
        return "a link that leads out of the folder"
    if path.is_dir():
        if name in folders:
            return None
        return "a checkpoint of the run, with its optimizer" if name.startswith("checkpoint-") else "a folder"
    if not path.is_file():
        return "no ordinary file"
    if _is_pickle(path):
        return "a pickle, which nobody should have to trust"
    if name.startswith("."):
        return "hidden"
    if _fits(name, (*MODEL_FILES, *RECORD_FILES, *include)):
        return None
    return "the log of the run" if name.endswith(".log") else "not of the model; --include takes it"


def _lies_inside(path: Path, folder: Path) -> bool:
    """Whether a file is of the folder; links of the Hub's cache lead to its blobs beside the snapshot."""
    real = path.resolve()
    return real.is_relative_to(folder.resolve()) or real.parent.name == "blobs"


def _is_pickle(path: Path) -> bool:
    if _fits(path.name.lower(), PICKLES):
        return True
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLE_STARTS)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check(folder: Path, files: Sequence[ModelFile], include: Sequence[str]) -> None:
    names = [file.name for file in files]
    if not {"config.json", ADAPTER_CONFIG} & set(names):
        raise UserError(f"MODEL {folder}: holds no config.json; push the folder of a saved model.")
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise UserError(f"MODEL {folder}: holds no weights in safetensors; other formats are not pushed.")
    for pattern in include:
        found = [path for path in folder.iterdir() if path.is_file() and fnmatch.fnmatchcase(path.name, pattern)]
        if not found:
            raise UserError(f"--include {pattern}: no file of {folder} fits; whole folders are not taken.")
        pickled = [path.name for path in found if _is_pickle(path)]
        if pickled:
            raise UserError(f"--include {pattern}: {pickled[0]} is a pickle; pickles are never pushed.")
