"""Datasets cached on disk under keys of our own.

Where the cache of `datasets` cannot be written (no home folder, a read-only one), a folder for this process alone takes
its place, and a warning says so. A full disk is an error there as everywhere.
"""

import atexit
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
from datasets import Dataset, Features

from ..common.cli import FULL_ERRNOS, UserError, check_output_dir

logger = logging.getLogger(__name__)

# Few enough for long documents to fit into memory, enough for the tokenizer's threads.
DOCUMENTS_AT_ONCE = 256


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder our caches lie in: below `cache_dir`, or below the cache of `datasets`.

    Raises:
        UserError: nothing can be written below `cache_dir`.
        OSError: its storage is full or read-only.
    """
    if cache_dir is None:
        return _writable_or_temporary(Path(datasets.config.HF_DATASETS_CACHE) / "frankenlm")
    try:
        check_output_dir(cache_dir)
    except UserError as error:
        raise UserError(f"--cache_dir: {error}") from error
    return Path(cache_dir) / "frankenlm"


def _why_not_writable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, which is made; None where one can, or where the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return None if error.errno in FULL_ERRNOS else error.strerror or str(error)


@functools.cache
def _writable_or_temporary(folder: Path) -> Path:
    # without a home folder and an entry for the user, `datasets` takes ~ as the name of a folder where we stand
    reason = "there is no home folder" if folder.parts[0] == "~" else _why_not_writable(folder)
    if reason is None:
        return folder
    instead = Path(tempfile.mkdtemp(prefix="frankenlm-"))
    atexit.register(shutil.rmtree, instead, ignore_errors=True)
    logger.warning(
        "%s cannot be written (%s): tokenised data lie in %s and go with this run; --cache_dir or HF_DATASETS_CACHE "
        "names a folder that keeps them.",
        folder,
        reason,
        instead,
    )
    return instead


def cache_key(*parts) -> str:
    """Return 32 hex digits that depend on the values of `parts` (anything JSON can write) and on nothing else.

    The keys `datasets` makes by itself pickle the arguments; they change when a tokenizer was used in between.
    """
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def cached_dataset(
    generator: Callable[..., Iterator[dict]], given: dict, features: Features, cache_dir: str | Path | None, key: str
) -> Dataset:
    """Return what `generator(**given)` yields, from the cache if `key` is there. May be empty.

    A ValueError of the generator arrives as it was raised.
    """
    folder = str(cache_folder(cache_dir))
    try:
        return Dataset.from_generator(generator, features=features, cache_dir=folder, gen_kwargs=given, fingerprint=key)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    except ValueError:
        # from_generator refuses to make an empty dataset; whether it is empty is for the caller to judge.
        if next(generator(**given), None) is not None:
            raise
        return Dataset.from_dict({name: [] for name in features}, features=features)


def cached_map(
    dataset: Dataset,
    function: Callable[..., dict],
    given: dict,
    features: Features,
    cache_dir: str | Path | None,
    key: str,
    num_proc: int | None,
) -> Dataset:
    """Return what `function(batch, **given)` makes of the batches of a dataset, from the cache if `key` is there."""
    folder = cache_folder(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return dataset.map(
        function,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=dataset.column_names,
        features=features,
        fn_kwargs=given,
        cache_file_name=str(folder / f"{key}.arrow"),
        new_fingerprint=key,
        num_proc=num_proc,
        desc="tokenising",
    )


def read_note(cache_dir: str | Path | None, key: str) -> bool | int | None:
    """Return what `write_note` left under `key`; None where there is nothing, or nothing legible."""
    path = cache_folder(cache_dir) / f"{key}.note.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # found out again


def write_note(cache_dir: str | Path | None, key: str, value: bool | int) -> None:
    """Keep something small that took reading to find out, beside the cached data."""
    folder = cache_folder(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{key}.note.json.{os.getpid()}"
    beside.write_text(json.dumps(value), encoding="utf-8")
    beside.replace(folder / f"{key}.note.json")
