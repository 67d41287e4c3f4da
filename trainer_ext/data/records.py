"""Records of conversations, as TRL's data sets have them, brought into one way of writing.

    messages            [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]
    prompt_completion   a prompt and its completion: two texts, or two lists of messages

`tools`, a list of what the model may call, may stand beside either. A record goes on as a JSON text that depends on
what it says alone: of every kind of file, with a message's keys in one order and without those that are null.

    .jsonl, .json, .parquet, hub    lists of objects; also a JSON text of them
    .csv, .tsv                      a JSON text; of a prompt and a completion, a text otherwise
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ..common.text_files import BadRowError, check_characters, parse_json

ANSWERS = "assistant"  # the role whose messages are learned
# What a record of each form must have, and what it may have beside: of the other form, so that a mix is seen.
_COLUMNS = {
    "messages": (("messages",), ("completion", "tools")),
    "prompt_completion": (("prompt", "completion"), ("messages", "tools")),
}
RECORD_FORMS = ("auto", "text", *_COLUMNS)


class RecordColumns(tuple[str, ...]):
    """The columns that a record of a form must have. beside: those that it may have."""

    beside: tuple[str, ...]

    def __new__(cls, form: str):
        needed, beside = _COLUMNS[form]
        columns = super().__new__(cls, needed)
        columns.beside = beside
        return columns

    def canonical(self, values: Mapping[str, Any], place: str) -> str:
        """Return the JSON text of the record that `values` holds.

        Raises:
            BadRowError: it is none that can be learned from.
        """
        for other in self.beside:
            if other != "tools" and values.get(other):
                raise BadRowError(
                    f"{place}: holds {' and '.join(map(repr, self))} and {other!r}: a record is either 'messages' or "
                    "'prompt' and 'completion'; leave one out."
                )
        if len(self) == 1:
            record: dict[str, Any] = {"messages": _messages(values["messages"], "messages", place)}
            _check_answered(record["messages"], "messages", place)
        else:
            record = _pair(values, place)
        if values.get("tools"):
            record["tools"] = _tools(values["tools"], place)
        text = json.dumps(record, ensure_ascii=False)
        check_characters(text, place)
        return text


def choose_form(asked: str, names: Collection[str] | None, text_column: str) -> str:
    """Return the form of records whose columns are `names` (None where there are none): texts where there is a text."""
    if asked != "auto":
        return asked
    if names is None or text_column in names:
        return "text"
    return next((form for form, (needed, _) in _COLUMNS.items() if set(needed) <= set(names)), "text")


def is_pair_of_texts(record: Mapping[str, Any]) -> bool:
    """Whether a record is a prompt and a completion that are texts, and no messages."""
    return isinstance(record.get("prompt"), str)


def contents(record: str) -> str:
    """Return what is said in a record, as one text: what a tokenizer is trained on."""
    said = json.loads(record)
    parts = said["messages"] if "messages" in said else [said["prompt"], said["completion"]]
    return "\n".join(_said(part) for part in parts)


def _said(part: str | dict | list) -> str:
    if isinstance(part, list):
        return "\n".join(map(_said, part))
    return part.get("content", "") if isinstance(part, dict) else part


def from_cells(values: dict[str, str]) -> dict[str, Any]:
    """Return the values of a .csv record, which are texts; where one spells a list of messages, that list."""
    return {name: _from_cell(text) for name, text in values.items()}


def _from_cell(text: str) -> Any:
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if is_message_list(value) else text


def is_message_list(value: Any) -> bool:
    """Whether a value is a list of messages, as far as its first one tells."""
    return is_list_of_objects(value) and isinstance(value[0], dict) and "role" in value[0]


def is_list_of_objects(value: Any) -> bool:
    """Whether a value is a list with an object in it."""
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _pair(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    prompt, completion = values["prompt"], values["completion"]
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, (str, list)):
            raise BadRowError(
                f"{place}: column {name!r} holds {kind_name(value)}, a text or a list of messages is expected."
            )
    if isinstance(prompt, str) != isinstance(completion, str):
        raise BadRowError(f"{place}: 'prompt' and 'completion' are a text and a list; both must be of one kind.")
    if isinstance(prompt, str):
        if not completion.strip():
            raise BadRowError(f"{place}: column 'completion' is blank; there is nothing to learn.")
        return {"prompt": prompt, "completion": completion}
    record = {name: _messages(values[name], name, place) for name in ("prompt", "completion")}
    _check_answered(record["completion"], "completion", place)
    return record


def _messages(value: Any, column: str, place: str) -> list[dict[str, Any]]:
    value = _parsed(value, column, place)
    if not value:
        raise BadRowError(f"{place}: column {column!r} is an empty list; a message is expected.")
    return [_message(item, f"{place}: message {number} of {column!r}") for number, item in enumerate(value, start=1)]


def _parsed(value: Any, column: str, place: str) -> list:
    if isinstance(value, str):
        value = parse_json(value, f"{place}: column {column!r}") if value.strip() else None
    if not isinstance(value, list):
        raise BadRowError(f"{place}: column {column!r} holds {kind_name(value)}, a list is expected.")
    return value


def _tools(value: Any, place: str) -> list[dict[str, Any]]:
    tools = _parsed(value, "tools", place)
    for tool in tools:
        if not isinstance(tool, dict):
            raise BadRowError(f"{place}: column 'tools' holds {kind_name(tool)}, objects are expected.")
    return _without_nulls(tools)


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRowError(f"{where} is {kind_name(value)}; an object with 'role' and 'content' is expected.")
    given = {name: item for name, item in value.items() if item is not None}
    role = given.pop("role", None)
    if not isinstance(role, str) or not role.strip():
        raise BadRowError(f"{where} has no role; it has: {', '.join(map(str, value)) or 'nothing'}.")
    content = _content(given.pop("content", None), where)
    if content is None and not given.get("tool_calls"):
        raise BadRowError(f"{where} ({role}) has no content, a text is expected.")
    said = {} if content is None else {"content": content}
    return {"role": role, **said, **{name: _without_nulls(given[name]) for name in sorted(given)}}


def _content(value: Any, where: str) -> str | None:
    """Return a message's text; of a list of parts, as multimodal data have it, the texts in one."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    raise BadRowError(f"{where} has a content that is no text but {kind_name(value)}.")


def _without_nulls(value: Any) -> Any:
    """Return a value without keys that are null: Parquet gives each object in a column the keys of all of them."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _check_answered(messages: list[dict[str, Any]], column: str, place: str) -> None:
    answers = [message for message in messages if message["role"] == ANSWERS]
    if not answers:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise BadRowError(f"{place}: no answer in {column!r}: none of its roles ({roles}) is {ANSWERS!r}.")
    for message in answers:
        if not message.get("content", "").strip() and not message.get("tool_calls"):
            raise BadRowError(f"{place}: an answer in {column!r} is blank; there is nothing to learn.")


def kind_name(value: Any) -> str:
    """What a value is, in a message."""
    return "nothing (null)" if value is None else type(value).__name__
