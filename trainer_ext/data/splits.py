"""From `--dataset` to what a Trainer takes: load_splits -> load_tokenizer -> prepare_dataset -> build_collator.

    splits = load_splits("builtin")
    tokenizer = load_tokenizer("train", documents=iter_texts(splits["train"]), objective="mlm")
    train = prepare_dataset(splits["train"], tokenizer, max_length=128, objective="mlm")
    collator = build_collator("mlm", tokenizer)

Where documents lie is in sources.py; what a document is, file by file, in documents.py; how lines are joined into
articles, in articles.py; how documents become rows of ids, in packing.py.

Held-out documents are chosen by a hash of their text (built-in text: of their topic), not by position: equal documents
fall on the same side, a document keeps its side when others are added, streamed and cached data agree, and nothing
has to be counted first. Every run with the same `seed` holds out the same documents.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from frankenlm.modeling.checks import check_choice
from frankenlm.modeling.outputs import IGNORED_LABEL

from ..common.text_files import BadRowError
from .articles import is_heading
from .building import AnyDataset, Builder, Reading, Side, document_hash, is_empty, read_labels
from .collators import build_collator
from .documents import Source
from .packing import prepare_dataset
from .records import RECORD_FORMS, choose_form, contents, is_pair_of_texts
from .skipping import skipped_rows
from .sources import find_sources
from .tokenizers import load_tokenizer

__all__ = [
    "BadRowError",
    "build_collator",
    "count_bytes",
    "count_tokens",
    "has_messages",
    "is_conversations",
    "iter_texts",
    "label_names",
    "load_documents",
    "load_splits",
    "load_tokenizer",
    "prepare_dataset",
    "skipped_rows",
]

logger = logging.getLogger(__name__)

_HASH_RANGE = 2**64
# Characters; shorter texts may stand on both sides: headings and the like, which give nothing away.
_SHORTEST_UNIQUE = 30


def load_splits(
    spec: str,
    *,
    validation: str | None = None,
    validation_fraction: float = 0.05,
    seed: int = 0,
    streaming: bool = False,
    text_column: str = "text",
    label_column: str | None = None,
    max_documents: int | None = None,
    join_articles: str = "auto",
    skip_bad_rows: bool = False,
    record_form: str = "text",
    cache_dir: str | Path | None = None,
) -> dict[str, AnyDataset]:
    """Return {"train": ..., "validation": ...} with the column "text" (and "label", a ClassLabel); of conversations
    with "record", the JSON text of each (records.py), and "place", where it was.

    spec: "builtin", "builtin-code", a hub name ("owner/name:config"), or a file, folder or glob of a kind that
        documents.py lists.
    validation: a second spec to evaluate on. Without it, the validation part of a folder or hub data set that has one;
        else about `validation_fraction` of the documents, drawn by a hash of (seed, text), at least one.
        Training documents that also stand in the validation data are left out of training, but for headings and the
        like: texts without a label of less than 30 characters.
    streaming: IterableDatasets at constant memory instead of Datasets cached on disk; the same documents on each side.
    label_column: for classification; strings or whole numbers, numbered in sorted order (see `label_names`).
    max_documents: read at most so many documents of `spec` (and of `validation`), for quick trials.
    join_articles: "auto" joins the lines or rows of WikiText-like data into articles where it finds their titles, and
        says so; "yes" insists on it, "no" reads them one by one.
    skip_bad_rows: pass bad rows over (no text, null, not JSON, not UTF-8) instead of raising; `skipped_rows()` counts.
    record_form: what a row is: "text", "messages", "prompt_completion", or "auto", by the columns of the first source.

    Raises BadRowError (a ValueError) for a bad row, ValueError naming the file, line, column or value that is wrong.
    Of a stream, only what is read to find one document a side is checked at once; the rest raises when it is reached.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} must lie between 0 and 1.")
    if max_documents is not None and max_documents < 2:
        raise ValueError(f"max_documents={max_documents} must be at least 2, one document a side.")
    check_choice("record_form", record_form, RECORD_FORMS)
    sources = find_sources(spec, "train", streaming=streaming)
    form = _form_of(sources, spec, record_form, text_column)
    reading = Reading(text_column, label_column, max_documents, skip_bad_rows, record_form=form)
    build = Builder(spec, reading, streaming, cache_dir)
    sources = build.open(spec, sources, join_articles)
    if validation is None:
        held_out = build.open(spec, find_sources(spec, "validation", streaming=streaming), join_articles)
    else:
        held_out = build.open(validation, _all_sources(validation, "validation", streaming), join_articles)
    build = replace(build, reading=replace(reading, labels=read_labels(sources, reading)))
    if held_out:
        splits = _given_validation(build, sources, held_out)
    else:
        splits = _drawn_validation(build, sources, seed, int(validation_fraction * _HASH_RANGE))
    for name, split in splits.items():
        if is_empty(split):
            joined = any(source.articles for source in sources)
            raise ValueError(f"dataset {spec!r}: no document is left for {name}; {_way_out(name, validation, joined)}")
    build.tell_skipped([*sources, *held_out])
    return splits


def load_documents(
    spec: str,
    *,
    streaming: bool = False,
    text_column: str = "text",
    label_column: str | None = None,
    max_documents: int | None = None,
    join_articles: str = "auto",
    skip_bad_rows: bool = False,
    one_text: bool = False,
    cache_dir: str | Path | None = None,
) -> AnyDataset:
    """Return all documents of `spec`, unsplit, in order: for evaluating on a file of its own. See `load_splits`.

    Of a folder or hub data set with parts, the validation part.
    one_text: everything as one document with the raw text of it: a .txt file as it is, rows as lines (articles.py).
        Not together with label_column or max_documents.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents={max_documents} must be at least 1.")
    if one_text and (label_column is not None or max_documents is not None):
        raise ValueError("one_text takes the whole text: leave out label_column and max_documents.")
    reading = Reading(text_column, label_column, max_documents, skip_bad_rows, one_text=one_text)
    build = Builder(spec, reading, streaming, cache_dir)
    sources = build.open(spec, _all_sources(spec, "validation", streaming), "no" if one_text else join_articles)
    build = replace(build, reading=replace(reading, labels=read_labels(sources, reading)))
    dataset = build(sources)
    if is_empty(dataset):
        raise ValueError(f"dataset {spec!r} has no text.")
    build.tell_skipped(sources)
    return dataset


def _all_sources(spec: str, part: str, streaming: bool) -> list[Source]:
    return find_sources(spec, part, streaming=streaming) or find_sources(spec, "train", streaming=streaming)


def _form_of(sources: list[Source], spec: str, asked: str, text_column: str) -> str:
    """Return what the rows of a dataset are, and say so where they are no texts, or need not be."""
    if asked == "text" or not sources:
        return "text"
    names = sources[0].column_names()
    form = choose_form(asked, names, text_column)
    other = choose_form(asked, set(names or ()) - {text_column}, text_column)
    if form != "text":
        logger.info("%s: its rows are conversations (%s)", spec, form)
    elif other != form:
        logger.info(
            "%s: column %r is read; --record_form %s takes the conversations beside it", spec, text_column, other
        )
    return form


def is_conversations(dataset: AnyDataset) -> bool:
    """Whether the rows of a split are conversations."""
    return "record" in dataset.column_names


def has_messages(dataset: AnyDataset) -> bool:
    """Whether the rows of a split are conversations of messages, as its first one tells, and need a chat template."""
    return is_conversations(dataset) and not is_pair_of_texts(json.loads(next(iter(dataset))["record"]))


# --- sides


def _drawn_validation(build: "Builder", sources: list[Source], seed: int, limit: int) -> dict[str, AnyDataset]:
    validation = build(sources, Side(seed, limit, below=True))
    if is_empty(validation):
        # Few documents: hold out the one that a larger fraction would hold out first.
        hashes = (document_hash(document.key, seed) for document in build.reading.documents(sources))
        smallest = min(hashes, default=None)
        if smallest is None:
            raise ValueError(f"{build.spec!r} has no text: all its documents are blank.")
        limit = smallest + 1
        logger.warning("the held-out fraction catches none of the few documents; one document is held out.")
        validation = build(sources, Side(seed, limit, below=True))
    return {"train": build(sources, Side(seed, limit, below=False)), "validation": validation}


def _given_validation(build: "Builder", sources: list[Source], held_out: list[Source]) -> dict[str, AnyDataset]:
    # headings stand everywhere; a labelled row is a case of its own, however short
    excluded = frozenset(
        document_hash(document.text, 0)
        for document in build.reading.documents(held_out)
        if build.reading.labels is not None or _gives_away(document.text)
    )
    return {"train": build(sources, Side(excluded=excluded)), "validation": build(held_out)}


def _gives_away(text: str) -> bool:
    """Whether a held-out text, met in training, would give away what is to be predicted."""
    return len(text.strip()) >= _SHORTEST_UNIQUE and not is_heading(text)


def _way_out(name: str, validation: str | None, joined: bool) -> str:
    if name == "validation":
        return "the validation data has no text."
    if validation is not None:
        return f"every one stands in the validation data {validation!r} too."
    apart = ", or --join_articles no, which reads its lines one by one" if joined else ""
    return f"it has only one distinct document. Give more text, or a validation set of its own{apart}."


# --- what training and evaluation ask about a dataset


def iter_texts(dataset: AnyDataset) -> Iterator[str]:
    """Yield the documents of a split as strings; of conversations, what is said in them."""
    if is_conversations(dataset):
        for batch in dataset.select_columns(["record"]).iter(1000):
            yield from map(contents, batch["record"])
        return
    for batch in dataset.select_columns(["text"]).iter(1000):
        yield from batch["text"]


def label_names(dataset: AnyDataset) -> list[str]:
    """Return the names of the labels, in the order of their ids, of a split or a prepared classification dataset."""
    for column in ("label", "labels"):
        if column in dataset.features:
            return list(dataset.features[column].names)
    raise ValueError("the dataset has no labels; load it with label_column.")


def count_bytes(dataset: AnyDataset) -> int:
    """Return the UTF-8 bytes of all documents, the denominator of bits per byte."""
    return sum(len(text.encode()) for text in iter_texts(dataset))


def count_tokens(dataset: AnyDataset, vocab_size: int, *, exclude: Iterable[int] = ()) -> torch.LongTensor:
    """Return how often each id stands in `input_ids`, of conversations among the labels, [vocab_size] int64.

    exclude: ids that are never predicted and count 0; for a masked model pass `special_token_ids(tokenizer)`, for a
    causal one nothing (it predicts the separators too). Raises ValueError for an id of `vocab_size` or more.
    """
    counts = np.zeros(vocab_size, np.int64)
    column = "labels" if "labels" in dataset.column_names else "input_ids"
    for batch in dataset.select_columns([column]).with_format("numpy").iter(1000):
        ids = np.concatenate(batch[column])
        counted = np.bincount(ids[ids != IGNORED_LABEL], minlength=vocab_size)
        if len(counted) > vocab_size:
            raise ValueError(f"token id {len(counted) - 1} does not fit into vocab_size={vocab_size}.")
        counts += counted
    counts[list(exclude)] = 0
    return torch.from_numpy(counts)
