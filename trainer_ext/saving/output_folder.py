"""What of an output folder is this program's: to replace an earlier run, to rotate checkpoints, to write safely.

Only what a run wrote is deleted, by the list in each checkpoint's resume.json (older checkpoints: by the names that are
written); other files stay, and are told. Symbolic links under our names are refused: writing would go through them.
"""

import fnmatch
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import frankenlm.modeling

from ..common.cli import UserError
from .checkpoint_record import RECORD, read_record_or_none
from .saved_checkpoints import STATE, checkpoint_folders, newest_first
from .training_csv import CSV_COLUMNS

logger = logging.getLogger("frankenlm.output_folder")

# What a run leaves beside the model, and takes away when it replaces an earlier one.
RUN_FILES = ("training.csv", "timing.csv", "training.log", "training.png", "metrics.json", "README.md")
# Of these a stranger's may lie in any folder.
TAKEN = (*RUN_FILES, "config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors")
CODE = tuple(path.name for path in Path(frankenlm.modeling.__file__).parent.glob("*.py"))
# What save_pretrained and Trainer write into the folder and into checkpoints.
SAVED = (
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "adapter_config.json", "adapter_model.safetensors", "training_args.bin",
    "optimizer.pt", "optimizer.bin", "pytorch_model_fsdp.bin", "scheduler.pt", "scaler.pt", "ema.safetensors",
    "ema_best.safetensors", "rng_state*.pth", STATE, RECORD, *CODE,
)  # fmt: skip


# The last part of the names of folders on their way in or out; a run that was killed leaves them behind.
PARTIAL = ".partial"
# What the run's own model is called while it is written.
MODEL = "model"
# The model with the average of the weights for weights, in a folder of its own.
AVERAGE = "ema"


def check_links(output_dir: Path) -> None:
    """Raises UserError where a name that a run writes is a symbolic link: what it points to would be overwritten."""
    folders = [output_dir, output_dir / AVERAGE, *checkpoint_folders(output_dir)]
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        ours = _matches(path.name, (*RUN_FILES, *SAVED)) or path in folders
        if ours and path.is_symlink():
            raise UserError(
                f"--output_dir {output_dir}: {path.relative_to(output_dir)} is a symbolic link, and a run would write "
                "to where it points: remove the link, or choose another folder."
            )


def is_run(output_dir: Path) -> bool:
    """Whether something in the folder can only be of a run: its curve, its log, its figures, a checkpoint's state."""
    marks = {
        "training.csv": ",".join(CSV_COLUMNS[:3]).encode(),
        "training.log": b" frankenlm.",
        "metrics.json": b'"frankenlm": "',
    }
    for name, mark in marks.items():
        if (output_dir / name).is_file():
            with (output_dir / name).open("rb") as file:
                if mark in file.read(10_000):
                    return True
    return any((folder / STATE).is_file() or (folder / RECORD).is_file() for folder in checkpoint_folders(output_dir))


def taken_names(output_dir: Path) -> list[str]:
    """Names in the folder that a new run would write over."""
    names = [name for name in TAKEN if (output_dir / name).exists()]
    for folder in checkpoint_folders(output_dir):
        names += [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir()) if _matches(path.name, SAVED)]
    return names


def check_average(output_dir: Path) -> None:
    """Raises UserError where the folder of the average holds what no run wrote, and this one would overwrite."""
    folder = output_dir / AVERAGE
    taken = [path.name for path in sorted(folder.glob("*")) if _matches(path.name, SAVED)]
    if taken and not (folder / RECORD).is_file():
        raise UserError(
            f"--ema_decay: {folder} holds {taken[0]}, which no run of this program wrote and this one would overwrite: "
            "choose another --output_dir."
        )


def clear(output_dir: Path) -> None:
    """Remove an earlier run's checkpoints and records; what else lies there stays, and is told."""
    average = [output_dir / AVERAGE] if (output_dir / AVERAGE / RECORD).is_file() else []
    for folder in [*checkpoint_folders(output_dir), *average]:
        strangers = remove_checkpoint(folder)
        if strangers:
            logger.warning("%s stays: it holds %s, which no run wrote", folder, _listed(strangers))
    for name in RUN_FILES:
        (output_dir / name).unlink(missing_ok=True)


def remove_checkpoint(folder: Path) -> list[str]:
    """Delete the files of a checkpoint that a run wrote, and its folders where nothing is left; return what is.

    A whole folder takes another name first, so that no half of it is ever taken for a checkpoint.
    """
    if folder.is_symlink():
        folder.unlink()  # what it points to is somebody else's
        return []
    ours, others = contents(folder)
    if not others:
        gone = folder.with_name(f".{folder.name}.gone{PARTIAL}")
        discard(gone)
        folder.rename(gone)
        discard(gone)
    else:
        for name in ours:
            (folder / name).unlink(missing_ok=True)
    return others


def discard(partial: Path) -> None:
    """Remove a folder of ours that is on its way in or out, if it is there."""
    if partial.is_dir():
        shutil.rmtree(partial)


def contents(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a checkpoint's files: those that a run wrote, and the others."""
    record = read_record_or_none(folder)
    ours, others = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        written = _matches(name, SAVED) if record is None else name in record.files or name == RECORD
        (ours if written and not path.is_symlink() else others).append(name)
    return ours, others


def rotate(
    output_dir: Path, run: str, limit: int | None, keep: Iterable[Path], told: set[Path], *, is_over: bool = False
) -> None:
    """Delete the oldest checkpoints of a run beyond `limit`; the newest healthy one stays.

    Folders that another run made, or that hold a file of somebody else, are no checkpoints of this run and stay.

    Args:
        run: the id in the checkpoints' resume.json. limit: None or 0 keeps all. keep: folders that stay in any case.
        told: folders that a warning has named; those named now are added.
        is_over: the run will not go on, so any healthy one among `keep` is enough.
    """
    if not limit or limit < 0:
        return
    keep = {folder.resolve() for folder in keep}
    mine, healthy = [], []
    for folder in newest_first(output_dir):
        if folder.is_symlink():
            continue
        record = read_record_or_none(folder)
        others = [] if record is None or record.run != run else contents(folder)[1]
        if record is not None and record.run == run and not others:
            mine.append(folder)
            if record.health.fault is None:
                healthy.append(folder)
        elif others and folder not in told:
            told.add(folder)
            logger.warning("%s is not rotated: it holds %s, which this run did not write", folder, _listed(others))
    if not (is_over and any(folder.resolve() in keep for folder in healthy)):
        keep |= {folder.resolve() for folder in healthy[:1]}
    kept = sum(folder.resolve() in keep for folder in mine)
    for folder in mine:  # newest first
        if folder.resolve() in keep:
            continue
        if kept >= limit:
            remove_checkpoint(folder)
        else:
            kept += 1


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
