"""What a client may ask for: the fields of the two kinds of completions, read and checked.

The names are those of the OpenAI API, and of its wider dialects: top_k, min_p, typical_p, repetition_penalty and
no_repeat_ngram_size. Fields that only concern OpenAI's own books are ignored. Fields that would change the answer and
are not done here are refused by name, as are unknown ones.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from frankenlm.sharing.live.options import LARGEST_SEED, Options, check_answer_seed, check_stops
from frankenlm.trainer_ext.common.checks import suggest

from .errors import ApiError, bad_value

MOST_STOPS = 4
MOST_PROMPTS = 256
MOST_ANSWERS = 128  # of one prompt
LONGEST_SHOWN = 40  # characters of a client's value that an error repeats

SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
DIALECT = ("top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size")
COMMON = ("model", "n", "stream", "stream_options", "stop", "seed", "logit_bias", "max_tokens", *SAMPLING, *DIALECT)
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# field -> the one value besides null that asks for nothing
REFUSED_OF_COMPLETIONS: dict[str, Any] = {"suffix": "", "best_of": 1}
REFUSED_OF_CHAT: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "reasoning_effort": "none",
    "verbosity": None,
    "web_search_options": None,
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class CompletionRequest:
    """One request, checked as far as it can be without the model.

    prompts: texts or lists of token ids; of a chat none. messages: of a chat. max_tokens: None leaves it to the server.
    """

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    messages: tuple[dict[str, str], ...]
    options: Options
    stop: tuple[str, ...]
    seed: int
    n: int
    max_tokens: int | None
    echo: bool
    stream: bool
    with_usage: bool

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


def parse_body(body: bytes) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises:
        ApiError: it is none, whatever is wrong with it.
    """
    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(400, "the body is JSON nested too deep.") from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error.msg} at character {error.pos}.") from None
    except ValueError as error:  # NaN and Infinity; numbers of thousands of digits
        raise ApiError(400, f"the body is not valid JSON: {_short(str(error))}.") from None
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body must be a JSON object, not {_kind(fields)}.")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_completion(fields: Mapping[str, Any]) -> CompletionRequest:
    """Read the body of /v1/completions.

    Raises:
        ApiError, BadOption: naming the field that is wrong.
    """
    known = (*COMMON, "prompt", "logprobs", "echo")
    given = _known_fields(fields, known, REFUSED_OF_COMPLETIONS)
    return _request(
        given,
        prompts=_prompts(given.get("prompt", "")),
        messages=(),
        logprobs=_whole(given, "logprobs", None),
        max_tokens=_whole(given, "max_tokens", None),
        echo=_flag(given, "echo"),
    )


def read_chat(fields: Mapping[str, Any]) -> CompletionRequest:
    """Read the body of /v1/chat/completions.

    Raises:
        ApiError, BadOption: naming the field that is wrong.
    """
    known = (*COMMON, "messages", "logprobs", "top_logprobs", "max_completion_tokens")
    given = _known_fields(fields, known, REFUSED_OF_CHAT)
    alternatives = _whole(given, "top_logprobs", None)
    wanted = _flag(given, "logprobs")
    if alternatives is not None and not wanted:
        raise bad_value("top_logprobs", "top_logprobs: needs logprobs to be true.")
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise bad_value("max_tokens", "max_tokens and max_completion_tokens mean the same: give one of them.")
    return _request(
        given,
        prompts=(),
        messages=_messages(given.get("messages")),
        logprobs=(alternatives or 0) if wanted else None,
        max_tokens=_whole(given, "max_tokens", _whole(given, "max_completion_tokens", None)),
        echo=False,
    )


def _known_fields(fields: Mapping[str, Any], known: tuple[str, ...], refused: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something: null is as if it were not there."""
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given:
        if name in refused and given[name] != refused[name]:
            raise bad_value(name, f"{name}: is not done by this server; leave it out.", "unsupported_parameter")
        if name not in known and name not in IGNORED and name not in refused:
            near = suggest(name[:LONGEST_SHOWN], known)
            raise bad_value(_short(name), f"unknown field {ascii(_short(name))}.{near}", "unknown_parameter")
    return {name: value for name, value in given.items() if name in known}


def _request(
    given: Mapping[str, Any],
    *,
    prompts: tuple[str | tuple[int, ...], ...],
    messages: tuple[dict[str, str], ...],
    logprobs: int | None,
    max_tokens: int | None,
    echo: bool,
) -> CompletionRequest:
    least = 0 if echo else 1
    if max_tokens is not None and max_tokens < least:
        raise bad_value("max_tokens", f"max_tokens {_short(max_tokens)}: must be at least {least}.")
    n = _whole(given, "n", 1)
    if not 1 <= n <= MOST_ANSWERS:
        raise bad_value("n", f"n {_short(n)}: must lie between 1 and {MOST_ANSWERS}.")
    stop = _stops(given.get("stop", []))
    check_stops(stop)
    seed = _whole(given, "seed", secrets.randbelow(LARGEST_SEED))
    check_answer_seed(seed)
    stream = _flag(given, "stream")
    options = Options(
        **{name: given[name] for name in (*SAMPLING, *DIALECT) if name in given},
        logit_bias=_bias(given.get("logit_bias", {})),
        logprobs=logprobs,
    )
    return CompletionRequest(
        model=_typed(given, "model", str, "a text"),
        prompts=prompts,
        messages=messages,
        options=options.check(),
        stop=stop,
        seed=seed,
        n=n,
        max_tokens=max_tokens,
        echo=echo,
        stream=stream,
        with_usage=_with_usage(given.get("stream_options", {}), stream),
    )


# --- single fields


def _typed(given: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    if name not in given:
        raise bad_value(name, f"{name}: is missing.", "missing_required_parameter")
    if not isinstance(given[name], kind):
        raise bad_value(name, f"{name}: must be {words}, not {_kind(given[name])}.")
    return given[name]


def _whole(given: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = given.get(name, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise bad_value(name, f"{name}: must be a whole number, not {_kind(value)}.")
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise bad_value(name, f"{name}: must be true or false, not {_kind(value)}.")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise bad_value("stop", "stop: must be a text or a list of texts.")
    if len(stops) > MOST_STOPS:
        raise bad_value("stop", f"stop: {len(stops)} texts; give at most {MOST_STOPS}.")
    return tuple(stops)


def _bias(value: Any) -> dict[int, float]:
    message = 'logit_bias: must be an object of token ids and numbers, such as {"50256": -100}.'
    if not isinstance(value, dict):
        raise bad_value("logit_bias", message)
    for token, bias in value.items():
        is_id = token.isascii() and token.isdecimal() and len(token) <= 10
        if not is_id or isinstance(bias, bool) or not isinstance(bias, (int, float)):
            raise bad_value("logit_bias", message)
    return {int(token): bias for token, bias in value.items()}


def _with_usage(value: Any, stream: bool) -> bool:
    if not isinstance(value, dict):
        raise bad_value("stream_options", "stream_options: must be an object.")
    if value and not stream:
        raise bad_value("stream_options", "stream_options: needs stream to be true.")
    unknown = value.keys() - {"include_usage", "include_obfuscation"}
    if unknown:
        raise bad_value("stream_options", f"stream_options: unknown field {ascii(_short(min(unknown)))}.")
    return _flag(value, "include_usage")


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    message = "prompt: must be a text, a list of texts, a list of token ids, or a list of such lists."
    if not isinstance(value, list) or not value:
        raise bad_value("prompt", message)
    if _all(value, _is_token):
        return (tuple(value),)
    if not (_all(value, lambda each: isinstance(each, str)) or _all(value, _are_tokens)):
        raise bad_value("prompt", message)
    if len(value) > MOST_PROMPTS:
        raise bad_value("prompt", f"prompt: {len(value):,} prompts; give at most {MOST_PROMPTS} in a request.")
    return tuple(each if isinstance(each, str) else tuple(each) for each in value)


def _all(values: list[Any], holds: Callable[[Any], bool]) -> bool:
    return all(holds(each) for each in values)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _all(value, _is_token)


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise bad_value("messages", "messages: must be a list of at least one message.")
    return tuple(_message(each, f"messages[{place}]") for place, each in enumerate(value))


def _message(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise bad_value(place, f"{place}: must be an object with role and content.")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        near = suggest(role[:LONGEST_SHOWN], ROLES) if isinstance(role, str) else ""
        raise bad_value(f"{place}.role", f"{place}.role: must be one of {', '.join(ROLES)}.{near}")
    for name in value.keys() - {"role", "content", "name", "refusal", "annotations"}:
        if value[name] is not None:
            raise bad_value(f"{place}.{_short(name)}", f"{place}: {ascii(_short(name))} is not done by this server.")
    return {"role": ROLES[role], "content": _content(value.get("content"), f"{place}.content")}


def _content(value: Any, place: str) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise bad_value(place, f"{place}: must be a text or a list of parts.")
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise bad_value(place, f'{place}: only parts {{"type": "text", "text": ...}} are read by this server.')
    return "".join(part["text"] for part in value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number with a fraction" if isinstance(value, float) else "a number")


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**30:
        return "of more than 30 digits"
    text = str(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
