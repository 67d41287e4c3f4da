"""From conversations to rows of ids and labels: a conversation a row, with a label on the tokens of its answers alone.

An answer is what the chat template writes for an assistant's message, from behind the header that asks for it to the
token that ends it. It is found in the text of the whole conversation:

- where the template marks it, as {% generation %} ... {% endgeneration %}; an end token right behind the mark counts;
- elsewhere between the conversation up to it with the template's `add_generation_prompt`, and the one with it. Both
  must be beginnings of the whole; templates that write earlier turns in another way later on are refused.

Of a prompt and a completion that are texts, the completion is the answer; the tokenizer's end token is put behind it.
In every case the tokens up to a border must be those of the text up to there: else what is learned would not be what
the model is asked for, and the record is refused. (T tokens)
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from frankenlm.modeling.outputs import IGNORED_LABEL

from ..common.cli import one_line
from ..common.text_files import BadRowError
from .caching import cache_key, cached_map
from .packing import check_sizes, ids_key, template_ids
from .records import ANSWERS, is_pair_of_texts
from .skipping import WAY_OUT as SKIPPING
from .tokenizers import separator_id, special_token_ids

logger = logging.getLogger(__name__)

# Raised by hand whenever the rows for the same records change, so that older caches are not used.
CHAT_VERSION = 1

Spans = list[tuple[int, int]]

_IDS = List(Value("int32"))
_ROWS = Features({"input_ids": _IDS, "labels": _IDS, "length": Value("int32")})
_UNCUT = Features({**_ROWS, "answer_at": Value("int32")})
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ROWS_ASKED = 100
_NOWHERE = 2**31 - 1
# What a template, and the filters it calls, may raise for messages that it does not expect.
_REFUSALS = (TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError)
_WAY_OUT = (
    "Mark the answers in the template with {% generation %} ... {% endgeneration %} (--chat_template FILE), or take "
    "--chat_template plain."
)


def prepare_conversations(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    skip_bad_rows: bool = False,
    name: str = "the data",
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Turn conversations ("record" and "place", see `load_splits`) into rows `input_ids`, `labels`, `length`.

    `labels` are the ids of the answers, and -100 elsewhere. Rows are cut to `max_length` at their end; a row without a
    token of an answer left is left out, and one log line tells how many. Of a stream nobody knows how many.

    Args:
        tokenizer: with a chat template. name: of the data, for that line.
    Raises:
        BadRowError: a record that the template refuses, or whose answers cannot be told apart; with `skip_bad_rows` it
            is left out.
        ValueError: an impossible `max_length`, or no row at all.
    """
    check_sizes(tokenizer, max_length, num_proc)
    encoding = {"tokenizer": tokenizer, "skip_bad_rows": skip_bad_rows}
    cutting = {"max_length": max_length}
    if isinstance(dataset, IterableDataset):
        dropped = dataset.column_names
        encoded = dataset.map(
            encode_conversations, batched=True, remove_columns=dropped, features=_UNCUT, fn_kwargs=encoding
        )
        return encoded.map(cut_rows, batched=True, remove_columns=["answer_at"], features=_ROWS, fn_kwargs=cutting)
    shaping = {"template": tokenizer.chat_template, "splits": tokenizer.split_special_tokens, "skip": skip_bad_rows}
    key = ids_key(encode_conversations.__name__, dataset, tokenizer, {**shaping, "version": CHAT_VERSION})
    encoded = cached_map(dataset, encode_conversations, encoding, _UNCUT, cache_dir, key, num_proc)
    key = cache_key(cut_rows.__name__, key, max_length)
    rows = cached_map(encoded, cut_rows, cutting, _ROWS, cache_dir, key, num_proc)
    _tell(name, len(dataset), encoded, len(rows), max_length)
    return rows


def _tell(name: str, records: int, encoded: Dataset, rows: int, max_length: int) -> None:
    """Raises ValueError where nothing is left."""
    lengths = np.asarray(encoded.with_format("numpy")["length"][:])
    cut, left_out = int((lengths > max_length).sum()), len(encoded) - rows
    refused = f", {records - len(encoded)} bad ones left out (--skip_bad_rows)" if len(encoded) < records else ""
    text = f"{records} conversations, {cut} longer than --max_length {max_length} and cut"
    text += f", {left_out} left out: no token of an answer is left to predict{refused}" if left_out else refused
    if not rows:
        raise ValueError(f"{name}: {text}; nothing is left. Raise --max_length, or look at the records.")
    logger.info("%s: %s; one a row", name, text)


def usual_end(rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Return the special token that most answers of the first rows end with; None where they end with none."""
    special = frozenset(special_token_ids(tokenizer))
    ends: Counter[int] = Counter()
    for row in rows.take(_ROWS_ASKED):
        learned = [*row["labels"], IGNORED_LABEL]
        for position in range(1, len(learned)):
            if learned[position] == IGNORED_LABEL != learned[position - 1]:
                # a line end may stand behind it
                last = [token for token in learned[max(0, position - 2) : position] if token in special]
                ends.update(last[-1:])
    return ends.most_common(1)[0][0] if ends else None


# --- a record


def encode_conversations(
    batch: dict[str, list], tokenizer: PreTrainedTokenizerFast, skip_bad_rows: bool
) -> dict[str, list]:
    """Return `input_ids`, `labels`, `length` and the place of the first label of a batch of records."""
    columns: dict[str, list] = {name: [] for name in _UNCUT}
    for text, place in zip(batch["record"], batch["place"], strict=True):
        try:
            ids, labels = encode_record(json.loads(text), tokenizer, place)
        except BadRowError as error:
            if not skip_bad_rows:
                raise BadRowError(f"{error} {SKIPPING}") from error
            continue
        asked = (position for position, label in enumerate(labels) if position and label != IGNORED_LABEL)
        for name, value in zip(_UNCUT, (ids, labels, len(ids), next(asked, _NOWHERE)), strict=True):
            columns[name].append(value)
    return columns


def cut_rows(batch: dict[str, list], max_length: int) -> dict[str, list]:
    """Return the rows of a batch cut to `max_length`, without those that have no label left to predict."""
    kept = [index for index, position in enumerate(batch["answer_at"]) if position < max_length]
    columns = {name: [batch[name][index][:max_length] for index in kept] for name in ("input_ids", "labels")}
    return columns | {"length": [len(ids) for ids in columns["input_ids"]]}


def encode_record(record: dict, tokenizer: PreTrainedTokenizerFast, place: str) -> tuple[list[int], list[int]]:
    """Return ids and labels (T) of a record as records.py writes it.

    Raises:
        BadRowError: the template refuses it, or its answers cannot be told from the rest.
    """
    if is_pair_of_texts(record):
        ids, spans = _encode_pair(record["prompt"], record["completion"], tokenizer, place)
    elif tokenizer.chat_template is None:
        raise BadRowError(
            f"{place}: messages, where the first record has texts, need a template: --chat_template plain."
        )
    else:
        messages = record["messages"] if "messages" in record else record["prompt"] + record["completion"]
        first = len(record.get("prompt", ()))
        ids, spans = _encode_messages(messages, first, record.get("tools"), tokenizer, place)
    labels = [IGNORED_LABEL] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return ids, labels


def _encode_pair(
    prompt: str, completion: str, tokenizer: PreTrainedTokenizerFast, place: str
) -> tuple[list[int], Spans]:
    """Return the ids of two texts that follow one another, and where the second one stands, end token included."""
    before, _ = template_ids(tokenizer)
    asked, answer, whole = _plain(tokenizer, [prompt, completion, prompt + completion])
    if whole[: len(asked)] != asked:
        # A token reaches over the border. The model is given the prompt's own tokens and goes on from there.
        text, whole = tokenizer.decode(whole), asked + answer
        if tokenizer.decode(whole) != text:
            raise BadRowError(
                f"{place}: the tokenizer makes other tokens of the prompt where the completion follows it: let one of "
                "them end, or begin, with a line end."
            )
    end = separator_id(tokenizer, "causal")
    ids = before + whole + ([] if whole[-1:] == [end] else [end])
    return ids, [(len(before) + len(asked), len(ids))]


def _encode_messages(
    messages: list[dict], first: int, tools: list | None, tokenizer: PreTrainedTokenizerFast, place: str
) -> tuple[list[int], Spans]:
    """Return the ids of a conversation, and where its answers stand, of the messages from `first` on."""
    try:
        template = tokenizer.get_chat_template(None, tools)
        find = _marked if _MARK.search(template) else _between_beginnings
        text, spans = find(messages, first, tools, tokenizer, place)
    except BadRowError:
        raise
    except _REFUSALS as error:
        raise BadRowError(f"{place}: the chat template cannot write it: {one_line(error)}") from error
    borders = [border for span in spans for border in span]
    ids, *beginnings = _plain(tokenizer, [text, *(text[:border] for border in borders)])
    for border, beginning in zip(borders, beginnings, strict=True):
        if ids[: len(beginning)] != beginning:
            around = text[max(0, border - 20) : border], text[border : border + 20]
            raise BadRowError(
                f"{place}: a token reaches over the border of an answer, between {around[0]!r} and {around[1]!r}: let "
                "the chat template put a line end or a special token there, or take the space before an answer into "
                f"it. {_WAY_OUT}"
            )
    ends = [len(beginning) for beginning in beginnings]
    found = list(zip(ends[::2], ends[1::2], strict=True))
    return _with_ends(ids, found, tokenizer)


def _with_ends(ids: list[int], spans: Spans, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], Spans]:
    """Take the end token behind an answer into it, where the template's mark leaves it out; an answer that ends the
    conversation without any gets the tokenizer's.
    """
    special = frozenset(special_token_ids(tokenizer))
    found = []
    for start, end in spans:
        ended = not special.isdisjoint(ids[start:end])
        if not ended and end < len(ids) and ids[end] in special:
            end += 1
        elif not ended and end == len(ids):
            ids = [*ids, separator_id(tokenizer, "causal")]
            end += 1
        found.append((start, end))
    return ids, found


def _plain(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, with nothing put around them."""
    given = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(list(texts), verbose=False, **given)["input_ids"]


# --- where the answers stand in the text


def _marked(
    messages: list[dict], first: int, tools: list | None, tokenizer: PreTrainedTokenizerFast, place: str
) -> tuple[str, Spans]:
    """Return the text of a conversation, and the spans that the template marks, without those before `first`."""
    template = tokenizer.get_chat_template(None, tools)

    def render(part: list[dict]) -> tuple[str, Spans]:
        texts, spans = render_jinja_template(
            conversations=[part],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        return texts[0], [span for span in spans[0] if span[0] < span[1]]

    text, spans = render(messages)
    earlier = len(render(messages[:first])[1]) if _answers(messages[:first]) else 0
    spans = spans[earlier:]
    if len(spans) < len(_answers(messages[first:])):
        raise BadRowError(
            f"{place}: the chat template marks {len(spans)} of {len(_answers(messages[first:]))} answers."
        )
    return text, spans


def _between_beginnings(
    messages: list[dict], first: int, tools: list | None, tokenizer: PreTrainedTokenizerFast, place: str
) -> tuple[str, Spans]:
    """Return the text of a conversation, and what it gains with each answer."""

    def render(part: list[dict], asks: bool = False) -> str:
        return tokenizer.apply_chat_template(part, tools=tools, tokenize=False, add_generation_prompt=asks)

    text, spans = render(messages), []
    for index in range(first, len(messages)):
        if messages[index]["role"] != ANSWERS:
            continue
        asked = render(messages[:index], asks=True) if index else _header(render)
        answered = render(messages[: index + 1])
        if tokenizer.eos_token and not text.startswith(answered):
            answered = answered.removesuffix(tokenizer.eos_token)  # some templates write it behind the whole
        if not (text.startswith(answered) and answered.startswith(asked)):
            raise BadRowError(
                f"{place}: the chat template writes message {index + 1} or what is before it in another way when more "
                f"follows, so that its answers cannot be told from the rest. {_WAY_OUT}"
            )
        spans.append((len(asked), len(answered)))
    return text, spans


def _header(render) -> str:
    """Return what a template writes before an answer that nothing stands before."""
    question = [{"role": "user", "content": "?"}]
    return render(question, asks=True).removeprefix(render(question))


def _answers(messages: list[dict]) -> list[dict]:
    return [message for message in messages if message["role"] == ANSWERS]
