"""From documents to rows of token ids: packed into full blocks, or one document a row.

Packing joins all documents with the separator token and cuts the result into blocks of `max_length`:

    causal  [bos] document eos [bos] document eos ...     bos only where the tokenizer's own template has it
    mlm     [CLS] document SEP document SEP docu [SEP]    around each block what the template puts around a text

What is left of one batch of documents opens the next one, so no token is lost on the way; the shorter last block is
kept as well (the collator pads it) unless it holds nothing to predict. Blocks do not depend on the batch size, on the
number of processes, or on whether the data is streamed.

Tokenising and packing are cached apart: another `max_length` packs again without tokenising again. The cache keys are
made from the data's key and the tokenizer's full JSON.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerFast

from frankenlm.modeling.checks import check_choice

from ..common.objectives import OBJECTIVES
from .caching import DOCUMENTS_AT_ONCE, cache_key, cached_dataset, cached_map
from .tokenizers import separator_id, special_token_ids

# Raised by hand whenever the rows for the same documents change, so that older caches are not used.
PACKING_VERSION = 1

_IDS = List(Value("int32"))


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    packing: bool = True,
    objective: str,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Turn a dataset with a "text" column (and "label" for classification) into rows of int32 token ids.

    packing=True: `input_ids` of exactly `max_length` ids (the last row may be shorter).
    packing=False, and always for classification: one document a row, cut to `max_length`, with its `length`, and
        `labels` for classification. Documents without a token to predict are left out.

    A `Dataset` gives a `Dataset` cached below `cache_dir` (default: the datasets cache); an `IterableDataset` gives an
    `IterableDataset` of the same rows at constant memory. `num_proc` tokenises in that many processes; the tokenizer
    itself already uses all cores. Raises ValueError for an impossible `max_length` or `num_proc` and for data without
    any row.
    """
    check_choice("objective", objective, OBJECTIVES)
    check_sizes(tokenizer, max_length, num_proc)
    packing = packing and objective != "classification"
    options = {"objective": objective, "max_length": max_length}
    if isinstance(dataset, IterableDataset):
        if not packing:
            return _stream_rows(dataset, tokenizer, options)
        return _stream_blocks(dataset, tokenizer, options)
    if packing:
        rows = _packed(dataset, tokenizer, options, cache_dir, num_proc)
    else:
        features = _row_features(dataset, objective)
        key = ids_key(encode_rows.__name__, dataset, tokenizer, options)
        given = {"tokenizer": tokenizer, **options}
        rows = cached_map(dataset, encode_rows, given, features, cache_dir, key, num_proc)
    if not len(rows):
        raise ValueError("no document has a token to predict; is the text column the right one?")
    return rows


def check_sizes(tokenizer: PreTrainedTokenizerFast, max_length: int, num_proc: int | None) -> None:
    """Raises ValueError for an impossible `max_length` or `num_proc`."""
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"num_proc={num_proc} must be at least 1; leave it out for one process.")
    prefix, suffix = template_ids(tokenizer)
    smallest = len(prefix) + len(suffix) + 2  # a token to predict and one to predict it from
    if max_length < smallest:
        raise ValueError(f"max_length={max_length} is too short for this tokenizer; it needs at least {smallest}.")


# --- one document a row


def encode_rows(batch: dict[str, list], tokenizer: PreTrainedTokenizerFast, objective: str, max_length: int) -> dict:
    """Return `input_ids`, `length` (and `labels`) of a batch of documents, each cut to `max_length` ids."""
    rows = tokenizer(
        batch["text"],
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    if objective == "causal":
        end = separator_id(tokenizer, objective)
        rows = [row if row[-1:] == [end] else [*row, end][:max_length] for row in rows]
    markup = frozenset(special_token_ids(tokenizer))
    kept = [index for index, row in enumerate(rows) if _is_useful(row, objective, markup)]
    columns = {"input_ids": [rows[index] for index in kept], "length": [len(rows[index]) for index in kept]}
    if objective == "classification":
        columns["labels"] = [batch["label"][index] for index in kept]
    return columns


def _is_useful(row: Iterable[int], objective: str, markup: frozenset[int]) -> bool:
    if objective == "causal":
        return len(row) >= 2  # the first id is never predicted
    return objective == "classification" or any(int(token) not in markup for token in row)


def _row_features(dataset: Dataset | IterableDataset, objective: str) -> Features:
    features = Features({"input_ids": _IDS, "length": Value("int32")})
    if objective == "classification":
        if "label" not in dataset.column_names:
            raise ValueError("classification needs a label column; name it with label_column.")
        features["labels"] = dataset.features["label"]
    return features


def _stream_rows(dataset: IterableDataset, tokenizer: PreTrainedTokenizerFast, options: dict) -> IterableDataset:
    return dataset.map(
        encode_rows,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=dataset.column_names,
        features=_row_features(dataset, options["objective"]),
        fn_kwargs={"tokenizer": tokenizer, **options},
    )


# --- packed blocks


def encode_pieces(batch: dict[str, list], tokenizer: PreTrainedTokenizerFast, objective: str) -> dict:
    """Return `input_ids` of a batch of documents, each ready to be joined with the next one."""
    separator = separator_id(tokenizer, objective)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    # The fast variant leaves out offsets, which packing has no use for: up to twice the speed of tokenizer(...).
    encoded = backend.encode_batch_fast(batch["text"], add_special_tokens=objective == "causal")
    pieces = (encoding.ids for encoding in encoded)
    return {"input_ids": [piece if piece[-1:] == [separator] else [*piece, separator] for piece in pieces]}


def pack_blocks(
    pieces: Iterable[np.ndarray], max_length: int, prefix: list[int], suffix: list[int]
) -> Iterator[np.ndarray]:
    """Join 1-D arrays of ids and yield int32 blocks of `max_length`, then the shorter rest, if any.

    `prefix` and `suffix` stand around each block and are counted in `max_length`.
    """
    size = max_length - len(prefix) - len(suffix)
    head, tail = np.asarray(prefix, np.int32), np.asarray(suffix, np.int32)
    rest = np.empty(0, np.int32)
    for piece in pieces:
        rest = np.concatenate([rest, np.asarray(piece, np.int32)])
        full = len(rest) // size * size
        for block in rest[:full].reshape(-1, size):
            yield np.concatenate([head, block, tail])
        rest = rest[full:]
    if len(rest):
        yield np.concatenate([head, rest, tail])


def template_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the special ids the tokenizer puts before and after a text, as ([CLS], [SEP]) for BERT."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError("the tokenizer changes a text's ids when it adds its special tokens; it cannot be packed.")


def _blocks(pieces: Iterable[np.ndarray], tokenizer: PreTrainedTokenizerFast, objective: str, max_length: int):
    prefix, suffix = template_ids(tokenizer) if objective == "mlm" else ([], [])
    markup = frozenset(special_token_ids(tokenizer))
    for block in pack_blocks(pieces, max_length, prefix, suffix):
        # Only the last block, or one made of separators alone, can fail this.
        if _is_useful(block, objective, markup):
            yield {"input_ids": block}


def _blocks_of_dataset(tokens: Dataset, tokenizer: PreTrainedTokenizerFast, objective: str, max_length: int):
    yield from _blocks(_flat_ids(tokens), tokenizer, objective, max_length)


def _blocks_of_stream(dataset: IterableDataset, tokenizer: PreTrainedTokenizerFast, objective: str, max_length: int):
    batches = (encode_pieces(batch, tokenizer, objective)["input_ids"] for batch in dataset.iter(DOCUMENTS_AT_ONCE))
    yield from _blocks((np.concatenate(pieces) for pieces in batches), tokenizer, objective, max_length)


def _flat_ids(tokens: Dataset | IterableDataset) -> Iterator[np.ndarray]:
    """Yield the ids of many rows at once as one flat array, without a copy through Python lists."""
    for table in tokens.select_columns(["input_ids"]).with_format("arrow").iter(1000):
        yield pa.concat_arrays([chunk.flatten() for chunk in table["input_ids"].chunks]).to_numpy(zero_copy_only=False)


def _packed(dataset, tokenizer, options, cache_dir, num_proc) -> Dataset:
    features, objective = Features({"input_ids": _IDS}), {"objective": options["objective"]}
    key = ids_key(encode_pieces.__name__, dataset, tokenizer, objective)
    tokens = cached_map(
        dataset, encode_pieces, {"tokenizer": tokenizer, **objective}, features, cache_dir, key, num_proc
    )
    given = {"tokens": tokens, "tokenizer": tokenizer, **options}
    key = ids_key("pack_blocks", tokens, tokenizer, options)
    return cached_dataset(_blocks_of_dataset, given, Features({"input_ids": _IDS}), cache_dir, key)


def _stream_blocks(dataset: IterableDataset, tokenizer: PreTrainedTokenizerFast, options: dict) -> IterableDataset:
    return IterableDataset.from_generator(
        _blocks_of_stream,
        features=Features({"input_ids": _IDS}),
        gen_kwargs={"dataset": dataset, "tokenizer": tokenizer, **options},
    )


# --- caching


def ids_key(step: str, dataset: Dataset, tokenizer: PreTrainedTokenizerFast, options: dict) -> str:
    """Return the cache key of the ids that a tokenizer makes of a dataset in a step with `options`."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation")  # left over from the last call, and set anew at the next one
    backend.pop("padding")
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [dataset._fingerprint, backend, specials, tokenizer.truncation_side, options]
    return cache_key(PACKING_VERSION, step, *parts)
