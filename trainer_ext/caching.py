"""Datasets cached on disk under keys of our own."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
from datasets import Dataset, Features


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder our caches lie in: below `cache_dir`, or below the cache of `datasets`."""
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "frankenlm"


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
