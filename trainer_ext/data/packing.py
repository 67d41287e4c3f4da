"""From documents to rows of token ids: packed into full blocks, or one document a row.

Packed documents stay apart: each is what it would be in a row of its own, `seq_lengths` tells how long each is (as in
TRL), and the collator tells the model. One that does not fit into what is left of its block goes on in the next:

    causal  bos document eos | bos docu                 eos at the front where there is no bos: it is what a first token
                                                        is predicted from, and what evaluation puts before a text
    mlm     [CLS] document [SEP] | [CLS] docu [SEP]     each piece with what the template puts around a text

The rows of joint training, and of any other of a model of two directions, are those of causal training.

Without borders, blocks are cut from one long text, and the model reads over the ends of documents:

    causal  [bos] document eos [bos] document eos ...   bos only where the tokenizer's own template has it
    mlm     [CLS] document SEP document SEP docu [SEP]  the template around each block

How blocks are filled is in blocks.py. Blocks without anything to predict are left out; they do not depend on the batch
size, on the number of processes, or on whether the data is streamed.

Tokenising and packing are cached apart: another `max_length` packs again without tokenising again. The cache keys are
made from the data's key and the tokenizer's full JSON.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerFast

from frankenlm.modeling.checks import check_choice

from ..common.objectives import OBJECTIVES
from .blocks import pack_blocks, pack_documents
from .caching import DOCUMENTS_AT_ONCE, cache_key, cached_dataset, cached_map
from .tokenizers import begin_id, separator_id, special_token_ids

# Raised by hand whenever the rows for the same documents change, so that older caches are not used.
PACKING_VERSION = 3

_IDS = List(Value("int32"))
_JOINED = Features({"input_ids": _IDS})
_APART = Features({"input_ids": _IDS, "seq_lengths": _IDS})


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    packing: bool = True,
    document_borders: bool = True,
    objective: str,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Turn a dataset with a "text" column (and "label" for classification) into rows of int32 token ids.

    packing=True: `input_ids` of `max_length` ids, and `seq_lengths`, the length of each document in the row; where
        the template of a masked model leaves no room for one more token, a row is a few ids shorter, and the last may
        be short. With document_borders=False, rows of joined documents, without `seq_lengths`.
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
    packed = {**options, "apart": document_borders}
    if isinstance(dataset, IterableDataset):
        if not packing:
            return _stream_rows(dataset, tokenizer, options)
        return _stream_blocks(dataset, tokenizer, packed)
    if packing:
        rows = _packed(dataset, tokenizer, packed, cache_dir, num_proc)
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
    if OBJECTIVES[objective].continues:
        end = separator_id(tokenizer, objective)
        begin = begin_ids(tokenizer)
        rows = [[*begin, *row] for row in rows]
        rows = [(row if row[-1:] == [end] else [*row, end])[:max_length] for row in rows]
    markup = frozenset(special_token_ids(tokenizer))
    kept = [index for index, row in enumerate(rows) if _is_useful(row, objective, markup)]
    columns = {"input_ids": [rows[index] for index in kept], "length": [len(rows[index]) for index in kept]}
    if objective == "classification":
        columns["labels"] = [batch["label"][index] for index in kept]
    return columns


def _is_useful(row: Iterable[int], objective: str, markup: frozenset[int]) -> bool:
    if OBJECTIVES[objective].continues:
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
    encoded = backend.encode_batch_fast(batch["text"], add_special_tokens=OBJECTIVES[objective].continues)
    pieces = (encoding.ids for encoding in encoded)
    return {"input_ids": [piece if piece[-1:] == [separator] else [*piece, separator] for piece in pieces]}


def template_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the special ids the tokenizer puts before and after a text, as ([CLS], [SEP]) for BERT."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError("the tokenizer changes a text's ids when it adds its special tokens; it cannot be packed.")


def begin_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return what has to be put before a text that a causal model reads by itself: nothing where the template does."""
    prefix, begin = template_ids(tokenizer)[0], begin_id(tokenizer)
    return [] if prefix or begin is None else [begin]


def _blocks(
    pieces: Iterable[np.ndarray], tokenizer: PreTrainedTokenizerFast, objective: str, max_length: int, apart: bool
) -> Iterator[dict]:
    """Yield rows of pieces: documents with their separators, one an array where they stay apart."""
    prefix, suffix = template_ids(tokenizer) if objective == "mlm" else ([], [])
    markup = frozenset(special_token_ids(tokenizer))
    if not apart:
        for block in pack_blocks(pieces, max_length, prefix, suffix):
            # Only the last block, or one made of separators alone, can fail this.
            if _is_useful(block, objective, markup):
                yield {"input_ids": block}
        return
    if objective == "mlm":
        pieces = (piece[:-1] for piece in pieces)  # what ends a text is the template's to say
    elif begin := begin_ids(tokenizer):
        pieces = (np.concatenate([begin, piece]) for piece in pieces)
    for block, lengths in pack_documents(pieces, max_length, prefix, suffix):
        if _is_useful(block, objective, markup) and (objective == "mlm" or max(lengths) >= 2):
            yield {"input_ids": block, "seq_lengths": lengths}


def _blocks_of_dataset(
    tokens: Dataset, tokenizer: PreTrainedTokenizerFast, objective: str, **options
) -> Iterator[dict]:
    yield from _blocks(_pieces(tokens, options["apart"]), tokenizer, objective, **options)


def _blocks_of_stream(
    dataset: IterableDataset, tokenizer: PreTrainedTokenizerFast, objective: str, **options
) -> Iterator[dict]:
    batches = (encode_pieces(batch, tokenizer, objective)["input_ids"] for batch in dataset.iter(DOCUMENTS_AT_ONCE))
    pieces = (np.asarray(piece, np.int32) for pieces in batches for piece in pieces)
    yield from _blocks(pieces, tokenizer, objective, **options)


def _pieces(tokens: Dataset, apart: bool) -> Iterator[np.ndarray]:
    """Yield the ids of each row, or those of many rows as one flat array, without a copy through Python lists."""
    for table in tokens.select_columns(["input_ids"]).with_format("arrow").iter(1000):
        for chunk in table["input_ids"].chunks:
            ids = chunk.flatten().to_numpy(zero_copy_only=False)
            if apart:
                yield from np.split(ids, chunk.value_lengths().to_numpy().cumsum()[:-1])
            else:
                yield ids


def _packed(dataset, tokenizer, options, cache_dir, num_proc) -> Dataset:
    objective = {"objective": options["objective"]}
    key = ids_key(encode_pieces.__name__, dataset, tokenizer, objective)
    tokens = cached_map(
        dataset, encode_pieces, {"tokenizer": tokenizer, **objective}, _JOINED, cache_dir, key, num_proc
    )
    given = {"tokens": tokens, "tokenizer": tokenizer, **options}
    key = ids_key("pack_blocks", tokens, tokenizer, options)
    return cached_dataset(_blocks_of_dataset, given, _features(options), cache_dir, key)


def _stream_blocks(dataset: IterableDataset, tokenizer: PreTrainedTokenizerFast, options: dict) -> IterableDataset:
    return IterableDataset.from_generator(
        _blocks_of_stream,
        features=_features(options),
        gen_kwargs={"dataset": dataset, "tokenizer": tokenizer, **options},
    )


def _features(options: dict) -> Features:
    return _APART if options["apart"] else _JOINED


# --- caching


def ids_key(step: str, dataset: Dataset, tokenizer: PreTrainedTokenizerFast, options: dict) -> str:
    """Return the cache key of the ids that a tokenizer makes of a dataset in a step with `options`."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation")  # left over from the last call, and set anew at the next one
    backend.pop("padding")
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [dataset._fingerprint, backend, specials, tokenizer.truncation_side, options]
    return cache_key(PACKING_VERSION, step, *parts)
